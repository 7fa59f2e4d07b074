internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

/// The allocator's flags of one request (specification 2.5). Plain bits: they are tested per page.
enum AllocFlags {
  static let watermarkMin: UInt32 = 0
  static let watermarkLow: UInt32 = 1
  static let watermarkMask: UInt32 = 3
  static let noWatermarks: UInt32 = 0x4
  static let oom: UInt32 = 0x8
  static let nonBlock: UInt32 = 0x10
  static let minReserve: UInt32 = 0x20
  static let cpuset: UInt32 = 0x40
  static let noFragment: UInt32 = 0x100
  static let highatomic: UInt32 = 0x200
  static let kswapd: UInt32 = 0x800
  static let reserves: UInt32 = nonBlock | minReserve | highatomic | oom
}

/// A run of equal blocks that a refill took, before they are tested and linked.
struct TakenRun {
  var start: UInt32
  var count: UInt32
}

/// Where a CPU's view of a machine is kept: one per CPU, constant.
struct CoreFields {
  var links: UnsafeMutablePointer<pm_link>
  var states: UnsafeMutablePointer<UInt16>
  var counts: CountTable
  var pageblocks: UnsafeMutablePointer<UInt8>
  var marks: UnsafeMutablePointer<UInt8>
  var broken: UnsafeMutablePointer<UInt8>
  var zones: UnsafeMutablePointer<pm_zone>
  /// This CPU's pagesets, by zone index.
  var pagesets: UnsafeMutablePointer<pm_pageset>
  var nodes: UnsafeMutablePointer<pm_node>
  var segments: UnsafeMutablePointer<pm_segment>
  var segmentCount: Int
  /// Eight words per zonelist (node × 2 + thisnode): where the entries start for a highest zone
  /// index 0...4, and, in word 7, where they end.
  var zonelistBounds: UnsafeMutablePointer<UInt32>
  var zonelistEntries: UnsafeMutablePointer<UInt16>
  /// Room for the runs of one refill: as many as the largest batch.
  var runs: UnsafeMutablePointer<TakenRun>
  /// A ring per zone of the single frames that this CPU freed, in order. It says which frames a drain
  /// will come to and is used to fetch their cache lines in time; what it says need not be true.
  var hints: UnsafeMutablePointer<UInt32>
  /// Entries of one ring minus 1.
  var hintMask: UInt32
  /// Set to 1 when the last page came without watermarks (`page_is_pfmemalloc`).
  var pfmemalloc: UnsafeMutablePointer<UInt8>
  var arena: UnsafeMutableRawPointer
  var log: Unmanaged<FindingLog>
  var details: Unmanaged<PageDetailTable>
  var zoneCount: Int
  /// Frames of the machine.
  var frameLimit: Int
  var watermarkBoostFactor: Int64
  var isMultiNode: Bool
  /// Whether another CPU may meet this one in a zone.
  var isMultiProcessor: Bool
  var isMobilityDisabled: Bool
  var zeroesOnAllocation: Bool
}

/// What one CPU of a machine sees: the shared tables and this CPU's own lists.
///
/// This is the one engine. It is a pointer to pointers into memory that the machine owns, one word that
/// is passed in a register, so that hot paths neither retain nor copy anything; everything that changes
/// lives behind the pointers. It must not outlive the machine; `CPU` keeps that promise.
struct Core {
  /// "No page", where a PFN is expected. Above every PFN and every list head.
  static var none: UInt32 { 0x7fff_ffff }
  /// The link value of a frame that was removed from amid a buddy list, as the kernel's list poison. It names
  /// a list head of its own that nothing points to, so following it is harmless and noticed. A frame that was
  /// taken off the front keeps its old links, to neighbours that no longer point back.
  static var poison: UInt32 { UInt32(bitPattern: -1032) }

  let fields: UnsafeMutablePointer<CoreFields>

