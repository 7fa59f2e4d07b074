public import CPhysmemShim
public import PMUnits

// Changing leaves in place. Each change is a compare-and-exchange of a leaf that is still present,
// so that a zap or a fast page fault on another thread is never undone.

/// What a fast page fault did.
public enum FastFixResult: Hashable, Sendable {
  /// The entry allows the access now. Where `addedWrite`, W was given back: the caller marks the
  /// frame dirty in its slot. Mirrors `RET_PF_FIXED`.
  case fixed(addedWrite: Bool)
  /// The entry allowed it already. Mirrors `RET_PF_SPURIOUS`.
  case spurious
  /// It takes the slow way. Mirrors `RET_PF_INVALID`.
  case giveUp
}

/// What the guest's processor finds in the tables.
public enum Stage2Walk: Hashable, Sendable {
  /// The leaf that allows the access, with its accessed (and, for a write, dirty) bit set, and its
  /// level.
  case granted(SPTE, level: Int)
  /// No access: an EPT violation. The entry is not present, or not present enough.
  case violation(SPTE, level: Int)
}

extension Stage2Table {
  /// Replaces a leaf by what `change` makes of it, as long as it is present; returns the old leaf
  /// if it was changed. `change` returns nil to leave it.
  @inlinable @inline(__always)
  func update(
    _ slot: UnsafeMutablePointer<UInt64>, _ entry: SPTE, level: Int,
    _ change: (SPTE) -> SPTE?
  ) -> SPTE? {
    var old = entry
    while old.isLeaf(level: level) {
      guard let new = change(old) else { return nil }
      let found = SPTE(
        rawValue: pm_spte_compare_exchange_seq_cst(slot, old.rawValue, new.rawValue))
      if found == old { return old }
      old = found
    }
    return nil
  }

