internal import Foundation

/// Distributions of times, one below the other over the same logarithmic axis.
///
/// The height is logarithmic too: one operation in a million is what the tail is about, and would be
/// nothing beside the rest.
struct HistogramPlot {
  var label: String
  var items: [BenchmarkMeasurements.Latency]

  private static let left = 170.0
  private static let width = 560.0
  private static let rowHeight = 58.0
  private static let top = 24.0
  /// Columns for a doubling of the time.
  private static let columns = 4.0

  /// The drawing.
  var svg: String {
    let times = items.flatMap { $0.bins.map { max(1, Double($0.upTo)) } }
    let axis = PlotAxis(
      .logarithmic, holding: times, from: HistogramPlot.left,
      to: HistogramPlot.left + HistogramPlot.width)
    let bottom = HistogramPlot.top + Double(items.count) * HistogramPlot.rowHeight
    var parts: [String] = []
    for value in axis.ticks {
      let x = axis.place(value)
      parts.append(Markup.line((x, HistogramPlot.top), (x, bottom), "rule"))
      parts.append(
        Markup.text(PlotNumber.time(value), x, HistogramPlot.top - 8, "tick", anchor: "middle"))
    }
    for (index, item) in items.enumerated() {
      let base = HistogramPlot.top + Double(index + 1) * HistogramPlot.rowHeight - 6
      parts.append(
        Markup.text(item.name, HistogramPlot.left - 10, base - 4, "name", anchor: "end"))
      parts.append(row(item, axis, base, index % 8))
      parts.append(
        Markup.line(
          (HistogramPlot.left, base), (HistogramPlot.left + HistogramPlot.width, base), "base"))
      for (name, value) in [("p50", item.p50), ("p99", item.p99), ("p99.9", item.p999)] {
        let x = axis.place(Double(max(1, value)))
        parts.append(
          "<g>\(Markup.line((x, base), (x, base + 5), "base"))<title>\(name): \(value) ns</title></g>"
        )
      }
    }
    return Markup.drawing(
      HistogramPlot.left + HistogramPlot.width + 20, bottom + 6, label, parts)
  }

  /// One distribution: columns of equal width on the axis, as high as the logarithm of their part.
  private func row(
    _ item: BenchmarkMeasurements.Latency, _ axis: PlotAxis, _ base: Double, _ color: Int
  ) -> String {
    var counts: [Int: Int] = [:]
    for bin in item.bins where bin.count > 0 {
      let column = Int(floor(log2(max(1, Double(bin.upTo))) * HistogramPlot.columns))
      counts[column, default: 0] += bin.count
    }
    let total = Double(max(1, counts.values.reduce(0, +)))
    // A single operation still shows: one half of a power of ten above the floor.
    let floorPart = log10(1 / total) - 0.5
    let path = counts.sorted { $0.key < $1.key }.map { column, count in
      let left = axis.place(pow(2, Double(column) / HistogramPlot.columns))
      let right = axis.place(pow(2, Double(column + 1) / HistogramPlot.columns))
      let part = (log10(Double(count) / total) - floorPart) / -floorPart
      let high = base - max(0, part) * (HistogramPlot.rowHeight - 14)
      return
        "M\(Markup.place(left)) \(Markup.place(base))V\(Markup.place(high))H\(Markup.place(right))V\(Markup.place(base))Z"
    }.joined()
    return "<path class=\"area s\(color)\" d=\"\(path)\"/>"
  }
}
