internal import PMFrames
public import PMPageAllocator
public import PMUnits

/// Flags of a lookup of user pages. Mirrors FOLL_*.
public struct GUPFlags: OptionSet, Hashable, Sendable {
  /// The bits; their places are this type's own.
  public var rawValue: UInt32
  /// Flags from their bits.
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// FOLL_WRITE: for writing; breaks copy-on-write.
  public static let write: GUPFlags = GUPFlags(rawValue: 1 << 0)
  /// FOLL_GET: a reference to each page's folio.
  public static let get: GUPFlags = GUPFlags(rawValue: 1 << 1)
  /// FOLL_PIN: a pin on each page's folio.
  public static let pin: GUPFlags = GUPFlags(rawValue: 1 << 2)
  /// FOLL_NOWAIT: does not sleep for a page that would have to be brought in.
  public static let noWait: GUPFlags = GUPFlags(rawValue: 1 << 3)
  /// FOLL_LONGTERM: the reference stays for long.
  public static let longTerm: GUPFlags = GUPFlags(rawValue: 1 << 4)
  /// FOLL_TOUCH: marks what it returns.
  public static let touch: GUPFlags = GUPFlags(rawValue: 1 << 5)
  /// FOLL_HWPOISON: says so where a page is poisoned.
  public static let hwpoison: GUPFlags = GUPFlags(rawValue: 1 << 6)
  /// FOLL_INTERRUPTIBLE: any signal ends the wait, not only a fatal one.
  public static let interruptible: GUPFlags = GUPFlags(rawValue: 1 << 7)
  /// FOLL_FORCE: whatever the area's rights say.
  public static let force: GUPFlags = GUPFlags(rawValue: 1 << 8)
}

// Lookups of user pages, one page at a time: fast without locks, slow with the mmap lock.
extension HostProcess {
  private func takes(_ flags: GUPFlags) -> Bool { !flags.isDisjoint(with: [.get, .pin]) }

  /// The fast lookup: reads the entry without a lock and refuses whatever is not plain. It never looks at
  /// the area and never faults. Returns nil on any refusal. Mirrors `get_user_pages_fast_only`.
  public func getUserPageFast(
    _ address: UInt64, _ flags: GUPFlags, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) -> PFN? {
    table.beginLockFree()
    defer { table.endLockFree() }
    guard let found = table.leaf(address) else { return refuse("fast GUP: no entry") }
    let entry = found.entry
    if entry.isProtnone, !flags.contains(.force) { return refuse("fast GUP: PROT_NONE entry") }
    if flags.contains(.write), !entry.isWritable { return refuse("fast GUP: read-only entry") }
    if entry.isDevmap, flags.contains(.longTerm) { return refuse("fast GUP: device memory") }
    if entry.isSpecial { return refuse("fast GUP: special entry") }
    let page = PFN(found.pfn(at: address))
    guard kernel.hasPage(page) else { return refuse("fast GUP: no struct page") }
    guard grab(page, flags, holder(), on: &cpu) else {
      return refuse("fast GUP: the count of the folio is 0")
    }
    if kernel.machine.details(of: kernel.frames.compoundHead(of: page)).flags.contains(.hwpoison) {
      release(page, flags, holder(), on: &cpu)
      return refuse("fast GUP: poisoned")
    }
    // The owner clears the entry before it drops the page: an unchanged entry proves that the reference
    // was taken in time.
    guard isUnchanged(address, entry, flags), !isSecret(page) else {
      release(page, flags, holder(), on: &cpu)
      return refuse("fast GUP: the entry changed")
    }
    if flags.contains(.pin), !flags.contains(.write), kernel.isAnonymous(page),
      !kernel.machine.flags(of: page).contains(.anonExclusive)
    {
      release(page, flags, holder(), on: &cpu)
      return refuse("fast GUP: pin of a shared anonymous page")
    }
    kernel.setReferenced(page)
    kernel.step(
      "fast GUP: frame \(page), count of its folio \(kernel.frames.pageCount(page)), referenced")
    return page
  }

  /// Whether an entry still says what a fast lookup has acted on. A pin looks under the page-table lock:
  /// a fork that did not see it has write-protected the entry by then.
  private func isUnchanged(_ address: UInt64, _ entry: HostEntry, _ flags: GUPFlags) -> Bool {
    guard flags.contains(.pin) else {
      return table.leaf(address)?.entry.rawValue == entry.rawValue
    }
    return tableLock.withLock { table.leaf(address)?.entry.rawValue == entry.rawValue }
  }

