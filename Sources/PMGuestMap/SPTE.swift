public import PMUnits

/// A stage-2 entry: 64 bits in the layout of an EPT entry as KVM uses it.
///
/// Entries above the lowest level either name the next table or are large leaves (2 MiB at level 2,
/// 1 GiB at level 3); at level 1 every present entry is a leaf. "Present" means MMU-present (bit
/// 11), which stays set while an access-tracked entry has lost all of R, W and X. A table entry
/// holds the address of the table in the place of a page frame, and bit 63. Mirrors the SPTE of
/// Linux 6.1 (`spte.h`); bit 59 is that of the kernels that mark refcounted pages in the entry.
public struct SPTE: Hashable, Sendable, BitwiseCopyable {
  /// The 64 bits.
  public var rawValue: UInt64

  /// An entry from its bits.
  @inlinable @inline(__always)
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The entry that maps nothing. 0, as in Linux 6.1; 6.13 sets bit 63 in it.
  @inlinable @inline(__always)
  public static var empty: SPTE { SPTE(rawValue: 0) }

  /// The marker of an entry under surgery: not present, and whoever meets it tries again later.
  /// Mirrors `REMOVED_SPTE`, Linux 6.1 (`FROZEN_SPTE` in 6.13, which adds bit 63).
  @inlinable @inline(__always)
  public static var frozen: SPTE { SPTE(rawValue: 0x5a0) }

  /// The bits of a leaf that the caller decides; the others follow from page, level and presence.
  public struct Attributes: OptionSet, Sendable, BitwiseCopyable {
    /// The bits, in their places in the entry.
    public var rawValue: UInt64
    /// Attributes from bits of the entry.
    @inlinable @inline(__always)
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The guest may read (bit 0). Every leaf starts with it; an access-tracked one has lost it.
    @inlinable @inline(__always)
    public static var read: Attributes { Attributes(rawValue: 1) }
    /// The guest may write now (bit 1, "W").
    @inlinable @inline(__always)
    public static var write: Attributes { Attributes(rawValue: 1 << 1) }
    /// The guest may execute (bit 2).
    @inlinable @inline(__always)
    public static var execute: Attributes { Attributes(rawValue: 1 << 2) }
    /// Accessed (bit 8).
    @inlinable @inline(__always)
    public static var accessed: Attributes { Attributes(rawValue: 1 << 8) }
    /// Written (bit 9).
    @inlinable @inline(__always)
    public static var dirty: Attributes { Attributes(rawValue: 1 << 9) }
    /// The host's own mapping is writable (bit 57), as it was when the entry was made.
    @inlinable @inline(__always)
    public static var hostWritable: Attributes { Attributes(rawValue: 1 << 57) }
    /// W may be given back without a look at the host (bit 58).
    @inlinable @inline(__always)
    public static var mmuWritable: Attributes { Attributes(rawValue: 1 << 58) }
    /// The page has a reference count that the entry's end has to be told to (bit 59).
    @inlinable @inline(__always)
    public static var refcounted: Attributes { Attributes(rawValue: 1 << 59) }
    /// The processor keeps no accessed and dirty bits here (bits 52 and 53 = 1).
    @inlinable @inline(__always)
    public static var accessDirtyDisabled: Attributes { Attributes(rawValue: 1 << 52) }
    /// Dirty pages are found by write protection although there are such bits (bits 52, 53 = 2).
    @inlinable @inline(__always)
    public static var writeProtectOnly: Attributes { Attributes(rawValue: 2 << 52) }

    /// A page that the guest reads, writes and executes, accessed and dirty: the entry of a write
    /// fault.
    @inlinable @inline(__always)
    public static var readWrite: Attributes {
      Attributes(rawValue: 0x307 | (1 << 57) | (1 << 58))
    }
    /// A page of a writable host mapping, protected for dirty logging; accessed.
    @inlinable @inline(__always)
    public static var writeProtected: Attributes {
      Attributes(rawValue: 0x105 | (1 << 57) | (1 << 58))
    }
    /// A page that the host itself may only read; accessed.
    @inlinable @inline(__always)
    public static var readOnly: Attributes { Attributes(rawValue: 0x105) }

    /// Whether host-writable, MMU-writable and W are one of 111, 110, 100 and 000.
    @inlinable @inline(__always)
    public var isWritabilityLegal: Bool { SPTE(rawValue: rawValue).isWritabilityLegal }
  }

