internal import CPhysmemShim
internal import PMFrames
public import PMUnits

extension CPU {
  /// Adds a reference to the compound head; the caller already holds one. Relaxed. A count that wraps
  /// past the largest value is a finding. Mirrors `get_page`, Linux 6.1 without DEBUG_VM: it also
  /// raises a count of 0.
  @inline(__always)
  public mutating func getPage(_ pfn: PFN) {
    let head = machine.frames.compoundHead(of: pfn)
    _ = zone(of: head.rawValue)
    if !machine.frames.increment(head) { reportOverflow(head.rawValue) }
  }

  /// Adds a reference to the compound head if its count is positive; otherwise warns once, changes
  /// nothing and returns false. Mirrors `try_get_page`.
  public mutating func tryGetPage(_ pfn: PFN) -> Bool {
    let head = machine.frames.compoundHead(of: pfn)
    _ = zone(of: head.rawValue)
    if pm_refcount_load_relaxed(core.counts[head.rawValue]) <= 0 {
      machine.findings.warnOnce("try_get_page on a page without references", pfn: head)
      return false
    }
    getPage(head)
    return true
  }

  /// Adds a reference to this very frame unless its count is 0. Mirrors `get_page_unless_zero`.
  @inline(__always)
  public mutating func getPageUnlessZero(_ pfn: PFN) -> Bool {
    _ = zone(of: pfn.rawValue)
    return pm_refcount_inc_unless_zero_seq_cst(core.counts[pfn.rawValue])
  }

  /// Drops a reference to the compound head and frees the page with the last one: a compound page
  /// whole, anything else as a single frame, even if it was allocated as part of a larger block.
  /// Mirrors `put_page`.
  @inline(__always)
  public mutating func putPage(_ pfn: PFN) {
    let head = machine.frames.compoundHead(of: pfn).rawValue
    let zone = zone(of: head)
    if pm_refcount_dec_and_test_seq_cst(core.counts[head]) {
      freeLastReference(zone, head)
    } else {
      reportUnderflow(head)
    }
  }

  /// Drops `count` references to the compound head. Mirrors `folio_put_refs`.
  public mutating func putPage(_ pfn: PFN, count: Int32) {
    let head = machine.frames.compoundHead(of: pfn).rawValue
    let zone = zone(of: head)
    if pm_refcount_sub_and_test_seq_cst(core.counts[head], count) {
      freeLastReference(zone, head)
    } else {
      if count < 0 { core.markUnusual(head) }
      reportUnderflow(head)
    }
  }

  /// Sets this frame's count to 0 if it is `expected`. Mirrors `page_ref_freeze`.
  public mutating func freeze(_ pfn: PFN, expected: Int32) -> Bool {
    _ = zone(of: pfn.rawValue)
    return pm_refcount_freeze_seq_cst(core.counts[pfn.rawValue], expected)
  }

  /// Ends a freeze: stores `count` with release order. Mirrors `page_ref_unfreeze`.
  public mutating func unfreeze(_ pfn: PFN, to count: Int32) {
    _ = zone(of: pfn.rawValue)
    machine.frames.unfreeze(pfn, to: count)
  }

  /// Drops one reference to each listed page. Compound pages whose last reference this was are freed
  /// at once; single frames together at the end in reverse order, so that the first of the list is
  /// the next to be handed out. Mirrors `release_pages`.
  public mutating func releasePages(_ pfns: [PFN]) {
    var dead: [UInt32] = []
    for pfn in pfns {
      let head = machine.frames.compoundHead(of: pfn).rawValue
      let zone = zone(of: head)
      guard pm_refcount_dec_and_test_seq_cst(core.counts[head]) else {
        reportUnderflow(head)
        continue
      }
      if core.state(head) & FrameState.head != 0 {
        freeLastReference(zone, head)
      } else {
        if core.state(head) & (FrameState.detail | FrameState.lru) != 0 { leaveLists(head) }
        dead.append(head)
      }
    }
    dead.reverse()
    freeSingles(dead)
  }

  /// Frees single frames in list order: all are tested before the first is listed. Mirrors
  /// `free_unref_page_list`.
  private mutating func freeSingles(_ frames: [UInt32]) {
    var good: [UInt32] = []
    good.reserveCapacity(frames.count)
    for index in frames {
      let zone = zone(of: index)
      noteFree(index, order: 0)
      guard core.prepareFree(index, order: 0, testsFirst: false) else { continue }
      if core.cacheType(index) == Migratetype.isolate.rawValue {
        core.freeSpecial(
          zone, core.pagesets + Int(zone.pointee.index), index, order: 0, type: 4)
      } else {
        good.append(index)
      }
    }
    for index in good {
      let zone = zone(of: index)
      let cached = core.state(index) & FrameState.migratetypeMask
      let type = UInt8(truncatingIfNeeded: cached >> FrameState.migratetypeShift)
      core.commit(
        zone, core.pagesets + Int(zone.pointee.index), index, order: 0,
        listType: type >= 3 ? UInt8(1) : type)
    }
  }

  /// pre: the frame lies in `home`, whose zone is `zone`.
  @inline(__always)
  mutating func freeLastReference(_ zone: UnsafeMutablePointer<pm_zone>, _ head: UInt32) {
    let state = core.state(head)
    if state & (FrameState.detail | FrameState.lru) != 0 { leaveLists(head) }
    if state & FrameState.head != 0 {
      noteFree(head, order: UInt32(state & FrameState.orderMask))
      core.free(zone, head, order: UInt32(state & FrameState.orderMask))
    } else {
      freeSingle(head)
    }
  }

  /// The last put takes a page off its LRU list and out of its memory cgroup; `__free_pages` does not.
  @inline(never)
  private func leaveLists(_ head: UInt32) {
    var own = core.details.takeUnretainedValue()[head]
    own.memcg = 0
    if core.state(head) & FrameState.lru != 0 {
      own.flags.subtract([.active, .unevictable])
      core.setState(head, core.state(head) & ~FrameState.lru)
    }
    core.setDetails(head, own)
  }

  @inline(never)
  func reportOverflow(_ index: UInt32) {
    let count = pm_refcount_load_relaxed(core.counts[index])
    machine.findings.append(.refcountOverflow(pfn: PFN(index), count: count))
  }
}
