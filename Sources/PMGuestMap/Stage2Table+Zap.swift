public import CPhysmemShim
public import PMUnits

// Taking leaves away. What a zap visits is what the caller has to act on: page marks by the old
// entry, then a flush of the translation caches, and only then may a page be freed (spec order:
// entry non-present, marks, flush, notifier returns).

extension Stage2Table {
  /// Drops the leaf that maps a frame, whatever its level, and returns it with its level; nil where
  /// there is none. The hot path of an unmap in order.
  ///
  /// Exclusive. The old entry is exchanged out, so that what a fast page fault or an accessed bit
  /// added to it at the last moment is in it. Mirrors `tdp_mmu_zap_leafs` for one frame, Linux 6.1.
  @inlinable @inline(__always)
  public func unmap(_ gfn: GFN, _ cursor: inout Stage2Cursor) -> (spte: SPTE, level: Int)? {
    guard isHit(cursor, gfn) else { return unmapSlowly(gfn, &cursor) }
    let slot = cursor.table + Int(truncatingIfNeeded: gfn.rawValue & 511)
    let old = SPTE(rawValue: pm_spte_exchange_seq_cst(slot, 0))
    guard old.isPresent else { return nil }
    pm_stage2_count_dec_relaxed(counter(slot, level: 1))
    return (old, 1)
  }

  /// The same without a cursor.
  @inlinable
  public func unmap(_ gfn: GFN) -> (spte: SPTE, level: Int)? {
    var cursor = Stage2Cursor()
    return unmapSlowly(gfn, &cursor)
  }

  @usableFromInline @inline(never)
  func unmapSlowly(_ gfn: GFN, _ cursor: inout Stage2Cursor) -> (spte: SPTE, level: Int)? {
    guard gfn.rawValue < frameLimit else { return nil }
    let generation = pm_stage2_generation_load_acquire(control)
    let (slot, _, level) = lowestEntry(gfn.rawValue)
    if level == 1 {
      let table = slot - index(gfn.rawValue, 1)
      cursor = Stage2Cursor(tag: gfn.rawValue >> 9, generation: generation, table: table)
    }
    let old = SPTE(rawValue: pm_spte_exchange_seq_cst(slot, 0))
    guard old.isPresent else { return nil }
    pm_stage2_count_dec_relaxed(counter(slot, level: level))
    return (old, level)
  }

  /// Drops all leaves that intersect a range and returns how many; huge leaves go whole. Exclusive.
  @discardableResult
  public func unmapRange(_ range: Range<GFN>) -> Int {
    var dropped = 0
    unmapRange(range) { _, _, _ in dropped += 1 }
    return dropped
  }

  /// Drops all leaves that intersect a range, in order, and visits each with its first frame, its
  /// level and the old entry; huge leaves go whole. Tables stay. Exclusive.
  @inlinable
  public func unmapRange(
    _ range: Range<GFN>, _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) {
    let last = GFN(range.upperBound.rawValue - 1)
    if pm_planted(PM_PLANTED_ZAP_SKIPS_LAST), last > range.lowerBound {
      zapRange(range.lowerBound..<last, atMost: .max, visit)
      return
    }
    zapRange(range, atMost: .max, visit)
  }

