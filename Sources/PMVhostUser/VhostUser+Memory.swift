internal import PMExport
public import PMGuestMemory
internal import PMUnits

/// The memory of a guest offered to back ends that run as processes of their own.
public enum VhostUser {
  /// The most regions that one table carries, for back ends that do not take them one by one.
  public static let maxTableRegionCount = 8

  /// Offers every region of RAM and persistent memory to the back end on a connected socket; returns how many
  /// there are.
  ///
  /// `features` says what was negotiated before. With ``VhostUserProtocolFeatures/configureMemSlots`` the regions
  /// go one by one (GET_MAX_MEM_SLOTS, ADD_MEM_REG), else as one table (SET_MEM_TABLE). With
  /// ``VhostUserProtocolFeatures/replyAck`` the back end acknowledges each; else a GET_FEATURES at the end makes
  /// sure that it has seen them all. The socket stays the caller's; it may block or not.
  /// A reply may take `timeout` milliseconds (-1: any time).
  ///
  /// After an error in the middle the regions that it had taken are taken back as far as it still listens.
  /// ROM and devices are not offered. A region that is added later has to be offered by itself:
  /// ``VhostUserFrontEnd/add(_:)``.
  ///
  /// Throws ``VhostUserError/privateMemory(_:)`` and ``VhostUserError/tooManyRegions(count:max:)`` before a region
  /// is offered; ``VhostUserError/hungUp(_:)``, ``VhostUserError/timedOut(_:)``,
  /// ``VhostUserError/refused(_:code:)``, ``VhostUserError/malformedReply(_:_:)``, ``VhostUserError/host(_:)``.
  @discardableResult
  public static func addRegions(
    of memory: GuestMemory, to socket: Int32, features: VhostUserProtocolFeatures,
    timeout: Int32 = 10_000
  ) throws(VhostUserError) -> Int {
    try VhostUserChannel(socket: socket, timeout: timeout, features: features)
      .addRegions(memory.snapshot())
  }
}

extension VhostUserChannel {
  /// The regions that a back end can use.
  private static func offered(
    _ snapshot: RegionSnapshot
  ) throws(VhostUserError) -> [VhostUserRegion] {
    var offered: [VhostUserRegion] = []
    for region in snapshot.regions where region.kind == .ram || region.kind == .pmem {
      offered.append(try VhostUserRegion(region))
    }
    return offered
  }

  func addRegions(_ snapshot: RegionSnapshot) throws(VhostUserError) -> Int {
    // The descriptors are borrowed from it.
    defer { withExtendedLifetime(snapshot) {} }
    let regions = try VhostUserChannel.offered(snapshot)
    guard features.contains(.configureMemSlots) else {
      try setTable(regions)
      return regions.count
    }
    let max = try number(.getMaxMemSlots)
    guard regions.count <= max else {
      throw .tooManyRegions(count: regions.count, max: Int(clamping: max))
    }
    var added = 0
    do throws(VhostUserError) {
      for region in regions {
        try add(region)
        added += 1
      }
      if !features.contains(.replyAck), !regions.isEmpty { try waitUntilSeen() }
    } catch {
      takeBack(regions[..<added])
      throw error
    }
    return regions.count
  }

  /// As far as the back end still listens: the error that came before is what the caller has to know.
  private func takeBack(_ regions: ArraySlice<VhostUserRegion>) {
    for region in regions {
      do { try remove(region) } catch { return }
    }
  }

  func add(_ region: VhostUserRegion) throws(VhostUserError) {
    try order(.addMemReg, region.message, descriptors: [region.descriptor])
  }

  func remove(_ region: VhostUserRegion) throws(VhostUserError) {
    // Without a descriptor: the back end has its own.
    try order(.remMemReg, region.message)
  }

  private func setTable(_ regions: [VhostUserRegion]) throws(VhostUserError) {
    guard regions.count <= VhostUser.maxTableRegionCount else {
      throw .tooManyRegions(count: regions.count, max: VhostUser.maxTableRegionCount)
    }
    var payload: [UInt8] = []
    payload.append(word: UInt32(regions.count))
    payload.append(word: UInt32(0))
    for region in regions { payload += region.fields }
    try order(.setMemTable, payload, descriptors: regions.map(\.descriptor))
    if !features.contains(.replyAck) { try waitUntilSeen() }
  }

  /// A round trip: requests are handled in turn.
  func waitUntilSeen() throws(VhostUserError) { _ = try number(.getFeatures) }
}

/// A region as the protocol has it.
struct VhostUserRegion {
  let range: GuestRange
  /// Where this process has it: what SET_VRING_ADDR speaks in.
  let hostAddress: UInt64
  let descriptor: Int32
  let fileOffset: UInt64

  init(_ region: GuestRegion) throws(VhostUserError) {
    guard let descriptor = region.fileDescriptor, let base = region.hostAddress else {
      throw .privateMemory(region.range)
    }
    range = region.range
    hostAddress = UInt64(UInt(bitPattern: base))
    self.descriptor = descriptor
    fileOffset = region.fileOffset
  }

  /// Its four words.
  var fields: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(word: range.start.rawValue)
    bytes.append(word: range.byteCount)
    bytes.append(word: hostAddress)
    bytes.append(word: fileOffset)
    return bytes
  }

  /// The payload of ADD_MEM_REG and REM_MEM_REG: padding first.
  var message: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(word: UInt64(0))
    return bytes + fields
  }
}
