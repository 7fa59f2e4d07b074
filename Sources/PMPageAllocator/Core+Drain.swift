internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// From a CPU's own lists back to the buddy lists.
extension Core {
  /// Gives about `atMost` pages of the CPU's lists back, from the back of the list `slot`, then of
  /// those after it. Takes the lock. Mirrors `free_pcppages_bulk`.
  @inline(never)
  func drain(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    atMost: Int32, from slot: UInt32
  ) {
    var amount = min(pageset.pointee.count, atMost)
    guard amount > 0 else { return }
    let base = UInt32(bitPattern: pageset.pointee.list_base)
    // The oldest frame stands `count` entries below the top, if only single frames came and went.
    let ring = hintRing(zone)
    let mask = hintMask
    var oldest = pageset.pointee.hint_top &- UInt32(bitPattern: pageset.pointee.count)
    if slot < 3 {
      for ahead in 0..<Core.fetchDistance { fetchFrame(ring[Int((oldest &+ ahead) & mask)]) }
    }
    lock(zone)
    let hasIsolated = zone.pointee.nr_isolate_pageblock != 0
    var position = slot
    // One turn over all lists: a list is emptied before the next is visited.
    for _ in 0..<14 where amount > 0 {
      let head = base &+ position
      let order = Core.order(ofPerCPUIndex: position)
      while amount > 0 {
        let index = previous(head)
        if index == head { break }
        if order == 0 {
          fetchFrame(ring[Int((oldest &+ Core.fetchDistance) & mask)])
          fetchMerges(ring[Int((oldest &+ Core.mergeDistance) & mask)])
        }
        let run = drainRun(head, index, order: order, atMost: hasIsolated ? 1 : amount)
        if run.count == 0 {
          amount = 0
          break
        }
        let pages = Int32(bitPattern: run.count << order)
        amount &-= pages
        pageset.pointee.count &-= pages
        oldest &+= run.count
        guard run.isClean, !pm_planted(PM_PLANTED_DRAIN_LOSES_BLOCK) else { continue }
        let cached = cachedType(index)
        freeRun(
          zone, pageset, first: index, run, order: order,
          type: hasIsolated ? pageblockType(index) : cached)
      }
      position = position == 13 ? 0 : position &+ 1
    }
    unlock(zone)
  }

  /// Blocks that leave a per-CPU list together: neighbours in memory, one after another on the list.
  struct DrainedRun {
    var count: UInt32
    /// Whether addresses fall from one block to the next.
    var isDescending: Bool
    /// False for a single block that failed its test and is leaked.
    var isClean: Bool
  }

  /// Unlinks the last block of a list and those before it that continue it in memory with the same
  /// state; nothing where the list is corrupted.
  @inline(__always)
  private func drainRun(
    _ head: UInt32, _ index: UInt32, order: UInt32, atMost pages: Int32
  ) -> DrainedRun {
    let step: UInt32 = 1 << order
    let first = state(index)
    var before = previous(onPerCPUList: head, index)
    if next(before) != index || next(index) != head {
      _ = delete(index)
      return DrainedRun(count: 0, isDescending: false, isClean: false)
    }
    var run = DrainedRun(count: 1, isDescending: false, isClean: true)
    if first & ~FrameState.harmless != 0 || pm_refcount_load_relaxed(counts[index]) != 0 {
      run.isClean = isCleanForDrain(index)
    } else if order <= 3, before == index &+ step || before == index &- step {
      run.isDescending = before != index &+ step
      let stride = before &- index
      let most = UInt32(bitPattern: (pages &+ Int32(step) &- 1) >> Int32(order))
      var last = index
      while run.count < most, before == last &+ stride, Int32(bitPattern: before) >= 0,
        (state(before) ^ first) & ~FrameState.orderMask == 0,
        pm_refcount_load_relaxed(counts[before]) == 0
      {
        let beyond = previous(onPerCPUList: head, before)
        if next(beyond) != before { break }
        last = before
        before = beyond
        run.count &+= 1
      }
    }
    // Another list's head: a block was put on both.
    if before != head, Int32(bitPattern: before) < 0 {
      corruptedDelete(index)
      return DrainedRun(count: 0, isDescending: false, isClean: false)
    }
    setPrevious(head, before)
    setNext(before, head)
    return run
  }

  /// Frees the blocks of a run as if one after another.
  ///
  /// Neighbours that fill an aligned block of a higher order merge into it whatever they meet: freed
  /// one by one, each half waits on a list for the other and leaves no trace there. So the block is
  /// freed at once, and only the free counter moves in the steps of the single frees.
  @inline(__always)
  private func freeRun(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    first: UInt32, _ run: DrainedRun, order: UInt32, type: UInt8
  ) {
    if run.count == 1 {
      freeBlock(zone, pageset, first, order: order, type: type, toTail: false)
      return
    }
    addFreePages(zone, pageset, 1 << Int32(order), times: run.count)
    let length = run.count << order
    var left = length
    if run.isDescending {
      var end = first &+ (1 << order)
      while left > 0 {
        let piece = Core.largestPiece(at: end, within: left)
        end &-= 1 << piece
        insertBlock(zone, end, order: piece, type: type, toTail: false)
        left &-= 1 << piece
      }
    } else {
      var start = first
      while left > 0 {
        let piece = Core.largestPiece(at: start, within: left)
        insertBlock(zone, start, order: piece, type: type, toTail: false)
        start &+= 1 << piece
        left &-= 1 << piece
      }
    }
  }

  /// The highest order, at most that of a pageblock, of an aligned block that starts or ends at a
  /// frame and is no longer than `within`.
  @inline(__always)
  static func largestPiece(at index: UInt32, within: UInt32) -> UInt32 {
    let aligned = UInt32(truncatingIfNeeded: (index | 512).trailingZeroBitCount)
    let fitting = UInt32(truncatingIfNeeded: 31 &- within.leadingZeroBitCount)
    return min(aligned, fitting)
  }

  /// Empties the CPU's lists of one zone. Mirrors `drain_pages_zone`.
  func drainAll(_ zone: UnsafeMutablePointer<pm_zone>) {
    let pageset = pagesets + Int(zone.pointee.index)
    while pageset.pointee.count > 0 {
      let before = pageset.pointee.count
      drain(zone, pageset, atMost: max(pageset.pointee.batch, 1) * 32, from: 0)
      if pageset.pointee.count == before { break }
    }
  }
}