  private func refuse(_ why: @autoclosure () -> String) -> PFN? {
    kernel.step(why())
    return nil
  }

  /// Whether the folio belongs to `memfd_secret`, by its mapping.
  private func isSecret(_ page: PFN) -> Bool {
    kernel.machine.details(of: kernel.frames.compoundHead(of: page)).mapping & 0x13 == 0x10
  }

  /// Takes a reference or a pin. Mirrors `try_grab_folio`.
  private func grab(
    _ page: PFN, _ flags: GUPFlags, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) -> Bool {
    guard flags.contains(.pin) else {
      return kernel.tryGetFolio(page, holder(), on: &cpu)
    }
    if page == kernel.zeroPage { return true }
    let head = kernel.frames.compoundHead(of: page)
    if kernel.frames.compoundOrder(head) > 0 {
      guard kernel.tryGetFolio(page, holder(), on: &cpu) else { return false }
      kernel.machine.addPincount(1, of: head)
    } else {
      guard kernel.tryGetFolio(page, count: FrameTable.pinBias, holder(), on: &cpu) else {
        return false
      }
    }
    hasPinned = true
    return true
  }

  /// Gives back what a lookup took: a reference for `.get`, a pin for `.pin`. Mirrors `put_page` and
  /// `unpin_user_page`.
  public func release(
    _ page: PFN, _ flags: GUPFlags, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) {
    guard flags.contains(.pin) else { return kernel.put(page, holder(), on: &cpu) }
    if page == kernel.zeroPage { return }
    let head = kernel.frames.compoundHead(of: page)
    if kernel.frames.compoundOrder(head) > 0 {
      kernel.machine.addPincount(-1, of: head)
      kernel.put(head, holder(), on: &cpu)
    } else {
      kernel.put(head, count: FrameTable.pinBias, holder(), on: &cpu)
    }
  }

  /// What a slow lookup found.
  public enum LookupResult: Hashable, Sendable {
    /// The page, with the reference or pin that was asked for.
    case page(PFN)
    /// Nothing yet: the lookup was told not to wait.
    case wouldBlock
    /// An error.
    case failed(KernelErrno)
  }

  /// The slow lookup: faults the page in, breaks copy-on-write for `.write`. Without `.get` or `.pin`
  /// nothing is taken and special entries pass. Mirrors `get_user_pages_unlocked` for one page.
  public func getUserPage(
    _ address: UInt64, _ flags: GUPFlags, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) -> LookupResult {
    mmapLock.lockShared()
    defer { mmapLock.unlock() }
    guard let area = area(at: address) else { return .failed(.efault) }
    if let refusal = refusal(area, flags) {
      kernel.step("slow GUP: \(refusal)")
      return .failed(.efault)
    }
    // Each round either finds a usable entry or makes progress by a fault; a driver that inserts
    // nothing for ever is given up on.
    for _ in 0..<64 {
      if let result = follow(address, flags, holder(), on: &cpu) { return result }
      let fault = Fault(
        address: address, isWrite: flags.contains(.write), mayNotBlock: flags.contains(.noWait))
      switch handleFault(fault, area, on: &cpu) {
      case .done: continue
      case .retry: return .wouldBlock
      case .interrupted: return .failed(.eintr)
      case .oom: return .failed(.enomem)
      case .hwpoison: return .failed(flags.contains(.hwpoison) ? .ehwpoison : .efault)
      case .sigbus, .sigsegv: return .failed(.efault)
      }
    }
    return .failed(.efault)
  }

  /// Why an area cannot be looked into. Mirrors `check_vma_flags`.
  private func refusal(_ area: VMA, _ flags: GUPFlags) -> String? {
    if area.isRemapped { return "VM_IO or VM_PFNMAP area: EFAULT" }
    if area.flags.contains(.secret) { return "secret memory: EFAULT" }
    guard !flags.contains(.force) else { return nil }
    if flags.contains(.write) {
      return area.flags.contains(.write) ? nil : "area without VM_WRITE: EFAULT"
    }
    return area.flags.contains(.read) ? nil : "area without VM_READ: EFAULT"
  }

