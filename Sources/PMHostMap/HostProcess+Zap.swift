internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

// How entries go away: munmap, MADV_DONTNEED, unmap_mapping_range, exit.
extension HostProcess {
  /// Clears the entries of a range of one area; the pages whose references go are gathered, to be
  /// released after the notifiers' end. Mirrors `unmap_page_range` with its `zap_pte_range`.
  func zap(
    _ range: Range<UInt64>, _ area: VMA, evenCopies: Bool = true,
    _ gather: inout [(pfn: PFN, holder: Holder)], on cpu: inout CPU
  ) {
    splitPartialHugeEntries(range, area, on: &cpu)
    tableLock.lock()
    defer { tableLock.unlock() }
    var address = range.lowerBound
    var lastMarked: PFN?
    while address < range.upperBound {
      guard let found = table.walk(address) else { return }
      let size = UInt64(4096) << UInt64(9 * (found.level - 1))
      let start = address & ~(size - 1)
      if found.entry.isPresent {
        zap(found, at: start, area, evenCopies, &lastMarked, &gather, on: &cpu)
      }
      address = start + size
    }
  }

  private func zap(
    _ leaf: HostLeaf, at address: UInt64, _ area: VMA, _ evenCopies: Bool,
    _ lastMarked: inout PFN?, _ gather: inout [(pfn: PFN, holder: Holder)], on cpu: inout CPU
  ) {
    let entry = leaf.entry
    guard let page = normalPage(entry), !kernel.isHugeZero(page) || leaf.level == 1 else {
      table.set(leaf.slot, .none)
      return
    }
    if !evenCopies, kernel.isAnonymous(page) { return }
    table.set(leaf.slot, .none)
    let head = kernel.frames.compoundHead(of: page)
    if area.flags.contains(.hugetlb) {
      if entry.isDirty { kernel.setDirty(head) }
      kernel.machine.addWholeMapcount(-1, of: head)
    } else {
      if !kernel.isAnonymous(page) {
        if entry.isDirty { kernel.setDirty(page) }
        // A run of pages of one compound page counts as one access in newer kernels.
        let isRun = kernel.behaviour.marksRunsOnce && lastMarked == head && head != page
        if entry.isYoung, !isRun { kernel.markAccessed(page, on: &cpu) }
        lastMarked = head
      }
      if leaf.level > 1 {
        kernel.machine.addWholeMapcount(-1, of: head)
      } else {
        kernel.machine.addMapcount(-1, of: page)
      }
    }
    gather.append((page, holder(address)))
  }

  /// Splits the 2 MiB entries that a range covers in part: each with a notification of its whole 2 MiB.
  /// Mirrors the splits of `zap_pmd_range` and `change_pmd_range`.
  func splitPartialHugeEntries(_ range: Range<UInt64>, _ area: VMA, on cpu: inout CPU) {
    guard !area.flags.contains(.hugetlb) else { return }
    for border in [range.lowerBound, range.upperBound] where border & 0x1f_ffff != 0 {
      if let found = table.leaf(border), found.level == 2 {
        splitHugeEntry(border & ~0x1f_ffff, area, on: &cpu)
      }
    }
  }

  /// Replaces a 2 MiB entry by 512 small ones (anonymous memory, the huge zero page) or clears it (files,
  /// which fault again). Mirrors `__split_huge_pmd`.
  func splitHugeEntry(_ address: UInt64, _ area: VMA, on cpu: inout CPU) {
    notifying(address..<(address + 0x20_0000), on: &cpu) { cpu in
      tableLock.lock()
      guard let found = table.leaf(address), found.level == 2 else { return tableLock.unlock() }
      let old = found.entry
      guard let page = normalPage(old) else {
        // A driver's: the next fault asks it again.
        table.set(found.slot, .none)
        return tableLock.unlock()
      }
      let head = kernel.frames.compoundHead(of: page)
      if kernel.isHugeZero(head) {
        table.replaceByTable(found.slot) { _ in
          HostEntry(pfn: kernel.zeroPage, isWritable: false, isSpecial: true)
        }
        return tableLock.unlock()
      }
      guard kernel.isAnonymous(head) else {
        table.set(found.slot, .none)
        if old.isDirty { kernel.setDirty(head) }
        if old.isYoung { kernel.setReferenced(head) }
        kernel.machine.addWholeMapcount(-1, of: head)
        tableLock.unlock()
        return kernel.release([(head, holder(address))], on: &cpu)
      }
      if old.isDirty { kernel.setDirty(head) }
      let isExclusive = kernel.machine.flags(of: head).contains(.anonExclusive)
      kernel.frames.add(head, 511)
      kernel.ledger?.put(head, holder(address))
      for index in 0..<512 {
        kernel.machine.addMapcount(1, of: head + index)
        if isExclusive { kernel.machine.insertFlags(.anonExclusive, of: head + index) }
        kernel.ledger?.get(head, holder(address + UInt64(index) << 12))
      }
      kernel.machine.addWholeMapcount(-1, of: head)
      table.replaceByTable(found.slot) { index in
        var entry = HostEntry(
          pfn: old.pfn + index, isWritable: old.isWritable, isDirty: old.isDirty)
        entry.isYoung = old.isYoung
        entry.isProtnone = old.isProtnone
        return entry
      }
      tableLock.unlock()
    }
  }

  /// Clears the entries that map pages of an object. Mirrors `unmap_mapping_range` for one process.
  func unmapMapping(
    of list: MappingList, pages: Range<UInt64>, evenCopies: Bool, on cpu: inout CPU
  ) {
    mmapLock.lockShared()
    var gather: [(pfn: PFN, holder: Holder)] = []
    for area in areas where belongs(area, to: list) {
      let first = max(area.pageOffset, pages.lowerBound)
      let last = min(area.pageOffset + (area.end - area.start) >> 12, pages.upperBound)
      guard first < last else { continue }
      let start = area.start + (first - area.pageOffset) << 12
      let range = start..<(start + (last - first) << 12)
      notifying(range, on: &cpu) { cpu in
        zap(range, area, evenCopies: evenCopies, &gather, on: &cpu)
      }
    }
    mmapLock.unlock()
    kernel.release(gather, on: &cpu)
  }

  private func belongs(_ area: VMA, to list: MappingList) -> Bool {
    switch area.backing {
    case .anonymous: false
    case .file(let file): file.mappings === list
    case .driver(let driver): driver.mappings === list
    }
  }
}
