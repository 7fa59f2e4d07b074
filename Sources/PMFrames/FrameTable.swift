public import CPhysmemShim
package import PMArena
public import PMUnits

/// One record per frame of a machine: count, list link, state, and a migratetype per pageblock.
///
/// 14 bytes of address space per frame (Linux: 64), mapped lazily; all zero means "never touched", so
/// creating a table costs the same at any size. The parts are dense tables of their own: checking
/// the counts of 512 frames reads 2 KiB. With ``RefcountLayout/strided`` counts a frame has 74 bytes,
/// none of them reserved: a page of the host is taken for each 64 neighbours whose counts are written.
///
/// Thread rules: count operations may run on any thread at any time, their order is in each
/// comment. Links and states belong to the allocator.
public final class FrameTable: @unchecked Sendable {
  // Sendable: counts are atomic words; links and states are written under the lock of the frame's
  // zone or by the one CPU or owner that holds the frame.

  /// How many frames the table describes, from PFN 0.
  public let frameCount: Int
  /// How many frames, from PFN 0, have their counts side by side: all of a packed table, none of a
  /// strided one. One comparison with it answers both "in the table?" and "no shift?".
  @usableFromInline package let packedCount: Int
  /// How the counts are laid out.
  public let refcountLayout: RefcountLayout
  @usableFromInline package let counts: CountTable
  @usableFromInline package let links: UnsafeMutablePointer<pm_link>
  @usableFromInline package let states: UnsafeMutablePointer<UInt16>
  /// Pageblock types, stored XOR 1 so that zero is MOVABLE, as after boot.
  @usableFromInline package let pageblocks: UnsafeMutablePointer<UInt8>
  /// ``PageblockMarks/unusual`` or nothing, a byte per pageblock.
  @usableFromInline package let marks: UnsafeMutablePointer<UInt8>
  /// A byte per pageblock, see ``PageblockMarks``. Written under the zone's lock or by who was
  /// just handed the whole or a part, and so apart from the marks, which any thread may set: a split needs no locked
  /// instruction for it.
  package let broken: UnsafeMutablePointer<UInt8>
  /// How many list heads stand below link 0; head `i` has the index `-i` as a signed link value.
  package let sentinelCount: Int
  private let mapping: TableMapping

  /// How far into their pages the tables of states and counts start, in whole cache lines; that of the
  /// links starts at 0.
  ///
  /// A processor looks for a store that a load depends on by the low 12 bits of the address first. The
  /// links, states and counts of the frames that a split or a merge visits lie at powers of two times 8, 2
  /// and 4, so that tables which all start at a page would make every other load wait for a store to
  /// another table. No difference of these three is a difference of two powers of two.
  private static let stateOffset = 1472
  private static let countOffset = 2752

  /// Maps the table of `frameCount` frames with room for `sentinelCount` list heads.
  ///
  /// Nothing is touched: the cost does not depend on the size.
  package init(
    frameCount: Int, sentinelCount: Int, layout: RefcountLayout = .packed
  ) throws(HostError) {
    // A buddy may lie past the last frame, and an untouched link names the frame 1024 above or below
    // its own: the padding keeps such reads inside the mapping.
    let block = Order.maxBlockFrames
    let padded = (frameCount + block - 1) / block * block
    let heads = (sentinelCount + block + 7) / 8 * 8
    func pages(_ bytes: Int) -> Int { (bytes + 4095) & ~4095 }
    let headBytes = pages(heads * 8)
    let linkBytes = pages((padded + block) * 8)
    let stateBytes = pages(FrameTable.stateOffset + padded * 2)
    let countBytes = pages(FrameTable.countOffset + padded * layout.stride)
    let blockBytes = pages(padded / Order.pageblockFrames)
    let mapping = try TableMapping(
      byteCount: headBytes + linkBytes + stateBytes + countBytes + 3 * blockBytes)
    var cursor = mapping.base + headBytes
    links = cursor.bindMemory(to: pm_link.self, capacity: padded + block)
    cursor += linkBytes
    states = (cursor + FrameTable.stateOffset).bindMemory(to: UInt16.self, capacity: padded)
    cursor += stateBytes
    refcountLayout = layout
    counts = CountTable(
      base: (cursor + FrameTable.countOffset).bindMemory(
        to: Int32.self, capacity: padded << layout.wordShift),
      layout: layout)
    cursor += countBytes
    pageblocks = cursor.bindMemory(to: UInt8.self, capacity: padded / Order.pageblockFrames)
    cursor += blockBytes
    marks = cursor.bindMemory(to: UInt8.self, capacity: padded / Order.pageblockFrames)
    cursor += blockBytes
    broken = cursor.bindMemory(to: UInt8.self, capacity: padded / Order.pageblockFrames)
    self.frameCount = frameCount
    packedCount = layout == .packed ? frameCount : 0
    self.sentinelCount = headBytes / 8
    self.mapping = mapping
  }

