/// Takes a line of a trace apart: fields separated by one blank, `key=value` fields among them.
struct TraceScanner {
  let bytes: UnsafeBufferPointer<UInt8>
  private(set) var position = 0

  init(_ bytes: UnsafeBufferPointer<UInt8>) { self.bytes = bytes }

  var isAtEnd: Bool { position >= bytes.count }

  /// The next field as a range of the line.
  mutating func field() throws(LineError) -> Range<Int> {
    guard position < bytes.count else { throw LineError("the line ends early") }
    let start = position
    while position < bytes.count, bytes[position] != 32 { position += 1 }
    let range = start..<position
    guard !range.isEmpty else { throw LineError("two blanks in a row at column \(start + 1)") }
    if position < bytes.count {
      position += 1
      if position == bytes.count { throw LineError("a blank ends the line") }
    }
    return range
  }

  func text(_ range: Range<Int>) -> String {
    String(decoding: bytes[range], as: UTF8.self)
  }

  /// The text for a message: a foreign file's field may be as long as the file.
  func shown(_ range: Range<Int>) -> String {
    let cut = range.prefix(60)
    return text(cut) + (cut.count < range.count ? "…" : "")
  }

  func equals(_ range: Range<Int>, _ word: StaticString) -> Bool {
    guard range.count == word.utf8CodeUnitCount else { return false }
    for offset in 0..<range.count where bytes[range.lowerBound + offset] != word.utf8Start[offset] {
      return false
    }
    return true
  }

  /// Takes the next field, which has to be this word.
  mutating func expect(_ word: StaticString) throws(LineError) {
    let range = try field()
    guard equals(range, word) else {
      throw LineError("found '\(shown(range))': expected '\(word)'")
    }
  }

  /// The value of the next field, whose key has to be this one.
  mutating func value(_ key: StaticString) throws(LineError) -> Range<Int> {
    let range = try field()
    let length = key.utf8CodeUnitCount
    guard range.count > length, bytes[range.lowerBound + length] == UInt8(ascii: "="),
      equals(range.lowerBound..<(range.lowerBound + length), key)
    else { throw LineError("found '\(shown(range))': expected '\(key)='") }
    return (range.lowerBound + length + 1)..<range.upperBound
  }

  /// Nothing may follow.
  func expectEnd() throws(LineError) {
    guard isAtEnd else { throw LineError("unexpected text at column \(position + 1)") }
  }

  // MARK: numbers

  // Numbers are read as they are written: no leading zeros, so that every byte counts.

  func decimal(_ range: Range<Int>) throws(LineError) -> Int {
    var cursor = range.lowerBound
    let isNegative = cursor < range.upperBound && bytes[cursor] == UInt8(ascii: "-")
    if isNegative { cursor += 1 }
    let digits = range.upperBound - cursor
    guard digits > 0 else { throw bad(range, "a decimal number") }
    guard digits <= 18 else { throw bad(range, "a decimal number of at most 18 digits") }
    if bytes[cursor] == 48, digits > 1 || isNegative {
      throw bad(range, "a decimal number without leading zeros")
    }
    var value = 0
    while cursor < range.upperBound {
      let digit = bytes[cursor] &- 48
      guard digit < 10 else { throw bad(range, "a decimal number") }
      value = value &* 10 &+ Int(digit)
      cursor += 1
    }
    return isNegative ? -value : value
  }

  func hexadecimal(_ range: Range<Int>) throws(LineError) -> UInt64 {
    guard !range.isEmpty else { throw bad(range, "a hexadecimal number") }
    guard range.count <= 16 else { throw bad(range, "a hexadecimal number of at most 16 digits") }
    if bytes[range.lowerBound] == 48, range.count > 1 {
      throw bad(range, "a hexadecimal number without leading zeros")
    }
    var value: UInt64 = 0
    for cursor in range {
      let byte = bytes[cursor]
      let digit: UInt8
      switch byte {
      case 48...57: digit = byte &- 48
      case 97...102: digit = byte &- 87
      default: throw bad(range, "a hexadecimal number in lower case")
      }
      value = value << 4 | UInt64(digit)
    }
    return value
  }

  func prefixedHexadecimal(_ range: Range<Int>) throws(LineError) -> UInt64 {
    guard range.count > 2, bytes[range.lowerBound] == 48,
      bytes[range.lowerBound + 1] == UInt8(ascii: "x")
    else { throw bad(range, "a hexadecimal number with 0x") }
    return try hexadecimal((range.lowerBound + 2)..<range.upperBound)
  }

  func pfn(_ range: Range<Int>) throws(LineError) -> UInt32 {
    let value = try hexadecimal(range)
    guard value <= 0x7fff_ffff else {
      throw LineError("PFN \(shown(range)): expected at most 7fffffff")
    }
    return UInt32(value)
  }

  mutating func decimal(_ key: StaticString) throws(LineError) -> Int {
    try decimal(value(key))
  }

  /// A decimal within limits.
  mutating func decimal(_ key: StaticString, _ limits: ClosedRange<Int>) throws(LineError) -> Int {
    let range = try value(key)
    let value = try decimal(range)
    guard limits.contains(value) else {
      throw LineError(
        "\(key)=\(shown(range)): expected \(limits.lowerBound) to \(limits.upperBound)")
    }
    return value
  }

  mutating func pfn(_ key: StaticString) throws(LineError) -> UInt32 { try pfn(value(key)) }

  private func bad(_ range: Range<Int>, _ kind: String) -> LineError {
    LineError("found '\(shown(range))': expected \(kind)")
  }

  // MARK: parts

  /// The parts of a range between separators, one after the other and without an array.
  struct Parts: Sequence, IteratorProtocol {
    let bytes: UnsafeBufferPointer<UInt8>
    let separator: UInt8
    /// What is left; nil after the last part, which may be empty.
    var rest: Range<Int>?

    mutating func next() -> Range<Int>? {
      guard let range = rest else { return nil }
      for cursor in range where bytes[cursor] == separator {
        rest = (cursor + 1)..<range.upperBound
        return range.lowerBound..<cursor
      }
      rest = nil
      return range
    }
  }

  func parts(_ range: Range<Int>, separator: UInt8) -> Parts {
    Parts(bytes: bytes, separator: separator, rest: range)
  }

  /// Splits at the first separator; nil where there is none.
  func split(_ range: Range<Int>, at separator: UInt8) -> (Range<Int>, Range<Int>)? {
    for cursor in range where bytes[cursor] == separator {
      return (range.lowerBound..<cursor, (cursor + 1)..<range.upperBound)
    }
    return nil
  }
}
