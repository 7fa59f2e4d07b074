/// The 16-bit state word of a frame.
///
/// Zero means "never touched": a frame of an untouched machine, inside a free block of the highest
/// order, or that block's head where the PFN is a multiple of 1024. Every write sets ``touched``, so
/// that no frame returns to zero.
public enum FrameState {
  /// Order of a free block (with ``buddy``) or of a compound page (with ``head``).
  @inlinable @inline(__always) public static var orderMask: UInt16 { 0x000f }
  /// The frame heads a block on a buddy list. Changes only under the zone's lock.
  @inlinable @inline(__always) public static var buddy: UInt16 { 0x0010 }
  /// `PG_head`: the first page of a compound page.
  @inlinable @inline(__always) public static var head: UInt16 { 0x0020 }
  /// A tail of a compound page; its link's `next` is the head.
  @inlinable @inline(__always) public static var tail: UInt16 { 0x0040 }
  /// Where the cached migratetype stands (`page->index` of a free page).
  @inlinable @inline(__always) public static var migratetypeShift: UInt16 { 7 }
  /// The cached migratetype.
  @inlinable @inline(__always) public static var migratetypeMask: UInt16 { 0x0380 }
  /// `PG_lru` of the page's head, or movable by its driver.
  @inlinable @inline(__always) public static var lru: UInt16 { 0x0400 }
  /// `PG_reserved`.
  @inlinable @inline(__always) public static var reserved: UInt16 { 0x0800 }
  /// `PG_slab`.
  @inlinable @inline(__always) public static var slab: UInt16 { 0x1000 }
  /// An entry in the machine's detail table: other flags, mapcount, mapping, memory cgroup.
  @inlinable @inline(__always) public static var detail: UInt16 { 0x2000 }
  /// Set by every write.
  @inlinable @inline(__always) public static var touched: UInt16 { 0x8000 }

  /// Bits that say nothing about whether a page may be freed or handed out.
  @inlinable @inline(__always) public static var harmless: UInt16 {
    orderMask | migratetypeMask | touched
  }
}

/// What is remembered of a pageblock so that a block of order 9 or 10 needs no look at each frame.
///
/// The kernel's test of a block reads the count and the state of every frame. States change through
/// the allocator only, and a count inside a block is 0 until somebody raises it from 0 or lowers it
/// below. Whoever does either notes it here; where nothing is noted, the test has nothing to find.
public enum PageblockMarks {
  /// The pageblock was split into blocks below order 9 and was not handed out as a whole since. Where it is
  /// clear, the pageblock is within one block of order 9 or 10, free or allocated, and whoever lists a
  /// smaller block in it, or hands one out of it, makes it ``unusual``. In a table of its own,
  /// `FrameTable.broken`.
  @inlinable @inline(__always) public static var broken: UInt8 { 1 }
  /// Some frame may have a count or a state that a test would object to or that a free has to clear.
  @inlinable @inline(__always) public static var unusual: UInt8 { 2 }
}
