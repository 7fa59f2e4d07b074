internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// A CPU's own lists: pops and pushes without a lock, refills and drains under the zone's.
extension Core {
  /// The front block of the CPU's list, refilled if it is empty; `Core.none` where the zone has
  /// none. Mirrors `rmqueue_pcplist`, Linux 6.1.
  @inline(__always)
  func allocatePerCPU(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    order: UInt32, type: UInt8, flags: UInt32
  ) -> UInt32 {
    pageset.pointee.free_factor >>= 1
    return popPerCPU(zone, pageset, order: order, type: type, flags: flags)
  }

  /// The same without the halving of the free factor, as the bulk allocator takes pages.
  @inline(__always)
  func popPerCPU(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    order: UInt32, type: UInt8, flags: UInt32
  ) -> UInt32 {
    let head =
      UInt32(bitPattern: pageset.pointee.list_base) &+ Core.perCPUIndex(order: order, type: type)
    var index = next(head)
    if index == head {
      refill(zone, pageset, head: head, order: order, type: type, flags: flags)
      index = next(head)
      if index == head { return Core.none }
    }
    guard popFront(head, index) != nil else { return Core.none }
    if order == 0 { pageset.pointee.hint_top &-= 1 }
    let count = pageset.pointee.count &- (1 << Int32(order))
    pageset.pointee.count = count
    return index
  }

  /// Fills a list of the CPU from the buddy lists. Takes the lock. Mirrors `rmqueue_bulk`.
  ///
  /// The kernel takes block by block, splitting the smallest block each time, so that a larger block
  /// is used up from its start. The same pages come out when a run is cut off the front at once and
  /// the rest is linked as the pieces that remain; that keeps the lock for a few list operations.
  @inline(never)
  func refill(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    head: UInt32, order: UInt32, type: UInt8, flags: UInt32
  ) {
    let batch = UInt32(bitPattern: pageset.pointee.batch)
    let wanted = batch > 1 ? max(batch >> order, 2) : 1
    var runCount = 0
    var taken: UInt32 = 0
    lock(zone)
    fetchZone(zone, type: type)
    while taken < wanted {
      var run = takeRun(zone, order: order, type: type, atMost: wanted - taken)
      if run.count == 0, steal(zone, order: order, type: type, flags: flags) {
        run = takeRun(zone, order: order, type: type, atMost: wanted - taken)
        if run.count == 0 { reportFruitlessSteal(zone) }
      }
      if run.count == 0 { break }
      runs[runCount] = run
      runCount += 1
      taken += run.count
    }
    if taken > 0 { addFreePages(zone, pageset, -Int32(taken << order)) }
    unlock(zone)
    for run in 0..<runCount {
      if order == 0 { fetchCounts(runs[run]) }
      linkRun(pageset, head, runs[run], order: order, type: type)
    }
  }

  /// Asks for the lines of a zone that a refill writes: another CPU wrote them last, and so they come in
  /// together. Under the lock, not before: who asks for them earlier takes them from the holder, who then
  /// has to fetch them back.
  @inline(__always)
  private func fetchZone(_ zone: UnsafeMutablePointer<pm_zone>, type: UInt8) {
    pm_prefetch_write(&zone.pointee.nr_free_pages)
    pm_prefetch_write(link(freeList(zone, order: 0, type: type)))
    pm_prefetch_write(link(freeList(zone, order: 8, type: type)))
  }

  /// Asks for the lines of the counts of a run, to write: the test that follows would fetch them to read,
  /// and each first store would have to ask again. The lines at the run's ends are left alone: there the
  /// neighbours' counts are, which another CPU is handing out.
  @inline(__always)
  private func fetchCounts(_ run: TakenRun) {
    let end = run.start &+ run.count
    let perLine = UInt32(16) &>> UInt32(truncatingIfNeeded: counts.shift)
    var index = (run.start &+ perLine &- 1) & ~(perLine &- 1)
    while index &+ perLine <= end {
      pm_prefetch_write(counts[index])
      index &+= perLine
    }
  }

