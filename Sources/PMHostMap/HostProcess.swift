internal import PMFrames
public import PMPageAllocator
public import PMUnits

/// A process of the emulated host: areas, page table, notifiers. Mirrors `mm_struct`.
///
/// Locks, in order: the mmap lock (areas), then whatever a notifier takes, then the page-table lock
/// (entries, and the counts of the pages that an entry names while it is looked at). No operation may be
/// started from a notifier or a driver's fault handler on the same process, except the insertions of
/// `HostProcess+Insert.swift`.
public final class HostProcess: @unchecked Sendable {
  // Sendable: `areas` and the areas are under `mmapLock`, entries change under `tableLock`, the
  // notifiers are under `notifierLock`, and `isPinned` is under `pinLock`.

  /// The host.
  public let kernel: HostKernel
  /// A number for people, from 1.
  public let id: Int
  let mmapLock = ReadWriteLock()
  let tableLock = HostMutex()
  let table = HostPageTable()
  private let notifierLock = HostMutex()
  private var notifiers: [any MMUNotifier] = []
  var areas: [VMA] = []
  /// Held over a fault in hugetlb memory, so that two faults never want two pages for one address
  /// (`hugetlb_fault_mutex_table`); taken after the mmap lock.
  let hugetlbLock = HostMutex()
  private let pinLock = HostMutex()
  private var isPinned = false
  /// Whether any page of the process was ever pinned; fork then copies pages that may be (`MMF_HAS_PINNED`).
  var hasPinned: Bool {
    get { pinLock.withLock { isPinned } }
    set { pinLock.withLock { isPinned = newValue } }
  }
  private var nextAddress: UInt64 = 0x7e00_0000_0000

  /// A process without any area.
  public init(kernel: HostKernel) {
    self.kernel = kernel
    id = kernel.newProcessID()
  }

  // MARK: notifiers

  /// Registers a notifier. Mirrors `mmu_notifier_register`.
  public func register(_ notifier: any MMUNotifier) {
    notifierLock.withLock { notifiers.append(notifier) }
  }

  /// Removes a notifier. Mirrors `mmu_notifier_unregister`.
  public func unregister(_ notifier: any MMUNotifier) {
    notifierLock.withLock { notifiers.removeAll { $0 === notifier } }
  }

  private var registered: [any MMUNotifier] { notifierLock.withLock { notifiers } }

  /// Runs `body` between the notifiers' start and end for a range.
  func notifying<Result>(
    _ range: Range<UInt64>, on cpu: inout CPU, _ body: (inout CPU) -> Result
  ) -> Result {
    let notifiers = registered
    for notifier in notifiers { notifier.invalidateRangeStart(range, on: &cpu) }
    let result = body(&cpu)
    for notifier in notifiers { notifier.invalidateRangeEnd(range, on: &cpu) }
    return result
  }

  /// Whether something was young, in the notifiers' translations or in this process's entries of a
  /// range; their marks are cleared. Mirrors `ptep_clear_flush_young_notify` over a range.
  public func clearYoung(_ range: Range<UInt64>, flush: Bool = true, on cpu: inout CPU) -> Bool {
    var isYoung = false
    mmapLock.lockShared()
    defer { mmapLock.unlock() }
    tableLock.withLock {
      forEachLeaf(range) { leaf, _ in
        guard leaf.entry.isYoung else { return }
        isYoung = true
        var old = leaf.entry
        old.isYoung = false
        table.set(leaf.slot, old)
      }
    }
    for notifier in registered where notifier.clearYoung(range, flush: flush, on: &cpu) {
      isYoung = true
    }
    return isYoung
  }

  /// Whether the entry of an address, or a notifier's translation of it, is young.
  public func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool {
    if table.leaf(address)?.entry.isYoung == true { return true }
    for notifier in registered where notifier.testYoung(address, on: &cpu) { return true }
    return false
  }

  // MARK: areas

  /// The area that contains an address. Under the mmap lock. Mirrors `vma_lookup`.
  func area(at address: UInt64) -> VMA? {
    var low = 0
    var high = areas.count
    while low < high {
      let middle = (low + high) / 2
      if areas[middle].end <= address { low = middle + 1 } else { high = middle }
    }
    guard low < areas.count, areas[low].start <= address else { return nil }
    return areas[low]
  }

  /// What stands at an address: a copy of the area's range and flags, or nil.
  public func areaInfo(at address: UInt64) -> (range: Range<UInt64>, flags: VMAFlags)? {
    mmapLock.lockShared()
    defer { mmapLock.unlock() }
    return area(at: address).map { ($0.range, $0.flags) }
  }

