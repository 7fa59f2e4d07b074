public import CPhysmemShim
public import PMUnits

// The reference-count operations of the kernel. Unless a comment says otherwise an operation acts on
// the very frame it is given ("own"), never on a compound head. Every operation stops the process
// with a message where the PFN is outside the table.
//
// What raises a count that was 0, or leaves one that is neither 0 nor that of a block's first frame,
// is noted in the pageblock's marks: elsewhere the allocator knows that the counts inside large
// blocks are 0 and need not read them.
extension FrameTable {
  /// What one pin adds to the count of a small page (`GUP_PIN_COUNTING_BIAS`).
  public static let pinBias: Int32 = Int32(PM_REFCOUNT_PIN_BIAS)

  /// Reads the count. Relaxed. Mirrors `page_ref_count`, Linux 6.1.
  @inlinable @inline(__always)
  public func refcount(_ pfn: PFN) -> Int32 { pm_refcount_load_relaxed(countWord(pfn)) }

  /// Reads the count of the compound head. Relaxed. Mirrors `page_count`.
  @inlinable
  public func pageCount(_ pfn: PFN) -> Int32 { refcount(compoundHead(of: pfn)) }

  /// Stores a count. Relaxed; for a frame that nobody else can reach. Mirrors `set_page_count`.
  @inlinable @inline(__always)
  public func setRefcount(_ pfn: PFN, _ value: Int32) {
    pm_refcount_store_relaxed(countWord(pfn), value)
    if value != 0 { markUnusual(pfn) }
  }

  /// Notes that a count in the pageblock may be other than the allocator left it. Where that is noted
  /// already, which is the rule, nothing is called.
  @inlinable @inline(__always)
  package func markUnusual(_ pfn: PFN) {
    if _slowPath(
      pm_pageblock_load_relaxed(marks + Int(pfn.rawValue >> 9)) & PageblockMarks.unusual == 0)
    {
      setUnusual(pfn)
    }
  }

  @usableFromInline @inline(never)
  package func setUnusual(_ pfn: PFN) {
    pm_marks_set(marks + Int(pfn.rawValue >> 9), PageblockMarks.unusual)
  }

  /// What follows a put that went below 0, or that raised the count.
  @usableFromInline @inline(never)
  package func fellBelowZero(_ pfn: PFN) { markUnusual(pfn) }

  /// The rest of a get that came from 0, from below, or went past the largest count.
  @usableFromInline @inline(never)
  package func raisedUnusually(_ pfn: PFN, from old: Int32, by delta: Int32) -> Bool {
    markUnusual(pfn)
    return old &+ delta >= 0
  }

  /// Adds 1 and says whether the count stayed non-negative. Relaxed. Mirrors `page_ref_inc`, which
  /// wraps silently; so does this, and false tells.
  @inlinable @inline(__always) @discardableResult
  public func increment(_ pfn: PFN) -> Bool {
    let get = pm_refcount_get_relaxed(countWord(pfn))
    if _slowPath(get.overflowed) || _slowPath(get.old <= 0) {
      return raisedUnusually(pfn, from: get.old, by: 1)
    }
    return true
  }

  /// Subtracts 1. Relaxed. Mirrors `page_ref_dec`.
  @inlinable @inline(__always)
  public func decrement(_ pfn: PFN) {
    pm_refcount_dec_relaxed(countWord(pfn))
    if refcount(pfn) < 0 { fellBelowZero(pfn) }
  }

  /// Adds `delta` and says whether the count stayed non-negative. Relaxed. Mirrors `page_ref_add`.
  @inlinable @inline(__always) @discardableResult
  public func add(_ pfn: PFN, _ delta: Int32) -> Bool {
    let old = pm_refcount_fetch_add_relaxed(countWord(pfn), delta)
    if old <= 0 || old &+ delta < 0 { return raisedUnusually(pfn, from: old, by: delta) }
    return true
  }

