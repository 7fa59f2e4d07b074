/// A plot with a name per row and its values as marks on one axis.
struct DotPlot {
  /// What a value looks like.
  enum Mark: String {
    /// A filled dot, for what was measured.
    case dot
    /// A hollow dot, for a second value.
    case ring
    /// A cross, for a value that fails.
    case cross
    /// A strong upright stroke: a bar.
    case stroke
    /// A triangle on the row's upper edge: a goal.
    case triangle
  }

  /// A value with its mark.
  struct Value {
    var value: Double
    var mark: Mark
    /// One of the colours, from 0.
    var color = 0
    /// What a pointer that rests on it sees.
    var title = ""
  }

  /// A row.
  struct Row {
    var label: String
    var values: [Value]
    /// From the smallest to the largest measured.
    var range: ClosedRange<Double>?
    /// A text at the right end.
    var note = ""
  }

  var label: String
  var rows: [Row]
  var spread = PlotAxis.Spread.logarithmic
  /// A value that gets a line through all rows.
  var reference: Double?
  var labelWidth = 205.0
  var plotWidth = 440.0
  var noteWidth = 190.0
  /// How a tick's value is written.
  var tick: (Double) -> String = PlotNumber.short

  private static let rowHeight = 22.0
  private static let top = 24.0

  /// The drawing.
  var svg: String {
    let axis = axis
    let bottom = DotPlot.top + Double(rows.count) * DotPlot.rowHeight
    var parts: [String] = []
    for value in axis.ticks {
      let x = axis.place(value)
      parts.append(Markup.line((x, DotPlot.top), (x, bottom), "rule"))
      parts.append(Markup.text(tick(value), x, DotPlot.top - 8, "tick", anchor: "middle"))
    }
    if let reference {
      let x = axis.place(reference)
      parts.append(Markup.line((x, DotPlot.top), (x, bottom), "reference"))
    }
    for (index, row) in rows.enumerated() {
      let y = DotPlot.top + (Double(index) + 0.5) * DotPlot.rowHeight
      parts.append(Markup.text(row.label, labelWidth - 10, y + 4, "name", anchor: "end"))
      if let range = row.range {
        parts.append(
          Markup.line(
            (axis.place(range.lowerBound), y), (axis.place(range.upperBound), y),
            "range s\(row.values.first?.color ?? 0)"))
      }
      for value in row.values where value.value > 0 || spread == .linear {
        parts.append(DotPlot.drawn(value, axis.place(value.value), y))
      }
      parts.append(Markup.text(row.note, labelWidth + plotWidth + 12, y + 4, "note"))
    }
    return Markup.drawing(labelWidth + plotWidth + noteWidth, bottom + 6, label, parts)
  }

  /// An axis for the values. Ranges widen it a little only: one wild round would leave no room for the
  /// rest, and its line ends at the edge.
  private var axis: PlotAxis {
    let values = rows.flatMap { $0.values.map(\.value) } + (reference.map { [$0] } ?? [])
    var held = values
    let usable = values.filter { $0 > 0 }
    if let low = usable.min(), let high = usable.max() {
      for range in rows.compactMap(\.range) {
        held += [max(range.lowerBound, low / 1.5), min(range.upperBound, high * 1.5)]
      }
    }
    return PlotAxis(spread, holding: held, from: labelWidth, to: labelWidth + plotWidth)
  }

  private static func drawn(_ value: Value, _ x: Double, _ y: Double) -> String {
    let title = value.title.isEmpty ? "" : "<title>\(Markup.escaped(value.title))</title>"
    let kind = "\(value.mark.rawValue) s\(value.color)"
    func path(_ data: String) -> String {
      "<path class=\"\(kind)\" d=\"\(data)\">\(title)</path>"
    }
    let (left, right) = (Markup.place(x - 4), Markup.place(x + 4))
    switch value.mark {
    case .dot, .ring:
      return
        "<circle class=\"\(kind)\" cx=\"\(Markup.place(x))\" cy=\"\(Markup.place(y))\" r=\"4\">\(title)</circle>"
    case .cross:
      let (up, down) = (Markup.place(y - 4), Markup.place(y + 4))
      return path("M\(left) \(up)L\(right) \(down)M\(left) \(down)L\(right) \(up)")
    case .stroke:
      return path("M\(Markup.place(x)) \(Markup.place(y - 8))V\(Markup.place(y + 8))")
    case .triangle:
      let up = Markup.place(y - 9)
      return path("M\(left) \(up)L\(right) \(up)L\(Markup.place(x)) \(Markup.place(y - 3))Z")
    }
  }
}
