internal import CPhysmemShim
public import PMHostMap
public import PMPageAllocator
internal import PMUnits

// The MMU notifier of a VM: what keeps guest translations in step with the process's page table.
extension VirtualMachine: MMUNotifier {
  /// Drops the translations of a range of user addresses, in all slots that show it, and keeps new ones
  /// out until the end. Mirrors `kvm_mmu_notifier_invalidate_range_start`.
  public func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU) {
    let caches = notifierLock.withLock {
      activeInvalidations += 1
      return pfnCaches
    }
    for cache in caches { cache.invalidate(range) }
    readers.lockShared()
    defer { readers.unlock() }
    // The lock is for ranges that hit a slot, as in `__kvm_handle_hva_range`.
    var isLocked = false
    var dropped = false
    forEachPart(of: range) { slot, gfns in
      if !isLocked {
        isLocked = true
        mmuLock.lockExclusive()
        invalidationsInProgress += 1
        if invalidationsInProgress == 1 { invalidRange = nil }
      }
      widen(
        recordsGuestFrames ? gfns.lowerBound.rawValue..<gfns.upperBound.rawValue : range)
      if !omitsZaps, drop(gfns, tables[slot.addressSpace], on: &cpu) { dropped = true }
    }
    guard isLocked else { return }
    if dropped, !pm_planted(PM_PLANTED_FLUSH_LEFT_OUT) { gate.requestFlush() }
    recycleTables()
    mmuLock.unlock()
  }

  /// Drops the entries of a range, with their marks; says whether there were any. Under `mmuLock` held
  /// exclusively.
  private func drop(_ gfns: Range<GFN>, _ table: Stage2Table, on cpu: inout CPU) -> Bool {
    let observer = kernel.observer
    let wantsSteps = observer?.wantsSteps ?? false
    // Nobody has to be told of the entries one by one: era C has no marks at their end.
    if era == .c, !wantsSteps { return table.unmapRange(gfns) != 0 }
    var dropped = false
    table.unmapRange(gfns) { gfn, level, old in
      dropped = true
      if wantsSteps {
        observer?.step("notifier: the level \(level) entry of gfn \(gfn) goes, frame \(old.pfn)")
      }
      markDropped(old, on: &cpu)
    }
    return dropped
  }

  /// Makes tables that left the trees ready for use. `mmuLock` is held exclusively, so that no fault is on
  /// its way into one; vCPUs are waited for.
  func recycleTables() {
    guard tables.contains(where: { $0.detachedTableCount > 0 }) else { return }
    gate.requestFlush()
    for table in tables { table.reclaimDetachedTables() }
  }

  /// Ends an invalidation: faults that looked at the page table before have to start again. Mirrors
  /// `kvm_mmu_notifier_invalidate_range_end`.
  public func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU) {
    readers.lockShared()
    var isHit = false
    forEachPart(of: range) { _, _ in isHit = true }
    if isHit {
      mmuLock.lockExclusive()
      // The sequence first: who sees no invalidation in progress must see that there was one.
      _ = pm_counter_add_seq_cst(counters, 1)
      invalidationsInProgress -= 1
      precondition(invalidationsInProgress >= 0, "an invalidation ended that never began")
      mmuLock.unlock()
    }
    readers.unlock()
    notifierLock.withLock {
      activeInvalidations -= 1
      if activeInvalidations == 0 { notifierIdle.broadcast() }
    }
  }

  /// Calls `body` with the slots that show a range of user addresses, and with the guest frames, in all
  /// address spaces.
  private func forEachPart(of range: Range<UInt64>, _ body: (Memslot, Range<GFN>) -> Void) {
    for space in slots.spaces { space.forEachSlot(inHVAs: range, body) }
  }

  /// Remembers what is being invalidated, widened to one range while several are. Under `mmuLock`.
  private func widen(_ range: Range<UInt64>) {
    guard let old = invalidRange else {
      invalidRange = range
      return
    }
    invalidRange =
      min(old.lowerBound, range.lowerBound)..<max(old.upperBound, range.upperBound)
  }

  /// Whether a fault that took its snapshot at `sequence` must start again. Under `mmuLock`. Mirrors
  /// `mmu_invalidate_retry_hva` (6.1) and `mmu_invalidate_retry_gfn` (6.8).
  func mustRetry(_ sequence: Int64, hva: UInt64, gfn: GFN) -> Bool {
    if pm_planted(PM_PLANTED_RETRY_LEFT_OUT) { return false }
    if invalidationsInProgress > 0, let range = invalidRange,
      range.contains(recordsGuestFrames ? gfn.rawValue : hva)
    {
      return true
    }
    return invalidationSequence != sequence
  }

  /// Clears the accessed marks of a range's translations. Mirrors `kvm_mmu_notifier_clear_flush_young`:
  /// only kernels before 6.13 flush.
  public func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool {
    readers.lockShared()
    defer { readers.unlock() }
    mmuLock.lockExclusive()
    defer { mmuLock.unlock() }
    var isYoung = false
    forEachPart(of: range) { slot, gfns in
      tables[slot.addressSpace].age(gfns) { _, _, old in
        isYoung = true
        // Without accessed bits the write permission goes with the others and takes the dirty mark along.
        if !old.hasAccessDirty, old.isWritable {
          markLost(old, accessed: false, dirty: true, on: &cpu)
        }
      }
    }
    if isYoung, flush, era != .c { gate.requestFlush() }
    return isYoung
  }

  /// Whether a translation of an address is marked accessed. Mirrors `kvm_mmu_notifier_test_young`.
  public func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool {
    readers.lockShared()
    defer { readers.unlock() }
    mmuLock.lockShared()
    defer { mmuLock.unlock() }
    var isYoung = false
    forEachPart(of: address..<(address + 1)) { slot, gfns in
      if !isYoung { isYoung = tables[slot.addressSpace].testYoung(gfns) }
    }
    return isYoung
  }

  /// The process ends: everything is dropped. Mirrors `kvm_mmu_notifier_release`.
  public func release(on cpu: inout CPU) { dropAll(on: &cpu) }
}
