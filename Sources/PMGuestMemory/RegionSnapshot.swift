public import PMUnits

/// The regions of guest memory at one moment. Whoever holds one keeps their memory: host addresses and descriptors
/// of its regions stay valid although the regions were removed meanwhile.
public final class RegionSnapshot: @unchecked Sendable {
  // @unchecked because of `table`: what it points to is written by the initialiser, and never again.
  let objects: [RegionObject]
  let table: UnsafePointer<RegionTable>

  /// How many regions had been added and removed before: two snapshots with the same number have the same
  /// regions at the same addresses.
  public let generation: UInt64

  init(_ objects: [RegionObject], generation: UInt64, isFrozen: Bool = false) {
    self.objects = objects
    self.generation = generation
    let table = UnsafeMutablePointer<RegionTable>.allocate(capacity: 1)
    self.table = UnsafePointer(table)
    table.initialize(
      to: RegionTable(
        objects, generation: generation, isFrozen: isFrozen,
        owner: Unmanaged.passUnretained(self)))
  }

  deinit {
    table.pointee.deallocate()
    table.deallocate()
  }

  /// The regions, in ascending order of their addresses.
  public var regions: [GuestRegion] { objects.map(\.description) }

  /// The region that contains an address.
  public func region(containing address: GPA) -> GuestRegion? {
    table.pointee.index(at: address.rawValue).map { objects[$0].description }
  }

  /// Where a range is in this process: valid while the snapshot is held.
  ///
  /// `writing`: whether the caller will write through the address, which no record of dirty pages sees
  /// (``GuestMemory/markDirty(_:)``), and which a merge or a fork under way does not wait for.
  /// Throws ``GuestMemoryError/notMemory(_:region:)`` for devices, ``GuestMemoryError/readOnly(_:region:)`` for
  /// writing ROM, ``GuestMemoryError/crossesRegion(_:region:)`` where it is not all in one region.
  public func hostAddress(
    of range: GuestRange, writing: Bool
  ) throws(GuestMemoryError) -> UnsafeMutableRawPointer {
    guard range.isAddressable, let object = object(at: range.start) else {
      throw .unmapped(range, gap: range)
    }
    guard range.end <= object.range.end else {
      throw .crossesRegion(range, region: object.range)
    }
    guard let base = object.hostAddress else { throw .notMemory(range, region: object.range) }
    if writing, !object.kind.isWritable { throw .readOnly(range, region: object.range) }
    return base + (range.start - object.range.start)
  }

  /// The guest's address of a byte of this process, or nil where no region has it.
  public func guestAddress(of host: UnsafeRawPointer) -> GPA? {
    for object in objects {
      guard let base = object.hostAddress else { continue }
      let offset = UInt64(UInt(bitPattern: host) &- UInt(bitPattern: base))
      if offset < object.range.byteCount { return object.range.start + Int(offset) }
    }
    return nil
  }

  func object(at address: GPA) -> RegionObject? {
    table.pointee.index(at: address.rawValue).map { objects[$0] }
  }

  /// The objects that a range touches, each with the part of it that is in the object.
  func parts(of range: GuestRange) -> [(object: RegionObject, part: GuestRange)] {
    objects.compactMap { object in
      guard object.range.overlaps(range) else { return nil }
      let start = max(object.range.start, range.start)
      let end = min(object.range.end, range.end)
      return (object, GuestRange(start: start, byteCount: end - start.rawValue))
    }
  }
}
