internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// The buddy lists of one zone: splitting, merging, direct allocation and freeing. Every function
// here needs the zone's lock unless its comment says that it takes it.
extension Core {
  /// The smallest sufficient block of a type, split down; `Core.none` where the lists have none.
  /// Mirrors `__rmqueue_smallest` with `expand`, Linux 6.1.
  @inline(never)
  func takeSmallest(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8
  ) -> UInt32 {
    cutSmallest(
      zone, ladder(zone, type: type), order: order, type: type, leavesCorrupted: false)
  }

  /// The same, in the place where it is called. `leavesCorrupted`: a first block that is not linked as it
  /// should be is not reported either, but left as it is.
  @inline(__always)
  func cutSmallest(
    _ zone: UnsafeMutablePointer<pm_zone>, _ ladder: BuddyLadder, order: UInt32, type: UInt8,
    leavesCorrupted: Bool
  ) -> UInt32 {
    let mask = pm_zone_nonempty(zone) + Int(type)
    let orders = UInt32(pm_state_load_relaxed(mask))
    let sufficient = orders &>> order
    if sufficient == 0 { return Core.none }
    let found = order &+ UInt32(truncatingIfNeeded: sufficient.trailingZeroBitCount)
    let links = BlockLinks(base: ladder.links)
    let headLink = ladder.heads + Int(found)
    let head = ladder.list &+ found
    let index = headLink.pointee.next &+ head &+ 1024
    let after = links.next(index)
    guard links.previous(index) == head, links.previous(after) == index,
      Int32(bitPattern: index) >= 0
    else {
      if leavesCorrupted { return Core.none }
      return takeSmallestElsewhere(zone, index, order: order, found: found, type: type)
    }
    var left = orders
    if after == head {
      pm_link_word_store_relaxed(headLink, LinkWord.empty)
      left ^= 1 &<< found
    } else {
      pm_link_next_store_relaxed(headLink, after &- head &- 1024)
      links.setPrevious(after, head)
    }
    let state = ladder.states + Int(index)
    let kept = pm_state_load_relaxed(state) & ~(FrameState.harmless | FrameState.buddy)
    pm_state_store_relaxed(
      state, kept | FrameState.touched | UInt16(type) &<< FrameState.migratetypeShift)
    ladder.blocks[Int(found)] &-= 1
    // The orders of the pieces are the bits of what is left.
    let pieces: UInt32 = (1 &<< found) &- (1 &<< order)
    pm_state_store_relaxed(mask, UInt16(truncatingIfNeeded: left | pieces))
    if pieces != 0 {
      if found < 9 {
        noteListed(index)
      } else if order < 9 {
        markBroken(index)
      }
      ladder.split(index, pieces: pieces)
    }
    return index
  }

  /// The splits and merges of a type's lists.
  @inline(__always)
  func ladder(_ zone: UnsafeMutablePointer<pm_zone>, type: UInt8) -> BuddyLadder {
    BuddyLadder(
      links: links, states: states, blocks: pm_zone_nr_free(zone),
      list: freeList(zone, order: 0, type: type))
  }

  /// What `cutSmallest` does where the first block of the list is not linked as it should be.
  @inline(never)
  private func takeSmallestElsewhere(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, found: UInt32,
    type: UInt8
  ) -> UInt32 {
    guard deleteBlock(zone, index, order: found) else { return Core.none }
    if found > order {
      if found >= 9, order < 9 { markBroken(index) }
      listRest(zone, index, after: 1 &<< order, found: found, type: type)
    }
    setState(index, state(index) | UInt16(type) &<< FrameState.migratetypeShift)
    return index
  }

