public import PMUnits

/// The slots of all address spaces of a VM, as they are at one moment.
///
/// A value: holds the published sets, and changes by publishing another one.
public struct MemslotSets: Sendable {
  /// One set for each address space.
  public private(set) var spaces: [MemslotSet]

  /// Those of a new VM.
  public init(addressSpaceCount: Int) {
    spaces = (0..<addressSpaceCount).map {
      MemslotSet(addressSpace: $0, addressSpaceCount: addressSpaceCount)
    }
  }

  /// The published sets of a VM, one for each address space, in order.
  public init(_ spaces: [MemslotSet]) {
    precondition(
      spaces.indices.allSatisfy { spaces[$0].addressSpace == $0 }, "sets out of order")
    self.spaces = spaces
  }

  /// The set of an address space.
  public subscript(addressSpace: Int) -> MemslotSet { spaces[addressSpace] }

  /// The pages of all slots. Mirrors `kvm.nr_memslot_pages`.
  public var pageCount: UInt64 {
    spaces.reduce(0) { $0 + $1.slots.reduce(0) { $0 + UInt64($1.pageCount) } }
  }

  /// Puts a set in the place of the one of its address space.
  public mutating func publish(_ set: MemslotSet) { spaces[set.addressSpace] = set }

  /// The slot that an ioctl names by address space and id.
  ///
  /// Throws `EINVAL` where either is out of range, and `ENOENT` where there is no such slot.
  public func slot(
    numbered slot: UInt32, capabilities: VMCapabilities
  ) throws(KernelErrno) -> Memslot {
    let (space, id) = (Int(slot >> 16), UInt16(truncatingIfNeeded: slot))
    guard space < spaces.count, UInt32(id) < capabilities.slotLimit else { throw .einval }
    guard let slot = spaces[space].slot(id: id) else { throw .enoent }
    return slot
  }

  /// The slot of a group of ring entries; nil where it is gone or the group exceeds it: what user
  /// space hands back is not trusted. Mirrors the checks of `kvm_reset_dirty_gfn`.
  public func slot(of group: DirtyRingGroup) -> Memslot? {
    let (space, id) = (Int(group.slot >> 16), UInt16(truncatingIfNeeded: group.slot))
    guard space < spaces.count, let slot = spaces[space].slot(id: id),
      group.offset < UInt64(slot.pageCount),
      group.offset + UInt64(group.highestBit) < UInt64(slot.pageCount)
    else { return nil }
    return slot
  }
}
