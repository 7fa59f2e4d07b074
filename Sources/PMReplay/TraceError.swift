/// A file that cannot be read as a kernel trace.
public enum TraceError: Error, Hashable, Sendable {
  /// There is no such file, or it cannot be opened.
  case noInput(file: String, reason: String)
  /// A line is not what the format asks for there; the message says what was expected. Lines count
  /// from 1. What contradicts an earlier line is reported where the contradiction shows; a first
  /// state whose lists and map disagree, at its `endstate`.
  case malformed(file: String, line: Int, message: String)
  /// The host could not give the memory for the machine of the trace.
  case noResources(file: String, message: String)
}

extension TraceError: CustomStringConvertible {
  /// `FILE:LINE: what was expected`.
  public var description: String {
    switch self {
    case .noInput(let file, let reason): "\(file): \(reason)"
    case .malformed(let file, let line, let message): "\(file):\(line): \(message)"
    case .noResources(let file, let message): "\(file): \(message)"
    }
  }
}

/// What is wrong with a line, before file and line number are known.
struct LineError: Error {
  var message: String
  /// The line, where it is an earlier one than that being read.
  var line: Int?
  init(_ message: String, line: Int? = nil) {
    self.message = message
    self.line = line
  }
}