  /// Cuts up to `atMost` blocks off the front of the smallest sufficient block.
  @inline(__always)
  private func takeRun(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8, atMost: UInt32
  ) -> TakenRun {
    let mask = UInt32(nonemptyOrders(zone, type: type)) &>> order
    guard mask != 0 else { return TakenRun(start: Core.none, count: 0) }
    let found = order &+ UInt32(truncatingIfNeeded: mask.trailingZeroBitCount)
    let index = next(freeList(zone, order: found, type: type))
    let blocks: UInt32 = 1 &<< (found &- order)
    let count = min(blocks, atMost)
    let rest = count &<< order
    if rest < 1 &<< found {
      pm_prefetch_write(link(index &+ rest))
      pm_prefetch_write(states + Int(index &+ rest))
    }
    guard deleteBlock(zone, index, order: found) else {
      return TakenRun(start: Core.none, count: 0)
    }
    if order == 9 { fetchFollowing(index) }
    if found >= 9, order < 9 { markBroken(index, frames: rest) }
    if rest < 1 &<< found { listRest(zone, index, after: rest, found: found, type: type) }
    return TakenRun(start: index, count: count)
  }

  /// Asks for the lines of blocks that the next refills take if the list is in address order, as it is
  /// until memory was freed out of order.
  @inline(__always)
  private func fetchFollowing(_ index: UInt32) {
    let block = index &+ 4 &* 1024
    guard Int(block) &+ 1024 < frameLimit else { return }
    for half in [block, block &+ 512] {
      pm_prefetch_write(link(half))
      pm_prefetch_write(states + Int(half))
      pm_prefetch_write(counts[half])
    }
  }

  /// Tests the blocks of a run and appends the good ones to the CPU's list, ascending. A bad block is
  /// leaked.
  @inline(__always)
  private func linkRun(
    _ pageset: UnsafeMutablePointer<pm_pageset>, _ head: UInt32, _ run: TakenRun, order: UInt32,
    type: UInt8
  ) {
    if isClean(run.start, order: order, blocks: run.count) {
      appendRun(pageset, head, run, order: order, type: type)
      return
    }
    for block in 0..<run.count {
      let index = run.start + block << order
      if isCleanForAllocation(index, order: order, moment: .refill) {
        appendRun(pageset, head, TakenRun(start: index, count: 1), order: order, type: type)
      }
    }
  }

  @inline(__always)
  private func appendRun(
    _ pageset: UnsafeMutablePointer<pm_pageset>, _ head: UInt32, _ run: TakenRun, order: UInt32,
    type: UInt8
  ) {
    let step: UInt32 = 1 << order
    let last = run.start &+ (run.count &- 1) << order
    let before = previous(head)
    // Links are differences, so those inside a run are all the same.
    let inner = pm_link(next: step &- 1024, prev: 1024 &- step)
    var cursor = run.start
    while cursor <= last {
      pm_link_store_relaxed(link(cursor), inner)
      cursor &+= step
    }
    setPrevious(run.start, before)
    setNext(before, run.start)
    setNext(last, head)
    setPrevious(head, last)
    let state = FrameState.touched | UInt16(type) << FrameState.migratetypeShift
    if order == 0 {
      pm_states_fill(states + Int(run.start), Int(run.count), state)
    } else {
      cursor = run.start
      while cursor <= last {
        setState(cursor, state)
        cursor &+= step
      }
    }
    pageset.pointee.count &+= Int32(run.count << order)
  }

  // MARK: freeing

  /// Frees a block to the CPU's lists, without a test of its first page. Mirrors `free_unref_page`.
  @inline(__always)
  func freePerCPU(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32) {
    guard prepareFree(index, order: order, testsFirst: false) else { return }
    let type = cacheType(index)
    let pageset = pagesets + Int(zone.pointee.index)
    if type >= 3 {
      freeSpecial(zone, pageset, index, order: order, type: type)
    } else {
      commit(zone, pageset, index, order: order, listType: type)
    }
  }

  /// Stores the pageblock's type in the page, where it stays while the page is on a per-CPU list.
  @inline(__always)
  func cacheType(_ index: UInt32) -> UInt8 {
    let type = pageblockType(index)
    let state = state(index) & ~FrameState.migratetypeMask
    setState(index, state | UInt16(type) << FrameState.migratetypeShift)
    return type
  }

