internal import Foundation

extension BenchmarkPage {
  /// A section for everything that was measured beside the cases.
  var measurementSections: [String] {
    guard let measured = report.measurements else { return [] }
    return [
      contention(measured.contention), scaling(measured.scaling), latency(measured.latency),
      allocators(measured.allocators), backings(measured.backings), kvm(measured.kvm),
      skipped(measured.skipped),
    ]
  }

  /// Names beside the colours of lines.
  private func legend(_ names: [String], dashed: String? = nil) -> String {
    func key(_ kind: String) -> String {
      "<svg class=\"key\" xmlns=\"http://www.w3.org/2000/svg\" width=\"22\" height=\"10\" aria-hidden=\"true\"><path class=\"\(kind)\" d=\"M0 5H22\"/></svg>"
    }
    let keys = names.enumerated().map {
      "\(key("line s\($0.offset % 8)"))\(Markup.escaped($0.element))"
    }
    let reference = dashed.map { "\(key("limit s7"))\(Markup.escaped($0))" } ?? ""
    return "<p class=\"legend\">\(keys.joined(separator: " ")) \(reference)</p>"
  }

  private func contention(_ points: [BenchmarkMeasurements.Contention]) -> String {
    guard !points.isEmpty else { return "" }
    let threads = Set(points.map(\.threads)).sorted()
    let plots = points.map(\.layout).unique.map { layout in
      let series = threads.enumerated().flatMap { color, count -> [LinePlot.Series] in
        let line = points.filter { $0.layout == layout && $0.threads == count }
          .sorted { $0.pages < $1.pages }
        guard !line.isEmpty else { return [] }
        return [
          LinePlot.Series(
            name: "limit", points: line.map { (Double($0.pages), $0.limitNanoseconds) },
            color: color % 8, isReference: true),
          LinePlot.Series(
            name: "\(count)", points: line.map { (Double($0.pages), $0.nanoseconds) },
            color: color % 8,
            titles: line.map {
              "\(count) threads, \($0.pages) pages: \(PlotNumber.digits($0.nanoseconds)) ns, in C \(PlotNumber.digits($0.limitNanoseconds)) ns, \(PlotNumber.short($0.pairsPerSecond)) pairs/s in all"
            }),
        ]
      }
      return LinePlot(
        label: "counts \(layout): ns per pair", series: series, xSpread: .logarithmic,
        ySpread: .logarithmic, xLabel: "pages shared", width: 420, height: 260
      ).svg
    }
    let rows = points.map {
      [
        $0.layout, "\($0.threads)", "\($0.pages)", PlotNumber.digits($0.nanoseconds),
        PlotNumber.digits($0.limitNanoseconds),
        PlotNumber.digits($0.nanoseconds / $0.limitNanoseconds),
        PlotNumber.short($0.pairsPerSecond),
      ]
    }
    return """
      <h2>Contention</h2>
      <p>Every thread gets and puts over the same pages: what a pair takes each thread.</p>
      \(legend(threads.map { $0 == 1 ? "1 thread" : "\($0) threads" }, dashed: "the same in plain C"))
      <div class="many">
      \(plots.joined(separator: "\n"))
      </div>
      <details><summary>All points</summary>
      \(Markup.table(["layout", "threads", "pages", "ns", "in C, ns", "ratio", "pairs/s"], rows))
      </details>
      """
  }

  private func scaling(_ points: [BenchmarkMeasurements.Scaling]) -> String {
    guard !points.isEmpty else { return "" }
    let plots = points.map(\.name).unique.map { name in
      let line = points.filter { $0.name == name }.sorted { $0.threads < $1.threads }
      let alone = line.first.map { $0.operationsPerSecond / Double(max(1, $0.threads)) } ?? 0
      return LinePlot(
        label: name,
        series: [
          LinePlot.Series(
            name: "linear",
            points: [(0, 0)] + line.map { (Double($0.threads), alone * Double($0.threads)) },
            color: 7, isReference: true),
          LinePlot.Series(
            name: name, points: line.map { (Double($0.threads), $0.operationsPerSecond) },
            titles: line.map {
              "\($0.threads) threads: \(PlotNumber.short($0.operationsPerSecond)) operations/s, \(PlotNumber.digits($0.idlePercent)) % idle"
            }),
        ], xLabel: "threads"
      ).svg
    }
    let rows = points.map {
      [
        $0.name, "\($0.threads)", PlotNumber.short($0.operationsPerSecond),
        PlotNumber.digits($0.idlePercent),
      ]
    }
    return """
      <h2>Scaling</h2>
      <p>Operations of all threads a second. Dashed: as many times what one thread does.</p>
      <div class="many">
      \(plots.joined(separator: "\n"))
      </div>
      <details><summary>All points</summary>
      \(Markup.table(["case", "threads", "operations/s", "idle, %"], rows))
      </details>
      """
  }

  private func latency(_ items: [BenchmarkMeasurements.Latency]) -> String {
    guard !items.isEmpty else { return "" }
    let rows = items.map { item in
      [item.name, "\(item.count)", PlotNumber.digits(item.mean)]
        + [item.p50, item.p90, item.p99, item.p999, item.p9999, item.max].map { "\($0)" }
    }
    let plot = HistogramPlot(label: "Distributions of single operations", items: items)
    return """
      <h2>Single operations</h2>
      <p>How the time of single operations is spread, the clock's own cost included. Both axes are \
      logarithmic: a single slow operation still shows. The strokes below are the 50 %, 99 % and 99.9 % \
      points.</p>
      \(plot.svg)
      \(Markup.table(["ns", "operations", "mean", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "largest"], rows))
      """
  }

