public import CPhysmemShim
public import PMUnits

// Huge leaves and tables in each other's place.

extension Stage2Table {
  /// The place of a frame's entry at a level, if the tables above are there. Lock-free.
  @inlinable
  func place(of gfn: GFN, level: Int) -> UnsafeMutablePointer<UInt64>? {
    precondition(level == 2 || level == 3, "a huge leaf at level \(level)")
    guard gfn.rawValue < frameLimit else { return nil }
    var table = root
    var current = levels
    while current > level {
      let entry = SPTE(rawValue: pm_spte_load_acquire(table + index(gfn.rawValue, current)))
      guard entry.isTable else { return nil }
      table = pm_spte_table(entry.rawValue)
      current -= 1
    }
    return table + index(gfn.rawValue, level)
  }

  /// The first frame of the entry of `level` that covers `gfn`.
  @inlinable
  func base(_ gfn: GFN, level: Int) -> UInt64 {
    gfn.rawValue & ~UInt64(SPTE.frames(level: level) - 1)
  }

  /// Puts a huge leaf in the place of a table: its leaves are visited as zapped, the table and
  /// those below it are detached. Returns `occupiedByLeaf` where a leaf stands there instead of a
  /// table, and `lostRace` where nothing stands there or another thread was faster.
  ///
  /// Shared. The caller flushes the range afterwards. Mirrors the case of a huge fault over a table
  /// in `tdp_mmu_map_handle_target_level` (6.1), and `recover_huge_pages_range` (6.13).
  @inlinable
  public func replaceTableByHuge(
    _ gfn: GFN, level: Int, _ new: SPTE,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Stage2InstallResult {
    precondition(new.isPresent && new.isLarge && new.isWritabilityLegal, "no huge leaf: \(new)")
    guard let slot = place(of: gfn, level: level) else { return .lostRace }
    let old = SPTE(rawValue: pm_spte_load_acquire(slot))
    if old.isPresent, old.isLarge { return .occupiedByLeaf(level: level) }
    guard old.isTable else { return .lostRace }
    let found = pm_spte_compare_exchange_seq_cst(slot, old.rawValue, new.rawValue)
    guard found == old.rawValue else { return .lostRace }
    pm_stage2_count_inc_relaxed(counter(slot, level: level))
    pm_stage2_generation_renew(control)
    drain(
      pm_spte_table(old.rawValue), level: level - 1, first: base(gfn, level: level), visit)
    return .installed
  }

  /// Puts a full table of 512 children in the place of a huge leaf: each child inherits everything
  /// but the size, and needs no flush. `lostRace` where no huge leaf stands there.
  ///
  /// Shared. A bit that a fast page fault or an access adds to the leaf meanwhile is inherited too.
  /// With `restoringExecute` children of level 1 regain X. Mirrors `tdp_mmu_split_huge_page`, the
  /// eager split of 6.1 and the split at a fault of 6.13.
  public func splitHuge(
    _ gfn: GFN, level: Int, restoringExecute: Bool = false
  ) -> Stage2InstallResult {
    guard let slot = place(of: gfn, level: level) else { return .lostRace }
    var old = SPTE(rawValue: pm_spte_load_acquire(slot))
    guard old.isPresent, old.isLarge else { return .lostRace }
    guard let table = pool.take(isZeroed: false) else { return .outOfMemory }
    while old.isPresent, old.isLarge {
      let first = old.child(0, level: level, restoringExecute: restoringExecute)
      pm_sptes_fill(table, 512, first.rawValue, UInt32(12 + 9 * (level - 2)))
      let found = pm_spte_compare_exchange_seq_cst(
        slot, old.rawValue, SPTE.naming(table).rawValue)
      if found == old.rawValue {
        pm_stage2_count_dec_relaxed(counter(slot, level: level))
        pm_stage2_count_add_relaxed(counter(table, level: level - 1), 512)
        return .installed
      }
      old = SPTE(rawValue: found)
    }
    pool.giveBack(table)
    return .lostRace
  }

  /// Splits every huge leaf that intersects a range down to `level` (1 or 2) and returns how many
  /// leaves were split, or nil where the host has no memory for the tables. Shared. Mirrors
  /// `kvm_tdp_mmu_try_split_huge_pages`, Linux 6.1.
  public func splitRange(_ range: Range<GFN>, downTo level: Int = 1) -> Int? {
    precondition(level == 1 || level == 2, "a split down to level \(level)")
    var splits = 0
    for above in stride(from: 3, to: level, by: -1) {
      var hasFailed = false
      walk(range, minLevel: above) { gfn, found, _, entry in
        guard found == above, entry.isPresent else { return true }
        switch splitHuge(GFN(gfn), level: above, restoringExecute: true) {
        case .installed: splits += 1
        case .outOfMemory: hasFailed = true
        default: break
        }
        return !hasFailed
      }
      if hasFailed { return nil }
    }
    return splits
  }

  /// Zaps a huge leaf so that smaller ones can stand in its place: freezes the entry, calls `flush`
  /// with the old leaf, and installs an empty table. Returns the old leaf; nil where no huge leaf
  /// stands there, another thread was faster, or the host has no memory for the table.
  ///
  /// Shared. Whoever meets the frozen entry meanwhile gets `lostRace`. Mirrors
  /// `tdp_mmu_zap_spte_atomic` in `kvm_tdp_mmu_map`, Linux 6.1.
  public func zapHugeForSmall(_ gfn: GFN, level: Int, flush: (SPTE) -> Void) -> SPTE? {
    guard let slot = place(of: gfn, level: level) else { return nil }
    var old = SPTE(rawValue: pm_spte_load_acquire(slot))
    guard old.isPresent, old.isLarge, let table = pool.take() else { return nil }
    while old.isPresent, old.isLarge {
      let found = pm_spte_compare_exchange_seq_cst(slot, old.rawValue, SPTE.frozen.rawValue)
      if found == old.rawValue {
        pm_stage2_count_dec_relaxed(counter(slot, level: level))
        flush(old)
        pm_spte_store_release(slot, SPTE.naming(table).rawValue)
        return old
      }
      old = SPTE(rawValue: found)
    }
    pool.giveBack(table)
    return nil
  }
}
