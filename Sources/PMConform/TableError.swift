/// A file that cannot be read as a table of measurements.
public enum TableError: Error, Hashable, Sendable {
  /// There is no such file, or it cannot be read.
  case noInput(file: String, reason: String)
  /// A line (from 1) is not what the format asks for there; the message says what was expected.
  case malformed(file: String, line: Int, message: String)
}

extension TableError: CustomStringConvertible {
  /// `FILE:LINE: what was expected`.
  public var description: String {
    switch self {
    case .noInput(let file, let reason): "\(file): \(reason)"
    case .malformed(let file, let line, let message): "\(file):\(line): \(message)"
    }
  }
}
