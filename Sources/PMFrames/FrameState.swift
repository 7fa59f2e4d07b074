/// The 16-bit state word of a frame.
///
/// Zero means "never touched": a frame of an untouched machine, inside a free block of the highest
/// order, or that block's head where the PFN is a multiple of 1024. Every write sets ``touched``, so
/// that no frame returns to zero.
package enum FrameState {
  /// Order of a free block (with ``buddy``) or of a compound page (with ``head``).
  package static let orderMask: UInt16 = 0x000f
  /// The frame heads a block on a buddy list. Changes only under the zone's lock.
  package static let buddy: UInt16 = 0x0010
  /// `PG_head`: the first page of a compound page.
  package static let head: UInt16 = 0x0020
  /// A tail of a compound page; its link's `next` is the head.
  package static let tail: UInt16 = 0x0040
  /// Where the cached migratetype stands (`page->index` of a free page).
  package static let migratetypeShift: UInt16 = 7
  /// The cached migratetype.
  package static let migratetypeMask: UInt16 = 0x0380
  /// `PG_lru` of the page's head, or movable by its driver.
  package static let lru: UInt16 = 0x0400
  /// `PG_reserved`.
  package static let reserved: UInt16 = 0x0800
  /// `PG_slab`.
  package static let slab: UInt16 = 0x1000
  /// An entry in the machine's detail table: other flags, mapcount, mapping, memory cgroup.
  package static let detail: UInt16 = 0x2000
  /// Set by every write.
  package static let touched: UInt16 = 0x8000

  /// Bits that say nothing about whether a page may be freed or handed out.
  package static let harmless: UInt16 = orderMask | migratetypeMask | touched
}