  /// Drops the leaves that intersect a range until `limit` entries are dropped, and returns the
  /// first frame that is not done yet: the end of the range (or of the last huge leaf) when all is.
  ///
  /// For zaps that give up the lock now and then: the caller drops and takes it again and goes on
  /// with the frame that was returned. Exclusive. Mirrors `tdp_mmu_zap_leafs` with `can_yield` and
  /// `kvm_tdp_mmu_zap_leafs`, Linux 6.1.
  @inlinable @discardableResult
  public func zapRange(
    _ range: Range<GFN>, atMost limit: Int,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> GFN {
    precondition(limit > 0, "a zap of at most \(limit) entries never ends")
    var left = limit
    var gfn = range.lowerBound.rawValue
    let end = min(range.upperBound.rawValue, frameLimit)
    while gfn < end {
      let (table, level) = lowestTable(gfn)
      let place = index(gfn, level)
      let shift = UInt64(9 &* (level &- 1))
      gfn = (gfn &>> shift) &<< shift
      let entries = ((end &- gfn &- 1) &>> shift) &+ 1
      let count = min(512 &- place, Int(truncatingIfNeeded: min(entries, 512)))
      // The lowest level has a loop of its own, without tests and shifts for the others.
      let (done, isFull) =
        if level == 1 {
          zapRun(table + place, count, level: 1, first: gfn, left: &left, visit)
        } else {
          zapRun(table + place, count, level: level, first: gfn, left: &left, visit)
        }
      gfn &+= UInt64(truncatingIfNeeded: done) &<< shift
      if isFull { return GFN(gfn) }
    }
    return GFN(max(gfn, end))
  }

  /// The lowest table on the way to a frame, and its level. Exclusive, or lock-free. pre: the frame is
  /// below ``frameLimit``.
  @inlinable @inline(__always)
  func lowestTable(_ gfn: UInt64) -> (table: UnsafeMutablePointer<UInt64>, level: Int) {
    var table = root
    var level = levels
    while level > 1 {
      let entry = SPTE(rawValue: pm_spte_load_acquire(table + index(gfn, level)))
      guard entry.isTable else { break }
      table = pm_spte_table(entry.rawValue)
      level &-= 1
    }
    return (table, level)
  }

  /// Drops the leaves among `count` entries of one table, which begin with frame `first`, as far as the
  /// first one that names a table, and takes each entry that is not 0 from `left`. Returns how many
  /// entries are done, and whether it stopped for want of `left`. The leaves are counted once per call.
  @inlinable @inline(__always)
  func zapRun(
    _ slots: UnsafeMutablePointer<UInt64>, _ count: Int, level: Int, first: UInt64,
    left: inout Int, _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> (done: Int, isFull: Bool) {
    let shift = UInt64(9 &* (level &- 1))
    var dropped: Int64 = 0
    var isFull = false
    var place = 0
    while place < count {
      let entry = SPTE(rawValue: pm_spte_load_acquire(slots + place))
      if level > 1, entry.isTable { break }
      if entry.rawValue != 0 {
        if left == 0 {
          isFull = true
          break
        }
        left &-= 1
        let old = SPTE(rawValue: pm_spte_exchange_seq_cst(slots + place, 0))
        if old.isPresent {
          dropped &+= 1
          visit(GFN(first &+ UInt64(truncatingIfNeeded: place) &<< shift), level, old)
        }
      }
      place &+= 1
    }
    if dropped != 0 { pm_stage2_count_add_relaxed(counter(slots, level: level), 0 &- dropped) }
    return (place, isFull)
  }

  /// Drops everything: takes every table below the root out of the tree and visits its leaves.
  ///
  /// Exclusive. The tables are detached (see ``reclaimDetachedTables(upTo:)``). Mirrors
  /// `tdp_mmu_zap_root`, Linux 6.1.
  @inlinable
  public func zapAll(_ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void) {
    for place in 0..<512 {
      let entry = SPTE(rawValue: pm_spte_load_acquire(root + place))
      guard entry.isTable else { continue }
      pm_spte_store_release(root + place, 0)
      pm_stage2_generation_renew(control)
      let first = UInt64(place) << UInt64(9 * (levels - 1))
      drain(pm_spte_table(entry.rawValue), level: levels - 1, first: first, visit)
    }
  }

  /// Drops everything without looking. Exclusive.
  public func zapAll() { zapAll { _, _, _ in } }

  /// Empties a table that is no longer in the tree and all below it, visits the leaves, and
  /// detaches the tables. Every entry is left frozen: whoever is still on the way into the table
  /// with an install finds that and starts again. Mirrors `handle_removed_pt`, Linux 6.1.
  @inlinable
  func drain(
    _ table: UnsafeMutablePointer<UInt64>, level: Int, first: UInt64,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) {
    let frames = UInt64(SPTE.frames(level: level))
    var dropped: Int64 = 0
    for place in 0..<512 {
      let old = SPTE(
        rawValue: pm_spte_exchange_seq_cst(table + place, SPTE.frozen.rawValue))
      guard old.isPresent else { continue }
      let gfn = first + UInt64(place) * frames
      if old.isTable {
        drain(pm_spte_table(old.rawValue), level: level - 1, first: gfn, visit)
      } else {
        dropped += 1
        visit(GFN(gfn), level, old)
      }
    }
    if dropped != 0 { pm_stage2_count_add_relaxed(counter(table, level: level), -dropped) }
    pool.detach(table)
  }
}