  /// The leaf that maps a page (for levels above 1: the frames from `pfn` on) with these
  /// attributes.
  ///
  /// pre: `level` is 1, 2 or 3; `pfn` is a multiple of the level's frames; the writability is
  /// legal. Mirrors the end of `make_spte`, Linux 6.1.
  @inlinable
  public static func makeLeaf(pfn: PFN, level: Int, _ attributes: Attributes) -> SPTE {
    precondition(level >= 1 && level <= 3, "a leaf at level \(level)")
    precondition(
      pfn.rawValue & UInt32(frames(level: level) - 1) == 0,
      "frame \(pfn) is not aligned for level \(level)")
    precondition(
      attributes.isWritabilityLegal,
      "host-writable, MMU-writable and W contradict each other: \(attributes.rawValue)")
    return leaf(pfn: pfn, isLarge: level > 1, attributes)
  }

  /// The same without the tests, for the hot path.
  @inlinable @inline(__always)
  static func leaf(pfn: PFN, isLarge: Bool, _ attributes: Attributes) -> SPTE {
    SPTE(
      rawValue: attributes.rawValue | presentMask | 1 | (isLarge ? largeMask : 0)
        | (UInt64(pfn.rawValue) << 12))
  }

  /// The entry that names a table: its address, R, W, X, accessed, present, and bit 63.
  @inlinable @inline(__always)
  static func naming(_ table: UnsafeMutablePointer<UInt64>) -> SPTE {
    SPTE(rawValue: UInt64(UInt(bitPattern: table)) | presentMask | 0x107 | (1 << 63))
  }

  /// How many 4 KiB frames an entry of `level` covers: 1, 512, 512², ...
  @inlinable @inline(__always)
  public static func frames(level: Int) -> Int { 1 &<< (9 &* (level &- 1)) }
}

// MARK: - Fields

extension SPTE {
  @inlinable @inline(__always)
  static var presentMask: UInt64 { 0x800 }
  @inlinable @inline(__always)
  static var largeMask: UInt64 { 0x80 }
  @inlinable @inline(__always)
  static var addressMask: UInt64 { 0x000f_ffff_ffff_f000 }
  @inlinable @inline(__always)
  static var accessDirtyMask: UInt64 { 3 << 52 }
  /// Where an access-tracked entry keeps its R and X: 54 bits above their own places.
  @inlinable @inline(__always)
  static var savedMask: UInt64 { 5 << 54 }

  /// Whether the entry maps a page or names a table: MMU-present. Mirrors `is_shadow_present_pte`.
  @inlinable @inline(__always)
  public var isPresent: Bool { rawValue & SPTE.presentMask != 0 }

  /// Whether the entry is the marker ``frozen``.
  @inlinable @inline(__always)
  public var isFrozen: Bool { rawValue == 0x5a0 }

  /// Whether a present entry above level 1 is a leaf.
  @inlinable @inline(__always)
  public var isLarge: Bool { rawValue & SPTE.largeMask != 0 }

  /// Whether the entry names a table.
  ///
  /// Tables are told by bit 63, which no leaf has: a walk tests it at every level, and the sign
  /// costs it one instruction where "present and not large" costs three.
  @inlinable @inline(__always)
  public var isTable: Bool { Int64(bitPattern: rawValue) < 0 }

  /// Whether an entry of this level maps a page. Mirrors `is_last_spte` of a present entry.
  @inlinable @inline(__always)
  public func isLeaf(level: Int) -> Bool { isPresent && (level == 1 || isLarge) }

  /// The first page frame of a leaf.
  @inlinable @inline(__always)
  public var pfn: PFN {
    PFN(UInt32(truncatingIfNeeded: (rawValue & SPTE.addressMask) &>> 12))
  }

  /// The attribute bits of a leaf.
  @inlinable
  public var attributes: Attributes {
    Attributes(rawValue: rawValue & ~(SPTE.addressMask | SPTE.presentMask | SPTE.largeMask))
  }

  /// Whether the guest may read now.
  @inlinable @inline(__always)
  public var isReadable: Bool { rawValue & 1 != 0 }

  /// Whether the guest may write now (W). Mirrors `is_writable_pte`.
  @inlinable @inline(__always)
  public var isWritable: Bool {
    get { rawValue & 2 != 0 }
    set { set(2, newValue) }
  }

  /// Whether the guest may execute now.
  @inlinable @inline(__always)
  public var isExecutable: Bool {
    get { rawValue & 4 != 0 }
    set { set(4, newValue) }
  }

  /// The accessed bit.
  @inlinable @inline(__always)
  public var hasAccessedBit: Bool {
    get { rawValue & 0x100 != 0 }
    set { set(0x100, newValue) }
  }

  /// The dirty bit.
  @inlinable @inline(__always)
  public var hasDirtyBit: Bool {
    get { rawValue & 0x200 != 0 }
    set { set(0x200, newValue) }
  }

  /// Whether the host's own mapping is writable (bit 57).
  @inlinable @inline(__always)
  public var isHostWritable: Bool { rawValue & (1 << 57) != 0 }