  /// The whole mapping: list heads and tables. For snapshots.
  package var storage: UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: mapping.base, count: mapping.byteCount)
  }

  /// Bytes of address space that the table takes, list heads included.
  public var byteCount: Int { mapping.byteCount }

  /// Asks for transparent huge pages. To be called after the first writes of a new machine: those
  /// then cost a 4 KiB page each, and whatever is touched later comes in 2 MiB pages.
  package func adviseHugePages() { mapping.adviseHugePages() }

  /// The count word of a frame; stops the process with a message where the PFN is outside the table.
  @inlinable @inline(__always)
  package func countWord(_ pfn: PFN) -> UnsafeMutablePointer<Int32> {
    // Read before the check: a compiler then reads both fields once in front of a loop, not in each
    // round, where the rest of the code in it lets it.
    let base = counts.base
    if _slowPath(Int(pfn.rawValue) >= packedCount) {
      if Int(pfn.rawValue) >= frameCount { outOfRange(pfn) }
      return base + Int(pfn.rawValue) &<< counts.shift
    }
    return base + Int(pfn.rawValue)
  }

  @usableFromInline @inline(never)
  package func outOfRange(_ pfn: PFN) -> Never {
    fatalError(
      "PFN \(pfn) is outside the machine: it has frames 0 to \(String(frameCount - 1, radix: 16))")
  }

  /// The head of the compound page that contains `pfn`, or `pfn` itself where it is no tail.
  ///
  /// Relaxed; without a reference the answer may be stale at once, as in the kernel. Mirrors
  /// `compound_head`, Linux 6.1.
  @inlinable
  public func compoundHead(of pfn: PFN) -> PFN {
    if Int(pfn.rawValue) >= frameCount { outOfRange(pfn) }
    let index = Int(pfn.rawValue)
    if pm_state_load_relaxed(states + index) & 0x0040 == 0 { return pfn }
    return PFN(pm_link_next_load_relaxed(links + index) &+ pfn.rawValue &+ 1024)
  }

  /// Whether the frame is the head of a compound page (`PageHead`).
  public func isCompoundHead(_ pfn: PFN) -> Bool {
    _ = countWord(pfn)
    return pm_state_load_relaxed(states + Int(pfn.rawValue)) & FrameState.head != 0
  }

  /// Whether the frame is a tail of a compound page (`PageTail`).
  public func isCompoundTail(_ pfn: PFN) -> Bool {
    _ = countWord(pfn)
    return pm_state_load_relaxed(states + Int(pfn.rawValue)) & FrameState.tail != 0
  }

  /// The order of the free block that the frame heads (`PageBuddy` with its order), or nil.
  public func buddyOrder(_ pfn: PFN) -> Int? {
    _ = countWord(pfn)
    let state = pm_state_load_relaxed(states + Int(pfn.rawValue))
    guard state & FrameState.buddy != 0 else { return nil }
    return Int(state & FrameState.orderMask)
  }

  /// The order of a compound page by its head; 0 for every other frame. Mirrors `compound_order`.
  public func compoundOrder(_ pfn: PFN) -> Int {
    _ = countWord(pfn)
    let state = pm_state_load_relaxed(states + Int(pfn.rawValue))
    return state & FrameState.head != 0 ? Int(state & FrameState.orderMask) : 0
  }
}
