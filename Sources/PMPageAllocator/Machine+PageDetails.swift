internal import CPhysmemShim
internal import PMFrames
public import PMUnits

// What is known of a page beyond its count and its place: flags, map counts, mapping, memory cgroup.
extension Machine {
  /// All flags of a page in the kernel's bits.
  public func flags(of pfn: PFN) -> PageFlags {
    _ = frames.refcount(pfn)
    return core(cpu: 0).flags(pfn.rawValue)
  }

  /// Sets and clears flags of a page that the caller owns. `.head` cannot be changed: compound
  /// allocation and freeing do that.
  public func setFlags(of pfn: PFN, _ flags: PageFlags) {
    _ = frames.refcount(pfn)
    let core = core(cpu: 0)
    let index = pfn.rawValue
    var own = core.details.takeUnretainedValue()[index]
    own.flags = flags.subtracting([.lru, .slab, .reserved, .head])
    core.setDetails(index, own)
    var state = core.state(index) & ~(FrameState.lru | FrameState.slab | FrameState.reserved)
    if flags.contains(.lru) { state |= FrameState.lru }
    if flags.contains(.slab) { state |= FrameState.slab }
    if flags.contains(.reserved) { state |= FrameState.reserved }
    core.setState(index, state | FrameState.touched)
    core.markUnusual(index)
  }

  /// Map count, mapping and memory cgroup of a page; a clean page's where nothing was set.
  public func details(of pfn: PFN) -> PageDetails {
    _ = frames.refcount(pfn)
    return details[pfn.rawValue]
  }

  /// Sets map count, mapping and memory cgroup of a page that the caller owns; flags are set by
  /// ``setFlags(of:_:)`` and ignored here.
  public func setDetails(of pfn: PFN, mapcount: Int32 = -1, mapping: UInt64 = 0, memcg: UInt64 = 0)
  {
    _ = frames.refcount(pfn)
    let flags = details[pfn.rawValue].flags
    core(cpu: 0).setDetails(
      pfn.rawValue,
      PageDetails(flags: flags, mapcount: mapcount, mapping: mapping, memcg: memcg))
  }

  /// The flags that the frame's state word holds; the others are in the detail table.
  private static let inState: PageFlags = [.lru, .reserved, .slab]

  private static func stateBits(_ flags: PageFlags) -> UInt16 {
    (flags.contains(.lru) ? FrameState.lru : 0)
      | (flags.contains(.reserved) ? FrameState.reserved : 0)
      | (flags.contains(.slab) ? FrameState.slab : 0)
  }

  /// Sets flags of this very page and leaves the others; any thread, at any time, relaxed. `.head`
  /// is ignored. Mirrors `set_bit` on page flags.
  public func insertFlags(_ flags: PageFlags, of pfn: PFN) {
    _ = frames.refcount(pfn)
    let core = core(cpu: 0)
    let index = pfn.rawValue
    let own = flags.subtracting(Machine.inState).subtracting(.head)
    var bits = Machine.stateBits(flags)
    if !own.isEmpty {
      pm_flags_set_relaxed(&details.record(index).pointee.flags, own.rawValue)
      bits |= FrameState.detail
    }
    let state = core.states + Int(index)
    if pm_state_load_relaxed(state) & bits != bits {
      pm_state_set_relaxed(state, bits | FrameState.touched)
      core.markUnusual(index)
    }
  }

  /// Clears flags of this very page and leaves the others; any thread, at any time, relaxed. `.head`
  /// is ignored. Mirrors `clear_bit` on page flags.
  public func removeFlags(_ flags: PageFlags, of pfn: PFN) {
    _ = frames.refcount(pfn)
    let index = pfn.rawValue
    let own = flags.subtracting(Machine.inState).subtracting(.head)
    if !own.isEmpty, let record = details.existing(index) {
      pm_flags_clear_relaxed(&record.pointee.flags, own.rawValue)
    }
    let bits = Machine.stateBits(flags)
    if bits != 0 { pm_state_clear_relaxed(frames.states + Int(index), bits) }
  }

  /// Adds to `_mapcount` of this very page and returns the new value (-1: not mapped); any thread,
  /// relaxed. Mirrors `atomic_add_return(&page->_mapcount)`.
  @discardableResult
  public func addMapcount(_ delta: Int32, of pfn: PFN) -> Int32 {
    _ = frames.refcount(pfn)
    let record = noted(pfn.rawValue)
    return pm_mapcount_add_return_relaxed(&record.pointee.mapped, delta) - 1
  }

  /// Adds to the count of whole mappings of a compound page and returns the new value (0: none); any
  /// thread, relaxed. `pfn` is the head.
  @discardableResult
  public func addWholeMapcount(_ delta: Int32, of pfn: PFN) -> Int32 {
    _ = frames.refcount(pfn)
    let record = noted(pfn.rawValue)
    return pm_mapcount_add_return_relaxed(&record.pointee.mapped_whole, delta)
  }

  /// Adds to the pins of a large folio and returns the new value; any thread, relaxed. `pfn` is the
  /// head.
  @discardableResult
  public func addPincount(_ delta: Int32, of pfn: PFN) -> Int32 {
    _ = frames.refcount(pfn)
    let record = noted(pfn.rawValue)
    return pm_mapcount_add_return_relaxed(&record.pointee.pinned, delta)
  }

  /// Sets `mapping` of a page that the caller owns.
  public func setMapping(_ mapping: UInt64, of pfn: PFN) {
    _ = frames.refcount(pfn)
    pm_detail_word_store_relaxed(&noted(pfn.rawValue).pointee.mapping, mapping)
  }

  /// Sets `private` of a page that the caller owns.
  public func setPrivate(_ value: UInt64, of pfn: PFN) {
    _ = frames.refcount(pfn)
    pm_detail_word_store_relaxed(&noted(pfn.rawValue).pointee.owner_word, value)
  }

  /// `page_mapcount`: the page's own mappings, plus those of its compound page as a whole; 0 where
  /// it was never mapped.
  public func mapcount(of pfn: PFN) -> Int32 {
    let own = details(of: pfn).mapcount + 1
    let head = frames.compoundHead(of: pfn)
    guard head != pfn || frames.isCompoundHead(pfn) else { return own }
    return own + details(of: head).wholeMapcount
  }

  /// Whether the kernel has a `struct page` for a frame number: some memory lies in its section of
  /// 128 MiB. Mirrors `pfn_valid` with SPARSEMEM on x86-64.
  public func hasPage(_ pfn: PFN) -> Bool {
    guard Int(pfn.rawValue) < frames.frameCount else { return false }
    let section = pfn.rawValue >> 15
    for index in 0..<records.segmentCount {
      let segment = records.segments[index]
      guard segment.count > 0 else { continue }
      let last = segment.start + segment.count - 1
      if segment.start >> 15 <= section, last >> 15 >= section { return true }
    }
    return false
  }

  /// The record of a page, with the mark in its state word set.
  private func noted(_ index: UInt32) -> UnsafeMutablePointer<pm_detail> {
    let record = details.record(index)
    let state = frames.states + Int(index)
    if pm_state_load_relaxed(state) & FrameState.detail == 0 {
      pm_state_set_relaxed(state, FrameState.detail | FrameState.touched)
      core(cpu: 0).markUnusual(index)
    }
    return record
  }
}