  /// Adds an area in its place. Under the mmap lock for writing.
  func insert(_ area: VMA) {
    let place = areas.firstIndex { $0.start > area.start } ?? areas.count
    areas.insert(area, at: place)
    switch area.backing {
    case .anonymous: break
    case .file(let file): file.mappings.insert(self)
    case .driver(let driver): driver.mappings.insert(self)
    }
  }

  /// Splits the area that contains an address in two there. Under the mmap lock for writing.
  private func split(at address: UInt64) {
    guard let area = area(at: address), area.start < address else { return }
    let upper = VMA(
      start: address, end: area.end, flags: area.flags, backing: area.backing,
      pageOffset: area.page(of: address), missingHandler: area.missingHandler)
    area.end = address
    insert(upper)
  }

  /// Makes areas begin and end at the borders of a range and returns those inside. A transparent huge
  /// page across a border is split; EINVAL where a border would cut one of the pool. Under the mmap lock
  /// for writing. Mirrors `split_vma` with `vma_adjust_trans_huge` and `hugetlb_vm_op_split`.
  func isolate(_ range: Range<UInt64>, on cpu: inout CPU) throws(KernelErrno) -> [VMA] {
    let borders = [range.lowerBound, range.upperBound]
    for border in borders where border & 0x1f_ffff != 0 {
      guard let area = area(at: border), area.start < border else { continue }
      guard !area.flags.contains(.hugetlb) else { throw .einval }
      splitPartialHugeEntries(border..<border, area, on: &cpu)
    }
    for border in borders { split(at: border) }
    return areas.filter { $0.start >= range.lowerBound && $0.end <= range.upperBound }
  }

  /// Puts neighbours together that differ in nothing but their range, from the area before a range to the
  /// one behind it. Under the mmap lock for writing. Mirrors `vma_merge`.
  func mergeAreas(around range: Range<UInt64>) {
    var index = max(1, areas.firstIndex { $0.end > range.lowerBound } ?? areas.count)
    while index < areas.count, areas[index].start <= range.upperBound {
      let lower = areas[index - 1]
      let upper = areas[index]
      if lower.end == upper.start, lower.continues(with: upper) {
        lower.end = upper.end
        areas.remove(at: index)
      } else {
        index += 1
      }
    }
  }

  /// Finds room for an area. Under the mmap lock.
  func freeRange(byteCount: UInt64, alignment: UInt64) -> UInt64? {
    var address = (nextAddress + alignment - 1) / alignment * alignment
    for area in areas where area.end > address && area.start < address + byteCount {
      address = (area.end + alignment - 1) / alignment * alignment
    }
    guard address + byteCount <= HostPageTable.addressLimit - 4096 else { return nil }
    nextAddress = address + byteCount
    return address
  }

  // MARK: entries

  /// The page behind an entry as the kernel counts and marks it, or nil for special entries. Mirrors
  /// `vm_normal_page`.
  func normalPage(_ entry: HostEntry) -> PFN? {
    entry.isSpecial || entry.isDevmap ? nil : entry.pfn
  }

  /// Visits all present entries of a range, ascending. Under the page-table lock.
  func forEachLeaf(_ range: Range<UInt64>, _ body: (HostLeaf, UInt64) -> Void) {
    var address = range.lowerBound
    while address < range.upperBound {
      guard let found = table.walk(address) else { return }
      let size = UInt64(4096) << UInt64(9 * (found.level - 1))
      let start = address & ~(size - 1)
      if found.entry.isPresent { body(found, start) }
      address = start + size
    }
  }

  /// The host entry of an address and its level (1, 2, 3), as an outsider sees it; nil where it is
  /// absent.
  public func entry(at address: UInt64) -> (entry: HostEntry, level: Int)? {
    table.beginLockFree()
    defer { table.endLockFree() }
    return table.leaf(address).map { ($0.entry, $0.level) }
  }

  /// The frame behind an address, or nil where its entry is absent.
  public func frame(at address: UInt64) -> PFN? {
    table.beginLockFree()
    defer { table.endLockFree() }
    return table.leaf(address).map { PFN($0.pfn(at: address)) }
  }

  func holder(_ address: UInt64) -> Holder { .mapping(process: id, address: address & ~4095) }

  // MARK: the end

  /// Ends the process: notifiers are released, all areas go. Mirrors `exit_mmap`.
  public func exit(on cpu: inout CPU) {
    for notifier in registered { notifier.release(on: &cpu) }
    mmapLock.lockExclusive()
    let gone = areas
    var gather: [(pfn: PFN, holder: Holder)] = []
    if kernel.behaviour.drainsBatchesOnUnmap { kernel.drainLRUBatches(on: &cpu) }
    for area in gone { zap(area.range, area, &gather, on: &cpu) }
    areas = []
    mmapLock.unlock()
    kernel.release(gather, on: &cpu)
  }
}
