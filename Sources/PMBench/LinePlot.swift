/// A plot of lines over a common axis.
struct LinePlot {
  /// A line.
  struct Series {
    var name: String
    var points: [(x: Double, y: Double)]
    /// One of the colours, from 0.
    var color = 0
    /// Whether it is what others are measured by: dashed, without dots.
    var isReference = false
    /// What a pointer that rests on a point sees.
    var titles: [String] = []
  }

  var label: String
  var series: [Series]
  var xSpread = PlotAxis.Spread.linear
  var ySpread = PlotAxis.Spread.linear
  var xLabel: String
  var width = 300.0
  var height = 210.0
  var xTick: (Double) -> String = PlotNumber.short
  var yTick: (Double) -> String = PlotNumber.short

  private static let left = 58.0
  private static let top = 26.0
  private static let bottom = 40.0

  /// The drawing.
  var svg: String {
    let points = series.flatMap(\.points)
    let (right, low) = (width - 14, height - LinePlot.bottom)
    let xAxis = PlotAxis(xSpread, holding: points.map(\.x), from: LinePlot.left, to: right)
    let yAxis = PlotAxis(ySpread, holding: points.map(\.y), from: low, to: LinePlot.top, room: 0.08)
    var parts = [Markup.text(label, LinePlot.left, 14, "name")]
    for value in yAxis.ticks {
      let y = yAxis.place(value)
      parts.append(Markup.line((LinePlot.left, y), (right, y), "rule"))
      parts.append(Markup.text(yTick(value), LinePlot.left - 7, y + 4, "tick", anchor: "end"))
    }
    for value in xTicks(xAxis) {
      let x = xAxis.place(value)
      parts.append(Markup.line((x, low), (x, low + 4), "rule"))
      parts.append(Markup.text(xTick(value), x, low + 17, "tick", anchor: "middle"))
    }
    parts.append(
      Markup.text(xLabel, (LinePlot.left + right) / 2, height - 6, "tick", anchor: "middle"))
    for item in series {
      let places = item.points.map { (xAxis.place($0.x), yAxis.place($0.y)) }
      let path = places.enumerated().map { index, place in
        "\(index == 0 ? "M" : "L")\(Markup.place(place.0)) \(Markup.place(place.1))"
      }.joined()
      let kind = item.isReference ? "limit" : "line"
      parts.append("<path class=\"\(kind) s\(item.color)\" d=\"\(path)\"/>")
      guard !item.isReference else { continue }
      for (index, place) in places.enumerated() {
        let title =
          index < item.titles.count
          ? "<title>\(Markup.escaped(item.titles[index]))</title>" : ""
        parts.append(
          "<circle class=\"dot s\(item.color)\" cx=\"\(Markup.place(place.0))\" cy=\"\(Markup.place(place.1))\" r=\"3\">\(title)</circle>"
        )
      }
    }
    return Markup.drawing(width, height, label, parts)
  }

  /// The values that were measured where they are few, else round ones.
  private func xTicks(_ axis: PlotAxis) -> [Double] {
    let measured = Set(series.filter { !$0.isReference }.flatMap { $0.points.map(\.x) }).sorted()
    return measured.count <= 8 ? measured : axis.ticks
  }
}