  /// Subtracts `delta`. Relaxed. Mirrors `page_ref_sub`.
  @inlinable @inline(__always)
  public func subtract(_ pfn: PFN, _ delta: Int32) {
    pm_refcount_sub_relaxed(countWord(pfn), delta)
    if delta < 0 || refcount(pfn) < 0 { fellBelowZero(pfn) }
  }

  /// Adds 1 and returns the new count. Fully ordered. Mirrors `page_ref_inc_return`.
  @inlinable @inline(__always)
  public func incrementReturn(_ pfn: PFN) -> Int32 {
    let new = pm_refcount_add_return_seq_cst(countWord(pfn), 1)
    if new <= 1 { markUnusual(pfn) }
    return new
  }

  /// Subtracts 1 and returns the new count. Fully ordered. Mirrors `page_ref_dec_return`.
  @inlinable @inline(__always)
  public func decrementReturn(_ pfn: PFN) -> Int32 { subtractReturn(pfn, 1) }

  /// Subtracts `delta` and returns the new count. Fully ordered. Mirrors `page_ref_sub_return`.
  @inlinable @inline(__always)
  public func subtractReturn(_ pfn: PFN, _ delta: Int32) -> Int32 {
    let new = pm_refcount_sub_return_seq_cst(countWord(pfn), delta)
    if delta < 0 || new < 0 { fellBelowZero(pfn) }
    return new
  }

  /// Subtracts 1; true iff the count became 0. Fully ordered. Mirrors `put_page_testzero`. The
  /// caller then owns the page and has to free it; `CPU.putPage` does both.
  @inlinable @inline(__always)
  public func putAndTest(_ pfn: PFN) -> Bool {
    let outcome = pm_refcount_dec_outcome_seq_cst(countWord(pfn))
    if _slowPath(outcome.negative) { fellBelowZero(pfn) }
    return outcome.zero
  }

  /// Subtracts `delta`; true iff the count became 0. Fully ordered. Mirrors `page_ref_sub_and_test`.
  @inlinable @inline(__always)
  public func subtractAndTest(_ pfn: PFN, _ delta: Int32) -> Bool {
    subtractReturn(pfn, delta) == 0
  }

  /// Adds `delta` unless the count is `unless`; true iff added. Fully ordered on success, relaxed on
  /// failure. Mirrors `page_ref_add_unless`.
  @inlinable @inline(__always)
  public func add(_ pfn: PFN, _ delta: Int32, unless: Int32) -> Bool {
    guard pm_refcount_add_unless_seq_cst(countWord(pfn), delta, unless) else { return false }
    if unless != 0 || delta <= 0 { markUnusual(pfn) }
    return true
  }

  /// Adds 1 unless the count is 0; true iff added. Fully ordered on success. Does not go to the
  /// head: a tail has count 0 and is refused. Mirrors `get_page_unless_zero`.
  @inlinable @inline(__always)
  public func getPageUnlessZero(_ pfn: PFN) -> Bool {
    pm_refcount_inc_unless_zero_seq_cst(countWord(pfn))
  }

  /// Sets the count to 0 if it is `expected`; true iff it was. Fully ordered on success. Mirrors
  /// `page_ref_freeze`.
  @inlinable @inline(__always)
  public func freeze(_ pfn: PFN, expected: Int32) -> Bool {
    pm_refcount_freeze_seq_cst(countWord(pfn), expected)
  }

  /// Stores `value`, release order; ends a freeze. Mirrors `page_ref_unfreeze`.
  @inlinable @inline(__always)
  public func unfreeze(_ pfn: PFN, to value: Int32) {
    pm_refcount_unfreeze_release(countWord(pfn), value)
    markUnusual(pfn)
  }

  /// Adds a reference to the compound head and says whether its count stayed non-negative. Relaxed.
  /// The caller must already hold a reference. Mirrors `get_page`, which increments silently even
  /// from 0 without DEBUG_VM.
  @inlinable @inline(__always) @discardableResult
  public func getPage(_ pfn: PFN) -> Bool { increment(compoundHead(of: pfn)) }

