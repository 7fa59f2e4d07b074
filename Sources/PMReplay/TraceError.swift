/// A file that cannot be read as a kernel trace.
public enum TraceError: Error, Hashable, Sendable {
  /// There is no such file, or it cannot be opened.
  case noInput(file: String, reason: String)
  /// A line is not what the format asks for there. Lines count from 1; `found` is the start of it.
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
  init(_ message: String) { self.message = message }
}
