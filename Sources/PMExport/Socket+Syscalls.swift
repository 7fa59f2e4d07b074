internal import CPhysmemShim
package import PMArena
internal import SystemPackage

// The only caller of the shim in this module: here its results become typed errors.

/// A descriptor with one owner, whose end closes it.
package struct OwnedFile: ~Copyable, Sendable {
  /// The number, which is another file's once this value has ended.
  package let rawValue: Int32

  /// Takes a descriptor over.
  init(_ rawValue: Int32) { self.rawValue = rawValue }

  deinit {
    // It is closed whatever close says.
    _ = pm_host_close(rawValue)
  }
}

/// Unix sockets whose messages carry descriptors, and events. Timeouts are in milliseconds; -1 is none.
package enum Socket {
  /// The most descriptors that a message carries.
  package static let maxDescriptorCount = Int(PM_SOCKET_FDS_MAX)

  private static func check(
    _ result: Int32, _ operation: @autoclosure () -> String
  ) throws(HostError) {
    guard result == 0 else {
      throw HostError(operation: operation(), errno: Errno(rawValue: -result))
    }
  }

  private static func make(
    _ operation: @autoclosure () -> String, _ body: (inout Int32) -> Int32
  ) throws(HostError) -> OwnedFile {
    var descriptor: Int32 = -1
    try check(body(&descriptor), operation())
    return OwnedFile(descriptor)
  }

  /// A listening socket with a name that only this user may connect to.
  package static func listen(at path: String) throws(HostError) -> OwnedFile {
    try make("listening at \(path)") { pm_socket_listen(path, &$0) }
  }

  /// The next connection of a listening socket.
  package static func accept(
    _ listener: borrowing OwnedFile, timeout: Int32
  ) throws(HostError) -> OwnedFile {
    let number = listener.rawValue
    return try make("accept") { pm_socket_accept(number, timeout, &$0) }
  }

  /// A connection to the socket of this name.
  package static func connect(to path: String) throws(HostError) -> OwnedFile {
    try make("connecting to \(path)") { pm_socket_connect(path, &$0) }
  }

  /// Removes a socket's name.
  package static func unlink(_ path: String) throws(HostError) {
    try check(pm_socket_unlink(path), "removing \(path)")
  }

  /// Removes the name of a socket that nobody listens at; `EADDRINUSE` where it is anything else.
  package static func removeAbandoned(_ path: String) throws(HostError) {
    try check(pm_socket_remove_abandoned(path), "listening at \(path)")
  }

  /// Sends bytes, with descriptors beside the first of them.
  package static func send(
    _ bytes: [UInt8], descriptors: [Int32] = [], to socket: Int32, timeout: Int32
  ) throws(HostError) {
    try check(
      pm_socket_send(socket, bytes, bytes.count, descriptors, descriptors.count, timeout),
      "sendmsg of \(bytes.count) bytes and \(descriptors.count) descriptors")
  }

  /// Receives `byteCount` bytes, or fewer where the peer closes before.
  ///
  /// The caller owns the descriptors, of which there are at most `maxDescriptors`; more are closed.
  package static func receive(
    _ byteCount: Int, maxDescriptors: Int = 0, from socket: Int32, timeout: Int32
  ) throws(HostError) -> (bytes: [UInt8], descriptors: [Int32]) {
    var bytes = [UInt8](repeating: 0, count: byteCount)
    var descriptors = [Int32](repeating: -1, count: maxDescriptors)
    var (received, count) = (0, 0)
    try check(
      pm_socket_receive(
        socket, &bytes, byteCount, &received, &descriptors, maxDescriptors, &count, timeout),
      "recvmsg of \(byteCount) bytes")
    return (Array(bytes[..<received]), Array(descriptors[..<count]))
  }

  /// Two sockets that are connected with each other; the caller owns both: ``own(_:)``.
  package static func pair() throws(HostError) -> (Int32, Int32) {
    var (first, second): (Int32, Int32) = (-1, -1)
    try check(pm_socket_pair(&first, &second), "socketpair")
    return (first, second)
  }

  /// Takes over a descriptor that was received or made.
  package static func own(_ descriptor: Int32) -> OwnedFile { OwnedFile(descriptor) }
}

/// A counter that one side raises and another waits for.
package struct Event: ~Copyable, Sendable {
  private let file: OwnedFile

  /// The descriptor, borrowed.
  package var rawValue: Int32 { file.rawValue }

  /// An event that nobody has signalled yet.
  package init() throws(HostError) {
    var descriptor: Int32 = -1
    let result = pm_event_make(&descriptor)
    guard result == 0 else {
      throw HostError(operation: "eventfd", errno: Errno(rawValue: -result))
    }
    file = OwnedFile(descriptor)
  }

  /// An event that somebody else made.
  package init(_ file: consuming OwnedFile) { self.file = file }

  /// Lets whoever waits go on.
  package func signal() throws(HostError) {
    let result = pm_event_signal(rawValue)
    guard result == 0 else {
      throw HostError(operation: "signalling an event", errno: Errno(rawValue: -result))
    }
  }

  /// Waits for a signal and takes it; `EPIPE` as soon as the socket `peer` has hung up without one.
  package func wait(peer: Int32 = -1, timeout: Int32) throws(HostError) {
    let result = pm_event_wait(rawValue, peer, timeout)
    guard result == 0 else {
      throw HostError(operation: "waiting for an event", errno: Errno(rawValue: -result))
    }
  }
}
