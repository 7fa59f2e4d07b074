public import PMArena
public import PMGuestMemory
public import PMUnits
public import SystemPackage

/// Why a back end could not be used.
public enum VhostUserError: Error, Equatable, Sendable {
  /// The host refused a system call.
  case host(HostError)
  /// The back end closed the connection, or was gone already, when this was asked.
  case hungUp(VhostUserRequest)
  /// The back end did not answer in time.
  case timedOut(VhostUserRequest)
  /// The back end answered something that the protocol does not have.
  case malformedReply(VhostUserRequest, String)
  /// The back end said no, with this number.
  case refused(VhostUserRequest, code: UInt64)
  /// The memory has more regions than the back end takes.
  case tooManyRegions(count: Int, max: Int)
  /// The bytes of the region are private to this process.
  case privateMemory(GuestRange)
  /// The back end lacks what was asked for.
  case notOffered(String)
  /// A queue cannot be like this, or cannot take this.
  case invalidQueue(String)
  /// The back end wrote something into a queue that cannot be.
  case malformedQueue(String)
  /// The device did not answer a request in time, or hung up before.
  case noAnswer(String)
  /// The device answered a request with this status of virtio-blk.
  case deviceFailed(status: UInt8)
  /// The memory refused an access.
  case guestMemory(GuestMemoryError)

  /// The error number of Linux that a C function returns for it.
  public var errno: Errno {
    switch self {
    case .host(let error): error.errno
    case .hungUp: .brokenPipe
    case .timedOut, .noAnswer: .timedOut
    case .malformedReply, .refused, .malformedQueue: Errno(rawValue: 71)  // EPROTO
    case .tooManyRegions: .noSpace
    case .privateMemory, .notOffered: .notSupported
    case .invalidQueue: .invalidArgument
    case .deviceFailed: .ioError
    case .guestMemory: .badAddress
    }
  }

  static func wrapping<Result: ~Copyable>(
    _ body: () throws(HostError) -> Result
  ) throws(VhostUserError) -> Result {
    do { return try body() } catch { throw .host(error) }
  }

  static func memory<Result>(
    _ body: () throws(GuestMemoryError) -> Result
  ) throws(VhostUserError) -> Result {
    do { return try body() } catch { throw .guestMemory(error) }
  }
}

extension VhostUserError: CustomStringConvertible {
  /// One line: what was asked, and what came instead.
  public var description: String {
    switch self {
    case .host(let error): "\(error)"
    case .hungUp(let request): "\(request): the back end is gone"
    case .timedOut(let request): "\(request): the back end does not answer"
    case .malformedReply(let request, let reason): "\(request): malformed reply: \(reason)"
    case .refused(let request, let code): "\(request): the back end refused with \(code)"
    case .tooManyRegions(let count, let max):
      "the memory has \(count) regions, and the back end takes \(max)"
    case .privateMemory(let range):
      "the bytes of \(range) are this process's own, which a back end cannot map: use a shared "
        + "backing, as memfd"
    case .notOffered(let what): "the back end does not offer \(what)"
    case .invalidQueue(let reason), .malformedQueue(let reason): "queue: \(reason)"
    case .noAnswer(let reason): "no answer from the device: \(reason)"
    case .deviceFailed(let status):
      "the device answered with status \(status): "
        + (status == 1 ? "I/O error" : status == 2 ? "request not supported" : "unknown")
    case .guestMemory(let error): "\(error)"
    }
  }
}
