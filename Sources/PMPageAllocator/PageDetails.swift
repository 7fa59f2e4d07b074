/// Page flags in the kernel's bits (Linux 6.1 on x86-64, configuration of the traces).
public struct PageFlags: OptionSet, Hashable, Sendable {
  /// The kernel's low bits; zone, node and last-cpupid are not part of them.
  public var rawValue: UInt32
  /// Flags from the kernel's bits.
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// `PG_locked`.
  public static let locked: PageFlags = PageFlags(rawValue: 1 << 0)
  /// `PG_referenced`.
  public static let referenced: PageFlags = PageFlags(rawValue: 1 << 1)
  /// `PG_uptodate`.
  public static let uptodate: PageFlags = PageFlags(rawValue: 1 << 2)
  /// `PG_dirty`.
  public static let dirty: PageFlags = PageFlags(rawValue: 1 << 3)
  /// `PG_lru`.
  public static let lru: PageFlags = PageFlags(rawValue: 1 << 4)
  /// `PG_active`.
  public static let active: PageFlags = PageFlags(rawValue: 1 << 5)
  /// `PG_slab`.
  public static let slab: PageFlags = PageFlags(rawValue: 1 << 9)
  /// `PG_reserved`.
  public static let reserved: PageFlags = PageFlags(rawValue: 1 << 12)
  /// `PG_private`.
  public static let `private`: PageFlags = PageFlags(rawValue: 1 << 13)
  /// `PG_writeback`.
  public static let writeback: PageFlags = PageFlags(rawValue: 1 << 15)
  /// `PG_head`. Set by a compound allocation only.
  public static let head: PageFlags = PageFlags(rawValue: 1 << 16)
  /// `PG_workingset`.
  public static let workingset: PageFlags = PageFlags(rawValue: 1 << 6)
  /// `PG_anon_exclusive` (shares the bit of `PG_mappedtodisk`): this process alone maps the page.
  public static let anonExclusive: PageFlags = PageFlags(rawValue: 1 << 17)
  /// `PG_swapbacked`.
  public static let swapbacked: PageFlags = PageFlags(rawValue: 1 << 19)
  /// `PG_unevictable`.
  public static let unevictable: PageFlags = PageFlags(rawValue: 1 << 20)
  /// `PG_mlocked`.
  public static let mlocked: PageFlags = PageFlags(rawValue: 1 << 21)
  /// `PG_hwpoison`.
  public static let hwpoison: PageFlags = PageFlags(rawValue: 1 << 23)

  /// Flags that must be clear when a page is freed (specification 1.2).
  public static let checkedAtFree: PageFlags = PageFlags(rawValue: 0x3830_f231)
  /// Flags that must be clear when a page is handed out, hwpoison apart; cleared at a free.
  public static let checkedAtPrep: PageFlags = PageFlags(rawValue: 0x3f7f_ffff)
}

extension PageFlags: CustomStringConvertible {
  /// Hexadecimal with a prefix.
  public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// What few pages have: flags beyond those of the frame table, map counts, a mapping, a memory
/// cgroup. Kept aside, so that the other pages pay nothing for it.
public struct PageDetails: Hashable, Sendable {
  /// Flags without `lru`, `slab`, `reserved` and `head`, which the frame table holds.
  public var flags: PageFlags
  /// `_mapcount`: -1 where the page is not mapped by an entry of its own.
  public var mapcount: Int32
  /// How often a compound page is mapped as a whole; of its head only.
  public var wholeMapcount: Int32
  /// Pins of a large folio (`_pincount`); of its head only.
  public var pincount: Int32
  /// `mapping`: the low two bits are 1 or 3 for anonymous pages, 2 for driver-movable ones.
  public var mapping: UInt64
  /// `memcg_data`.
  public var memcg: UInt64
  /// `private`: a word of the page's owner; a free resets it.
  public var `private`: UInt64

  /// The details of a clean page.
  public init(
    flags: PageFlags = [], mapcount: Int32 = -1, mapping: UInt64 = 0, memcg: UInt64 = 0,
    private: UInt64 = 0, wholeMapcount: Int32 = 0, pincount: Int32 = 0
  ) {
    self.private = `private`
    self.flags = flags
    self.mapcount = mapcount
    self.mapping = mapping
    self.memcg = memcg
    self.wholeMapcount = wholeMapcount
    self.pincount = pincount
  }

  /// Whether nothing distinguishes them from a clean page's.
  public var isClean: Bool { self == PageDetails() }
}
