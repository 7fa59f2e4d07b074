internal import PMUnits

/// Text in columns.
enum Table {
  /// `text` filled up with blanks to `width`; longer text stays whole.
  static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  /// Cells in columns of these widths, one blank between them.
  static func row(_ cells: [String], widths: [Int]) -> String {
    zip(cells, widths).map { padded($0, $1) }.joined(separator: " ")
  }

  /// Numbers as ranges: `0-3, 8`.
  static func ranges(_ numbers: [Int], radix: Int = 10) -> String {
    var parts: [ClosedRange<Int>] = []
    for number in numbers.sorted() {
      if let last = parts.last, number <= last.upperBound + 1 {
        parts[parts.count - 1] = last.lowerBound...max(last.upperBound, number)
      } else {
        parts.append(number...number)
      }
    }
    return parts.map { part in
      let (first, last) = (
        String(part.lowerBound, radix: radix), String(part.upperBound, radix: radix)
      )
      return first == last ? first : "\(first)-\(last)"
    }.joined(separator: ", ")
  }

  /// A size with one digit after the point, as people say it: `23.2 GiB`.
  static func size(_ size: ByteCount) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
    where size.rawValue >> UInt64(shift) > 0 {
      let value = Double(size.rawValue) / Double(UInt64(1) << UInt64(shift))
      return "\(Decimals.text(value, value == value.rounded() ? 0 : 1)) \(unit)"
    }
    return "\(size.rawValue) B"
  }
}
