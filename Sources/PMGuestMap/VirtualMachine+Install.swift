internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

// The making of stage-2 entries: level, bits, install, and the legacy MMU's prefetch. `mmuLock` is held:
// shared with the TDP MMU, exclusive with shadow paging.
extension VirtualMachine {
  /// Puts a frame into the tables. Mirrors `kvm_tdp_mmu_map` and `__direct_map`.
  func install(
    _ fault: GuestFault, _ pfn: PFN, _ found: PFNLookup, on cpu: inout CPU
  ) -> FaultOutcome {
    guard let slot = fault.slot else { return .retry }
    let table = tables[fault.addressSpace]
    let level = mappingLevel(fault.gfn, slot, maximum: configuration.maxLeafLevel)
    let frames = UInt64(SPTE.frames(level: level))
    let gfn = GFN(fault.gfn.rawValue & ~(frames - 1))
    let first = PFN(pfn.rawValue & ~UInt32(frames - 1))
    let attributes = attributes(slot, found, level: level)
    let spte = SPTE.makeLeaf(pfn: first, level: level, attributes)
    // Each round removes what stands in the way; another fault may put it back.
    for _ in 0..<8 {
      switch table.install(gfn, level: level, spte) {
      case .installed:
        step(
          "entry of gfn \(gfn): frame \(first), level \(level), \(describe(spte)); count of frame "
            + "\(pfn): \(kernel.hasPage(pfn) ? "\(kernel.frames.pageCount(pfn))" : "none")")
        if spte.isWritable { markDirtyIfLogged(fault.gfn, slot, fault.vcpu) }
        if configuration.mmu == .shadow, level == 1 {
          prefetch(around: gfn, addressSpace: fault.addressSpace, on: &cpu)
        }
        return .fixed
      case .spurious: return .spurious
      case .lostRace, .outOfMemory: return .retry
      case .occupiedByLeaf(let there):
        if there > level {
          breakHuge(gfn, level: there, table, on: &cpu)
        } else {
          dropConflicting(gfn, table, on: &cpu)
        }
      case .occupiedByTable:
        replaceTable(gfn, level: level, spte, table, on: &cpu)
        return .fixed
      }
    }
    return .retry
  }

  private func describe(_ spte: SPTE) -> String { spte.isWritable ? "writable" : "read-only" }

  /// The bits of a new entry. Mirrors `make_spte`.
  private func attributes(
    _ slot: Memslot, _ found: PFNLookup, level: Int, isPrefetch: Bool = false
  ) -> SPTE.Attributes {
    var bits: SPTE.Attributes = [.read, .execute]
    if !isPrefetch { bits.insert(.accessed) }
    if found.isWritable, !slot.isReadonly {
      bits.formUnion([.hostWritable, .mmuWritable, .write, .dirty])
    }
    // The v7 series notes a counted page on small leaves only, and forgets it on large ones.
    if era == .b, level == 1, found.isRefcounted { bits.insert(.refcounted) }
    return bits
  }

  /// The level of the leaf for a frame: what slot, logging and the host's own mapping allow. Mirrors
  /// `kvm_mmu_hugepage_adjust` and `kvm_mmu_max_mapping_level`.
  func mappingLevel(_ gfn: GFN, _ slot: Memslot, maximum: Int) -> Int {
    guard maximum > 1, !slot.logsDirtyPages else { return 1 }
    let limit = slot.largePages.maximumLevel(gfn, limit: maximum)
    guard limit > 1 else { return 1 }
    return min(limit, process.mappingLevel(at: slot.hva(of: gfn)))
  }

  /// A smaller entry is wanted where a huge leaf stands: 6.13 splits it in place, 6.1 and the legacy MMU
  /// drop it with all that it maps.
  private func breakHuge(_ gfn: GFN, level: Int, _ table: Stage2Table, on cpu: inout CPU) {
    if splitsInPlace, configuration.mmu == .tdp {
      _ = table.splitHuge(gfn, level: level)
      step("the level \(level) entry of gfn \(gfn) is split in place")
      return
    }
    let old = table.zapHugeForSmall(gfn, level: level) { _ in gate.requestFlush() }
    if let old {
      step("the level \(level) entry of gfn \(gfn) is dropped for a smaller one")
      markDropped(old, on: &cpu)
    }
  }

