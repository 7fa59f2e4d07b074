internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// The short ways of blocks that have no per-CPU lists, see CPU+Routes.swift.
extension CPU {
  /// A block that has no per-CPU lists.
  @inline(never)
  mutating func allocateBuddy(order: Int, gfp: GFP) throws(AllocationError) -> PFN {
    if order <= 10 {
      let index = takeBuddy(order: UInt32(truncatingIfNeeded: order), gfp: gfp.rawValue)
      if index != Core.none { return PFN(index) }
    }
    return try allocatePages(order: order, gfp: gfp, node: node)
  }

  /// A block that has no per-CPU lists, from the type's own buddy lists. `Core.none`, with nothing
  /// changed, where anything is out of the ordinary: other bits, a zone that is short of memory, lists
  /// that have no such block or are corrupted. Takes the zone's lock. pre: order 4 to 8 or 10.
  @inline(__always)
  private mutating func takeBuddy(order: UInt32, gfp: UInt32) -> UInt32 {
    guard gfp == route.gfp, route.isPlain else { return Core.none }
    let core = core
    let zone = route.zone
    let type = route.type
    guard pm_word_load_relaxed(&zone.pointee.flags) & 1 == 0,
      // The test of the watermarks passes where the lists have a block, see `hasPlenty`.
      pm_word_load_relaxed(&zone.pointee.roomy) != 0
    else { return Core.none }
    core.lock(zone)
    let index = core.cutSmallest(
      zone, route.ladder, order: order, type: type, leavesCorrupted: true)
    guard index != Core.none else {
      core.unlock(zone)
      return Core.none
    }
    let frames: Int32 = 1 &<< Int32(truncatingIfNeeded: order)
    core.addFreePages(zone, route.pageset, 0 &- frames)
    core.unlock(zone)
    let isPlain =
      order <= 8
      ? core.state(index) & ~FrameState.harmless == 0 && !core.isWhole(index)
        && core.isPlainPacked(index, order: order)
      : core.isWholeAndPlainPacked(index)
    guard isPlain else { return testedBlock(index, order: order) }
    pm_refcount_store_relaxed(core.counts.base + Int(index), 1)
    return index
  }

  /// Tests a block that was taken; where it is bad it is leaked and the next one taken. The zone is not
  /// tested again.
  @inline(never)
  private mutating func testedBlock(_ taken: UInt32, order: UInt32) -> UInt32 {
    var index = taken
    if !core.isCleanForAllocation(taken, order: order, moment: .allocation) {
      index = core.allocateFromBuddy(
        route.zone, order: order, type: route.type, flags: route.flags)
    }
    if index != Core.none {
      pm_refcount_store_relaxed(core.counts[index], 1)
      if order < 9, core.isWhole(index) { core.noteHandedOut(index) }
    }
    if pm_word_load_relaxed(&route.zone.pointee.flags) & 1 != 0 {
      core.consumeBoostedBit(route.zone)
    }
    return index
  }

  /// Drops a reference to a block's first frame, of any order but 0.
  @inline(never)
  mutating func freeBlock(_ index: UInt32, order: Int) {
    guard order >= 4, order <= 8, index &- home.start < home.count,
      index & ((1 &<< UInt32(truncatingIfNeeded: order)) &- 1) == 0, pageFreeEvent == nil,
      core.counts.shift == 0
    else { return freeAnyBlock(index, order: order) }
    freeBuddy(index, order: UInt32(truncatingIfNeeded: order))
  }

  /// The same for a block of `home` that has no per-CPU lists. pre: order 4 to 8, packed counts.
  @inline(never)
  private mutating func freeBuddy(_ index: UInt32, order: UInt32) {
    let core = core
    // See `freeAnyBlock`.
    pm_prefetch_write(core.link(index))
    guard core.state(index) & FrameState.head == 0 else {
      return freeAnyBlock(index, order: Int(order))
    }
    guard pm_refcount_dec_and_test_seq_cst(core.counts.base + Int(index)) else {
      return freePieces(home.zone, index, order: order, wasHead: false)
    }
    // Read again: who put the reference before the last may have set flags before.
    let odd =
      (core.state(index) ^ FrameState.touched)
      & ~(FrameState.orderMask | FrameState.migratetypeMask)
    guard odd == 0, core.isPlainPacked(index, order: order) else {
      return core.freeToBuddy(home.zone, index, order: order)
    }
    core.setState(index, FrameState.touched)
    core.freePlain(home.zone, home.pageset, index, order: order)
  }
}

extension Core {
  /// Gives a block that was tested back to the buddy lists. Takes the lock. pre: order 4 to 8.
  @inline(__always)
  fileprivate func freePlain(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ freed: UInt32, order: UInt32
  ) {
    lock(zone)
    let type = pageblockType(freed)
    guard type < 3, zone.pointee.reserved2 == 0 else {
      freeBlock(zone, pageset, freed, order: order, type: type, toTail: false)
      return unlock(zone)
    }
    addFreePages(zone, pageset, 1 &<< Int32(truncatingIfNeeded: order))
    let ladder = ladder(zone, type: type)
    let (index, reached) = ladder.merge(freed, order: order)
    let mask = pm_zone_nonempty(zone) + Int(type)
    // The lists of the orders that were merged are empty.
    let left = UInt32(mask.pointee) & ~((1 &<< reached) &- (1 &<< order))
    guard reached == 9, pageblockType(index ^ 512) < 3, let whole = ladder.mergePageblocks(index)
    else {
      pm_state_store_relaxed(mask, UInt16(truncatingIfNeeded: left))
      insertBlock(zone, index, order: reached, type: type, toTail: false)
      return unlock(zone)
    }
    listWhole(zone, ladder, whole, type: type, orders: left & ~(1 &<< 9))
    unlock(zone)
  }

  /// Lists a block of the highest order; `orders`: what the lists of the type hold besides.
  @inline(__always)
  private func listWhole(
    _ zone: UnsafeMutablePointer<pm_zone>, _ ladder: BuddyLadder, _ index: UInt32, type: UInt8,
    orders: UInt32
  ) {
    let state = ladder.states + Int(index)
    let kept = pm_state_load_relaxed(state) & ~FrameState.harmless
    pm_state_store_relaxed(state, kept | FrameState.touched | FrameState.buddy | 10)
    let mask = pm_zone_nonempty(zone) + Int(type)
    guard addFront(ladder.list &+ 10, index) else {
      return pm_state_store_relaxed(mask, UInt16(truncatingIfNeeded: orders))
    }
    pm_state_store_relaxed(mask, UInt16(truncatingIfNeeded: orders | 1 &<< 10))
    ladder.blocks[10] &+= 1
  }
}