  /// Whether W may be given back without a look at the host (bit 58).
  @inlinable @inline(__always)
  public var isMMUWritable: Bool {
    get { rawValue & (1 << 58) != 0 }
    set { set(1 << 58, newValue) }
  }

  /// Whether the page's reference count is concerned (bit 59, era B only).
  @inlinable @inline(__always)
  public var isRefcounted: Bool { rawValue & (1 << 59) != 0 }

  /// Whether the processor keeps accessed and dirty bits in this entry. Mirrors `spte_ad_enabled`.
  @inlinable @inline(__always)
  public var hasAccessDirty: Bool { rawValue & SPTE.accessDirtyMask != 1 << 52 }

  /// Whether a page's first write is found by write protection rather than by the dirty bit.
  /// Mirrors `spte_ad_need_write_protect`.
  @inlinable @inline(__always)
  public var needsWriteProtection: Bool { rawValue & SPTE.accessDirtyMask != 0 }

  /// Whether the entry lost R, W and X to an aging without accessed bits. Mirrors
  /// `is_access_track_spte`.
  @inlinable @inline(__always)
  public var isAccessTracked: Bool { !hasAccessDirty && rawValue & 7 == 0 }

  /// Whether the page was written through this entry as far as the entry tells: its dirty bit, or W
  /// where there is none. Mirrors `is_dirty_spte`.
  @inlinable @inline(__always)
  public var isDirty: Bool { hasAccessDirty ? hasDirtyBit : isWritable }

  /// Whether the page was used since the last aging: the accessed bit, or "not access-tracked"
  /// where there is none. Mirrors `is_accessed_spte`.
  @inlinable @inline(__always)
  public var isAccessed: Bool { hasAccessDirty ? hasAccessedBit : !isAccessTracked }

  /// Whether host-writable, MMU-writable and W are one of 111, 110, 100 and 000; all else is a bug.
  /// Mirrors `check_spte_writable_invariants`, Linux 6.1.
  @inlinable @inline(__always)
  public var isWritabilityLegal: Bool {
    (isHostWritable || !isMMUWritable) && (isMMUWritable || !isWritable)
  }

  @inlinable @inline(__always)
  mutating func set(_ mask: UInt64, _ value: Bool) {
    rawValue = value ? rawValue | mask : rawValue & ~mask
  }
}

// MARK: - Changes

extension SPTE {
  /// The entry after an aging: without its accessed bit, or without R, W and X (of which R and X
  /// are kept in bits 54 and 56) where there are none. Mirrors `mark_spte_for_access_track` and the
  /// clearing of `kvm_age_gfn`, Linux 6.1.
  @inlinable
  public var aged: SPTE {
    if hasAccessDirty { return SPTE(rawValue: rawValue & ~0x100) }
    if isAccessTracked { return self }
    return SPTE(rawValue: (rawValue & ~(7 | SPTE.savedMask)) | ((rawValue & 5) << 54))
  }

  /// An access-tracked entry with its R and X back, or the entry itself. Mirrors
  /// `restore_acc_track_spte`, Linux 6.1.
  @inlinable
  public var restored: SPTE {
    guard isAccessTracked else { return self }
    return SPTE(rawValue: (rawValue & ~(7 | SPTE.savedMask)) | ((rawValue >> 54) & 5))
  }

  /// The entry that maps part `index` (0 to 511) of a large leaf of `level` one level below, with
  /// everything else inherited. With `restoringExecute` X is given back, for leaves that lost it
  /// only for being large (the NX-hugepage mitigation). Mirrors `make_huge_page_split_spte`.
  @inlinable
  public func child(_ index: Int, level: Int, restoringExecute: Bool = false) -> SPTE {
    var child = rawValue &+ (UInt64(index) << UInt64(12 + 9 * (level - 2)))
    if level == 2 {
      child &= ~SPTE.largeMask
      if restoringExecute { child |= 4 }
    }
    return SPTE(rawValue: child)
  }
}

extension SPTE: CustomStringConvertible {
  /// As `pfn 1f00 rwx HM AD`, `table`, `frozen`, `empty`.
  public var description: String {
    if isFrozen { return "frozen" }
    if rawValue == 0 { return "empty" }
    guard isPresent else { return "special \(String(rawValue, radix: 16))" }
    func flag(_ letter: String, _ isSet: Bool) -> String { isSet ? letter : "-" }
    return "pfn \(pfn) " + flag("r", isReadable) + flag("w", isWritable)
      + flag("x", isExecutable) + " " + flag("H", isHostWritable) + flag("M", isMMUWritable) + " "
      + flag("A", isAccessed) + flag("D", isDirty) + (isLarge ? " large" : "")
  }
}
