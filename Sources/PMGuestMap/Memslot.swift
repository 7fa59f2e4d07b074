public import PMUnits

/// What a slot is, apart from what KVM keeps for it.
public struct MemslotShape: Hashable, Sendable {
  /// The slot's number in its address space.
  public var id: UInt16
  /// Its address space.
  public var addressSpace: Int
  /// Its first guest frame.
  public var baseGFN: GFN
  /// Its pages, 1 to 2^31 - 1.
  public var pageCount: Int
  /// Where its memory is in the process, in bytes; a multiple of 4096.
  public var userspaceAddress: UInt64
  /// Its flags.
  public var flags: MemslotFlags

  /// A shape from its parts, unchecked.
  public init(
    id: UInt16, addressSpace: Int = 0, baseGFN: GFN, pageCount: Int, userspaceAddress: UInt64,
    flags: MemslotFlags = []
  ) {
    self.id = id
    self.addressSpace = addressSpace
    self.baseGFN = baseGFN
    self.pageCount = pageCount
    self.userspaceAddress = userspaceAddress
    self.flags = flags
  }

  /// What a region asks for; its size is not 0 and its fields were checked.
  init(_ region: MemoryRegion) {
    self.init(
      id: region.id, addressSpace: region.addressSpace,
      baseGFN: GFN(guestPhysicalAddress: region.guestPhysicalAddress),
      pageCount: Int(region.memorySize >> 12), userspaceAddress: region.userspaceAddress,
      flags: MemslotFlags(rawValue: region.flags))
  }

  /// The guest frame after the last.
  public var endGFN: GFN { baseGFN + pageCount }
  /// The user address after the last byte.
  public var userspaceEnd: UInt64 { userspaceAddress + UInt64(pageCount) << 12 }
  /// Address space and id as the ioctls take them.
  public var slotNumber: UInt32 { UInt32(addressSpace) << 16 | UInt32(id) }
}

/// How a VM logs writes: what decides whether a slot gets a bitmap, and how it begins.
public struct DirtyLogSettings: Hashable, Sendable {
  /// What ``KVMCapability/manualDirtyLogProtect2`` was enabled with.
  public var manualProtect: ManualDirtyProtect = []
  /// The rings of the vCPUs, if they were enabled; then no slot has a bitmap.
  public var ring: DirtyRingShape?

  /// Settings from their parts; those of a new VM by default.
  public init(manualProtect: ManualDirtyProtect = [], ring: DirtyRingShape? = nil) {
    self.manualProtect = manualProtect
    self.ring = ring
  }

  /// New logs begin all dirty, and nothing is protected for them
  /// (`kvm_dirty_log_manual_protect_and_init_set`).
  public var isInitiallySet: Bool { manualProtect.contains(.initiallySet) }
}

/// Where a guest frame is in the process.
public enum HVAResult: Hashable, Sendable {
  /// At this user address, in bytes.
  case hva(UInt64)
  /// Nowhere: no slot, or one on its way out (`KVM_HVA_ERR_BAD`).
  case bad
  /// It may not be written there: a write into a read-only slot (`KVM_HVA_ERR_RO_BAD`).
  case readOnlyBad

  /// The address, if there is one.
  public var address: UInt64? {
    if case .hva(let address) = self { address } else { nil }
  }
}

/// A range of guest frames that is memory of a process.
///
/// Immutable: a change makes a new slot, which shares ``dirtyBitmap`` and ``largePages`` with the old
/// one where they go on. May be used from any thread. Mirrors `struct kvm_memory_slot`, Linux 6.1.
public final class Memslot: Sendable {
  /// What the slot is.
  public let shape: MemslotShape
  /// The log of its pages; nil where nothing is logged or rings log it.
  public let dirtyBitmap: DirtyBitmap?
  /// Which regions may not be mapped by one entry.
  public let largePages: LargePageInfo

  private init(shape: MemslotShape, dirtyBitmap: DirtyBitmap?, largePages: LargePageInfo) {
    self.shape = shape
    self.dirtyBitmap = dirtyBitmap
    self.largePages = largePages
  }

