internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// What happens to a page between the lists and its user, and the tests on the way.
extension Core {
  // MARK: to the user

  /// Gives a block its first reference and what the request asks for. Mirrors `prep_new_page`.
  @inline(__always)
  func prepareNew(_ index: UInt32, order: UInt32, gfp: UInt32) {
    pm_refcount_store_relaxed(counts[index], 1)
    if gfp & GFP.zero.rawValue != 0 || zeroesOnAllocation { zero(index, order: order) }
    if order > 0, gfp & GFP.comp.rawValue != 0 { makeCompound(index, order: order) }
    if order < 9, isWhole(index) { noteHandedOut(index) }
  }

  @inline(never)
  private func zero(_ index: UInt32, order: UInt32) {
    (arena + Int(index) << 12).initializeMemory(
      as: UInt8.self, repeating: 0, count: 4096 << Int(order))
  }

  /// Mirrors `prep_compound_page`.
  @inline(never)
  func makeCompound(_ index: UInt32, order: UInt32) {
    markUnusual(index, order: order)
    setState(index, state(index) & ~FrameState.orderMask | FrameState.head | UInt16(order))
    let frames = UInt32(1) << order
    for offset in 1..<frames {
      let tail = index &+ offset
      let kept = state(tail) & ~FrameState.harmless
      setState(tail, kept | FrameState.touched | FrameState.tail)
      pm_link_next_store_relaxed(link(tail), index &- tail &- 1024)
    }
  }

  // MARK: from the user

  /// Tests a block that is being freed and clears what must not survive; false where it is bad, in
  /// which case the whole block stays with nobody. Mirrors `free_pages_prepare`, Linux 6.1 without
  /// DEBUG_VM: the first page is tested only on the way past the per-CPU lists.
  @inline(__always)
  func prepareFree(_ index: UInt32, order: UInt32, testsFirst: Bool) -> Bool {
    let state = state(index)
    // Anything but a plain page that was handed out once, or for higher orders a plain or compound
    // block, is rare.
    let first =
      (state ^ FrameState.touched)
      & ~(FrameState.orderMask | FrameState.migratetypeMask | FrameState.head)
    if order == 0 {
      if first != 0 || (testsFirst && pm_refcount_load_relaxed(counts[index]) != 0) {
        return prepareFreeSlow(index, order: order, testsFirst: testsFirst)
      }
      setState(index, FrameState.touched)
      return true
    }
    if testsFirst, order >= 4, order < 9, first == 0, state & FrameState.head == 0,
      isPlainBlock(index, order: order)
    {
      setState(index, FrameState.touched)
      return true
    }
    if order >= 9, first == 0, state & FrameState.head == 0, !isUnusual(index, order: order),
      order == 9 || isPlain(index &+ 512)
    {
      setState(index, FrameState.touched)
      return true
    }
    return prepareFreeBlock(index, order: order, testsFirst: testsFirst)
  }

  /// The same for a block that is compound, of a high order or out of the ordinary.
  @inline(never)
  private func prepareFreeBlock(_ index: UInt32, order: UInt32, testsFirst: Bool) -> Bool {
    let state = state(index)
    let first =
      (state ^ FrameState.touched)
      & ~(FrameState.orderMask | FrameState.migratetypeMask | FrameState.head)
    let tails = (1 &<< Int(order)) &- 1
    let isCompound = state & FrameState.head != 0
    if order >= 9 {
      // Cleared before the sweep: what is raised meanwhile is seen by it or noted after it.
      clearUnusual(index, order: order)
    }
    var seen = sweep(index &+ 1, frames: tails)
    if testsFirst, pm_refcount_load_relaxed(counts[index]) != 0 { seen |= PM_SWEEP_COUNT }
    let expected = FrameState.harmless | (isCompound ? FrameState.tail : 0)
    if UInt32(first) | seen & ~UInt32(expected) != 0 {
      if order >= 9 { markUnusual(index, order: order) }
      return prepareFreeSlow(index, order: order, testsFirst: testsFirst)
    }
    if order >= 9, pm_refcount_load_relaxed(counts[index]) != 0 { markUnusual(index) }
    if isCompound { pm_states_fill(states + Int(index) + 1, tails, FrameState.touched) }
    setState(index, FrameState.touched)
    return true
  }

  /// What the states and counts of adjacent frames hold, see `pm_frames_sweep`.
  @inline(__always)
  private func sweep(_ index: UInt32, frames: Int) -> UInt32 {
    let counts = counts
    if counts.shift == 0 {
      return pm_frames_sweep(states + Int(index), counts[index], frames)
    }
    return pm_frames_sweep_strided(
      states + Int(index), counts[index], frames, UInt32(truncatingIfNeeded: counts.shift))
  }

  /// Whether nothing about a block is out of the ordinary but, perhaps, the first frame's state.
  /// pre: order 4 to 8.
  @inline(__always)
  private func isPlainBlock(_ index: UInt32, order: UInt32) -> Bool {
    counts.shift == 0
      ? isPlainPacked(index, order: order) : isPlainStrided(index, order: order)
  }

