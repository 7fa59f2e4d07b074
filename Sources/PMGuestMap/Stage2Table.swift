public import CPhysmemShim
public import PMArena
public import PMUnits

/// A tree of stage-2 tables: guest frames to page frames, 512 entries per table, 4 or 5 levels.
///
/// Leaves stand at level 1 (4 KiB), 2 (2 MiB) and 3 (1 GiB). A present leaf is never overwritten by
/// one of another page: it has to be zapped first. The tree knows nothing of reference counts,
/// dirty logs and translation caches; whoever changes it acts on what the calls return or visit.
///
/// Thread rules, as those of KVM's TDP MMU. Each call names what it needs:
/// - "lock-free": any thread at any time, provided that no table it may be reading is recycled
///   (``reclaimDetachedTables(upTo:)``).
/// - "shared": the caller holds the MMU lock shared; many may run at once.
/// - "exclusive": the caller holds the MMU lock alone.
///
/// Mirrors `struct kvm_mmu_page` roots and `tdp_mmu.c`, Linux 6.1.
public final class Stage2Table: @unchecked Sendable {
  // Sendable: entries are atomic words under the rules above; the pool has its own lock; the
  // counters are atomic; all else is constant.

  /// Levels of the tree, 4 or 5.
  public let levels: Int
  /// One more than the highest guest frame that has an entry: 2^36 or 2^45.
  public let frameLimit: UInt64
  /// The frames whose walk may start at the root's level 4: all of a tree of 4 levels, else none.
  @usableFromInline let quickLimit: UInt64
  @usableFromInline let root: UnsafeMutablePointer<UInt64>
  /// Line 0 holds the generation, lines 1 to 16 the counters of leaves per level.
  @usableFromInline let control: UnsafeMutablePointer<UInt64>
  @usableFromInline let pool: Stage2Pool

  /// Lines of counters. A table's leaves are counted in the line that its address selects, so that
  /// two threads that map in two tables seldom share one.
  @inlinable @inline(__always)
  static var counterLines: Int { 16 }

  /// Makes an empty tree of 4 or 5 levels.
  ///
  /// Costs one mapping of 256 KiB of address space, of which one page is touched. Throws `ENOMEM`
  /// where the host refuses that. Mirrors `kvm_tdp_mmu_get_vcpu_root_hpa`, Linux 6.1.
  public init(levels: Int = 4) throws(HostError) {
    precondition(levels == 4 || levels == 5, "a stage-2 tree has 4 or 5 levels, not \(levels)")
    let pool = try Stage2Pool()
    guard let root = pool.take() else { fatalError("the first chunk has no table") }
    self.levels = levels
    frameLimit = 1 << UInt64(9 * levels)
    quickLimit = levels == 4 ? 1 << 36 : 0
    self.root = root
    self.pool = pool
    let words = 8 * (1 + Stage2Table.counterLines)
    control = UnsafeMutableRawPointer.allocate(byteCount: words * 8, alignment: 64)
      .bindMemory(to: UInt64.self, capacity: words)
    control.initialize(repeating: 0, count: words)
    pm_stage2_generation_renew(control)
  }

  deinit { UnsafeMutableRawPointer(control).deallocate() }

  /// The counter of leaves of `level` for the table that holds `slot`.
  @inlinable @inline(__always)
  func counter(
    _ slot: UnsafeMutablePointer<UInt64>, level: Int
  ) -> UnsafeMutablePointer<Int64> {
    let line = (Int(bitPattern: slot) &>> 12) & (Stage2Table.counterLines &- 1)
    return UnsafeMutableRawPointer(control + (8 &* (1 &+ line) &+ level &- 1))
      .assumingMemoryBound(to: Int64.self)
  }

  /// The entry's place in its table at `level`.
  @inlinable @inline(__always)
  func index(_ gfn: UInt64, _ level: Int) -> Int {
    Int(truncatingIfNeeded: gfn &>> UInt64(9 &* (level &- 1))) & 511
  }
}

// MARK: - Reading

extension Stage2Table {
  /// The leaf that maps a guest frame with its level, or nil where there is none.
  ///
  /// Lock-free; the answer may be stale at once. An access-tracked leaf, which grants nothing, is
  /// found too. Mirrors `kvm_tdp_mmu_get_walk`, Linux 6.1.
  @inlinable @inline(__always)
  public func lookup(_ gfn: GFN) -> (spte: SPTE, level: Int)? {
    let raw = gfn.rawValue
    guard _fastPath(raw < quickLimit) else { return lookupSlowly(gfn) }
    let fourth = SPTE(rawValue: pm_spte_load_acquire(root + index(raw, 4)))
    guard _fastPath(fourth.isTable) else { return nil }
    var table = pm_spte_table(fourth.rawValue)
    let third = SPTE(rawValue: pm_spte_load_acquire(table + index(raw, 3)))
    guard _fastPath(third.isTable) else { return third.isPresent ? (third, 3) : nil }
    table = pm_spte_table(third.rawValue)
    let second = SPTE(rawValue: pm_spte_load_acquire(table + index(raw, 2)))
    guard second.isTable else { return second.isPresent ? (second, 2) : nil }
    table = pm_spte_table(second.rawValue)
    let first = SPTE(rawValue: pm_spte_load_acquire(table + index(raw, 1)))
    return first.isPresent ? (first, 1) : nil
  }

  @usableFromInline @inline(never)
  func lookupSlowly(_ gfn: GFN) -> (spte: SPTE, level: Int)? {
    guard gfn.rawValue < frameLimit else { return nil }
    let (_, entry, level) = lowestEntry(gfn.rawValue)
    return entry.isPresent && !entry.isTable ? (entry, level) : nil
  }

