internal import Foundation

/// A scale of a plot: from values to places in the drawing.
struct PlotAxis {
  /// How values are spread.
  enum Spread { case linear, logarithmic }

  let spread: Spread
  /// The values at the ends.
  let values: ClosedRange<Double>
  /// The places of the ends; the second may be smaller (upwards).
  let start: Double
  let end: Double

  /// An axis that holds these values with a little room. A logarithmic one leaves out what is not above 0.
  init(
    _ spread: Spread, holding values: [Double], from start: Double, to end: Double,
    room: Double = 0.04
  ) {
    self.spread = spread
    self.start = start
    self.end = end
    switch spread {
    case .linear:
      let top = max(values.filter(\.isFinite).max() ?? 0, 0)
      self.values = 0...(top > 0 ? top * (1 + room) : 1)
    case .logarithmic:
      let usable = values.filter { $0 > 0 && $0.isFinite }
      let (low, high) = (usable.min() ?? 1, usable.max() ?? 1)
      // One value, or values close together, still get an axis with ticks.
      let factor = max(pow(high / low, room), low * 1.5 > high ? 1.5 : 1.02)
      self.values = (low / factor)...(high * factor)
    }
  }

  /// The place of a value; beyond the ends it is that of the end.
  func place(_ value: Double) -> Double {
    let (low, high) = (values.lowerBound, values.upperBound)
    let inside = min(max(value, low), high)
    let part =
      spread == .linear
      ? (inside - low) / (high - low) : log(inside / low) / log(high / low)
    return start + part * (end - start)
  }

  /// Round values between the ends, so many that their labels do not touch.
  var ticks: [Double] { spread == .linear ? linearTicks : logarithmicTicks }

  private var most: Int { min(8, max(2, Int(abs(end - start) / 52))) }

  private var linearTicks: [Double] {
    let rough = values.upperBound / 5
    let power = pow(10, floor(log10(rough)))
    let step = ([1, 2, 5, 10].first { $0 * power >= rough } ?? 10) * power
    return stride(from: 0, through: values.upperBound, by: step).map(\.self)
  }

  private var logarithmicTicks: [Double] {
    let powers = Int(floor(log10(values.lowerBound)))...Int(ceil(log10(values.upperBound)))
    // Few powers of ten get steps between them, many not even each of themselves.
    for steps in [[1.0, 1.5, 2, 3, 5, 7], [1.0, 2, 5], [1.0, 3], [1.0]] {
      let ticks = powers.flatMap { power in steps.map { $0 * pow(10, Double(power)) } }
        .filter(values.contains)
      if ticks.count <= most || steps.count == 1 {
        let every = max(1, (ticks.count + most - 1) / most)
        return ticks.enumerated().filter { $0.offset % every == 0 }.map(\.element)
      }
    }
    return []
  }
}

/// Numbers as labels have them.
enum PlotNumber {
  /// Three digits that count, as `0.0123`, `1.5`, `12.3k`.
  static func short(_ value: Double) -> String {
    guard value != 0 else { return "0" }
    for (unit, size) in [("G", 1e9), ("M", 1e6), ("k", 1e4)] where abs(value) >= size {
      return digits(value / (unit == "k" ? 1e3 : size)) + unit
    }
    return digits(value)
  }

  /// Nanoseconds in the unit that fits: `12 ns`, `1.5 µs`, `3 ms`.
  static func time(_ nanoseconds: Double) -> String {
    for (unit, size) in [("s", 1e9), ("ms", 1e6), ("µs", 1e3)] where nanoseconds >= size {
      return "\(digits(nanoseconds / size)) \(unit)"
    }
    return "\(digits(nanoseconds)) ns"
  }

  /// Bytes in the unit that fits.
  static func bytes(_ count: UInt64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] as [(String, UInt64)]
    where count >> shift > 0 {
      return "\(digits(Double(count) / Double(UInt64(1) << shift))) \(unit)"
    }
    return "\(count) B"
  }

  /// Three digits that count, no zeros at the end.
  static func digits(_ value: Double) -> String {
    guard value.isFinite else { return "–" }
    let size = abs(value) > 0 ? Int(floor(log10(abs(value)))) : 0
    let text = String(format: "%.\(max(0, min(6, 2 - size)))f", value)
    guard text.contains(".") else { return text }
    let short = text.reversed().drop { $0 == "0" }.drop { $0 == "." }
    return String(short.reversed())
  }
}

/// Text of HTML and SVG that is XML too.
enum Markup {
  /// `text` with what has a meaning in XML written as entities, and without what XML has no place for.
  static func escaped(_ text: String) -> String {
    text.unicodeScalars.reduce(into: "") { result, scalar in
      switch scalar {
      case "&": result += "&amp;"
      case "<": result += "&lt;"
      case ">": result += "&gt;"
      case "\"": result += "&quot;"
      case "'": result += "&#39;"
      case "\n", "\t": result.unicodeScalars.append(scalar)
      case "\u{0}"..."\u{1f}", "\u{7f}"..."\u{9f}", "\u{fffe}", "\u{ffff}":
        result.unicodeScalars.append("\u{fffd}")
      default: result.unicodeScalars.append(scalar)
      }
    }
  }

  /// A place in a drawing, to a tenth.
  static func place(_ value: Double) -> String { String(format: "%.1f", value) }

  /// A straight line.
  static func line(
    _ from: (Double, Double), _ to: (Double, Double), _ kind: String
  ) -> String {
    "<line class=\"\(kind)\" x1=\"\(place(from.0))\" y1=\"\(place(from.1))\""
      + " x2=\"\(place(to.0))\" y2=\"\(place(to.1))\"/>"
  }

  /// A text; `anchor` is `start`, `middle` or `end`.
  static func text(
    _ text: String, _ x: Double, _ y: Double, _ kind: String = "", anchor: String = "start"
  ) -> String {
    "<text class=\"\(kind)\" x=\"\(place(x))\" y=\"\(place(y))\" text-anchor=\"\(anchor)\">"
      + "\(escaped(text))</text>"
  }

  /// A drawing of this size, with a name for those who cannot see it.
  static func drawing(_ width: Double, _ height: Double, _ label: String, _ parts: [String])
    -> String
  {
    let (width, height) = (place(width), place(height))
    return """
      <svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="\(escaped(label))" \
      width="\(width)" height="\(height)" viewBox="0 0 \(width) \(height)">
      \(parts.joined(separator: "\n"))
      </svg>
      """
  }

  /// A table; the first column is text, the others numbers, unless `textColumns` names them.
  static func table(_ head: [String], _ rows: [[String]], textColumns: Set<Int> = [0]) -> String {
    func cells(_ texts: [String], _ tag: String) -> String {
      texts.enumerated().map { index, text in
        let kind = textColumns.contains(index) ? "" : " class=\"number\""
        return "<\(tag)\(kind)>\(escaped(text))</\(tag)>"
      }.joined()
    }
    let body = rows.map { "<tr>\(cells($0, "td"))</tr>" }
    return """
      <div class="wide"><table>
      <thead><tr>\(cells(head, "th"))</tr></thead>
      <tbody>
      \(body.joined(separator: "\n"))
      </tbody></table></div>
      """
  }
}