  @inline(__always) var links: UnsafeMutablePointer<pm_link> { fields.pointee.links }
  @inline(__always) var states: UnsafeMutablePointer<UInt16> { fields.pointee.states }
  @inline(__always) var counts: CountTable { fields.pointee.counts }
  @inline(__always) var pageblocks: UnsafeMutablePointer<UInt8> { fields.pointee.pageblocks }
  @inline(__always) var marks: UnsafeMutablePointer<UInt8> { fields.pointee.marks }
  @inline(__always) var broken: UnsafeMutablePointer<UInt8> { fields.pointee.broken }
  @inline(__always) var zones: UnsafeMutablePointer<pm_zone> { fields.pointee.zones }
  @inline(__always) var pagesets: UnsafeMutablePointer<pm_pageset> { fields.pointee.pagesets }
  @inline(__always) var nodes: UnsafeMutablePointer<pm_node> { fields.pointee.nodes }
  @inline(__always) var segments: UnsafeMutablePointer<pm_segment> { fields.pointee.segments }
  @inline(__always) var segmentCount: Int { fields.pointee.segmentCount }
  @inline(__always) var zonelistBounds: UnsafeMutablePointer<UInt32> {
    fields.pointee.zonelistBounds
  }
  @inline(__always) var zonelistEntries: UnsafeMutablePointer<UInt16> {
    fields.pointee.zonelistEntries
  }
  @inline(__always) var runs: UnsafeMutablePointer<TakenRun> { fields.pointee.runs }
  @inline(__always) var hints: UnsafeMutablePointer<UInt32> { fields.pointee.hints }
  @inline(__always) var hintMask: UInt32 { fields.pointee.hintMask }
  @inline(__always) var pfmemalloc: UnsafeMutablePointer<UInt8> { fields.pointee.pfmemalloc }
  @inline(__always) var arena: UnsafeMutableRawPointer { fields.pointee.arena }
  @inline(__always) var log: Unmanaged<FindingLog> { fields.pointee.log }
  @inline(__always) var details: Unmanaged<PageDetailTable> { fields.pointee.details }
  @inline(__always) var zoneCount: Int { fields.pointee.zoneCount }
  @inline(__always) var frameLimit: Int { fields.pointee.frameLimit }
  @inline(__always) var watermarkBoostFactor: Int64 { fields.pointee.watermarkBoostFactor }
  @inline(__always) var isMultiNode: Bool { fields.pointee.isMultiNode }
  @inline(__always) var isMobilityDisabled: Bool { fields.pointee.isMobilityDisabled }
  @inline(__always) var zeroesOnAllocation: Bool { fields.pointee.zeroesOnAllocation }
}

extension Core {
  // MARK: zones

  /// Takes a zone's lock. Acquire. On a machine with one CPU there is nobody to keep out, as in a kernel
  /// without SMP: only the holder of a CPU gets here, and who is handed the CPU next comes after it.
  @inline(__always)
  func lock(_ zone: UnsafeMutablePointer<pm_zone>) {
    if fields.pointee.isMultiProcessor { pm_lock_acquire(&zone.pointee.lock) }
  }

  /// Gives it back. Release.
  @inline(__always)
  func unlock(_ zone: UnsafeMutablePointer<pm_zone>) {
    if fields.pointee.isMultiProcessor { pm_lock_release(&zone.pointee.lock) }
  }

  /// The segment that contains a frame, or nil for a hole. Binary search; callers keep the last one.
  func segment(containing index: UInt32) -> UnsafeMutablePointer<pm_segment>? {
    var low = 0
    var high = segmentCount
    while low < high {
      let middle = (low + high) / 2
      let segment = segments + middle
      if index < segment.pointee.start {
        high = middle
      } else if index &- segment.pointee.start >= segment.pointee.count {
        low = middle + 1
      } else {
        return segment
      }
    }
    return nil
  }

  /// Whether a frame belongs to a zone. Mirrors the comparison of zone and node bits in the flags.
  func contains(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32) -> Bool {
    segment(containing: index)?.pointee.zone == UInt32(zone.pointee.index)
  }

  @inline(__always)
  func pageblockType(_ index: UInt32) -> UInt8 {
    pm_pageblock_load_relaxed(pageblocks + Int(index >> 9)) ^ 1
  }

  /// Mirrors `set_pageblock_migratetype`. pre: the zone's lock is held.
  func setPageblockType(_ index: UInt32, _ type: UInt8) {
    let stored = isMobilityDisabled && type < 3 ? 0 : type
    pm_pageblock_store_relaxed(pageblocks + Int(index >> 9), stored ^ 1)
  }

  @inline(__always)
  func state(_ index: UInt32) -> UInt16 { pm_state_load_relaxed(states + Int(index)) }

  @inline(__always)
  func setState(_ index: UInt32, _ value: UInt16) {
    pm_state_store_relaxed(states + Int(index), value)
  }

  /// The order of the free block that a frame heads, an untouched one included, or nil.
  /// pre: the frame lies in a zone.
  func freeBlockOrder(_ index: UInt32) -> UInt32? {
    let state = state(index)
    if state & FrameState.buddy != 0 { return UInt32(state & FrameState.orderMask) }
    return state == 0 && index & 1023 == 0 ? 10 : nil
  }

  // MARK: pageblock marks

  /// Notes that states in the pageblocks of a block may differ from plain frames'.
  func markUnusual(_ index: UInt32, order: UInt32 = 0) {
    var block = index >> 9
    let last = (index &+ (1 << order) &- 1) >> 9
    while block <= last {
      let marks = marks + Int(block)
      if pm_pageblock_load_relaxed(marks) & PageblockMarks.unusual == 0 {
        pm_marks_set(marks, PageblockMarks.unusual)
      }
      block &+= 1
    }
  }

