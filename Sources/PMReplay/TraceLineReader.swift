internal import CZlib
internal import Foundation

/// Reads a text file line by line, plain or gzip compressed, in constant memory.
final class TraceLineReader {
  let path: String
  /// The number of the line that was returned last, from 1.
  private(set) var lineNumber = 0
  private var file: gzFile?
  private var buffer = [UInt8](repeating: 0, count: 1 << 17)
  private var start = 0
  private var end = 0
  private var isAtEnd = false

  /// Longer lines than this are not part of the format; the longest of real traces have some 100 KiB.
  static let longestLine = 1 << 26

  init(path: String) throws(TraceError) {
    self.path = path
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
      throw .noInput(file: path, reason: "no such file")
    }
    guard !isDirectory.boolValue else {
      throw .noInput(file: path, reason: "is a directory: expected a trace, plain or gzip")
    }
    file = gzopen(path, "rb")
    guard file != nil else {
      throw .noInput(file: path, reason: "cannot be opened: \(String(cString: strerror(errno)))")
    }
    gzbuffer(file, 1 << 17)
  }

  deinit { if let file { gzclose(file) } }

  /// Calls `body` with the next line without its end, or returns nil at the end of the file. The
  /// bytes are valid during the call only.
  func withNextLine<Result>(
    _ body: (UnsafeBufferPointer<UInt8>) throws(TraceError) -> Result
  ) throws(TraceError) -> Result? {
    var scanned = start
    while true {
      if let newline = newline(from: scanned) {
        lineNumber += 1
        let range = start..<newline
        start = newline + 1
        return try call(range, body)
      }
      scanned = end
      if isAtEnd {
        guard start < end else { return nil }
        // A last line without a newline was cut off.
        lineNumber += 1
        throw .malformed(file: path, line: lineNumber, message: "the file ends within a line")
      }
      scanned -= start
      try fill()
      scanned += start
    }
  }

  private func newline(from position: Int) -> Int? {
    buffer.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress, let found = memchr(base + position, 10, end - position)
      else { return nil }
      return base.distance(to: found)
    }
  }

  /// Lines are printable ASCII: whatever else is in a file, it is not a trace, or a damaged one.
  private func check(_ bytes: UnsafeBufferPointer<UInt8>) throws(TraceError) {
    var isText = true
    for byte in bytes { isText = isText && byte >= 32 && byte < 127 }
    guard !isText, let column = bytes.firstIndex(where: { $0 < 32 || $0 > 126 }) else { return }
    let byte = String(bytes[column], radix: 16)
    let message =
      if lineNumber == 1 {
        "the file is no trace: byte 0x\(byte) at column \(column + 1), expected 'physmem-trace 1'"
      } else if bytes[column] == 13, column + 1 == bytes.count {
        "the line ends in CR LF: expected LF alone"
      } else {
        "byte 0x\(byte) at column \(column + 1): expected printable ASCII"
      }
    throw .malformed(file: path, line: lineNumber, message: message)
  }

  private func call<Result>(
    _ range: Range<Int>, _ body: (UnsafeBufferPointer<UInt8>) throws(TraceError) -> Result
  ) throws(TraceError) -> Result {
    try buffer.withUnsafeBufferPointer { bytes throws(TraceError) in
      let line = UnsafeBufferPointer(rebasing: bytes[range])
      try check(line)
      return try body(line)
    }
  }

  private func fill() throws(TraceError) {
    if start > 0 {
      buffer.replaceSubrange(0..<(end - start), with: buffer[start..<end])
      end -= start
      start = 0
    }
    if end == buffer.count {
      guard buffer.count < TraceLineReader.longestLine else {
        throw .malformed(file: path, line: lineNumber + 1, message: "the line has no end")
      }
      buffer.append(contentsOf: [UInt8](repeating: 0, count: buffer.count))
    }
    let count = buffer.withUnsafeMutableBufferPointer { bytes in
      gzread(file, bytes.baseAddress! + end, UInt32(bytes.count - end))
    }
    guard count >= 0 else { throw damaged() }
    if count == 0 {
      isAtEnd = true
      // A gzip stream that stops short is reported at its end only.
      var code: Int32 = 0
      _ = gzerror(file, &code)
      if code != Z_OK && code != Z_STREAM_END { throw damaged() }
    }
    end += Int(count)
  }

  private func damaged() -> TraceError {
    var code: Int32 = 0
    let text = gzerror(file, &code).map { String(cString: $0) } ?? ""
    return .malformed(
      file: path, line: lineNumber + 1,
      message: "the compressed data is damaged or cut off: \(text)")
  }
}
