internal import Foundation

/// A report as tables for programs that draw and reckon: text with commas, a header line, a row per line.
///
/// Where a tool of the field has a table of its own, names of columns, units and order are that tool's:
///
/// - `scaling/NAME.csv` with `scaling/NAME.title`, as will-it-scale has them, one pair per case;
///   points in the name are `-`, since its scripts take what stands before the first one.
///   Processes are not measured: -1, as will-it-scale writes where nothing was measured.
/// - `allocators/bulk.csv`, `repeat.csv`, `rand.csv`, as LLFree's `bench` writes them: memory in GiB, init
///   and total in ms, everything else in ns.
///
/// The rest is ours: `cases.csv` (as in the JSON object), `samples.csv` (a line per case and round),
/// `contention.csv`, `latency.csv`, `latency-bins.csv`, `backings.csv`, `kvm.csv`, `skipped.csv`, in ns
/// and bytes unless the column says otherwise. A table without rows is not made.
public struct BenchmarkTables {
  /// A file of the tables.
  public struct File: Hashable, Sendable {
    /// The path below the tables' folder.
    public var path: String
    /// The text.
    public var text: String
  }

  private let report: BenchmarkReport

  /// The tables of a report.
  public init(_ report: BenchmarkReport) { self.report = report }

  /// All files.
  public var files: [File] {
    var files = table("cases.csv", BenchmarkTables.caseColumns, report.cases.map(row))
    files += table("samples.csv", "name,unit,round,value,limit", sampleRows)
    guard let measured = report.measurements else { return files }
    files += table(
      "contention.csv", "threads,pages,layout,ns,limit_ns,pairs_per_second",
      measured.contention.map {
        [
          "\($0.threads)", "\($0.pages)", $0.layout, number($0.nanoseconds),
          number($0.limitNanoseconds), number($0.pairsPerSecond),
        ]
      })
    files += latencyFiles(measured) + scalingFiles(measured) + allocatorFiles(measured)
    files += table(
      "backings.csv", "backing,bytes,fault_ns,page_bytes,random_read_ns,release_ns",
      measured.backings.map {
        [
          $0.backing, "\($0.byteCount)", number($0.faultNanoseconds), "\($0.pageByteCount)",
          number($0.randomReadNanoseconds), number($0.releaseNanoseconds),
        ]
      })
    files += table(
      "kvm.csv", "name,unit,value,model,bytes",
      measured.kvm.map {
        [$0.name, $0.unit, number($0.value), number($0.model), "\($0.byteCount)"]
      })
    files += table(
      "skipped.csv", "name,reason", measured.skipped.map { [$0.name, $0.reason] })
    return files
  }

  // MARK: cases

  private static let caseColumns =
    "name,unit,value,limit,ratio,bar,bar_kind,met,goal,goal_kind,goal_distance,goal_met,threads,runs,min,max,reason"

  private func row(_ item: BenchmarkResult) -> [String] {
    [
      item.name, item.unit, number(item.value), number(item.limit), number(item.ratio),
      number(item.bar), item.barKind.rawValue, "\(item.met)", number(item.goal),
      item.goalKind?.rawValue ?? "", number(item.goalDistance), item.goalMet.map { "\($0)" } ?? "",
      "\(item.threads)", "\(item.runs)", number(item.min), number(item.max), item.reason ?? "",
    ]
  }

  private var sampleRows: [[String]] {
    report.cases.flatMap { item in
      item.samples.indices.map { round in
        let limit = round < item.limitSamples.count ? item.limitSamples[round] : nil
        return [item.name, item.unit, "\(round)", number(item.samples[round]), number(limit)]
      }
    }
  }

  // MARK: measurements

