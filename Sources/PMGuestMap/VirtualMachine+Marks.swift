internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

// What KVM does to a frame's page when an entry is made, dropped or changed: the part in which the eras
// differ most.
extension VirtualMachine {
  /// The page whose count KVM would touch, or nil: none without a `struct page`, and none for reserved
  /// pages other than the zero page. Mirrors `kvm_pfn_to_refcounted_page`, Linux 6.1.
  func refcountedPage(_ pfn: PFN) -> PFN? {
    guard kernel.hasPage(pfn) else { return nil }
    if !kernel.isReserved(pfn) || pfn == kernel.zeroPage { return pfn }
    return nil
  }

  /// Whether a page takes marks: it has a `struct page` and is not reserved; in era B also only while its
  /// folio is referenced.
  private func takesMarks(_ pfn: PFN) -> Bool {
    guard kernel.hasPage(pfn), !kernel.isReserved(pfn) else { return false }
    if era == .b, kernel.frames.pageCount(pfn) == 0 {
      kernel.machine.findings.warnOnce(
        "accessed or dirty mark of a page without references", pfn: pfn)
      step("mark refused: the count of frame \(pfn) is 0 (v7 1/8)")
      return false
    }
    return true
  }

  /// Mirrors `kvm_set_pfn_accessed`.
  func setPFNAccessed(_ pfn: PFN, on cpu: inout CPU) {
    kernel.observer?.setPFNAccessed(pfn)
    if takesMarks(pfn) { kernel.markAccessed(pfn, on: &cpu) }
  }

  /// Mirrors `kvm_set_pfn_dirty`.
  func setPFNDirty(_ pfn: PFN, on cpu: inout CPU) {
    kernel.observer?.setPFNDirty(pfn)
    if takesMarks(pfn) { kernel.setDirty(pfn) }
  }

  /// An entry was dropped: its marks go to the page, in the eras that do that. Mirrors the end of
  /// `handle_changed_spte`.
  func markDropped(_ old: SPTE, on cpu: inout CPU) {
    markLost(old, accessed: old.isAccessed, dirty: old.isDirty, on: &cpu)
  }

  /// An entry lost its accessed or its dirty mark.
  func markLost(_ old: SPTE, accessed: Bool, dirty: Bool, on cpu: inout CPU) {
    switch era {
    case .c: return
    case .b: guard old.isRefcounted else { return }
    case .a0, .a: break
    }
    let pfn = old.pfn
    if dirty { setPFNDirty(pfn, on: &cpu) }
    if accessed { setPFNAccessed(pfn, on: &cpu) }
  }

  /// The end of a fault, before the lock is let go. Mirrors `kvm_mmu_finish_page_fault`, Linux 6.13.
  func finishBeforeUnlock(
    _ found: PFNLookup, outcome: FaultOutcome, gfn: GFN, on cpu: inout CPU
  ) {
    guard era == .c, let page = found.refcountedPage else { return }
    let isUnused = outcome == .retry
    if !isUnused, !kernel.isReserved(page) {
      if found.isWritable { kernel.setDirty(page) }
      kernel.markAccessed(page, on: &cpu)
    }
    let what = isUnused ? "unused" : found.isWritable ? "dirty and accessed" : "accessed"
    kernel.put(page, .guestFault(vm: id, gfn: gfn), on: &cpu)
    step("put of frame \(page), \(what): count \(kernel.frames.pageCount(page))")
  }

  /// The end of a fault, after the lock was let go. Mirrors `kvm_release_pfn_clean` (A), and the call of
  /// `kvm_set_page_accessed` that took its place in the v7 series (B).
  func finishAfterUnlock(_ found: PFNLookup, gfn: GFN, on cpu: inout CPU) {
    guard case .page(let pfn) = found.result else { return }
    switch era {
    case .c: return
    case .b:
      if found.isRefcounted {
        step("frame \(pfn) marked accessed after the unlock, without a reference")
        if takesMarks(pfn) { kernel.markAccessed(pfn, on: &cpu) }
      }
    case .a0, .a: releaseClean(pfn, .guestFault(vm: id, gfn: gfn), on: &cpu)
    }
  }

  /// Mirrors `kvm_release_pfn_clean`, Linux 6.1: nothing at all for frames that are not counted.
  func releaseClean(
    _ pfn: PFN, dirty: Bool = false, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) {
    kernel.observer?.releasing(pfn, on: &cpu)
    guard let page = refcountedPage(pfn) else { return }
    if !kernel.isReserved(page) {
      if dirty { kernel.setDirty(page) }
      kernel.markAccessed(page, on: &cpu)
    }
    kernel.put(page, holder(), on: &cpu)
    step(
      "kvm_release_pfn_clean: frame \(page) accessed, put: count \(kernel.frames.pageCount(page))")
  }

  /// Drops every entry of every table. Mirrors `kvm_mmu_zap_all`.
  func dropAll(on cpu: inout CPU) {
    mmuLock.lockExclusive()
    var dropped = false
    for table in tables {
      table.zapAll { _, _, old in
        dropped = true
        markDropped(old, on: &cpu)
      }
    }
    noteRootsDropped()
    if dropped { gate.requestFlush() }
    recycleTables()
    mmuLock.unlock()
  }
}
