internal import PMArena
package import PMExport
public import PMGuestMemory

/// A connection to a vhost-user back end: a device that runs as a process of its own on a guest's memory.
///
/// Connects, takes the session and negotiates when made; then offer memory (``addRegions(of:)``) and start queues
/// (``start(_:index:)``). The end of the value closes the connection, by which the back end ends its use of the
/// memory. One thread at a time.
public struct VhostUserFrontEnd: ~Copyable {
  private let socket: OwnedFile
  private let channel: VhostUserChannel
  /// The features of the device that both sides use.
  public let deviceFeatures: UInt64
  /// The features of the protocol that both sides use.
  public var protocolFeatures: VhostUserProtocolFeatures { channel.features }

  /// Connects to the back end that listens at `path`, and negotiates.
  ///
  /// Of the device's features those in `deviceFeatures` are used that it has; of the protocol's those in
  /// `protocolFeatures`. Each reply may take `timeout` milliseconds (-1: any time).
  /// Throws ``VhostUserError``.
  public init(
    connectingTo path: String, deviceFeatures wanted: UInt64 = VhostUserDeviceFeature.version1,
    protocolFeatures: VhostUserProtocolFeatures = .all, timeout: Int32 = 10_000
  ) throws(VhostUserError) {
    let socket = try VhostUserError.wrapping { () throws(HostError) in
      try Socket.connect(to: path)
    }
    try self.init(
      socket, deviceFeatures: wanted, protocolFeatures: protocolFeatures, timeout: timeout)
  }

  /// The same on a socket that is connected.
  package init(
    _ socket: consuming OwnedFile, deviceFeatures wanted: UInt64,
    protocolFeatures: VhostUserProtocolFeatures, timeout: Int32
  ) throws(VhostUserError) {
    var channel = VhostUserChannel(socket: socket.rawValue, timeout: timeout)
    let offered = try channel.number(.getFeatures)
    var used = offered & wanted
    if offered & VhostUserDeviceFeature.protocolFeatures != 0 {
      let features = VhostUserProtocolFeatures(
        rawValue: try channel.number(.getProtocolFeatures)
      ).intersection(protocolFeatures)
      try channel.order(.setProtocolFeatures, number: features.rawValue)
      channel.features = features
      used |= VhostUserDeviceFeature.protocolFeatures
    }
    try channel.order(.setOwner)
    try channel.order(.setFeatures, number: used)
    deviceFeatures = used
    self.channel = channel
    self.socket = socket
  }

  /// The connected socket, borrowed.
  package var descriptor: Int32 { socket.rawValue }

  // MARK: memory

  /// Offers a guest's memory: ``VhostUser/addRegions(of:to:features:timeout:)``. The back end reads and writes it
  /// from then on; its writes are in no record of dirty pages.
  @discardableResult
  public func addRegions(of memory: GuestMemory) throws(VhostUserError) -> Int {
    try channel.addRegions(memory.snapshot())
  }

  /// Offers one region more. Throws ``VhostUserError/notOffered(_:)`` where the back end takes only tables.
  public func add(_ region: GuestRegion) throws(VhostUserError) {
    try channel.add(try changeable(region))
    if !channel.features.contains(.replyAck) { try channel.waitUntilSeen() }
  }

  /// Takes one region back; when this returns the back end does not use it any more.
  public func remove(_ region: GuestRegion) throws(VhostUserError) {
    try channel.remove(try changeable(region))
    if !channel.features.contains(.replyAck) { try channel.waitUntilSeen() }
  }

  private func changeable(_ region: GuestRegion) throws(VhostUserError) -> VhostUserRegion {
    guard channel.features.contains(.configureMemSlots) else {
      throw .notOffered("regions one by one (CONFIGURE_MEM_SLOTS)")
    }
    return try VhostUserRegion(region)
  }

  // MARK: the device

  /// How many queues the device has.
  public func queueCount() throws(VhostUserError) -> Int {
    guard channel.features.contains(.multipleQueues) else { return 1 }
    return Int(clamping: try channel.number(.getQueueNum))
  }

  /// Reads a part of the device's configuration: 1 to 256 bytes from `offset` on.
  public func configuration(
    offset: UInt32 = 0, byteCount: Int
  ) throws(VhostUserError) -> [UInt8] {
    guard channel.features.contains(.configuration) else {
      throw .notOffered("its configuration (CONFIG)")
    }
    precondition((1...256).contains(byteCount), "\(byteCount) bytes of configuration")
    var payload: [UInt8] = []
    payload.append(word: offset)
    payload.append(word: UInt32(byteCount))
    payload.append(word: UInt32(0))
    payload += [UInt8](repeating: 0, count: byteCount)
    try channel.send(.getConfig, payload)
    // A reply without bytes is a refusal.
    let reply = try channel.reply(to: .getConfig, sizes: 0...payload.count)
    guard reply.count == payload.count else { throw .refused(.getConfig, code: 0) }
    return Array(reply[12...])
  }

  /// Lets the device serve a queue, from its present place on.
  public func start(_ queue: SplitQueue, index: Int) throws(VhostUserError) {
    let index = UInt32(index)
    func pair(_ value: UInt32) -> [UInt8] {
      var payload: [UInt8] = []
      payload.append(word: index)
      payload.append(word: value)
      return payload
    }
    try channel.order(.setVringNum, pair(UInt32(queue.size)))
    try channel.order(.setVringBase, pair(UInt32(queue.nextAvailable)))
    let addresses = try queue.hostAddresses()
    var payload = pair(0)
    payload.append(word: addresses.descriptors)
    payload.append(word: addresses.used)
    payload.append(word: addresses.available)
    payload.append(word: UInt64(0))
    try channel.order(.setVringAddr, payload)
    var number: [UInt8] = []
    number.append(word: UInt64(index))
    try channel.order(.setVringKick, number, descriptors: [queue.kick.rawValue])
    try channel.order(.setVringCall, number, descriptors: [queue.call.rawValue])
    if deviceFeatures & VhostUserDeviceFeature.protocolFeatures != 0 {
      try channel.order(.setVringEnable, pair(1))
    }
  }

  /// Stops a queue; returns the number of the request that the device would have taken next.
  @discardableResult
  public func stop(index: Int) throws(VhostUserError) -> UInt16 {
    var payload: [UInt8] = []
    payload.append(word: UInt32(index))
    payload.append(word: UInt32(0))
    try channel.send(.getVringBase, payload)
    let reply = try channel.reply(to: .getVringBase, sizes: 8...8)
    guard reply.word(UInt32.self, at: 0) == UInt32(index) else {
      throw .malformedReply(
        .getVringBase, "it is of queue \(reply.word(UInt32.self, at: 0)): expected \(index)")
    }
    return UInt16(truncatingIfNeeded: reply.word(UInt32.self, at: 4))
  }
}
