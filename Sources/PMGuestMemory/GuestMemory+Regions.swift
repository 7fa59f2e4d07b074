internal import PMArena
public import PMUnits

extension GuestMemory {
  /// The most regions there can be.
  public static var maxRegionCount: Int { RegionTable.maxCount }

  /// The regions, in ascending order of their addresses. Use ``snapshot()`` to keep what they point to.
  public var regions: [GuestRegion] { snapshot().regions }

  /// Bytes of memory in all regions: RAM, ROM and files.
  public var byteCount: UInt64 {
    snapshot().objects.reduce(0) { $0 + ($1.kind == .mmio ? 0 : $1.range.byteCount) }
  }

  /// Adds a region while accesses go on; those that begin after the return see it. A region of memory is in
  /// the record of dirty pages from the beginning, clean.
  ///
  /// Throws ``GuestMemoryError/overlap(_:existing:)``, ``GuestMemoryError/unaligned(_:unit:)`` (memory: its page
  /// size; devices: 8), ``GuestMemoryError/invalidRegion(_:reason:)``, ``GuestMemoryError/tooManyRegions(max:)``,
  /// and what the arena throws; nothing is changed then.
  public func add(_ region: NewRegion) throws(GuestMemoryError) {
    // Before memory is made for it, and again under the lock.
    try checkPlace(of: region, among: snapshot().objects)
    let (bytes, offset) = try GuestMemory.makeBytes(for: region)
    let (node, handler): (Int?, (any MMIOHandler)?) =
      switch region.contents {
      case .zeroes(_, let hostNode): (hostNode, nil)
      case .file: (nil, nil)
      case .device(let handler): (nil, handler)
      }
    let object = RegionObject(
      range: region.range, kind: region.kind, hostNode: node, bytes: bytes, offset: offset,
      handler: handler)
    try state.withLock { state throws(GuestMemoryError) in
      try checkPlace(of: region, among: state.snapshot.objects)
      var objects = state.snapshot.objects
      let place = objects.firstIndex { $0.range.start > region.range.start } ?? objects.count
      objects.insert(state.isTracking ? try GuestMemory.recorded(object) : object, at: place)
      publish(objects, changesRegions: true, in: &state)
    }
  }

  /// Removes the region that begins at an address. When this returns no access to memory is in it; a device may
  /// still be called by accesses that began before. Its memory is given back with the last snapshot that has it.
  ///
  /// Whoever else uses its addresses, as a guest of KVM, must have stopped before.
  /// Throws ``GuestMemoryError/noRegion(at:)``, ``GuestMemoryError/harvestOpen``.
  @discardableResult
  public func removeRegion(at start: GPA) throws(GuestMemoryError) -> GuestRange {
    try state.withLock { state throws(GuestMemoryError) in
      guard !state.isHarvestOpen else { throw .harvestOpen }
      var objects = state.snapshot.objects
      guard let index = objects.firstIndex(where: { $0.range.start == start }) else {
        throw .noRegion(at: start)
      }
      let range = objects.remove(at: index).range
      publish(objects, changesRegions: true, in: &state)
      return range
    }
  }

  private func checkPlace(
    of region: NewRegion, among objects: [RegionObject]
  ) throws(GuestMemoryError) {
    let range = region.range
    guard range.isAddressable else {
      throw .invalidRegion(range, reason: "a region has bytes, and ends below \(GPA.limit)")
    }
    let unit: ByteCount =
      switch region.contents {
      case .zeroes(let backing, _): backing.pageSize
      case .file: .kib(4)
      case .device: ByteCount(8)
      }
    guard (range.start.rawValue | range.byteCount) % unit.rawValue == 0 else {
      throw .unaligned(range, unit: unit)
    }
    if let existing = objects.first(where: { $0.range.overlaps(range) }) {
      throw .overlap(range, existing: existing.range)
    }
    guard objects.count < RegionTable.maxCount else {
      throw .tooManyRegions(max: RegionTable.maxCount)
    }
  }

  /// The memory of a new region, and where in it the region begins.
  private static func makeBytes(
    for region: NewRegion
  ) throws(GuestMemoryError) -> (bytes: GuestBytes?, offset: UInt64) {
    let range = region.range
    switch region.contents {
    case .device:
      return (nil, 0)
    case .file(let file, let fileOffset):
      let arena = try GuestMemoryError.wrapping { () throws(ArenaError) in
        try Arena(file: file, fileOffset: fileOffset, byteCount: ByteCount(range.byteCount))
      }
      return (GuestBytes(arena, isForeignFile: true), 0)
    case .zeroes(let backing, let hostNode):
      // The bytes before the region are never touched; with them addresses agree modulo 2 MiB.
      let offset = backing.isHuge ? 0 : range.start.rawValue & ((2 << 20) - 1)
      guard range.byteCount <= Arena.maxByteCount.rawValue - offset else {
        throw .invalidRegion(range, reason: "memory can have up to \(Arena.maxByteCount)")
      }
      let configuration = ArenaConfiguration(
        byteCount: ByteCount(offset + range.byteCount), backing: backing,
        nodeRanges: [
          .init(startOffset: offset, byteCount: ByteCount(range.byteCount), hostNode: hostNode)
        ])
      let arena = try GuestMemoryError.wrapping { () throws(ArenaError) in
        try Arena(configuration)
      }
      return (GuestBytes(arena), offset)
    }
  }
}
