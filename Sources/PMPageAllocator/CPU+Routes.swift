internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// The short ways: most requests are alike, most zones have plenty, and most frees are of plain frames.
// Where something is out of the ordinary they change nothing and leave it to the ways that know all cases.

/// What requests with the same GFP bits come to on one CPU. Zonelists, zones and lists of a machine stay
/// where they are, so that it is worked out once.
struct AllocationRoute {
  /// The GFP bits that it holds for; all ones where it holds for none. A request with all ones, which is
  /// not valid, finds an empty list and is refused by the general way.
  var gfp: UInt32
  /// The CPU's list of single frames in the preferred zone, as a link index.
  var head: UInt32
  var zone: UnsafeMutablePointer<pm_zone>
  var pageset: UnsafeMutablePointer<pm_pageset>
  var type: UInt8
  /// What the allocation starts with, see `AllocFlags`.
  var flags: UInt32
  /// Whether a block of several frames needs nothing but its first count, in a packed table.
  var isPlain: Bool
  /// The type's buddy lists in the preferred zone.
  var ladder: BuddyLadder

  static func none(_ core: Core) -> AllocationRoute {
    AllocationRoute(
      gfp: .max, head: Core.poison, zone: core.zones, pageset: core.pagesets, type: 0, flags: 0,
      isPlain: false, ladder: core.ladder(core.zones, type: 0))
  }
}

/// A run of frames of one zone, with what a free into it needs.
struct FreeRoute {
  var start: UInt32
  var count: UInt32
  var zone: UnsafeMutablePointer<pm_zone>
  var pageset: UnsafeMutablePointer<pm_pageset>
  var hints: UnsafeMutablePointer<UInt32>

  init(_ core: Core, _ segment: UnsafeMutablePointer<pm_segment>) {
    start = segment.pointee.start
    count = segment.pointee.count
    zone = core.zones + Int(segment.pointee.zone)
    pageset = core.pagesets + Int(zone.pointee.index)
    hints = core.hintRing(zone)
  }
}

extension CPU {
  /// The front frame of the list that the last request with the same bits used. `Core.none`, with
  /// nothing changed, where anything is out of the ordinary: other bits, a zone that is short of memory, a
  /// list that holds fewer than two frames or is corrupted, a frame that is to be noted.
  @inline(__always)
  mutating func allocateSingle(gfp: UInt32) -> UInt32 {
    guard gfp == route.gfp else { return Core.none }
    let zone = route.zone
    guard pm_word_load_relaxed(&zone.pointee.roomy) != 0,
      pm_word_load_relaxed(&zone.pointee.flags) & 1 == 0
    else { return Core.none }
    let core = core
    let head = route.head
    let links = core.blockLinks
    let index = links.next(head)
    // An empty list's head is its own neighbour, and one behind the last frame: both end here.
    let after = links.next(index)
    guard Int32(bitPattern: after) >= 0, links.previous(after) == index, !core.isWhole(index)
    else { return Core.none }
    links.setNext(head, after)
    let pageset = route.pageset
    pageset.pointee.free_factor >>= 1
    pageset.pointee.hint_top &-= 1
    pageset.pointee.count &-= 1
    pm_refcount_store_relaxed(core.counts[index], 1)
    return index
  }

  /// Notes what a request comes to, for those that follow; nothing where each of them is a case of its
  /// own.
  @inline(never)
  mutating func noteRoute(_ request: Core.Request, gfp: UInt32) {
    let zone = core.zones + Int(core.zonelistEntries[core.zonelistStart(request)])
    guard Int(zone.pointee.kind) <= request.highest, failPageAlloc == nil,
      request.gfp & GFP.zero.rawValue == 0, !core.zeroesOnAllocation
    else { return }
    let pageset = core.pagesets + Int(zone.pointee.index)
    let list = Core.perCPUIndex(order: 0, type: request.type)
    route = AllocationRoute(
      gfp: gfp, head: UInt32(bitPattern: pageset.pointee.list_base) &+ list, zone: zone,
      pageset: pageset, type: request.type, flags: core.firstFlags(request),
      isPlain: request.gfp & GFP.comp.rawValue == 0 && core.counts.shift == 0,
      ladder: core.ladder(zone, type: request.type))
  }

  /// Frees a single frame of `home` whose last reference is gone. The same as `Core.freePerCPU` after
  /// the trace event, with order and zone known.
  @inline(__always)
  mutating func freeSingle(_ index: UInt32) {
    let core = core
    let state = core.state(index)
    let odd =
      (state ^ FrameState.touched)
      & ~(FrameState.orderMask | FrameState.migratetypeMask | FrameState.head)
    let type = core.pageblockType(index)
    guard odd == 0, type < 3, pageFreeEvent == nil else { return freeOdd(index) }
    core.setState(index, FrameState.touched | UInt16(type) << FrameState.migratetypeShift)
    let pageset = home.pageset
    let slot = UInt32(type)
    let head = UInt32(bitPattern: pageset.pointee.list_base) &+ slot
    let links = core.blockLinks
    let first = links.next(head)
    guard first != index else { return core.reportCorruptedAdd(index) }
    links.setPrevious(first, index)
    links.set(index, next: first, previous: head)
    links.setNext(head, index)
    let top = pageset.pointee.hint_top
    home.hints[Int(top & core.hintMask)] = index
    pageset.pointee.hint_top = top &+ 1
    let count = pageset.pointee.count &+ 1
    pageset.pointee.count = count
    if count < pageset.pointee.high, pm_word_load_relaxed(&home.zone.pointee.flags) & 2 == 0 {
      return
    }
    core.overflow(home.zone, pageset, slot: slot, flushesAll: false)
  }

  @inline(never)
  private mutating func freeOdd(_ index: UInt32) {
    noteFree(index, order: 0)
    core.freePerCPU(home.zone, index, order: 0)
  }
}