  /// The same with packed counts.
  @inline(__always)
  func isPlainPacked(_ index: UInt32, order: UInt32) -> Bool {
    let states = states + Int(index)
    let counts = counts.base + Int(index)
    return order == 4
      ? pm_block16_is_plain(states, counts, ~FrameState.harmless)
      : pm_block_is_plain(states, counts, 1 &<< Int(order), ~FrameState.harmless)
  }

  @inline(never)
  private func isPlainStrided(_ index: UInt32, order: UInt32) -> Bool {
    let tails = (1 &<< Int(order)) &- 1
    return sweep(index &+ 1, frames: tails) & ~UInt32(FrameState.harmless) == 0
      && pm_refcount_load_relaxed(counts[index]) == 0
  }

  /// Whether nothing about one frame is out of the ordinary.
  @inline(__always)
  private func isPlain(_ index: UInt32) -> Bool {
    state(index) & ~FrameState.harmless == 0 && pm_refcount_load_relaxed(counts[index]) == 0
  }

  /// Page by page, in the kernel's order.
  @inline(never)
  private func prepareFreeSlow(_ index: UInt32, order: UInt32, testsFirst: Bool) -> Bool {
    let table = details.takeUnretainedValue()
    // A frame that was never touched may head a free block whose mark is the zero.
    if state(index) == 0 {
      let isHead = index & 1023 == 0
      setState(index, FrameState.touched | (isHead ? FrameState.buddy : 0))
    }
    var first = table[index]
    first.flags.remove(.mlocked)
    if order == 0, first.flags.contains(.hwpoison) {
      setDetails(index, first)
      return false
    }
    var isGood = true
    if order > 0 {
      let isCompound = state(index) & (FrameState.head | FrameState.tail) != 0
      for tail in (index + 1)..<(index + 1 << order) {
        if isCompound {
          setState(tail, state(tail) & ~FrameState.tail)
          var own = table[tail]
          own.mapping = 0
          setDetails(tail, own)
        }
        if test(tail, mask: .checkedAtFree, moment: .free) {
          clearFlags(tail)
        } else {
          isGood = false
        }
      }
    }
    if first.mapping & 3 != 0 { first.mapping = 0 }
    setDetails(index, first)
    if testsFirst, !test(index, mask: .checkedAtFree, moment: .free) { isGood = false }
    guard isGood else { return false }
    // A tail that is freed alone keeps the mapping that marks tails, and is found by it later.
    if state(index) & FrameState.tail != 0 {
      setState(index, state(index) & ~FrameState.tail)
      var own = table[index]
      own.mapping = Core.tailMapping
      setDetails(index, own)
    }
    clearFlags(index)
    // The order of a free block goes; its mark stays, as the kernel tests nothing here.
    setState(index, state(index) & ~FrameState.orderMask)
    return true
  }

  /// What `mapping` holds in a tail of a compound page.
  static let tailMapping: UInt64 = 0xdead_0000_0000_0400

  private func clearFlags(_ index: UInt32) {
    var own = details.takeUnretainedValue()[index]
    own.flags.subtract(.checkedAtPrep)
    own.wholeMapcount = 0
    own.pincount = 0
    own.private = 0
    setDetails(index, own)
    let cleared = FrameState.head | FrameState.lru | FrameState.reserved | FrameState.slab
    setState(index, state(index) & ~cleared | FrameState.touched)
  }

  /// Replaces a page's details and keeps the mark in its state word in step.
  func setDetails(_ index: UInt32, _ value: PageDetails) {
    details.takeUnretainedValue().store(value, at: index)
    let state = state(index)
    let marked = value.isClean ? state & ~FrameState.detail : state | FrameState.detail
    if marked != state {
      setState(index, marked | FrameState.touched)
      markUnusual(index)
    }
  }

  // MARK: tests

  /// All flags of a page in the kernel's bits.
  func flags(_ index: UInt32) -> PageFlags {
    let state = state(index)
    var flags: PageFlags =
      state & FrameState.detail != 0 ? details.takeUnretainedValue().flags(index) : []
    if state & FrameState.head != 0 { flags.insert(.head) }
    if state & FrameState.lru != 0 { flags.insert(.lru) }
    if state & FrameState.reserved != 0 { flags.insert(.reserved) }
    if state & FrameState.slab != 0 { flags.insert(.slab) }
    return flags
  }

