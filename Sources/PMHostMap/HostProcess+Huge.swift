internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

// Faults that are answered with 2 MiB: transparent huge pages, large folios of files, hugetlb.
extension HostProcess {
  /// Tries a 2 MiB entry for an absent one; nil where 4 KiB have to do. Mirrors
  /// `do_huge_pmd_anonymous_page`.
  func handleHugeFault(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult? {
    let start = fault.address & ~0x1f_ffff
    guard case .anonymous = area.backing, !area.flags.contains(.shared), allowsHuge(area),
      area.missingHandler == nil, start >= area.start, start + 0x20_0000 <= area.end
    else { return nil }
    if !fault.isWrite {
      guard let zero = kernel.hugeZeroPage(on: &cpu) else { return nil }
      kernel.step("read fault in an untouched huge range: the huge zero page, 2M and read-only")
      return installHuge(start, HostEntry(pfn: zero, isWritable: false, isLarge: true))
        ? .done : nil
    }
    guard
      let head = try? cpu.allocatePages(
        order: 9, gfp: [.highUserMovable, .comp, .zero, .noMemalloc, .noWarn])
    else { return nil }
    kernel.machine.insertFlags([.uptodate, .swapbacked, .anonExclusive], of: head)
    kernel.machine.setMapping(HostProcess.anonymousMapping, of: head)
    let entry = HostEntry(
      pfn: head, isWritable: area.flags.contains(.write), isDirty: true, isLarge: true)
    let isOurs = installHuge(start, entry, mapping: head) {
      kernel.ledger?.get(head, holder(start))
      kernel.addToLRU(head, on: &cpu)
    }
    if !isOurs { cpu.putPage(head) }
    return .done
  }

  private func allowsHuge(_ area: VMA) -> Bool {
    guard !area.flags.contains(.noHugePage) else { return false }
    switch kernel.behaviour.transparentHugePages {
    case .always: return true
    case .madvise: return area.flags.contains(.hugePage)
    case .never: return false
    }
  }

  /// Writes a 2 MiB entry where nothing hangs below, and counts the mapping of `head` as a whole;
  /// `prepare` is called before the entry is there.
  private func installHuge(
    _ address: UInt64, _ entry: HostEntry, mapping head: PFN? = nil, _ prepare: () -> Void = {}
  ) -> Bool {
    tableLock.withLock {
      guard !table.hasLowerTable(address), let slot = table.slot(address, level: 2),
        slot.pointee == 0
      else { return false }
      if let head { kernel.machine.addWholeMapcount(1, of: head) }
      prepare()
      table.set(slot, entry)
      return true
    }
  }

  /// A write to a read-only 2 MiB entry: reused where the page has no other user; nil asks for a split.
  /// Mirrors `do_huge_pmd_wp_page`.
  func handleHugeWrite(
    _ fault: Fault, _ leaf: HostLeaf, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult? {
    let head = kernel.frames.compoundHead(of: leaf.entry.pfn)
    if kernel.isHugeZero(head) { return nil }
    // Pages of files: the entry is cleared, and a smaller fault asks the file again.
    guard kernel.isAnonymous(head) else { return nil }
    let isExclusive = kernel.machine.flags(of: head).contains(.anonExclusive)
    guard isExclusive || kernel.frames.refcount(head) == 1 else { return nil }
    tableLock.withLock {
      guard let again = table.leaf(fault.address), again.entry.pfn == leaf.entry.pfn else { return }
      var entry = again.entry
      entry.isWritable = true
      entry.isYoung = true
      entry.isDirty = true
      table.set(again.slot, entry)
    }
    kernel.machine.insertFlags(.anonExclusive, of: head)
    return .done
  }

  /// Maps a 2 MiB folio of the page cache as a whole where file, address and area allow it. Mirrors
  /// `do_set_pmd`.
  func mapFileHuge(
    _ fault: Fault, _ file: HostFile, _ area: VMA, isWritable: Bool, isDirty: Bool,
    on cpu: inout CPU
  ) -> Bool {
    let start = fault.address & ~0x1f_ffff
    guard file.kind == .disk, start >= area.start, start + 0x20_0000 <= area.end,
      area.page(of: start) & 511 == 0, let head = file.cached(area.page(of: start)),
      kernel.frames.isCompoundHead(head), kernel.frames.compoundOrder(head) == 9
    else { return false }
    kernel.get(head, holder(start), on: &cpu)
    let entry = HostEntry(pfn: head, isWritable: isWritable, isDirty: isDirty, isLarge: true)
    guard installHuge(start, entry, mapping: head) else {
      kernel.put(head, holder(start), on: &cpu)
      return false
    }
    if isDirty { kernel.setDirty(head) }
    return true
  }

  // MARK: hugetlb

  /// Mirrors `hugetlb_fault`.
  func handleHugetlbFault(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult {
    let start = fault.address & ~0x1f_ffff
    hugetlbLock.lock()
    defer { hugetlbLock.unlock() }
    if let found = table.leaf(start) {
      guard fault.isWrite, !found.entry.isWritable else { return .done }
      return handleHugetlbWrite(start, found.entry, area, on: &cpu)
    }
    if case .file(let file) = area.backing, area.flags.contains(.shared) {
      let page = area.page(of: start)
      guard file.contains(page) else { return .sigbus }
      guard let head = file.frame(page, on: &cpu) else { return .sigbus }
      kernel.get(head, holder(start), on: &cpu)
      let entry = HostEntry(
        pfn: head, isWritable: area.flags.contains(.write), isDirty: fault.isWrite, isLarge: true)
      if !installHuge(start, entry, mapping: head) { kernel.put(head, holder(start), on: &cpu) }
      return .done
    }
    return mapPrivateHugetlb(start, fault, area, on: &cpu)
  }

  private func mapPrivateHugetlb(
    _ start: UInt64, _ fault: Fault, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    guard let head = kernel.takeHugePage(holder(start)) else { return .sigbus }
    if case .file(let file) = area.backing, let cached = file.cached(area.page(of: start)) {
      copyHuge(from: cached, to: head)
    } else {
      kernel.zero(head, order: 9)
    }
    kernel.machine.insertFlags([.uptodate, .anonExclusive], of: head)
    kernel.machine.setMapping(HostProcess.anonymousMapping, of: head)
    let isWritable = fault.isWrite && area.flags.contains(.write)
    let entry = HostEntry(pfn: head, isWritable: isWritable, isDirty: isWritable, isLarge: true)
    if !installHuge(start, entry, mapping: head) { kernel.put(head, holder(start), on: &cpu) }
    return .done
  }

  /// Mirrors `hugetlb_wp`.
  private func handleHugetlbWrite(
    _ start: UInt64, _ old: HostEntry, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    let head = old.pfn
    let isExclusive =
      kernel.machine.details(of: head).wholeMapcount == 1 && kernel.isAnonymous(head)
    if area.flags.contains(.shared) || isExclusive {
      tableLock.withLock {
        guard let again = table.leaf(start), again.entry.pfn == head else { return }
        var entry = again.entry
        entry.isWritable = true
        entry.isDirty = true
        table.set(again.slot, entry)
      }
      if isExclusive { kernel.machine.insertFlags(.anonExclusive, of: head) }
      return .done
    }
    guard let copy = kernel.takeHugePage(holder(start)) else { return .sigbus }
    copyHuge(from: head, to: copy)
    kernel.machine.insertFlags([.uptodate, .anonExclusive], of: copy)
    kernel.machine.setMapping(HostProcess.anonymousMapping, of: copy)
    notifying(start..<(start + 0x20_0000), on: &cpu) { cpu in
      let isOurs = tableLock.withLock { () -> Bool in
        guard let again = table.leaf(start), again.entry.pfn == head else { return false }
        kernel.machine.addWholeMapcount(-1, of: head)
        kernel.machine.addWholeMapcount(1, of: copy)
        table.set(
          again.slot,
          HostEntry(
            pfn: copy, isWritable: area.flags.contains(.write), isDirty: true, isLarge: true))
        return true
      }
      kernel.put(isOurs ? head : copy, holder(start), on: &cpu)
    }
    return .done
  }

  private func copyHuge(from source: PFN, to destination: PFN) {
    guard let from = kernel.bytes(of: source), let to = kernel.bytes(of: destination) else {
      return
    }
    to.copyMemory(from: from, byteCount: 0x20_0000)
  }
}