  /// Another frame stands where the new one should: the kernel never lets it come to that, except after
  /// a zap that was left out.
  private func dropConflicting(_ gfn: GFN, _ table: Stage2Table, on cpu: inout CPU) {
    if let old = table.unmap(gfn) {
      markDropped(old.spte, on: &cpu)
      gate.requestFlush()
    }
  }

  /// A huge leaf takes the place of a table and of all its leaves.
  private func replaceTable(
    _ gfn: GFN, level: Int, _ spte: SPTE, _ table: Stage2Table, on cpu: inout CPU
  ) {
    _ = table.replaceTableByHuge(gfn, level: level, spte) { _, _, old in
      markDropped(old, on: &cpu)
    }
    gate.requestFlush()
  }

  // MARK: prefetch

  /// Maps the neighbours of a small entry as far as fast GUP gives them for nothing: the group of eight,
  /// each run of absent entries from its low end. Mirrors `__direct_pte_prefetch`.
  ///
  /// Not while anything is being invalidated: the retry test looked at the fault's own address, and a
  /// neighbour whose entry the invalidation has dropped already may still have its old frame in the
  /// process's table. Mirrors the test of `mmu_invalidate_in_progress` in `direct_pte_prefetch`, Linux
  /// 5.12 and later.
  private func prefetch(around gfn: GFN, addressSpace: Int, on cpu: inout CPU) {
    guard invalidationsInProgress == 0 else { return }
    let table = tables[addressSpace]
    let first = gfn.rawValue & ~7
    var start: UInt64?
    for frame in first..<(first + 8) {
      let isPresent = table.lookup(GFN(frame)) != nil
      if isPresent || frame == gfn.rawValue {
        if let run = start {
          guard prefetch(run..<frame, addressSpace, on: &cpu) else { return }
        }
        start = nil
      } else if start == nil {
        start = frame
      }
    }
    if let run = start { _ = prefetch(run..<(first + 8), addressSpace, on: &cpu) }
  }

  /// One run; false where nothing of it could be had, which ends the prefetch. The slot is that of the
  /// run's first frame, which need not be the slot of the fault. Mirrors `direct_pte_prefetch_many`.
  private func prefetch(
    _ run: Range<UInt64>, _ addressSpace: Int, on cpu: inout CPU
  ) -> Bool {
    let table = tables[addressSpace]
    guard let slot = slots[addressSpace].slot(containing: GFN(run.lowerBound)), !slot.isInvalid,
      !slot.isReadonly, !slot.logsDirtyPages, GFN(run.upperBound) <= slot.endGFN
    else { return false }
    // All of the run is looked up before the first is mapped: marks of one folio depend on the order.
    var pages: [(gfn: GFN, page: PFN)] = []
    pages.reserveCapacity(8)
    for frame in run {
      let gfn = GFN(frame)
      let holder = Holder.guestFault(vm: id, gfn: gfn)
      guard
        let page = process.getUserPageFast(slot.hva(of: gfn), [.get, .write], holder, on: &cpu)
      else { break }
      pages.append((gfn, page))
    }
    for (gfn, page) in pages {
      let found = PFNLookup(
        result: .page(page), isWritable: true, refcountedPage: era == .c ? page : nil,
        isRefcounted: true)
      _ = table.install(
        gfn, level: 1,
        SPTE.makeLeaf(
          pfn: page, level: 1, attributes(slot, found, level: 1, isPrefetch: true)))
      if era == .c {
        finishBeforeUnlock(found, outcome: .fixed, gfn: gfn, on: &cpu)
      } else {
        kernel.put(page, .guestFault(vm: id, gfn: gfn), on: &cpu)
      }
    }
    return !pages.isEmpty
  }
}
