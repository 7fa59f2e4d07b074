public import CPhysmemShim
public import PMUnits

/// What became of an install.
public enum Stage2InstallResult: Hashable, Sendable {
  /// The entry stands.
  case installed
  /// The same entry stood there already. Mirrors `RET_PF_SPURIOUS`.
  case spurious
  /// Another thread was faster, or is at work on the entry: look again. Mirrors `RET_PF_RETRY`.
  case lostRace
  /// A leaf of this level maps the frame: to another page, or the new one does not fit below it.
  case occupiedByLeaf(level: Int)
  /// A table stands where the huge leaf should go.
  case occupiedByTable
  /// The host has no memory for a table. Nothing was installed.
  case outOfMemory
}

/// Where a thread mapped last: the lowest table of its last walk.
///
/// Spares walks from the root to whoever maps or unmaps frames in order. It belongs to one thread
/// at a time, and may be used with any tree at any time: it knows when its table has left the tree.
public struct Stage2Cursor: @unchecked Sendable, BitwiseCopyable {
  // Sendable: a value that one thread uses at a time; the table behind the pointer is atomic words.

  /// The frames of the table, as `gfn >> 9`; all ones: none.
  @usableFromInline var tag: UInt64
  /// The generation of the tree that the table was found in; never that of another tree.
  @usableFromInline var generation: UInt64
  @usableFromInline var table: UnsafeMutablePointer<UInt64>

  /// A cursor that stands nowhere.
  @inlinable
  public init() {
    tag = .max
    generation = 0
    table = UnsafeMutablePointer(bitPattern: 8).unsafelyUnwrapped
  }

  /// Forgets the table.
  @inlinable @inline(__always)
  public mutating func invalidate() { tag = .max }
}

extension Stage2Table {
  /// Whether the cursor's table is the lowest one for `gfn`, and in the tree. A frame at or beyond
  /// the limit has no table, so that a hit proves the frame.
  @inlinable @inline(__always)
  func isHit(_ cursor: Stage2Cursor, _ gfn: GFN) -> Bool {
    cursor.tag == gfn.rawValue &>> 9
      && cursor.generation == pm_stage2_generation_load_acquire(control)
  }

  /// Maps one 4 KiB frame where nothing is mapped yet: the hot path of an install in order.
  ///
  /// Shared. The result is that of ``install(_:level:_:expected:)``. Mirrors `kvm_tdp_mmu_map` for
  /// a fault at level 1, Linux 6.1. pre: the frame is below ``frameLimit`` (stops the process) and
  /// the attributes' writability is legal (tested in debug builds and whenever a table is walked
  /// to).
  @inlinable @inline(__always)
  public func map(
    _ gfn: GFN, _ pfn: PFN, _ attributes: SPTE.Attributes, _ cursor: inout Stage2Cursor
  ) -> Stage2InstallResult {
    assert(attributes.isWritabilityLegal)
    let new = SPTE.leaf(pfn: pfn, isLarge: false, attributes)
    if isHit(cursor, gfn) {
      let slot = cursor.table + Int(truncatingIfNeeded: gfn.rawValue & 511)
      if pm_spte_install_seq_cst(slot, new.rawValue) {
        pm_stage2_count_inc_relaxed(counter(slot, level: 1))
        return .installed
      }
    }
    return mapSlowly(gfn, new, &cursor)
  }

  @usableFromInline @inline(never)
  func mapSlowly(_ gfn: GFN, _ new: SPTE, _ cursor: inout Stage2Cursor) -> Stage2InstallResult {
    precondition(new.isWritabilityLegal, "an entry with contradicting write bits: \(new)")
    // Read first: a table that leaves the tree meanwhile makes the cursor miss.
    let generation = pm_stage2_generation_load_acquire(control)
    switch descend(gfn, to: 1) {
    case .failure(let result):
      return result
    case .table(let table):
      cursor = Stage2Cursor(tag: gfn.rawValue >> 9, generation: generation, table: table)
      return put(new, into: table + index(gfn.rawValue, 1), level: 1, expected: nil)
    }
  }

  /// Installs a leaf at a level by compare-and-exchange, and the tables above it where they are
  /// missing.
  ///
  /// Shared. Where a leaf of the same page stands already it is replaced (a change of permissions);
  /// one of another page, or of another level, stays. With `expected` only that entry is replaced,
  /// else the result is `lostRace`. `spurious` where the same entry stands. An entry that is not
  /// present may be installed too (an MMIO marker): it counts as no leaf. Mirrors `kvm_tdp_mmu_map`
  /// and `tdp_mmu_map_handle_target_level`, Linux 6.1.
  /// pre: the frame is below ``frameLimit`` (stops the process); the level is 1, 2 or 3.
  public func install(
    _ gfn: GFN, level: Int, _ new: SPTE, expected: SPTE? = nil
  ) -> Stage2InstallResult {
    precondition(level >= 1 && level <= 3, "a leaf at level \(level)")
    precondition(!new.isTable, "bit 63 belongs to entries that name tables")
    if new.isPresent {
      precondition(new.isWritabilityLegal, "an entry with contradicting write bits: \(new)")
      precondition(level == 1 || new.isLarge, "a leaf of level \(level) without the large bit")
    }
    switch descend(gfn, to: level) {
    case .failure(let result): return result
    case .table(let table):
      return put(
        new, into: table + index(gfn.rawValue, level), level: level, expected: expected)
    }
  }

