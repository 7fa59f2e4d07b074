internal import PMArena
internal import PMExport
internal import SystemPackage

/// The messages of one connection: a header of three words (request, flags, size), then the payload.
///
/// One thread at a time: a reply belongs to the request before it.
struct VhostUserChannel {
  /// The connected socket; its owner is another.
  let socket: Int32
  /// Milliseconds that a reply may take; -1 for any time.
  let timeout: Int32
  /// What both sides agreed on.
  var features: VhostUserProtocolFeatures = []

  private static let version: UInt32 = 1
  private static let replyFlag: UInt32 = 4
  private static let needReplyFlag: UInt32 = 8
  static let headerByteCount = 12

  /// Sends a request without waiting for anything.
  func send(
    _ request: VhostUserRequest, _ payload: [UInt8] = [], descriptors: [Int32] = [],
    needsReply: Bool = false
  ) throws(VhostUserError) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(VhostUserChannel.headerByteCount + payload.count)
    bytes.append(word: request.rawValue)
    bytes.append(
      word: VhostUserChannel.version | (needsReply ? VhostUserChannel.needReplyFlag : 0))
    bytes.append(word: UInt32(payload.count))
    bytes += payload
    do {
      try Socket.send(bytes, descriptors: descriptors, to: socket, timeout: timeout)
    } catch {
      throw VhostUserChannel.explain(error, request)
    }
  }

  /// Waits for the reply to a request; its payload has a number of bytes among `sizes`.
  func reply(
    to request: VhostUserRequest, sizes: ClosedRange<Int>
  ) throws(VhostUserError) -> [UInt8] {
    let header = try receive(VhostUserChannel.headerByteCount, for: request, begun: false)
    let answered = header.word(UInt32.self, at: 0)
    guard answered == request.rawValue else {
      let name = VhostUserRequest(rawValue: answered).map { "\($0)" } ?? "request \(answered)"
      throw .malformedReply(request, "it answers \(name)")
    }
    let flags = header.word(UInt32.self, at: 4)
    guard flags & 3 == VhostUserChannel.version else {
      throw .malformedReply(request, "version \(flags & 3): expected \(VhostUserChannel.version)")
    }
    guard flags & VhostUserChannel.replyFlag != 0 else {
      throw .malformedReply(request, "it is not marked as a reply")
    }
    let size = header.word(UInt32.self, at: 8)
    guard sizes.contains(Int(size)) else {
      let expected =
        sizes.count == 1 ? "\(sizes.lowerBound)" : "\(sizes.lowerBound) to \(sizes.upperBound)"
      throw .malformedReply(request, "\(size) bytes: expected \(expected)")
    }
    return size == 0 ? [] : try receive(Int(size), for: request, begun: true)
  }

  /// Asks for one number.
  func number(_ request: VhostUserRequest) throws(VhostUserError) -> UInt64 {
    try send(request)
    return try reply(to: request, sizes: 8...8).word(UInt64.self, at: 0)
  }

  /// Sends a request that has no answer of its own; throws the back end's refusal where it can be asked for one.
  func order(
    _ request: VhostUserRequest, _ payload: [UInt8] = [], descriptors: [Int32] = []
  ) throws(VhostUserError) {
    let acknowledged = features.contains(.replyAck)
    try send(request, payload, descriptors: descriptors, needsReply: acknowledged)
    guard acknowledged else { return }
    let code = try reply(to: request, sizes: 8...8).word(UInt64.self, at: 0)
    guard code == 0 else { throw .refused(request, code: code) }
  }

  /// The same with a number as payload.
  func order(_ request: VhostUserRequest, number: UInt64) throws(VhostUserError) {
    var payload: [UInt8] = []
    payload.append(word: number)
    try order(request, payload)
  }

  private func receive(
    _ byteCount: Int, for request: VhostUserRequest, begun: Bool
  ) throws(VhostUserError) -> [UInt8] {
    let bytes: [UInt8]
    do {
      bytes = try Socket.receive(byteCount, from: socket, timeout: timeout).bytes
    } catch {
      throw VhostUserChannel.explain(error, request)
    }
    if bytes.isEmpty, !begun { throw .hungUp(request) }
    guard bytes.count == byteCount else {
      throw .malformedReply(
        request, "the connection ends after \(bytes.count) of \(byteCount) bytes")
    }
    return bytes
  }

  private static func explain(_ error: HostError, _ request: VhostUserRequest) -> VhostUserError {
    switch error.errno {
    case .brokenPipe, .connectionReset: .hungUp(request)
    case .timedOut: .timedOut(request)
    default: .host(error)
    }
  }
}