  /// Notes that the pageblocks of a run of frames are split into smaller blocks. pre: the zone's lock is
  /// held.
  func markBroken(_ index: UInt32, frames: UInt32) {
    for block in (index >> 9)...((index &+ frames &- 1) >> 9) { markBroken(block &<< 9) }
  }

  /// The same for the pageblock of a frame. pre: the zone's lock is held.
  @inline(__always)
  func markBroken(_ index: UInt32) {
    let block = broken + Int(index &>> 9)
    if pm_pageblock_load_relaxed(block) == 0 {
      pm_pageblock_store_relaxed(block, PageblockMarks.broken)
    }
  }

  /// Whether frames in the one or two pageblocks of a block of order 9 or 10 have to be looked at:
  /// something was noted, or the allocator handed them out as smaller blocks.
  @inline(__always)
  func isUnusual(_ index: UInt32, order: UInt32) -> Bool {
    let block = Int(index &>> 9)
    let bits = pm_pageblock_load_relaxed(marks + block) | pm_pageblock_load_relaxed(broken + block)
    guard order == 10 else { return bits != 0 }
    return bits | pm_pageblock_load_relaxed(marks + block + 1)
      | pm_pageblock_load_relaxed(broken + block + 1) != 0
  }

  /// Whether the pageblock of a frame is within one block of order 9 or 10.
  @inline(__always)
  func isWhole(_ index: UInt32) -> Bool {
    pm_pageblock_load_relaxed(broken + Int(index &>> 9)) == 0
  }

  /// Notes that a block below order 9 was handed out although its pageblock counts as whole. It was on a list
  /// when somebody freed a block over it; or the pageblock was split by another way than a cut, as in
  /// a loaded state. From now on it counts as split.
  @inline(never)
  func noteHandedOut(_ index: UInt32) {
    markUnusual(index)
    pm_pageblock_store_relaxed(broken + Int(index &>> 9), PageblockMarks.broken)
  }

  /// Notes that all states of a block of order 9 or 10 are plain, before they are looked at.
  func clearUnusual(_ index: UInt32, order: UInt32) {
    pm_marks_clear(marks + Int(index >> 9), PageblockMarks.unusual)
    if order == 10 { pm_marks_clear(marks + Int(index >> 9) + 1, PageblockMarks.unusual) }
  }

  // MARK: counters

  /// Applies a change of the free pages to the CPU's pending difference and, beyond its threshold, to
  /// the zone's counter, which is all that watermarks look at. Mirrors `__mod_zone_page_state`.
  /// pre: the zone's lock is held.
  @inline(__always)
  func addFreePages(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ delta: Int32
  ) {
    let pending = pageset.pointee.stat_diff &+ delta
    let threshold = pageset.pointee.stat_threshold
    // One comparison for both sides.
    if UInt32(bitPattern: pending &+ threshold) > UInt32(bitPattern: threshold &+ threshold) {
      let free = pm_counter_load_relaxed(&zone.pointee.nr_free_pages) &+ Int64(pending)
      pm_counter_store_relaxed(&zone.pointee.nr_free_pages, free)
      pageset.pointee.stat_diff = 0
      noteRoom(zone, free)
    } else {
      pageset.pointee.stat_diff = pending
    }
  }

  /// Keeps the zone's mark of plenty in step with its free counter. pre: the zone's lock is held.
  @inline(__always)
  func noteRoom(_ zone: UnsafeMutablePointer<pm_zone>, _ free: Int64) {
    let roomy: UInt32 = free > zone.pointee.roomy_above ? 1 : 0
    if roomy != zone.pointee.roomy { pm_word_store_relaxed(&zone.pointee.roomy, roomy) }
  }

  /// The same change several times over, with the same steps of the pending difference.
  /// pre: the zone's lock is held, `delta` is positive.
  @inline(__always)
  func addFreePages(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ delta: Int32, times: UInt32
  ) {
    let sum = pageset.pointee.stat_diff &+ delta &* Int32(bitPattern: times)
    if sum <= pageset.pointee.stat_threshold {
      pageset.pointee.stat_diff = sum
      return
    }
    for _ in 0..<times { addFreePages(zone, pageset, delta) }
  }

  // MARK: per-CPU list indices

  /// Whether blocks of this order have per-CPU lists. Mirrors `pcp_allowed_order`.
  @inline(__always)
  static func isPerCPUOrder(_ order: UInt32) -> Bool { order <= 3 || order == 9 }

  /// Mirrors `order_to_pindex` with two lists for order 9: not movable, movable.
  @inline(__always)
  static func perCPUIndex(order: UInt32, type: UInt8) -> UInt32 {
    order <= 3 ? order * 3 + UInt32(type) : (type == 1 ? 13 : 12)
  }

  /// The order of the blocks on a per-CPU list. Mirrors `pindex_to_order`.
  @inline(__always)
  static func order(ofPerCPUIndex index: UInt32) -> UInt32 { index < 12 ? index / 3 : 9 }
}