  /// Adds a reference to the compound head if its count is positive; false, with nothing changed,
  /// if not. Relaxed; not safe against a concurrent last put, as in the kernel. Mirrors
  /// `try_get_page`.
  @inlinable
  public func tryGetPage(_ pfn: PFN) -> Bool {
    let head = compoundHead(of: pfn)
    guard refcount(head) > 0 else { return false }
    return increment(head)
  }

  /// Adds one pin to a small page: ``pinBias`` to its count. Relaxed; the caller holds a reference.
  @inlinable @inline(__always) @discardableResult
  public func pin(_ pfn: PFN) -> Bool { add(pfn, FrameTable.pinBias) }

  /// Drops one pin of a small page; true iff the count became 0. Fully ordered.
  @inlinable @inline(__always)
  public func unpinAndTest(_ pfn: PFN) -> Bool { subtractAndTest(pfn, FrameTable.pinBias) }

  /// Whether a small page may be pinned for DMA: its count is at least ``pinBias``, which 1024
  /// ordinary references reach too. Mirrors `folio_maybe_dma_pinned` for order 0.
  @inlinable
  public func mayBePinned(_ pfn: PFN) -> Bool {
    UInt32(bitPattern: refcount(pfn)) >= UInt32(FrameTable.pinBias)
  }

  /// Adds a reference to each of `count` frames from `first` on. Relaxed. Returns whether all counts
  /// stayed non-negative.
  @inlinable @discardableResult
  public func increment(from first: PFN, count: Int) -> Bool {
    guard count > 0 else { return true }
    _ = countWord(PFN(first.rawValue &+ UInt32(count - 1)))
    var word = countWord(first)
    let stride = 1 &<< counts.shift
    var isGood = true
    for offset in 0..<count {
      let old = pm_refcount_fetch_inc_relaxed(word)
      word += stride
      if UInt32(bitPattern: old &- 1) >= 0x7fff_fffe {
        isGood = raisedUnusually(PFN(first.rawValue &+ UInt32(offset)), from: old, by: 1) && isGood
      }
    }
    return isGood
  }

  /// Adds a reference to each listed frame, to which the caller holds one already. Relaxed. Returns
  /// whether all counts stayed non-negative.
  ///
  /// Cold frames are fetched well ahead. The count is looked at before the increment, not taken from
  /// it: increments without a result overlap, an exchange-add per cold frame costs twice as much.
  @inlinable @discardableResult
  public func increment(_ pfns: UnsafeBufferPointer<PFN>) -> Bool {
    // Local: the compiler has to assume that an increment changes what the table's fields say.
    let counts = counts
    let frameCount = frameCount
    let ahead = 32
    var isGood = true
    var index = 0
    while index < pfns.count {
      let coming = index &+ ahead
      // One outside the table stops the process when its turn comes.
      if coming < pfns.count, Int(pfns[coming].rawValue) < frameCount {
        pm_prefetch_write(counts[pfns[coming]])
      }
      let pfn = pfns[index]
      index &+= 1
      if Int(pfn.rawValue) >= frameCount { outOfRange(pfn) }
      let word = counts[pfn]
      let old = pm_refcount_load_relaxed(word)
      pm_refcount_inc_relaxed(word)
      if UInt32(bitPattern: old &- 1) >= 0x7fff_fffe {
        isGood = raisedUnusually(pfn, from: old, by: 1) && isGood
      }
    }
    return isGood
  }

  /// Adds a reference to each listed frame unless its count is 0, and returns how many were added;
  /// `failed` is called for the others. Fully ordered for each success. A rolling prefetch gives
  /// back the overlap of cache misses that the load in front of the exchange takes.
  @inlinable
  public func getPagesUnlessZero(
    _ pfns: UnsafeBufferPointer<PFN>, failed: (PFN) -> Void = { _ in }
  ) -> Int {
    let ahead = 32
    var added = 0
    for index in pfns.indices {
      if index + ahead < pfns.count { pm_prefetch_write(countWord(pfns[index + ahead])) }
      if pm_refcount_inc_unless_zero_seq_cst(countWord(pfns[index])) {
        added += 1
      } else {
        failed(pfns[index])
      }
    }
    return added
  }
}