  private func latencyFiles(_ measured: BenchmarkMeasurements) -> [File] {
    let summaries = measured.latency.map { item in
      [item.name, "\(item.count)", number(item.mean)]
        + [item.p50, item.p90, item.p99, item.p999, item.p9999, item.max].map { "\($0)" }
    }
    let bins = measured.latency.flatMap { item in
      item.bins.map { [item.name, "\($0.upTo)", "\($0.count)"] }
    }
    return table("latency.csv", "name,count,mean,p50,p90,p99,p999,p9999,max", summaries)
      + table("latency-bins.csv", "name,up_to,count", bins)
  }

  private func scalingFiles(_ measured: BenchmarkMeasurements) -> [File] {
    measured.scaling.map(\.name).unique.flatMap { name in
      let points = measured.scaling.filter { $0.name == name }.sorted { $0.threads < $1.threads }
      // What n threads would do if each did what one does, from the smallest number measured.
      let alone = points.first.map { $0.operationsPerSecond / Double(max(1, $0.threads)) } ?? 0
      let rows = points.map { point in
        [
          "\(point.threads)", "-1", "100.00", whole(point.operationsPerSecond),
          String(format: "%.2f", point.idlePercent), whole(alone * Double(point.threads)),
        ]
      }
      let base = "scaling/\(BenchmarkTables.fileName(name))"
      return [
        file(
          "\(base).csv", "tasks,processes,processes_idle,threads,threads_idle,linear",
          [["0", "0", "100", "0", "100", "0"]] + rows),
        File(path: "\(base).title", text: name.filter { !$0.isNewline } + "\n"),
      ]
    }
  }

  private func allocatorFiles(_ measured: BenchmarkMeasurements) -> [File] {
    measured.allocators.map(\.benchmark).unique.map { benchmark in
      let rows = measured.allocators.filter { $0.benchmark == benchmark }.map { item in
        [
          item.allocator, "\(item.threads)", "\(item.order)", "\(item.iteration)",
          number(Double(item.memory) / Double(1 << 30)),
        ]
          + [
            item.getMin, item.getAverage, item.getMax, item.putMin, item.putAverage, item.putMax,
          ].map { "\($0)" }
          + [
            number(Double(item.initialization) / 1e6), number(Double(item.total) / 1e6),
            "\(item.allocations)",
          ]
      }
      return file(
        "allocators/\(BenchmarkTables.fileName(benchmark)).csv",
        "alloc,x,order,iteration,memory,get_min,get_avg,get_max,put_min,put_avg,put_max,init,total,allocs",
        rows)
    }
  }

  // MARK: text

  private func table(_ path: String, _ columns: String, _ rows: [[String]]) -> [File] {
    rows.isEmpty ? [] : [file(path, columns, rows)]
  }

  private func file(_ path: String, _ columns: String, _ rows: [[String]]) -> File {
    let lines = rows.map { $0.map(BenchmarkTables.quoted).joined(separator: ",") }
    return File(path: path, text: ([columns] + lines).map { $0 + "\n" }.joined())
  }

  /// The cell as RFC 4180 wants it: in quotation marks where it has commas, quotation marks or line ends.
  static func quoted(_ cell: String) -> String {
    guard cell.contains(where: { $0 == "," || $0 == "\"" || $0.isNewline }) else { return cell }
    return "\"" + cell.replacing("\"", with: "\"\"") + "\""
  }

  /// A name that is one part of a path and has no point.
  static func fileName(_ name: String) -> String {
    let text = String(
      name.map { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") ? $0 : "-" })
    return text.isEmpty ? "-" : text
  }

  /// All digits that tell the number from its neighbours; empty for none.
  private func number(_ value: Double?) -> String {
    guard let value else { return "" }
    return value == value.rounded() && abs(value) < 1e15 ? whole(value) : "\(value)"
  }

  private func whole(_ value: Double) -> String { String(format: "%.0f", value) }
}

extension [String] {
  /// Each text once, in the order of first appearance.
  var unique: [String] {
    var seen: Set<String> = []
    return filter { seen.insert($0).inserted }
  }
}