  /// A block of a type, stolen from another where its own lists have none. Mirrors `__rmqueue`.
  func takeBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8, flags: UInt32
  ) -> UInt32 {
    let index = takeSmallest(zone, order: order, type: type)
    if index != Core.none { return index }
    guard steal(zone, order: order, type: type, flags: flags) else { return Core.none }
    let stolen = takeSmallest(zone, order: order, type: type)
    if stolen == Core.none { reportFruitlessSteal(zone) }
    return stolen
  }

  /// A steal brings a block, unless lists and marks contradict each other. The kernel then tries for
  /// ever; here the request fails.
  @inline(never)
  func reportFruitlessSteal(_ zone: UnsafeMutablePointer<pm_zone>) {
    if log.takeUnretainedValue().isHalted { return }
    log.takeUnretainedValue().append(
      .listCorruption(
        pfn: PFN(zone.pointee.start), what: "a steal in this zone brought no block: endless loop"))
  }

  /// A block straight from the buddy lists. Takes the lock. Mirrors `rmqueue_buddy`.
  @inline(never)
  func allocateFromBuddy(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8, flags: UInt32
  ) -> UInt32 {
    let pageset = pagesets + Int(zone.pointee.index)
    while true {
      lock(zone)
      var index = Core.none
      if flags & AllocFlags.highatomic != 0 { index = takeSmallest(zone, order: order, type: 3) }
      if index == Core.none { index = takeBlock(zone, order: order, type: type, flags: flags) }
      if index == Core.none, flags & (AllocFlags.oom | AllocFlags.nonBlock) != 0 {
        index = takeSmallest(zone, order: order, type: 3)
      }
      guard index != Core.none else {
        unlock(zone)
        return Core.none
      }
      addFreePages(zone, pageset, 0 &- (1 &<< Int32(truncatingIfNeeded: order)))
      unlock(zone)
      if isCleanForAllocation(index, order: order, moment: .allocation) {
        return index
      }
    }
  }

  /// Gives a block back to the buddy lists, merging upwards. Mirrors `__free_one_page`.
  @inline(__always)
  func freeBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ freed: UInt32, order freedOrder: UInt32, type: UInt8, toTail: Bool
  ) {
    if type != 4 { addFreePages(zone, pageset, 1 &<< Int32(truncatingIfNeeded: freedOrder)) }
    insertBlock(zone, freed, order: freedOrder, type: type, toTail: toTail)
  }

  /// The part of `freeBlock` after the counters.
  ///
  /// In most merges the buddy is the only block of its list, the one of the type: what a split left. That
  /// is seen by two links, and the list is then empty.
  @inline(never)
  func insertBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ freed: UInt32, order freedOrder: UInt32, type: UInt8,
    toTail: Bool
  ) {
    var index = freed
    var order = freedOrder
    let bordersShared = zone.pointee.reserved2 != 0
    if !bordersShared, order < 9 {
      let ladder = ladder(zone, type: type)
      (index, order) = ladder.merge(index, order: order)
      if order == 9, mixesFreely(index, type: type), let merged = ladder.mergePageblocks(index) {
        index = merged
        order = 10
      }
      // The lists of the orders that were merged are empty.
      let mask = pm_zone_nonempty(zone) + Int(type)
      let merged = (1 &<< order) &- (1 &<< freedOrder)
      pm_state_store_relaxed(mask, mask.pointee & ~UInt16(truncatingIfNeeded: merged))
    }
    while order < 10 {
      let buddy = index ^ (1 &<< order)
      guard isBuddy(buddy, order: order) else { break }
      if bordersShared || order == 9, !mayMerge(zone, buddy, order: order, type: type) { break }
      guard deleteBlock(zone, buddy, order: order) else { break }
      index &= buddy
      order &+= 1
    }
    var toBack = toTail
    if !toBack, order <= 8 {
      // If the block that would be the buddy of the next merge is free, this one is likely to merge
      // soon: keep it from being handed out.
      let above = (index & ~(1 &<< order)) ^ (2 &<< order)
      toBack = isBuddy(above, order: order &+ 1) && (!bordersShared || contains(zone, above))
    }
    addBlock(zone, index, order: order, type: type, toBack: toBack)
  }

  /// The rest of the test of a buddy: that it lies in the zone, and that no pageblock of a special type is
  /// merged with one of another.
  @inline(never)
  private func mayMerge(
    _ zone: UnsafeMutablePointer<pm_zone>, _ buddy: UInt32, order: UInt32, type: UInt8
  ) -> Bool {
    if zone.pointee.reserved2 != 0, !contains(zone, buddy) { return false }
    return order < 9 || mixesFreely(buddy ^ 512, type: type)
  }

  /// Whether the other pageblock of a block of order 10 may be merged with this one's.
  @inline(__always)
  private func mixesFreely(_ index: UInt32, type: UInt8) -> Bool {
    let other = pageblockType(index ^ 512)
    return other == type || (other < 3 && type < 3)
  }

  /// Whether a frame heads a free block of exactly this order, below 10. An untouched block of order
  /// 10 has state zero and never qualifies.
  @inline(__always)
  func isBuddy(_ index: UInt32, order: UInt32) -> Bool {
    Core.isBuddy(state(index), order: order)
  }

  @inline(__always)
  static func isBuddy(_ state: UInt16, order: UInt32) -> Bool {
    state & (FrameState.buddy | FrameState.orderMask)
      == FrameState.buddy | UInt16(truncatingIfNeeded: order)
  }

  /// Frees single frames of a block that was just allocated, one after another, past the per-CPU
  /// lists and to the back. Takes the lock. Mirrors the loop of `make_alloc_exact`.
  ///
  /// Frames that fill an aligned block are freed as that block, see `freeRun`.
  func freeSurplus(_ zone: UnsafeMutablePointer<pm_zone>, _ frames: Range<UInt32>) {
    guard isClean(frames.lowerBound, order: 0, blocks: UInt32(frames.count)) else {
      for index in frames { freeSurplus(zone, index) }
      return
    }
    let pageset = pagesets + Int(zone.pointee.index)
    lock(zone)
    var start = frames.lowerBound
    while start < frames.upperBound {
      let order = Core.largestPiece(at: start, within: frames.upperBound &- start)
      let type = pageblockType(start)
      if type != 4 { addFreePages(zone, pageset, 1, times: 1 << order) }
      insertBlock(zone, start, order: order, type: type, toTail: true)
      start &+= 1 << order
    }
    unlock(zone)
  }

  @inline(never)
  private func freeSurplus(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32) {
    freeToBuddy(zone, index, order: 0, toTail: true)
  }

  /// Frees a block past the per-CPU lists, testing its first page too. Takes the lock. Mirrors
  /// `__free_pages_ok`.
  @inline(__always)
  func freeToBuddy(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, toTail: Bool = false
  ) {
    guard prepareFree(index, order: order, testsFirst: true) else { return }
    let pageset = pagesets + Int(zone.pointee.index)
    lock(zone)
    freeBlock(
      zone, pageset, index, order: order, type: pageblockType(index), toTail: toTail)
    unlock(zone)
  }
}