  /// The lowest entry on the way to a guest frame, with its place and level: a leaf, or whatever
  /// stands where the next table is missing. Lock-free. pre: the frame is below ``frameLimit``.
  @inlinable
  func lowestEntry(
    _ gfn: UInt64
  ) -> (slot: UnsafeMutablePointer<UInt64>, entry: SPTE, level: Int) {
    var table = root
    var level = levels
    while true {
      let slot = table + index(gfn, level)
      let entry = SPTE(rawValue: pm_spte_load_acquire(slot))
      guard level > 1, entry.isTable else { return (slot, entry, level) }
      table = pm_spte_table(entry.rawValue)
      level &-= 1
    }
  }

  /// Visits the entries that are not 0 and whose frames intersect `range`, in order, at levels from
  /// `minLevel` up; entries that name tables are not visited. The body gets the first frame of the
  /// entry, its level, its place and what it held, and returns whether to go on.
  ///
  /// Returns the first frame of the entry at which the body stopped, or the end. Lock-free by
  /// itself; what the body may do is the caller's affair.
  @inlinable @inline(__always) @discardableResult
  func walk(
    _ range: Range<GFN>, minLevel: Int = 1,
    _ body: (
      _ gfn: UInt64, _ level: Int, _ slot: UnsafeMutablePointer<UInt64>, _ entry: SPTE
    ) -> Bool
  ) -> UInt64 {
    var gfn = range.lowerBound.rawValue
    let end = min(range.upperBound.rawValue, frameLimit)
    while gfn < end {
      // Down to the lowest table on the way.
      var table = root
      var level = levels
      while level > minLevel {
        let entry = SPTE(rawValue: pm_spte_load_acquire(table + index(gfn, level)))
        guard entry.isTable else { break }
        table = pm_spte_table(entry.rawValue)
        level &-= 1
      }
      // Along the table as far as no entry leads further down.
      let frames = UInt64(1) &<< UInt64(9 &* (level &- 1))
      var place = index(gfn, level)
      gfn &= ~(frames &- 1)
      repeat {
        let slot = table + place
        let entry = SPTE(rawValue: pm_spte_load_acquire(slot))
        if level > 1, entry.isTable {
          if level > minLevel { break }
        } else if entry.rawValue != 0 {
          if !body(gfn, level, slot, entry) { return gfn }
        }
        gfn &+= frames
        place &+= 1
      } while place < 512 && gfn < end
    }
    return max(gfn, end)
  }

  /// Visits the present leaves that intersect `range`, in order: the leaf's first frame, its level
  /// and the entry. Lock-free; leaves that come and go meanwhile may be visited or not.
  @inlinable
  public func forEachLeaf(
    in range: Range<GFN>, _ visit: (_ gfn: GFN, _ level: Int, _ spte: SPTE) -> Void
  ) {
    walk(range) { gfn, level, _, entry in
      if entry.isPresent { visit(GFN(gfn), level, entry) }
      return true
    }
  }

  /// The range of all guest frames of the tree.
  @inlinable
  public var allFrames: Range<GFN> { GFN(0)..<GFN(frameLimit) }
}

// MARK: - Counts and tables

extension Stage2Table {
  /// Present leaves per level.
  public struct LeafCounts: Hashable, Sendable {
    /// Leaves of 4 KiB. Mirrors the statistic `pages_4k`.
    public var pages4K: Int
    /// Leaves of 2 MiB. Mirrors `pages_2m`.
    public var pages2M: Int
    /// Leaves of 1 GiB. Mirrors `pages_1g`.
    public var pages1G: Int

    /// Counts from their parts.
    public init(pages4K: Int = 0, pages2M: Int = 0, pages1G: Int = 0) {
      self.pages4K = pages4K
      self.pages2M = pages2M
      self.pages1G = pages1G
    }
  }

  /// Present leaves per level. Lock-free; exact while nobody changes the tree.
  public var leafCounts: LeafCounts {
    var sums = [0, 0, 0]
    for line in 1...Stage2Table.counterLines {
      for level in 1...3 {
        let word = UnsafeMutableRawPointer(control + (8 * line + level - 1))
        sums[level - 1] += Int(
          pm_stage2_count_load_relaxed(word.assumingMemoryBound(to: Int64.self)))
      }
    }
    return LeafCounts(pages4K: sums[0], pages2M: sums[1], pages1G: sums[2])
  }

  /// Tables in the tree, the root included. Lock-free.
  public var tableCount: Int { pool.usage.inUse }

  /// Tables that left the tree and are not recycled yet. Lock-free.
  public var detachedTableCount: Int { pool.usage.detached }

  /// Address space that the tables take, in bytes. Lock-free.
  public var tableByteCount: Int { pool.usage.byteCount }

  /// How many tables have left the tree since it was made. To be read before waiting for lock-free
  /// walkers and given to ``reclaimDetachedTables(upTo:)`` afterwards. Any thread.
  public var detachedMark: Int { pool.detachedMark }

  /// Recycles the tables that had left the tree when `mark` was read, and returns how many.
  ///
  /// pre: no lock-free walker that began before `mark` was read is still at it; a ``FlushGate``
  /// request in between sees to that for walks inside of accesses. Any thread. Mirrors the RCU
  /// callback `tdp_mmu_free_sp_rcu_callback`, Linux 6.1.
  @discardableResult
  public func reclaimDetachedTables(upTo mark: Int) -> Int { pool.reclaim(upTo: mark) }

  /// Recycles all tables that have left the tree. pre: there is no lock-free walker at all.
  @discardableResult
  public func reclaimDetachedTables() -> Int { pool.reclaim(upTo: pool.detachedMark) }
}
