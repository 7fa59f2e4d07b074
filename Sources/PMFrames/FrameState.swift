/// The 16-bit state word of a frame.
///
/// Zero means "never touched": a frame of an untouched machine, inside a free block of the highest
/// order, or that block's head where the PFN is a multiple of 1024. Every write sets ``touched``, so
/// that no frame returns to zero.
package enum FrameState {
  /// Order of a free block (with ``buddy``) or of a compound page (with ``head``).
  @inlinable package static var orderMask: UInt16 { 0x000f }
  /// The frame heads a block on a buddy list. Changes only under the zone's lock.
  @inlinable package static var buddy: UInt16 { 0x0010 }
  /// `PG_head`: the first page of a compound page.
  @inlinable package static var head: UInt16 { 0x0020 }
  /// A tail of a compound page; its link's `next` is the head.
  @inlinable package static var tail: UInt16 { 0x0040 }
  /// Where the cached migratetype stands (`page->index` of a free page).
  @inlinable package static var migratetypeShift: UInt16 { 7 }
  /// The cached migratetype.
  @inlinable package static var migratetypeMask: UInt16 { 0x0380 }
  /// `PG_lru` of the page's head, or movable by its driver.
  @inlinable package static var lru: UInt16 { 0x0400 }
  /// `PG_reserved`.
  @inlinable package static var reserved: UInt16 { 0x0800 }
  /// `PG_slab`.
  @inlinable package static var slab: UInt16 { 0x1000 }
  /// An entry in the machine's detail table: other flags, mapcount, mapping, memory cgroup.
  @inlinable package static var detail: UInt16 { 0x2000 }
  /// Set by every write.
  @inlinable package static var touched: UInt16 { 0x8000 }

  /// Bits that say nothing about whether a page may be freed or handed out.
  @inlinable package static var harmless: UInt16 { orderMask | migratetypeMask | touched }
}