  /// Changes the leaves of a range by `change` and visits the old ones of those that it changed.
  /// Returns whether there were any.
  @inlinable @inline(__always)
  func updateRange(
    _ range: Range<GFN>, minLevel: Int, _ change: (SPTE) -> SPTE?,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Bool {
    var changed = false
    walk(range, minLevel: minLevel) { gfn, level, slot, entry in
      if let old = update(slot, entry, level: level, change) {
        changed = true
        visit(GFN(gfn), level, old)
      }
      return true
    }
    return changed
  }

  /// Takes W from all leaves of at least `minLevel` that intersect a range, and MMU-writable too
  /// with `clearingMMUWritable`; visits the old entry of each leaf that changed. Returns whether
  /// any did: the caller has to flush.
  ///
  /// Shared. Mirrors `kvm_tdp_mmu_wrprot_slot` and `write_protect_gfn` of the TDP MMU, Linux 6.1.
  @inlinable @discardableResult
  public func writeProtect(
    _ range: Range<GFN>, minLevel: Int = 1, clearingMMUWritable: Bool = false,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Bool {
    updateRange(
      range, minLevel: minLevel,
      { $0.writeProtected(clearingMMUWritable: clearingMMUWritable) }, visit)
  }

  /// The same without looking.
  @discardableResult
  public func writeProtect(
    _ range: Range<GFN>, minLevel: Int = 1, clearingMMUWritable: Bool = false
  ) -> Bool {
    writeProtect(range, minLevel: minLevel, clearingMMUWritable: clearingMMUWritable) { _, _, _ in }
  }

  /// Clears what finds the next write on all leaves of a range: the dirty bit, or W where the entry
  /// is of a kind that finds writes by write protection. Visits the old entry of each leaf that
  /// changed; returns whether any did.
  ///
  /// Shared. Mirrors `kvm_tdp_mmu_clear_dirty_slot`, Linux 6.1.
  @inlinable @discardableResult
  public func clearDirty(
    _ range: Range<GFN>, _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Bool {
    updateRange(range, minLevel: 1, { $0.dirtyCleared }, visit)
  }

  /// The same without looking.
  @discardableResult
  public func clearDirty(_ range: Range<GFN>) -> Bool { clearDirty(range) { _, _, _ in } }

  /// Re-protects the 4 KiB leaves of up to 64 frames: `first + n` for each bit `n` of `mask`. By
  /// write protection with `writeProtecting`, else as ``clearDirty(_:_:)``. Huge leaves stay.
  /// Visits the old entry of each leaf that changed; returns whether any did.
  ///
  /// Shared. Mirrors `kvm_tdp_mmu_clear_dirty_pt_masked`, Linux 6.1.
  @inlinable @discardableResult
  public func reprotect(
    first: GFN, mask: UInt64, writeProtecting: Bool,
    _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Bool {
    guard mask != 0 else { return false }
    let lowest = mask.trailingZeroBitCount
    let beyond = 64 - mask.leadingZeroBitCount
    var changed = false
    walk(first + lowest..<first + beyond) { gfn, level, slot, entry in
      guard level == 1, mask & (1 << (gfn - first.rawValue)) != 0 else { return true }
      let old = update(slot, entry, level: 1) {
        writeProtecting ? $0.writeProtected(clearingMMUWritable: false) : $0.dirtyCleared
      }
      if let old {
        changed = true
        visit(GFN(gfn), level, old)
      }
      return true
    }
    return changed
  }

  /// The same without looking.
  @discardableResult
  public func reprotect(first: GFN, mask: UInt64, writeProtecting: Bool) -> Bool {
    reprotect(first: first, mask: mask, writeProtecting: writeProtecting) { _, _, _ in }
  }

  /// Ages all leaves that intersect a range and returns whether any was used since the last time.
  /// Visits the old entry of each leaf that was: where it has no accessed bit and was writable, the
  /// caller marks its page dirty (spec: kernels A and B), because W went with R and X.
  ///
  /// Shared. Mirrors `kvm_tdp_mmu_age_gfn_range`, Linux 6.1.
  @inlinable @discardableResult
  public func age(
    _ range: Range<GFN>, _ visit: (_ gfn: GFN, _ level: Int, _ old: SPTE) -> Void
  ) -> Bool {
    updateRange(range, minLevel: 1, { $0.isAccessed ? $0.aged : nil }, visit)
  }

  /// The same without looking.
  @discardableResult
  public func age(_ range: Range<GFN>) -> Bool { age(range) { _, _, _ in } }

  /// Whether any leaf that intersects a range was used since the last aging. Lock-free. Mirrors
  /// `kvm_tdp_mmu_test_age_gfn`, Linux 6.1.
  @inlinable
  public func testYoung(_ range: Range<GFN>) -> Bool {
    var isYoung = false
    walk(range) { _, _, _, entry in
      isYoung = entry.isPresent && entry.isAccessed
      return !isYoung
    }
    return isYoung
  }
}

// MARK: - Faults and accesses

extension Stage2Table {
  /// The fast page fault: gives an entry back what an aging or a write protection took, without the
  /// lock and without a look at the page.
  ///
  /// Lock-free. `logsDirty` says that the frame's slot logs dirty pages, in which case W is not
  /// given back to huge leaves. Mirrors `fast_page_fault` and `fast_pf_fix_direct_spte`, Linux 6.1;
  /// its caller has excluded reserved-bit faults and entries that never were present.
  public func fastFix(
    _ gfn: GFN, write: Bool, execute: Bool = false, logsDirty: Bool = false
  ) -> FastFixResult {
    guard gfn.rawValue < frameLimit else { return .giveUp }
    func isAllowed(_ entry: SPTE) -> Bool {
      execute ? entry.isExecutable : write ? entry.isWritable : entry.isReadable
    }
    // The kernel's number of attempts.
    for _ in 0..<5 {
      let (slot, old, level) = lowestEntry(gfn.rawValue)
      guard old.isLeaf(level: level) else { return .giveUp }
      if isAllowed(old) { return .spurious }
      var new = old.restored
      if write, new.isMMUWritable, !new.isWritable {
        if level > 1, logsDirty { return .giveUp }
        new.isWritable = true
      }
      guard new != old, isAllowed(new) else { return .giveUp }
      let found = pm_spte_compare_exchange_seq_cst(slot, old.rawValue, new.rawValue)
      if found == old.rawValue { return .fixed(addedWrite: new.isWritable && !old.isWritable) }
    }
    return .giveUp
  }

  /// What the guest's processor does on a miss of its translation cache: walks the tables, checks
  /// the access, and sets the accessed and dirty bits as it goes.
  ///
  /// Lock-free. A write needs W; its dirty bit is set where the entry has such bits. The caller may
  /// keep the translation, for writes only if the leaf has W and ``SPTE/isDirty``.
  public func accessWalk(_ gfn: GFN, write: Bool, execute: Bool = false) -> Stage2Walk {
    guard gfn.rawValue < frameLimit else { return .violation(.empty, level: levels) }
    while true {
      let (slot, old, level) = lowestEntry(gfn.rawValue)
      guard old.isLeaf(level: level), old.isReadable, !write || old.isWritable,
        !execute || old.isExecutable
      else { return .violation(old, level: level) }
      guard old.hasAccessDirty else { return .granted(old, level: level) }
      var new = old
      new.hasAccessedBit = true
      if write { new.hasDirtyBit = true }
      if new == old { return .granted(old, level: level) }
      let found = pm_spte_compare_exchange_seq_cst(slot, old.rawValue, new.rawValue)
      if found == old.rawValue { return .granted(new, level: level) }
    }
  }
}

extension SPTE {
  /// The entry without W (and MMU-writable), or nil where it has lost that already.
  @inlinable @inline(__always)
  func writeProtected(clearingMMUWritable: Bool) -> SPTE? {
    let mask: UInt64 = clearingMMUWritable ? 2 | (1 << 58) : 2
    return rawValue & mask == 0 ? nil : SPTE(rawValue: rawValue & ~mask)
  }

  /// The entry without what tells that it was written, or nil where it tells nothing.
  @inlinable @inline(__always)
  var dirtyCleared: SPTE? {
    let mask: UInt64 = needsWriteProtection ? 2 : 0x200
    return rawValue & mask == 0 ? nil : SPTE(rawValue: rawValue & ~mask)
  }
}