  enum Descent {
    case table(UnsafeMutablePointer<UInt64>)
    case failure(Stage2InstallResult)
  }

  /// The table of `level` on the way to a frame, made with all above it where missing. Shared.
  func descend(_ gfn: GFN, to level: Int) -> Descent {
    precondition(gfn.rawValue < frameLimit, "guest frame \(gfn) is outside of the tree")
    var table = root
    var current = levels
    while current > level {
      let slot = table + index(gfn.rawValue, current)
      var entry = SPTE(rawValue: pm_spte_load_acquire(slot))
      while !entry.isTable {
        if entry.isPresent { return .failure(.occupiedByLeaf(level: current)) }
        if entry.isFrozen { return .failure(.lostRace) }
        guard let fresh = pool.take() else { return .failure(.outOfMemory) }
        let found = link(fresh, into: slot, expected: entry)
        entry = found == entry ? .naming(fresh) : found
      }
      table = pm_spte_table(entry.rawValue)
      current -= 1
    }
    return .table(table)
  }

  /// Puts a table into an entry if that is as expected; gives the table back if not. Returns what
  /// was found.
  private func link(
    _ table: UnsafeMutablePointer<UInt64>, into slot: UnsafeMutablePointer<UInt64>, expected: SPTE
  ) -> SPTE {
    let found = pm_spte_compare_exchange_seq_cst(
      slot, expected.rawValue, SPTE.naming(table).rawValue)
    if found != expected.rawValue { pool.giveBack(table) }
    return SPTE(rawValue: found)
  }

  private func put(
    _ new: SPTE, into slot: UnsafeMutablePointer<UInt64>, level: Int, expected: SPTE?
  ) -> Stage2InstallResult {
    let old = SPTE(rawValue: pm_spte_load_acquire(slot))
    if old.isFrozen { return .lostRace }
    if old.isPresent {
      if old.isTable { return .occupiedByTable }
      if old == new { return .spurious }
      if old.pfn != new.pfn || !new.isPresent { return .occupiedByLeaf(level: level) }
    }
    if let expected, expected != old { return .lostRace }
    let found = pm_spte_compare_exchange_seq_cst(slot, old.rawValue, new.rawValue)
    guard found == old.rawValue else { return .lostRace }
    if new.isPresent, !old.isPresent { pm_stage2_count_inc_relaxed(counter(slot, level: level)) }
    return .installed
  }

  /// Maps `count` frames from `gfn` on to as many page frames from `pfn` on, 4 KiB each, and
  /// returns for how many from the start the mapping stands now: `count`, unless a frame is mapped
  /// to another page or by a huge leaf, another thread is at work on it, or the host has no memory
  /// for a table (``install(_:level:_:expected:)`` of that frame tells).
  ///
  /// Shared; faster with `isExclusive`, by which the caller says that it holds the lock alone. A
  /// table that is missing is filled before it is linked.
  /// pre: the frames are below ``frameLimit`` (stops the process).
  public func mapRange(
    _ gfn: GFN, _ pfn: PFN, count: Int, _ attributes: SPTE.Attributes, isExclusive: Bool = false
  ) -> Int {
    precondition(count >= 0, "a range of \(count) frames")
    precondition(
      gfn.rawValue <= frameLimit && UInt64(count) <= frameLimit - gfn.rawValue,
      "guest frames \(gfn) + \(count) are outside of the tree")
    precondition(attributes.isWritabilityLegal, "contradicting write bits")
    var done = 0
    while done < count {
      let first = gfn.rawValue + UInt64(done)
      let run = min(count - done, 512 - Int(first & 511))
      let new = SPTE.leaf(pfn: pfn + done, isLarge: false, attributes)
      let mapped = mapRun(first, new, count: run, isExclusive: isExclusive)
      done += mapped
      if mapped < run { break }
    }
    return done
  }

  /// Maps frames of one lowest table.
  private func mapRun(_ gfn: UInt64, _ new: SPTE, count: Int, isExclusive: Bool) -> Int {
    guard case .table(let parent) = descend(GFN(gfn), to: 2) else { return 0 }
    let slot = parent + index(gfn, 2)
    var entry = SPTE(rawValue: pm_spte_load_acquire(slot))
    let start = index(gfn, 1)
    while !entry.isTable {
      if entry.isPresent || entry.isFrozen { return 0 }
      guard let fresh = pool.take(isZeroed: count < 512) else { return 0 }
      pm_sptes_fill(fresh + start, count, new.rawValue, 12)
      let found = link(fresh, into: slot, expected: entry)
      if found == entry {
        pm_stage2_count_add_relaxed(counter(fresh, level: 1), Int64(count))
        return count
      }
      entry = found
    }
    let slots = pm_spte_table(entry.rawValue) + start
    if isExclusive, pm_sptes_are_zero(slots, count) {
      pm_sptes_fill(slots, count, new.rawValue, 12)
      pm_stage2_count_add_relaxed(counter(slots, level: 1), Int64(count))
      return count
    }
    for offset in 0..<count {
      let leaf = SPTE(rawValue: new.rawValue + UInt64(offset) << 12)
      switch put(leaf, into: slots + offset, level: 1, expected: nil) {
      case .installed, .spurious: continue
      default: return offset
      }
    }
    return count
  }
}

extension Stage2Cursor {
  init(tag: UInt64, generation: UInt64, table: UnsafeMutablePointer<UInt64>) {
    self.tag = tag
    self.generation = generation
    self.table = table
  }
}