  private func allocators(_ items: [BenchmarkMeasurements.Allocator]) -> String {
    guard !items.isEmpty else { return "" }
    struct Panel: Hashable {
      var benchmark: String
      var order: Int
    }
    var panels: [Panel] = []
    for item in items {
      let panel = Panel(benchmark: item.benchmark, order: item.order)
      if !panels.contains(panel) { panels.append(panel) }
    }
    let plots = panels.map { panel in
      let shown = items.filter { $0.benchmark == panel.benchmark && $0.order == panel.order }
      var rows: [DotPlot.Row] = []
      for (color, name) in items.map(\.allocator).unique.enumerated() {
        for threads in Set(shown.filter { $0.allocator == name }.map(\.threads)).sorted() {
          let runs = shown.filter { $0.allocator == name && $0.threads == threads }
          let get = runs.map { Double($0.getAverage) }.median
          let put = runs.map { Double($0.putAverage) }.median
          let label = threads == 1 ? name : "\(name), \(threads) threads"
          rows.append(
            BenchmarkPage.allocatorRow(label, get: get, put: put, color: color % 8))
        }
      }
      let title = "\(panel.benchmark), order \(panel.order)"
      let plot = DotPlot(
        label: title, rows: rows, labelWidth: 150, plotWidth: 230, noteWidth: 125,
        tick: PlotNumber.time)
      return "<figure><figcaption>\(Markup.escaped(title))</figcaption>\(plot.svg)</figure>"
    }
    return """
      <h2>Beside other allocators</h2>
      <p>Buffers in the manner of LLFree's bench. Filled: getting one; hollow: putting one; where both \
      alternate, filled is a pair. Medians of the repetitions' means.</p>
      <div class="many">
      \(plots.joined(separator: "\n"))
      </div>
      """
  }

  /// Getting and putting of one allocator; no putting where it is part of getting.
  private static func allocatorRow(
    _ label: String, get: Double, put: Double, color: Int
  ) -> DotPlot.Row {
    let first = DotPlot.Value(
      value: max(get, 1), mark: .dot, color: color,
      title: "\(put > 0 ? "get" : "pair"): \(PlotNumber.time(get))")
    guard put > 0 else {
      return DotPlot.Row(label: label, values: [first], note: "\(PlotNumber.time(get)) a pair")
    }
    let second = DotPlot.Value(
      value: put, mark: .ring, color: color, title: "put: \(PlotNumber.time(put))")
    return DotPlot.Row(
      label: label, values: [first, second],
      note: "\(PlotNumber.time(get)) · \(PlotNumber.time(put))")
  }

  private func backings(_ items: [BenchmarkMeasurements.Backing]) -> String {
    guard !items.isEmpty else { return "" }
    func plot(_ title: String, _ value: (BenchmarkMeasurements.Backing) -> Double) -> String {
      let rows = items.enumerated().map { index, item in
        DotPlot.Row(
          label: item.backing,
          values: [
            .init(
              value: value(item), mark: .dot,
              title: "\(item.backing): \(PlotNumber.time(value(item)))")
          ], note: PlotNumber.time(value(item)))
      }
      let plot = DotPlot(
        label: title, rows: rows, labelWidth: 180, plotWidth: 220, noteWidth: 80,
        tick: PlotNumber.time)
      return "<figure><figcaption>\(Markup.escaped(title))</figcaption>\(plot.svg)</figure>"
    }
    let rows = items.map {
      [
        $0.backing, PlotNumber.bytes($0.byteCount), PlotNumber.bytes($0.pageByteCount),
        PlotNumber.digits($0.faultNanoseconds), PlotNumber.digits($0.randomReadNanoseconds),
        PlotNumber.digits($0.releaseNanoseconds),
      ]
    }
    return """
      <h2>What memory costs</h2>
      <p>First touch and giving back count per 4 KiB, however much one fault brings.</p>
      <div class="many">
      \(plot("first touch, per 4 KiB") { $0.faultNanoseconds })
      \(plot("read at a random place") { $0.randomReadNanoseconds })
      \(plot("giving back, per 4 KiB") { $0.releaseNanoseconds })
      </div>
      \(Markup.table(
        ["backing", "measured", "a fault brings", "first touch, ns", "random read, ns",
         "giving back, ns"], rows))
      """
  }

  private func kvm(_ items: [BenchmarkMeasurements.KVMCost]) -> String {
    guard !items.isEmpty else { return "" }
    let rows = items.map { item in
      [
        item.name, PlotNumber.bytes(item.byteCount), PlotNumber.digits(item.value),
        item.model.map(PlotNumber.digits) ?? "–", item.unit,
        item.model.map { $0 > 0 ? PlotNumber.digits(item.value / $0) : "–" } ?? "–",
      ]
    }
    return """
      <h2>The real KVM</h2>
      <p>What this machine's KVM takes, beside the model's own time for the same.</p>
      \(Markup.table(
        ["operation", "memory", "KVM", "model", "unit", "KVM over model"], rows,
        textColumns: [0, 4]))
      """
  }

  private func skipped(_ items: [BenchmarkMeasurements.Skip]) -> String {
    guard !items.isEmpty else { return "" }
    return """
      <h2>Not measured</h2>
      <ul>
      \(items.map { "<li>\(Markup.escaped($0.name)): \(Markup.escaped($0.reason))</li>" }.joined(separator: "\n"))
      </ul>
      """
  }
}
