public import PMUnits

/// A leaf entry of a host page table, at any level.
///
/// The bits stand where x86-64 has them, so that a dump reads as the kernel's would.
public struct HostEntry: Hashable, Sendable, BitwiseCopyable {
  /// The word; 0 is an absent entry.
  public var rawValue: UInt64

  /// An entry from its word.
  @inlinable @inline(__always)
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The absent entry.
  @inlinable @inline(__always) public static var none: HostEntry { HostEntry(rawValue: 0) }

  @inlinable @inline(__always) static var presentBit: UInt64 { 1 << 0 }
  @inlinable @inline(__always) static var writeBit: UInt64 { 1 << 1 }
  @inlinable @inline(__always) static var accessedBit: UInt64 { 1 << 5 }
  @inlinable @inline(__always) static var dirtyBit: UInt64 { 1 << 6 }
  @inlinable @inline(__always) static var largeBit: UInt64 { 1 << 7 }
  @inlinable @inline(__always) static var protnoneBit: UInt64 { 1 << 8 }
  @inlinable @inline(__always) static var specialBit: UInt64 { 1 << 9 }
  @inlinable @inline(__always) static var devmapBit: UInt64 { 1 << 58 }
  @inlinable @inline(__always) static var frameMask: UInt64 { 0x000f_ffff_ffff_f000 }

  /// An entry for a frame; it starts young, as all x86 protections do.
  @inlinable
  public init(
    pfn: PFN, isWritable: Bool, isDirty: Bool = false, isSpecial: Bool = false,
    isLarge: Bool = false
  ) {
    rawValue = pfn.physicalAddress | HostEntry.presentBit | HostEntry.accessedBit
    self.isWritable = isWritable
    self.isDirty = isDirty
    if isSpecial { rawValue |= HostEntry.specialBit }
    if isLarge { rawValue |= HostEntry.largeBit }
  }

  /// Whether there is an entry at all (`pte_present`; so also without any right to access).
  @inlinable @inline(__always) public var isPresent: Bool { rawValue & HostEntry.presentBit != 0 }

  /// Whether the entry allows writes.
  @inlinable public var isWritable: Bool {
    get { rawValue & HostEntry.writeBit != 0 }
    set { set(HostEntry.writeBit, newValue) }
  }
  /// Whether the processor or a fault has noted an access.
  @inlinable public var isYoung: Bool {
    get { rawValue & HostEntry.accessedBit != 0 }
    set { set(HostEntry.accessedBit, newValue) }
  }
  /// Whether the processor or a fault has noted a write.
  @inlinable public var isDirty: Bool {
    get { rawValue & HostEntry.dirtyBit != 0 }
    set { set(HostEntry.dirtyBit, newValue) }
  }
  /// Whether the entry is present but allows no access (PROT_NONE).
  @inlinable public var isProtnone: Bool {
    get { rawValue & HostEntry.protnoneBit != 0 }
    set { set(HostEntry.protnoneBit, newValue) }
  }
  /// Whether the entry says nothing about a `struct page` (`pte_special`).
  @inlinable public var isSpecial: Bool { rawValue & HostEntry.specialBit != 0 }
  /// Whether the entry maps device memory that has pages (`pte_devmap`).
  @inlinable public var isDevmap: Bool {
    get { rawValue & HostEntry.devmapBit != 0 }
    set { set(HostEntry.devmapBit, newValue) }
  }
  /// Whether the entry is a leaf above the lowest level.
  @inlinable public var isLarge: Bool { rawValue & HostEntry.largeBit != 0 }
  /// The first frame that the entry maps.
  @inlinable public var pfn: PFN {
    PFN(UInt32(truncatingIfNeeded: (rawValue & HostEntry.frameMask) >> 12))
  }

  /// The same entry without any right to access.
  @inlinable
  mutating func set(_ bit: UInt64, _ value: Bool) {
    if value { rawValue |= bit } else { rawValue &= ~bit }
  }
}

extension HostEntry: CustomStringConvertible {
  /// The frame and the letters of what is set, as `1a2b WAD special`.
  public var description: String {
    guard isPresent else { return "absent" }
    var letters = ""
    if isWritable { letters += "W" }
    if isYoung { letters += "A" }
    if isDirty { letters += "D" }
    if isSpecial { letters += " special" }
    if isLarge { letters += " large" }
    if isDevmap { letters += " devmap" }
    if isProtnone { letters += " protnone" }
    return "\(pfn) \(letters)"
  }
}