  /// Looks at the entry; nil asks for a fault. Mirrors `follow_page_pte` and its huge relatives.
  private func follow(
    _ address: UInt64, _ flags: GUPFlags, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) -> LookupResult? {
    tableLock.lock()
    defer { tableLock.unlock() }
    guard let found = table.leaf(address) else { return nil }
    let entry = found.entry
    if entry.isProtnone, !flags.contains(.force) { return nil }
    if flags.contains(.write), !entry.isWritable { return nil }
    let page = PFN(found.pfn(at: address))
    if entry.isSpecial, page != kernel.zeroPage {
      guard takes(flags) else { return .page(page) }
      kernel.step("slow GUP: special entry: EEXIST")
      return .failed(.eexist)
    }
    guard takes(flags) else { return .page(page) }
    if kernel.machine.details(of: kernel.frames.compoundHead(of: page)).flags.contains(.hwpoison) {
      return .failed(flags.contains(.hwpoison) ? .ehwpoison : .efault)
    }
    guard kernel.frames.pageCount(page) > 0, grab(page, flags, holder(), on: &cpu) else {
      kernel.machine.findings.warnOnce("GUP on a page without references", pfn: page)
      kernel.step("slow GUP: the count of the folio is 0: ENOMEM")
      return .failed(.enomem)
    }
    if flags.contains(.touch) { touch(found, page, flags, on: &cpu) }
    kernel.step("slow GUP: frame \(page), count of its folio \(kernel.frames.pageCount(page))")
    return .page(page)
  }

  /// What FOLL_TOUCH marks: the page of a small entry, the entry itself of a huge one, nothing for
  /// hugetlb.
  private func touch(_ leaf: HostLeaf, _ page: PFN, _ flags: GUPFlags, on cpu: inout CPU) {
    if leaf.level == 1 {
      let isDirty = kernel.machine.flags(of: kernel.frames.compoundHead(of: page)).contains(.dirty)
      if flags.contains(.write), !leaf.entry.isDirty, !isDirty { kernel.setDirty(page) }
      return kernel.markAccessed(page, on: &cpu)
    }
    guard !kernel.isHugePageLocked(page) else { return }
    var entry = leaf.entry
    entry.isYoung = true
    if flags.contains(.write) { entry.isDirty = true }
    table.set(leaf.slot, entry)
  }

  /// Resolves a fault on behalf of somebody else, with the area's rights compared first. Mirrors
  /// `fixup_user_fault`; `.retry` where the mmap lock had to be let go.
  package func fixupFault(
    _ address: UInt64, isWrite: Bool, on cpu: inout CPU
  ) -> (errno: KernelErrno?, unlocked: Bool) {
    guard let area = area(at: address) else { return (.efault, false) }
    guard area.flags.contains(isWrite ? .write : .read) else { return (.efault, false) }
    switch handleFault(Fault(address: address, isWrite: isWrite), area, on: &cpu) {
    case .done: return (nil, false)
    case .retry: return (nil, true)
    case .interrupted: return (.eintr, false)
    case .oom: return (.enomem, false)
    case .sigbus, .sigsegv, .hwpoison: return (.efault, false)
    }
  }
}

extension HostKernel {
  /// Whether a page belongs to the pool of huge pages.
  func isHugePageLocked(_ page: PFN) -> Bool { isHugePage(frames.compoundHead(of: page)) }
}

// For lookups that go on where GUP has given up.
extension HostProcess {
  /// Runs `body` with the area of an address (nil where there is none), under the mmap lock for reading.
  package func withArea<Result>(at address: UInt64, _ body: (VMA?) -> Result) -> Result {
    mmapLock.lockShared()
    defer { mmapLock.unlock() }
    return body(area(at: address))
  }

  /// Runs `body` with the present entry of an address and the frame behind the address, under the
  /// page-table lock; nil where there is no entry, or one above `maxLevel`. Mirrors `follow_pte` (level 1)
  /// and `follow_pfnmap_start` (level 3).
  package func withEntry<Result>(
    at address: UInt64, maxLevel: Int, _ body: (HostEntry, PFN) -> Result
  ) -> Result? {
    tableLock.lock()
    defer { tableLock.unlock() }
    guard let found = table.leaf(address), found.level <= maxLevel else { return nil }
    return body(found.entry, PFN(found.pfn(at: address)))
  }

  /// The level of the leaf that maps an address: 1, 2 or 3; 1 where nothing does. Lock-free. Mirrors
  /// `host_pfn_mapping_level`.
  package func mappingLevel(at address: UInt64) -> Int {
    table.beginLockFree()
    defer { table.endLockFree() }
    return table.leaf(address)?.level ?? 1
  }
}
