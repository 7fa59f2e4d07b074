internal import CPhysmemShim
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

// Page faults. The mmap lock is held for reading; the caller has compared the access with the area's
// rights.
extension HostProcess {
  /// What a fault is told.
  struct Fault {
    var address: UInt64
    var isWrite: Bool
    /// The caller may not sleep (FOLL_NOWAIT).
    var mayNotBlock = false
  }

  /// Resolves one fault. Mirrors `handle_mm_fault`, Linux 6.1.
  func handleFault(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult {
    if area.flags.contains(.hugetlb) { return handleHugetlbFault(fault, area, on: &cpu) }
    guard let found = table.walk(fault.address) else { return .sigsegv }
    if !found.entry.isPresent {
      if found.level >= 2, let result = handleHugeFault(fault, area, on: &cpu) { return result }
      return handleAbsent(fault, area, on: &cpu)
    }
    if fault.isWrite, !found.entry.isWritable {
      if found.level == 2 {
        if let result = handleHugeWrite(fault, found, area, on: &cpu) { return result }
        splitHugeEntry(fault.address & ~0x1f_ffff, area, on: &cpu)
        return handleFault(fault, area, on: &cpu)
      }
      return handleWriteProtected(fault, area, on: &cpu)
    }
    tableLock.withLock {
      guard let again = table.leaf(fault.address), again.slot == found.slot else { return }
      var entry = again.entry
      entry.isYoung = true
      if fault.isWrite, entry.isWritable { entry.isDirty = true }
      table.set(again.slot, entry)
    }
    return .done
  }

  private func handleAbsent(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult {
    if let handler = area.missingHandler {
      return handleMissing(fault, area, handler, on: &cpu)
    }
    switch area.backing {
    case .anonymous: return handleAnonymous(fault, area, on: &cpu)
    case .file(let file): return handleFile(fault, file, area, on: &cpu)
    case .driver(let driver): return handleDriver(fault, driver, area, on: &cpu)
    }
  }

  // MARK: anonymous memory

  /// Mirrors `do_anonymous_page`.
  private func handleAnonymous(_ fault: Fault, _ area: VMA, on cpu: inout CPU) -> FaultResult {
    let address = fault.address & ~4095
    guard fault.isWrite else {
      install(address, HostEntry(pfn: kernel.zeroPage, isWritable: false, isSpecial: true))
      kernel.step("anonymous read fault: the shared zero page, special and read-only")
      return .done
    }
    guard let page = newAnonymousPage(zeroed: true, on: &cpu) else { return .oom }
    let isWritable = area.flags.contains(.write)
    installAnonymous(
      address, page, HostEntry(pfn: page, isWritable: isWritable, isDirty: true),
      on: &cpu)
    return .done
  }

  /// A page for anonymous memory with its first reference. Mirrors `alloc_page_vma` of a fault.
  func newAnonymousPage(zeroed: Bool, on cpu: inout CPU) -> PFN? {
    let gfp: GFP = zeroed ? [.highUserMovable, .zero] : .highUserMovable
    return try? cpu.allocatePages(gfp: gfp)
  }

  /// Makes a new page anonymous and maps it in the place of `old`; false, and the page is put, where
  /// another fault was first. Mirrors `page_add_new_anon_rmap` and `lru_cache_add_inactive_or_unevictable`.
  @discardableResult
  func installAnonymous(
    _ address: UInt64, _ page: PFN, _ entry: HostEntry, replacing old: HostEntry = .none,
    on cpu: inout CPU
  ) -> Bool {
    kernel.machine.insertFlags([.uptodate, .swapbacked, .anonExclusive], of: page)
    kernel.machine.setMapping(HostProcess.anonymousMapping, of: page)
    let isOurs = tableLock.withLock { () -> Bool in
      guard let slot = table.slot(address, level: 1),
        slot.pointee & ~HostProcess.marks == old.rawValue & ~HostProcess.marks
      else { return false }
      kernel.machine.addMapcount(1, of: page)
      // Before the entry is there: it may be zapped, and the page freed, the moment that the lock is free.
      kernel.ledger?.get(page, holder(address))
      kernel.addToLRU(page, on: &cpu)
      table.set(slot, entry)
      return true
    }
    guard isOurs else {
      kernel.machine.setMapping(0, of: page)
      cpu.putPage(page)
      return false
    }
    return true
  }

  /// What `mapping` holds in an anonymous page.
  static var anonymousMapping: UInt64 { 0x1001 }

  /// The bits of an entry that an access may change at any time.
  private static var marks: UInt64 { HostEntry.accessedBit | HostEntry.dirtyBit }

  /// Writes an entry where there is none; false where another was first.
  @discardableResult
  func install(_ address: UInt64, _ entry: HostEntry) -> Bool {
    tableLock.withLock {
      guard let slot = table.slot(address, level: 1), slot.pointee == 0 else { return false }
      table.set(slot, entry)
      return true
    }
  }

  /// Mirrors `handle_userfault` in MISSING mode.
  private func handleMissing(
    _ fault: Fault, _ area: VMA, _ handler: MissingHandler, on cpu: inout CPU
  ) -> FaultResult {
    guard !fault.mayNotBlock else { return .retry }
    switch handler(fault.address & ~4095) {
    case .signal: return .interrupted
    case .page(let pattern):
      guard let page = newAnonymousPage(zeroed: false, on: &cpu) else { return .oom }
      kernel.bytes(of: page)?.initializeMemory(as: UInt8.self, repeating: pattern, count: 4096)
      installAnonymous(
        fault.address & ~4095, page,
        HostEntry(pfn: page, isWritable: area.flags.contains(.write), isDirty: true), on: &cpu)
      return .done
    }
  }

  // MARK: files

  private func handleFile(
    _ fault: Fault, _ file: HostFile, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    let page = area.page(of: fault.address)
    guard file.contains(page) else { return .sigbus }
    let address = fault.address & ~4095
    if !fault.isWrite {
      if mapAround(fault, file, area, on: &cpu) { return .done }
      guard let pfn = file.frame(page, on: &cpu) else { return .oom }
      mapFilePage(address, pfn, isWritable: area.freshEntriesAreWritable, on: &cpu)
      return .done
    }
    guard let pfn = file.frame(page, on: &cpu) else { return .oom }
    guard area.flags.contains(.shared) else {
      guard let copy = newAnonymousPage(zeroed: false, on: &cpu) else { return .oom }
      copyPage(from: pfn, to: copy)
      installAnonymous(
        address, copy,
        HostEntry(pfn: copy, isWritable: area.flags.contains(.write), isDirty: true), on: &cpu)
      kernel.step("write to an absent private page: copied at once, no notifier")
      return .done
    }
    if mapFileHuge(fault, file, area, isWritable: true, isDirty: true, on: &cpu) { return .done }
    mapFilePage(address, pfn, isWritable: true, isDirty: true, on: &cpu)
    kernel.setDirty(pfn)
    return .done
  }

  /// Maps a page of the cache with a reference. Mirrors `do_set_pte` for file pages.
  func mapFilePage(
    _ address: UInt64, _ pfn: PFN, isWritable: Bool, isDirty: Bool = false, on cpu: inout CPU
  ) {
    kernel.get(pfn, holder(address), on: &cpu)
    let entry = HostEntry(pfn: pfn, isWritable: isWritable, isDirty: isDirty)
    if install(address, entry) {
      kernel.machine.addMapcount(1, of: pfn)
    } else {
      kernel.put(pfn, holder(address), on: &cpu)
    }
  }

  /// Maps what the cache has of the aligned window around a read fault; true where the page itself was
  /// among it. Mirrors `do_fault_around` with `filemap_map_pages`.
  private func mapAround(
    _ fault: Fault, _ file: HostFile, _ area: VMA, on cpu: inout CPU
  ) -> Bool {
    let isWritable = area.freshEntriesAreWritable
    if mapFileHuge(fault, file, area, isWritable: isWritable, isDirty: false, on: &cpu) {
      return true
    }
    let window = UInt64(max(1, kernel.behaviour.faultAroundPages)) << 12
    let start = max(area.start, fault.address & ~(window - 1))
    let end = min(area.end, (fault.address & ~(window - 1)) + window)
    var address = start
    while address < end {
      let page = area.page(of: address)
      if file.contains(page), let pfn = file.cached(page), table.leaf(address) == nil {
        mapFilePage(address, pfn, isWritable: isWritable, on: &cpu)
      }
      address += 4096
    }
    return table.leaf(fault.address) != nil
  }

  func copyPage(from source: PFN, to destination: PFN) {
    guard let to = kernel.bytes(of: destination), !pm_planted(PM_PLANTED_COW_NOT_COPIED) else {
      return
    }
    if let from = kernel.bytes(of: source) {
      to.copyMemory(from: from, byteCount: 4096)
    } else {
      to.initializeMemory(as: UInt8.self, repeating: 0xff, count: 4096)
    }
  }

  // MARK: drivers

  private func handleDriver(
    _ fault: Fault, _ driver: any HostDriver, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    if fault.mayNotBlock, driver.mayBlock { return .retry }
    let request = DriverFault(
      address: fault.address & ~4095, page: area.page(of: fault.address), isWrite: fault.isWrite)
    switch driver.fault(request, in: area, of: self, on: &cpu) {
    case .installed:
      kernel.step("the fault handler of \(driver.name) made the entry itself")
      return .done
    case .sigbus: return .sigbus
    case .oom: return .oom
    case .page(let pfn):
      return mapDriverPage(request, pfn, area, on: &cpu)
    }
  }

  /// Maps the page that a handler returned with a reference. Mirrors `finish_fault`.
  private func mapDriverPage(
    _ fault: DriverFault, _ pfn: PFN, _ area: VMA, on cpu: inout CPU
  ) -> FaultResult {
    kernel.ledger?.get(kernel.frames.compoundHead(of: pfn), holder(fault.address))
    if fault.isWrite, !area.flags.contains(.shared) {
      guard let copy = newAnonymousPage(zeroed: false, on: &cpu) else {
        kernel.put(pfn, holder(fault.address), on: &cpu)
        return .oom
      }
      copyPage(from: pfn, to: copy)
      installAnonymous(
        fault.address, copy,
        HostEntry(pfn: copy, isWritable: area.flags.contains(.write), isDirty: true), on: &cpu)
      kernel.put(pfn, holder(fault.address), on: &cpu)
      return .done
    }
    let isWritable = fault.isWrite || area.freshEntriesAreWritable
    let entry = HostEntry(pfn: pfn, isWritable: isWritable, isDirty: fault.isWrite)
    if install(fault.address, entry) {
      kernel.machine.addMapcount(1, of: pfn)
      if fault.isWrite { kernel.setDirty(pfn) }
    } else {
      kernel.put(pfn, holder(fault.address), on: &cpu)
    }
    return .done
  }
}