  /// The page test; a failure is reported and resets the map count, as `bad_page` does. Mirrors
  /// `page_expected_state` and `page_bad_reason`.
  func test(_ index: UInt32, mask: PageFlags, moment: BadPage.Moment) -> Bool {
    let state = state(index)
    let own =
      state & FrameState.detail != 0 ? details.takeUnretainedValue()[index] : PageDetails()
    let isBuddy = state & FrameState.buddy != 0
    let flags = flags(index)
    let count = pm_refcount_load_relaxed(counts[index])
    var reason: String?
    if isBuddy || own.mapcount != -1 { reason = "nonzero mapcount" }
    if own.mapping != 0 || state & FrameState.tail != 0 { reason = "non-NULL mapping" }
    if count != 0 { reason = "nonzero _refcount" }
    if !flags.isDisjoint(with: mask) {
      reason =
        moment == .free || moment == .drain
        ? "PAGE_FLAGS_CHECK_AT_FREE flag(s) set" : "PAGE_FLAGS_CHECK_AT_PREP flag(s) set"
    }
    if own.memcg != 0 { reason = "page still charged to cgroup" }
    guard let reason else { return true }
    let mapcount = isBuddy ? -128 : own.mapcount + 1
    log.takeUnretainedValue().append(
      .badPage(
        BadPage(
          pfn: PFN(index), reason: reason, flags: flags, refcount: count, mapcount: mapcount,
          moment: moment)))
    var reset = own
    reset.mapcount = -1
    setDetails(index, reset)
    setState(index, self.state(index) & ~FrameState.buddy | FrameState.touched)
    return false
  }

  /// Whether nothing about adjacent blocks is out of the ordinary: by the marks where all of them are of
  /// order 9 or 10, in one sweep otherwise.
  @inline(__always)
  func isClean(_ index: UInt32, order: UInt32, blocks: UInt32) -> Bool {
    if order >= 9 { return isCleanLarge(index, order: order, blocks: blocks) }
    if order >= 4, blocks == 1 {
      return state(index) & ~FrameState.harmless == 0 && isPlainBlock(index, order: order)
    }
    let seen = sweep(index, frames: Int(blocks) &<< Int(order))
    return seen & ~UInt32(FrameState.harmless) == 0
  }

  /// Whether a block of order 9 or 10 on a buddy list is plain but for the first frames of its pageblocks, or
  /// something was noted of it: what `isCleanLarge` takes for granted. An untouched block is not looked at.
  func isNotedOrPlain(_ index: UInt32, order: UInt32) -> Bool {
    if state(index) == 0 || isUnusual(index, order: order) { return true }
    return (0..<UInt32(1) &<< (order &- 9)).allSatisfy { half in
      let seen = sweep(index &+ half &* 512 &+ 1, frames: 511)
      return seen & ~UInt32(FrameState.harmless) == 0
    }
  }

  /// The first frames of pageblocks in a block of order 10 are looked at in any case: blocks of order 9 have
  /// per-CPU lists, too. Not so in blocks of order 9, which would cost a cache miss each.
  @inline(__always)
  private func isCleanLarge(_ index: UInt32, order: UInt32, blocks: UInt32) -> Bool {
    var block = index
    for _ in 0..<blocks {
      if isUnusual(block, order: order) {
        if !sweepLarge(block, order: order) { return false }
      } else if order == 10, !isPlain(block) || !isPlain(block &+ 512) {
        return false
      }
      block &+= 1 << order
    }
    return true
  }

  /// The same for one block of order 10 and packed counts; false does not say what there is.
  @inline(__always)
  func isWholeAndPlainPacked(_ index: UInt32) -> Bool {
    let counts = counts.base + Int(index)
    return !isUnusual(index, order: 10)
      && (state(index) | state(index &+ 512)) & ~FrameState.harmless == 0
      && pm_refcount_load_relaxed(counts) | pm_refcount_load_relaxed(counts + 512) == 0
  }

  /// Sweeps a block whose pageblocks are marked; the marks go where there was nothing to find.
  @inline(never)
  private func sweepLarge(_ index: UInt32, order: UInt32) -> Bool {
    // The block is nobody else's, so that its pageblocks are whole from now on.
    for block in 0..<(1 &<< Int(order &- 9)) {
      pm_pageblock_store_relaxed(broken + Int(index &>> 9) + block, 0)
    }
    // Cleared before the sweep, by a locked instruction: what is raised meanwhile is seen by the sweep or noted
    // after it. A frame that another CPU hands out of this block at this very moment may escape both.
    clearUnusual(index, order: order)
    let seen = sweep(index, frames: 1 << Int(order))
    if seen & ~UInt32(FrameState.harmless) == 0 { return true }
    markUnusual(index, order: order)
    return false
  }

  /// Tests a block that comes from the buddy lists; the first bad page is reported and the block is
  /// leaked. Mirrors `check_new_pages`.
  @inline(__always)
  func isCleanForAllocation(_ index: UInt32, order: UInt32, moment: BadPage.Moment) -> Bool {
    if isClean(index, order: order, blocks: 1) { return true }
    return isCleanForAllocationSlow(index, frames: 1 << order, moment: moment)
  }

  @inline(never)
  private func isCleanForAllocationSlow(
    _ index: UInt32, frames: UInt32, moment: BadPage.Moment
  ) -> Bool {
    for page in index..<(index + frames) {
      if flags(page).contains(.hwpoison) { return false }
      if !test(page, mask: .checkedAtPrep, moment: moment) { return false }
    }
    return true
  }

  /// Tests the first page of a block that leaves a per-CPU list. Mirrors `check_pcp_refill`'s
  /// counterpart at the drain.
  @inline(never)
  func isCleanForDrain(_ index: UInt32) -> Bool {
    test(index, mask: .checkedAtFree, moment: .drain)
  }
}