  /// A slot of this shape.
  ///
  /// With a predecessor (the same id before a move or a change of flags) the log goes on where both
  /// log, and the large-page counters where the place is the same. Throws `ENOMEM` where the host has
  /// no room for a log. Mirrors `kvm_prepare_memory_region`.
  public convenience init(
    _ shape: MemslotShape, replacing old: Memslot? = nil,
    settings: DirtyLogSettings = DirtyLogSettings()
  ) throws(KernelErrno) {
    var bitmap: DirtyBitmap?
    if shape.flags.contains(.logDirtyPages) {
      bitmap = old?.dirtyBitmap
      if bitmap == nil, settings.ring == nil {
        bitmap = try DirtyBitmap(pageCount: shape.pageCount, allDirty: settings.isInitiallySet)
      }
    }
    let largePages =
      if let old, old.baseGFN == shape.baseGFN { old.largePages } else {
        LargePageInfo(
          baseGFN: shape.baseGFN, pageCount: shape.pageCount,
          userspaceAddress: shape.userspaceAddress)
      }
    self.init(shape: shape, dirtyBitmap: bitmap, largePages: largePages)
  }

  /// A copy flagged ``MemslotFlags/invalid``, as it is published while the slot goes.
  public func invalidated() -> Memslot {
    var shape = shape
    shape.flags.insert(.invalid)
    return Memslot(shape: shape, dirtyBitmap: dirtyBitmap, largePages: largePages)
  }

  /// The slot's number in its address space.
  public var id: UInt16 { shape.id }
  /// Its address space.
  public var addressSpace: Int { shape.addressSpace }
  /// Address space and id as the ioctls take them.
  public var slotNumber: UInt32 { shape.slotNumber }
  /// Its first guest frame.
  public var baseGFN: GFN { shape.baseGFN }
  /// The guest frame after the last.
  public var endGFN: GFN { shape.endGFN }
  /// Its pages.
  public var pageCount: Int { shape.pageCount }
  /// Where its memory is in the process, in bytes.
  public var userspaceAddress: UInt64 { shape.userspaceAddress }
  /// The user address after the last byte.
  public var userspaceEnd: UInt64 { shape.userspaceEnd }
  /// Its flags.
  public var flags: MemslotFlags { shape.flags }

  /// Whether the slot is on its way out.
  public var isInvalid: Bool { flags.contains(.invalid) }
  /// Whether guest writes go to user space.
  public var isReadonly: Bool { flags.contains(.readonly) }
  /// Whether writes are logged, in a bitmap or a ring.
  public var logsDirtyPages: Bool { flags.contains(.logDirtyPages) }

  /// Whether the slot holds a guest frame.
  public func contains(_ gfn: GFN) -> Bool {
    // One comparison: a frame below the base wraps to a large distance.
    gfn.rawValue &- baseGFN.rawValue < UInt64(pageCount)
  }

  /// The user address of a guest frame of the slot, in bytes, whatever its flags.
  public func hva(of gfn: GFN) -> UInt64 {
    precondition(contains(gfn), "guest frame \(gfn) is not in slot \(slotNumber)")
    return userspaceAddress + (gfn.rawValue - baseGFN.rawValue) << 12
  }

  /// The guest frame at a user address; nil outside the slot.
  public func gfn(ofHVA address: UInt64) -> GFN? {
    let distance = address &- userspaceAddress
    guard distance < UInt64(pageCount) << 12 else { return nil }
    return GFN(baseGFN.rawValue + distance >> 12)
  }

  /// The guest frames that a range of user addresses touches; nil where there are none. A page that
  /// is touched in part counts. Mirrors the arithmetic of `__kvm_handle_hva_range`.
  public func gfns(ofHVAs range: Range<UInt64>) -> Range<GFN>? {
    let start = max(range.lowerBound, userspaceAddress)
    let end = min(range.upperBound, userspaceEnd)
    guard start < end else { return nil }
    let first = baseGFN.rawValue + (start - userspaceAddress) >> 12
    let last = baseGFN.rawValue + (end - 1 - userspaceAddress) >> 12
    return GFN(first)..<GFN(last + 1)
  }

  /// Where a guest frame is in the process. Mirrors `__gfn_to_hva_many`.
  ///
  /// A slot on its way out has no addresses; a read-only one none for writing. `gfn_to_hva` asks for
  /// writing, so it fails there; the `_prot` variants do not. A frame outside the slot gives
  /// ``HVAResult/bad``.
  public func gfnToHVA(_ gfn: GFN, forWrite: Bool) -> HVAResult {
    guard !isInvalid, contains(gfn) else { return .bad }
    if forWrite, isReadonly { return .readOnlyBad }
    return .hva(hva(of: gfn))
  }
}
