import PMUnits
import SystemPackage

/// A system call that the host refused.
public struct HostError: Error, Equatable, Sendable {
  /// What was asked of the host, in words, as `mmap of 64GiB`.
  public let operation: String
  /// Why the host refused.
  public let errno: Errno

  /// Says that `operation` failed for the reason `errno`.
  public init(operation: String, errno: Errno) {
    self.operation = operation
    self.errno = errno
  }
}

extension HostError: CustomStringConvertible {
  /// As `mmap of 64GiB: Cannot allocate memory (ENOMEM)`.
  public var description: String {
    "\(operation): \(errno) (\(Host.errorName(errno) ?? "errno \(errno.rawValue)"))"
  }
}
