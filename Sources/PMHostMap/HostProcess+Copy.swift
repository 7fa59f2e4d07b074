internal import PMFrames
public import PMPageAllocator
public import PMUnits

// Writes to read-only entries: reuse in place, or a copy between the notifiers' start and end.
extension HostProcess {
  /// Mirrors `do_wp_page`, Linux 6.1.
  func handleWriteProtected(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult {
    guard let found = table.leaf(fault.address), found.level == 1 else { return .done }
    let old = found.entry
    guard let page = normalPage(old) else {
      // Special: a shared driver mapping becomes writable, everything else is copied.
      if area.flags.contains(.shared) {
        makeWritable(fault.address, old)
        return .done
      }
      return copyOnWrite(fault, old, area, on: &cpu)
    }
    if kernel.isAnonymous(page) {
      if canReuse(page, on: &cpu) {
        kernel.machine.insertFlags(.anonExclusive, of: page)
        makeWritable(fault.address, old)
        kernel.step(
          "write to a read-only entry of an exclusive page: writable in place, no notifier")
        return .done
      }
      return copyOnWrite(fault, old, area, on: &cpu)
    }
    if area.flags.contains(.shared) {
      makeWritable(fault.address, old)
      kernel.setDirty(page)
      return .done
    }
    return copyOnWrite(fault, old, area, on: &cpu)
  }

  /// Whether an anonymous page has no user but this entry.
  private func canReuse(_ page: PFN, on cpu: inout CPU) -> Bool {
    if kernel.machine.flags(of: page).contains(.anonExclusive) { return true }
    let head = kernel.frames.compoundHead(of: page)
    // A compound page that is mapped piece by piece has a reference per piece.
    if kernel.frames.refcount(head) > 3 { return false }
    if !kernel.machine.flags(of: head).contains(.lru) { kernel.drainLRUBatches(on: &cpu) }
    return kernel.frames.refcount(head) == 1
  }

  /// Makes an entry writable, young and dirty if it is still what it was. Mirrors `wp_page_reuse`.
  private func makeWritable(_ address: UInt64, _ old: HostEntry) {
    tableLock.withLock {
      guard let again = table.leaf(address), again.entry.pfn == old.pfn else { return }
      var entry = again.entry
      entry.isWritable = true
      entry.isYoung = true
      entry.isDirty = true
      table.set(again.slot, entry)
    }
  }

  /// Copies a page and puts the copy in its place. Mirrors `wp_page_copy`.
  private func copyOnWrite(
    _ fault: Fault, _ old: HostEntry, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    let address = fault.address & ~4095
    let isZero = old.pfn == kernel.zeroPage
    guard let copy = newAnonymousPage(zeroed: isZero, on: &cpu) else { return .oom }
    if !isZero { copyPage(from: old.pfn, to: copy) }
    kernel.step("copy on write: frame \(old.pfn) to \(copy), between invalidate start and end")
    notifying(address..<(address + 4096), on: &cpu) { cpu in
      // In one step: an absent entry in between would be filled by another fault.
      let isOurs = installAnonymous(
        address, copy,
        HostEntry(pfn: copy, isWritable: area.flags.contains(.write), isDirty: true),
        replacing: old, on: &cpu)
      if isOurs, let page = normalPage(old) {
        kernel.machine.addMapcount(-1, of: page)
        kernel.put(page, holder(address), on: &cpu)
      }
    }
    return .done
  }

  /// A child with the same areas. Private pages become read-only in both and are shared; pinned ones are
  /// copied. Mirrors `dup_mmap` with `copy_page_range`.
  public func fork(on cpu: inout CPU) -> HostProcess {
    let child = HostProcess(kernel: kernel)
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    for area in areas {
      let copy = VMA(
        start: area.start, end: area.end, flags: area.flags, backing: area.backing,
        pageOffset: area.pageOffset)
      child.insert(copy)
      let keepsEntries =
        area.flags.contains(.pfnmap) || area.flags.contains(.mixedmap)
        || area.flags.contains(.hugetlb)
      let isPrivate = area.isCopyOnWrite
      // Shared pages of files fault again in the child; only what a fault could not bring back is copied.
      guard isPrivate || keepsEntries else { continue }
      if isPrivate {
        notifying(area.range, on: &cpu) { cpu in
          splitPinnedHugeEntries(area, on: &cpu)
          copyEntries(area, to: child, on: &cpu)
        }
      } else {
        copyEntries(area, to: child, on: &cpu)
      }
    }
    return child
  }

  /// Splits the huge entries of pinned pages, so that their pieces can be copied. Mirrors `copy_huge_pmd`.
  private func splitPinnedHugeEntries(_ area: VMA, on cpu: inout CPU) {
    guard !area.flags.contains(.hugetlb) else { return }
    var pinned: [UInt64] = []
    tableLock.withLock {
      guard hasPinned else { return }
      forEachLeaf(area.range) { leaf, address in
        if leaf.level == 2, let page = normalPage(leaf.entry), mustCopyPinned(page) {
          pinned.append(address)
        }
      }
    }
    for address in pinned { splitHugeEntry(address, area, on: &cpu) }
  }

  /// Whether a pin needs the page to stay with its process.
  private func mustCopyPinned(_ page: PFN) -> Bool {
    kernel.isAnonymous(page) && kernel.machine.flags(of: page).contains(.anonExclusive)
      && mayBePinned(page)
  }

  private func copyEntries(_ area: VMA, to child: HostProcess, on cpu: inout CPU) {
    var copies: [(UInt64, PFN)] = []
    tableLock.lock()
    forEachLeaf(area.range) { leaf, address in
      var entry = leaf.entry
      let page = normalPage(entry)
      let isPrivate = area.isCopyOnWrite
      if let page, isPrivate, hasPinned, leaf.level == 1, mustCopyPinned(page) {
        copies.append((address, page))
        return
      }
      if isPrivate, entry.isWritable {
        entry.isWritable = false
        table.set(leaf.slot, entry)
      }
      if let page, !(leaf.level > 1 && kernel.isHugeZero(page)) {
        let head = kernel.frames.compoundHead(of: page)
        if isPrivate { kernel.machine.removeFlags(.anonExclusive, of: page) }
        kernel.frames.increment(head)
        kernel.ledger?.get(head, child.holder(address))
        if leaf.level > 1 {
          kernel.machine.addWholeMapcount(1, of: head)
        } else {
          kernel.machine.addMapcount(1, of: page)
        }
      }
      var theirs = entry
      if !isPrivate { theirs.isDirty = false }
      theirs.isYoung = true
      if let slot = child.table.slot(address, level: leaf.level) { child.table.set(slot, theirs) }
    }
    tableLock.unlock()
    for (address, page) in copies {
      guard let copy = newAnonymousPage(zeroed: false, on: &cpu) else { continue }
      copyPage(from: page, to: copy)
      child.installAnonymous(
        address, copy,
        HostEntry(pfn: copy, isWritable: area.flags.contains(.write), isDirty: true), on: &cpu)
    }
  }

  /// Whether a page may be pinned: a large folio by its pins, a small page by its count. Mirrors
  /// `page_maybe_dma_pinned`.
  func mayBePinned(_ page: PFN) -> Bool {
    let head = kernel.frames.compoundHead(of: page)
    if kernel.frames.compoundOrder(head) > 0 {
      return kernel.machine.details(of: head).pincount > 0
    }
    return kernel.frames.mayBePinned(head)
  }

  /// Moves an area's entries to another place; frames, marks and references stay. The old range and the
  /// new one must have the same length; the new place is chosen where none is given. Mirrors `mremap`
  /// with MREMAP_MAYMOVE for a whole area.
  public func remap(
    _ range: Range<UInt64>, to target: UInt64? = nil, on cpu: inout CPU
  ) throws(KernelErrno) -> UInt64 {
    guard range.lowerBound & 4095 == 0, range.upperBound & 4095 == 0, !range.isEmpty else {
      throw .einval
    }
    let byteCount = range.upperBound - range.lowerBound
    if let target {
      guard target & 4095 == 0, target <= HostPageTable.addressLimit - byteCount,
        target + byteCount <= range.lowerBound || target >= range.upperBound
      else { throw .einval }
      try unmap(target..<(target + byteCount), on: &cpu)
    }
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    guard let area = area(at: range.lowerBound), area.end >= range.upperBound else {
      throw .efault
    }
    if area.flags.contains(.hugetlb), (byteCount | (target ?? 0)) & 0x1f_ffff != 0 {
      throw .einval
    }
    _ = try isolate(range, on: &cpu)
    guard let moved = self.area(at: range.lowerBound),
      let start = target ?? freeRange(byteCount: byteCount, alignment: 0x20_0000)
    else { throw .enomem }
    let place = VMA(
      start: start, end: start + byteCount, flags: moved.flags, backing: moved.backing,
      pageOffset: moved.pageOffset)
    if start & 0x1f_ffff != range.lowerBound & 0x1f_ffff {
      var address = range.lowerBound & ~0x1f_ffff
      while address < range.upperBound {
        if let found = table.leaf(address), found.level == 2, !moved.flags.contains(.hugetlb) {
          splitHugeEntry(address, moved, on: &cpu)
        }
        address += 0x20_0000
      }
    } else {
      splitPartialHugeEntries(range, moved, on: &cpu)
    }
    notifying(range, on: &cpu) { _ in
      tableLock.withLock {
        forEachLeaf(range) { leaf, address in
          let there = start + (address - range.lowerBound)
          guard let slot = table.slot(there, level: leaf.level) else { return }
          table.set(leaf.slot, .none)
          table.set(slot, leaf.entry)
          // The huge zero page is mapped without a reference.
          if let ledger = kernel.ledger, let page = normalPage(leaf.entry),
            leaf.level == 1 || !kernel.isHugeZero(page)
          {
            let head = kernel.frames.compoundHead(of: page)
            ledger.put(head, holder(address))
            ledger.get(head, holder(there))
          }
        }
      }
    }
    areas.removeAll { $0 === moved }
    insert(place)
    return start
  }
}
