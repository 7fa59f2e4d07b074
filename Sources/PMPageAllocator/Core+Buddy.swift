internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// The buddy lists of one zone: splitting, merging, direct allocation and freeing. Every function
// here needs the zone's lock unless its comment says that it takes it.
extension Core {
  /// The smallest sufficient block of a type, split down; `Core.none` where the lists have none.
  /// Mirrors `__rmqueue_smallest` with `expand`, Linux 6.1.
  @inline(__always)
  func takeSmallest(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8
  ) -> UInt32 {
    let mask = nonemptyOrders(zone, type: type) >> UInt16(truncatingIfNeeded: order)
    if mask == 0 { return Core.none }
    let found = order &+ UInt32(truncatingIfNeeded: mask.trailingZeroBitCount)
    let index = next(freeList(zone, order: found, type: type))
    guard deleteBlock(zone, index, order: found) else { return Core.none }
    if found >= 9, order < 9 { markBroken(index, frames: 1) }
    var piece = found
    while piece > order {
      piece &-= 1
      addBlock(zone, index &+ (1 << piece), order: piece, type: type, toBack: false)
    }
    setState(index, state(index) | UInt16(type) << FrameState.migratetypeShift)
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
      pm_lock_acquire(&zone.pointee.lock)
      var index = Core.none
      if flags & AllocFlags.highatomic != 0 { index = takeSmallest(zone, order: order, type: 3) }
      if index == Core.none { index = takeBlock(zone, order: order, type: type, flags: flags) }
      if index == Core.none, flags & (AllocFlags.oom | AllocFlags.nonBlock) != 0 {
        index = takeSmallest(zone, order: order, type: 3)
      }
      guard index != Core.none else {
        pm_lock_release(&zone.pointee.lock)
        return Core.none
      }
      addFreePages(zone, pageset, -(1 << Int32(order)))
      pm_lock_release(&zone.pointee.lock)
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
    if type != 4 { addFreePages(zone, pageset, 1 << Int32(freedOrder)) }
    insertBlock(zone, freed, order: freedOrder, type: type, toTail: toTail)
  }

  /// The part of `freeBlock` after the counters.
  func insertBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ freed: UInt32, order freedOrder: UInt32, type: UInt8,
    toTail: Bool
  ) {
    var index = freed
    var order = freedOrder
    let bordersShared = zone.pointee.reserved2 != 0
    while order < 10 {
      let buddy = index ^ (1 << order)
      guard isBuddy(buddy, order: order) else { break }
      if bordersShared, !contains(zone, buddy) { break }
      if order == 9 {
        let buddyType = pageblockType(buddy)
        if buddyType != type, type >= 3 || buddyType >= 3 { break }
      }
      guard deleteBlock(zone, buddy, order: order) else { break }
      index &= buddy
      order &+= 1
    }
    var toBack = toTail
    if !toBack, order <= 8 {
      // If the block that would be the buddy of the next merge is free, this one is likely to merge
      // soon: keep it from being handed out.
      let above = (index & ~(1 << order)) ^ (1 << (order &+ 1))
      toBack = isBuddy(above, order: order &+ 1) && (!bordersShared || contains(zone, above))
    }
    addBlock(zone, index, order: order, type: type, toBack: toBack)
  }

  /// Whether a frame heads a free block of exactly this order, below 10. An untouched block of order
  /// 10 has state zero and never qualifies.
  @inline(__always)
  func isBuddy(_ index: UInt32, order: UInt32) -> Bool {
    state(index) & (FrameState.buddy | FrameState.orderMask)
      == FrameState.buddy | UInt16(truncatingIfNeeded: order)
  }

  /// Frees single frames of a block that was just allocated, one after another, past the per-CPU
  /// lists and to the back. Takes the lock. Mirrors the loop of `make_alloc_exact`.
  ///
  /// Frames that fill an aligned block are freed as that block, see `freeRun`.
  func freeSurplus(_ zone: UnsafeMutablePointer<pm_zone>, _ frames: Range<UInt32>) {
    guard isClean(frames.lowerBound, order: 0, blocks: UInt32(frames.count)) else {
      for index in frames { freeToBuddy(zone, index, order: 0, toTail: true) }
      return
    }
    let pageset = pagesets + Int(zone.pointee.index)
    pm_lock_acquire(&zone.pointee.lock)
    var start = frames.lowerBound
    while start < frames.upperBound {
      let order = Core.largestPiece(at: start, within: frames.upperBound &- start)
      let type = pageblockType(start)
      if type != 4 { addFreePages(zone, pageset, 1, times: 1 << order) }
      insertBlock(zone, start, order: order, type: type, toTail: true)
      start &+= 1 << order
    }
    pm_lock_release(&zone.pointee.lock)
  }

  /// Frees a block past the per-CPU lists, testing its first page too. Takes the lock. Mirrors
  /// `__free_pages_ok`.
  func freeToBuddy(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, toTail: Bool = false
  ) {
    guard prepareFree(index, order: order, testsFirst: true) else { return }
    let pageset = pagesets + Int(zone.pointee.index)
    pm_lock_acquire(&zone.pointee.lock)
    freeBlock(
      zone, pageset, index, order: order, type: pageblockType(index), toTail: toTail)
    pm_lock_release(&zone.pointee.lock)
  }
}