  /// Pages of highatomic pageblocks use the movable list; those of isolated ones no list at all.
  @inline(never)
  func freeSpecial(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ index: UInt32, order: UInt32, type: UInt8
  ) {
    if type == 4 {
      lock(zone)
      freeBlock(zone, pageset, index, order: order, type: type, toTail: false)
      unlock(zone)
    } else {
      commit(zone, pageset, index, order: order, listType: 1)
    }
  }

  /// Pushes a block and drains the lists where they hold too much. Mirrors
  /// `free_unref_page_commit` with `nr_pcp_high` and `nr_pcp_free`.
  @inline(__always)
  func commit(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ index: UInt32, order: UInt32, listType: UInt8
  ) {
    let slot = Core.perCPUIndex(order: order, type: listType)
    guard pushFront(UInt32(bitPattern: pageset.pointee.list_base) &+ slot, index) else { return }
    if order == 0 { noteFreed(zone, pageset, index) }
    let count = pageset.pointee.count &+ (1 << Int32(order))
    pageset.pointee.count = count
    // High-order frees on a CPU that was freeing lately empty everything; a zone under reclaim
    // keeps less. Both are decided out of line.
    let isHighOrderFlush = order != 0 && order <= 3 && pageset.pointee.free_factor != 0
    if count < pageset.pointee.high, !isHighOrderFlush,
      pm_word_load_relaxed(&zone.pointee.flags) & 2 == 0
    {
      return
    }
    overflow(zone, pageset, slot: slot, flushesAll: isHighOrderFlush)
  }

  // MARK: hints

  @inline(__always)
  func hintRing(_ zone: UnsafeMutablePointer<pm_zone>) -> UnsafeMutablePointer<UInt32> {
    hints + Int(zone.pointee.index) &* (Int(hintMask) &+ 1)
  }

  @inline(__always)
  private func noteFreed(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ index: UInt32
  ) {
    let top = pageset.pointee.hint_top
    hintRing(zone)[Int(top & hintMask)] = index
    pageset.pointee.hint_top = top &+ 1
  }

  /// How many frames ahead a drain or a batch asks for a frame's own lines, and how many ahead for
  /// those that merging it will need. Measured: random frees of 16 GiB are flat from 16 and 6 on.
  static var fetchDistance: UInt32 { 24 }
  static var mergeDistance: UInt32 { 8 }

  /// Asks for the lines of a frame that is freed in a while.
  @inline(__always)
  func fetchFrame(_ index: UInt32) {
    pm_prefetch_write(states + Int(index))
    pm_prefetch_write(link(index))
    pm_prefetch_read(counts[index])
  }

  /// Asks for the links that merging a frame will change: the neighbours on their lists of the blocks
  /// that it will meet. The frame's own lines have come meanwhile.
  @inline(__always)
  func fetchMerges(_ index: UInt32) {
    var block = index
    var order: UInt32 = 0
    while order < 9 {
      let buddy = block ^ (1 << order)
      guard isBuddy(buddy, order: order) else { return }
      pm_prefetch_write(link(next(buddy)))
      pm_prefetch_write(link(previous(buddy)))
      block &= buddy
      order &+= 1
    }
  }

  @inline(never)
  func overflow(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    slot: UInt32, flushesAll: Bool
  ) {
    let batch = pageset.pointee.batch
    let count = pageset.pointee.count
    if flushesAll {
      drain(zone, pageset, atMost: count, from: slot)
      return
    }
    var limit = pageset.pointee.high
    if limit != 0, pm_word_load_relaxed(&zone.pointee.flags) & 2 != 0 {
      limit = min(batch << 2, limit)
    }
    if count < limit { return }
    if limit < batch {
      drain(zone, pageset, atMost: 1, from: slot)
      return
    }
    let scaled = batch << Int32(pageset.pointee.free_factor)
    if scaled < limit - batch, pageset.pointee.free_factor < 5 { pageset.pointee.free_factor += 1 }
    drain(zone, pageset, atMost: min(max(scaled, batch), limit - batch), from: slot)
  }
}
