internal import PMBench
internal import PMUnits

/// What `physmem bench` prints for people.
enum BenchText {
  // MARK: cases

  /// The names of the columns.
  static let heading =
    column("case", 28)
    + columns(["value", "unit", "limit", "ratio", "bar", "goal", "min", "max"]) + "  met"

  /// The line of a case.
  static func row(_ result: BenchmarkResult) -> String {
    guard let value = result.value else {
      return column(result.name, 28) + "  not run: \(result.reason ?? "")"
    }
    let sign = result.barKind == .atLeast ? "≥" : "≤"
    return column(result.name, 28)
      + columns([
        number(value), result.unit, number(result.limit), number(result.ratio),
        sign + number(result.bar), goal(result), number(result.min), number(result.max),
      ]) + (result.met ? "  yes" : "  NO")
  }

  private static func number(_ value: Double?) -> String {
    value.map { Decimals.text($0, 2) } ?? "-"
  }

  /// The goal as the bar is written; with its unit where it is not compared with the same.
  private static func goal(_ result: BenchmarkResult) -> String {
    guard let goal = result.goal, let kind = result.goalKind else { return "-" }
    let text = (kind == .atLeast ? "≥" : "≤") + Decimals.text(goal, 2)
    return kind == result.barKind || kind == .ratio ? text : text + result.unit
  }

  private static func columns(_ texts: [String]) -> String {
    texts.map { String(repeating: " ", count: max(1, 10 - $0.count)) + $0 }.joined()
  }

  private static func column(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
  }

  // MARK: measurements

  /// What was measured beside the cases, a table each.
  static func measurements(_ measured: BenchmarkMeasurements) -> String {
    func number(_ value: Double, _ digits: Int = 1) -> String { Decimals.text(value, digits) }
    func size(_ bytes: UInt64) -> String { Table.size(ByteCount(bytes)) }
    var parts: [String] = []
    parts += table(
      "contention", ["layout", "threads", "pages", "ns", "limit", "Mpairs/s"],
      measured.contention.map {
        [
          $0.layout, "\($0.threads)", "\($0.pages)", number($0.nanoseconds),
          number($0.limitNanoseconds), number($0.pairsPerSecond / 1e6),
        ]
      })
    parts += table(
      "latency, ns", ["operation", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"],
      measured.latency.map { item in
        [item.name, number(item.mean)]
          + [item.p50, item.p90, item.p99, item.p999, item.p9999, item.max].map { "\($0)" }
      })
    parts += table(
      "scaling", ["case", "threads", "Mops/s", "idle %"],
      measured.scaling.map {
        [$0.name, "\($0.threads)", number($0.operationsPerSecond / 1e6, 2), number($0.idlePercent)]
      })
    parts += table(
      "allocators, ns", ["allocator", "bench", "threads", "order", "iteration", "get", "put"],
      measured.allocators.map {
        [
          $0.allocator, $0.benchmark, "\($0.threads)", "\($0.order)", "\($0.iteration)",
          "\($0.getAverage)", "\($0.putAverage)",
        ]
      })
    parts += table(
      "backings, ns",
      ["backing", "size", "first touch/4K", "fault brings", "random read", "release/4K"],
      measured.backings.map {
        [
          $0.backing, size($0.byteCount), number($0.faultNanoseconds), size($0.pageByteCount),
          number($0.randomReadNanoseconds), number($0.releaseNanoseconds),
        ]
      })
    parts += table(
      "kvm", ["operation", "memory", "KVM", "model", "unit"],
      measured.kvm.map {
        [
          $0.name, size($0.byteCount), number($0.value), $0.model.map { number($0) } ?? "-",
          $0.unit,
        ]
      })
    parts += measured.skipped.map { "not measured: \($0.name): \($0.reason)" }
    return parts.joined(separator: "\n")
  }

  /// A title, the names of the columns and the rows, columns as wide as they need to be; nothing without rows.
  static func table(_ title: String, _ head: [String], _ rows: [[String]]) -> [String] {
    guard !rows.isEmpty else { return [] }
    let widths = head.indices.map { column in
      ([head] + rows).map { $0[column].count }.max() ?? 0
    }
    let lines = ([head] + rows).map { cells in
      let padded = zip(cells, widths).enumerated().map { index, cell in
        // Names to the left, numbers to the right.
        index == 0
          ? Table.padded(cell.0, cell.1)
          : String(repeating: " ", count: cell.1 - cell.0.count) + cell.0
      }
      return "  " + padded.joined(separator: "  ")
    }
    return ["", title] + lines
  }
}
