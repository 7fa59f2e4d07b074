internal import CPhysmemShim
public import PMPageAllocator
public import PMUnits

// The system calls that change areas. Ranges are in bytes; addresses are multiples of the page size, or
// the call is refused with EINVAL.
extension HostProcess {
  /// What ``map(_:on:)`` asks for.
  public struct MapRequest {
    /// Where; nil lets the process choose, at a 2 MiB border. An area in the way is unmapped first
    /// (MAP_FIXED).
    public var address: UInt64?
    /// How long.
    public var byteCount: UInt64
    /// `.read`, `.write`, `.execute`.
    public var rights: VMAFlags
    /// MAP_SHARED instead of MAP_PRIVATE.
    public var isShared: Bool
    /// What stands behind it.
    public var backing: Backing
    /// First page of the backing.
    public var pageOffset: UInt64
    /// Further flags: `.hugetlb` for private anonymous huge pages, `.hugePage`, ….
    public var extra: VMAFlags

    /// A request; private anonymous memory that can be read and written unless more is said.
    public init(
      byteCount: UInt64, address: UInt64? = nil, rights: VMAFlags = [.read, .write],
      isShared: Bool = false, backing: Backing = .anonymous, pageOffset: UInt64 = 0,
      extra: VMAFlags = []
    ) {
      self.byteCount = byteCount
      self.address = address
      self.rights = rights
      self.isShared = isShared
      self.backing = backing
      self.pageOffset = pageOffset
      self.extra = extra
    }
  }

  /// Makes an area and returns its address. Mirrors `mmap`.
  @discardableResult
  public func map(_ request: MapRequest, on cpu: inout CPU) throws(KernelErrno) -> UInt64 {
    let pages = (request.byteCount + 4095) >> 12
    guard request.byteCount > 0, pages << 12 >= request.byteCount else { throw .einval }
    let byteCount = pages << 12
    if let address = request.address {
      guard address & 4095 == 0 else { throw .einval }
      guard address <= HostPageTable.addressLimit - 4096,
        byteCount <= HostPageTable.addressLimit - 4096 - address
      else { throw .enomem }
      try unmap(address..<(address + byteCount), on: &cpu)
    }
    var flags = request.rights.intersection(.rights).union(request.extra).union(.mayWrite)
    if request.isShared { flags.insert(.shared) }
    if case .file(let file) = request.backing, file.kind == .hugetlb { flags.insert(.hugetlb) }
    if case .file(let file) = request.backing, file.kind == .secret { flags.insert(.secret) }
    if flags.contains(.hugetlb), byteCount & 0x1f_ffff != 0 { throw .einval }
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    guard let start = request.address ?? freeRange(byteCount: byteCount, alignment: 0x20_0000)
    else { throw .enomem }
    let area = VMA(
      start: start, end: start + byteCount, flags: flags, backing: request.backing,
      pageOffset: request.pageOffset)
    insert(area)
    if case .driver(let driver) = request.backing {
      do {
        try driver.mmap(area, in: self, on: &cpu)
      } catch {
        var gather: [(pfn: PFN, holder: Holder)] = []
        zap(area.range, area, &gather, on: &cpu)
        areas.removeAll { $0 === area }
        kernel.release(gather, on: &cpu)
        throw error
      }
    }
    return start
  }

  private func check(_ range: Range<UInt64>) throws(KernelErrno) {
    guard range.lowerBound & 4095 == 0, range.upperBound & 4095 == 0 else { throw .einval }
    guard range.upperBound <= HostPageTable.addressLimit else { throw .einval }
  }

  /// Removes all areas of a range. Mirrors `munmap`.
  public func unmap(_ range: Range<UInt64>, on cpu: inout CPU) throws(KernelErrno) {
    try check(range)
    mmapLock.lockExclusive()
    let gone: [VMA]
    do throws(KernelErrno) { gone = try isolate(range, on: &cpu) } catch {
      mmapLock.unlock()
      throw error
    }
    guard !gone.isEmpty else { return mmapLock.unlock() }
    if kernel.behaviour.drainsBatchesOnUnmap { kernel.drainLRUBatches(on: &cpu) }
    var gather: [(pfn: PFN, holder: Holder)] = []
    notifying(range, on: &cpu) { cpu in
      for area in gone { zap(area.range, area, &gather, on: &cpu) }
    }
    areas.removeAll { area in gone.contains { $0 === area } }
    // Only tables that no remaining area can have entries in.
    tableLock.withLock { table.unlinkTables(emptyRange(around: range)) }
    mmapLock.unlock()
    kernel.release(gather, on: &cpu)
  }

  /// The largest range around `range` without any area. Under the mmap lock.
  private func emptyRange(around range: Range<UInt64>) -> Range<UInt64> {
    let below = areas.last { $0.end <= range.lowerBound }?.end ?? 0
    let above =
      areas.first { $0.start >= range.upperBound }?.start
      ?? HostPageTable.addressLimit
    let start = max(below, range.lowerBound & ~0x1f_ffff)
    return start..<max(start, min(above, (range.upperBound + 0x1f_ffff) & ~0x1f_ffff))
  }

  /// Changes the rights of a range; entries keep frame, marks and references. ENOMEM where part of the
  /// range has no area. Mirrors `mprotect`.
  public func protect(
    _ range: Range<UInt64>, rights: VMAFlags, on cpu: inout CPU
  ) throws(KernelErrno) {
    try check(range)
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    let changed = try isolate(range, on: &cpu)
    let covered = changed.reduce(0) { $0 + ($1.end - $1.start) }
    guard covered == range.upperBound - range.lowerBound else { throw .enomem }
    for area in changed {
      let old = area.flags
      area.flags = old.subtracting(.rights).union(rights.intersection(.rights))
      guard area.flags != old, hasTables(area.range) else { continue }
      let end = pm_planted(PM_PLANTED_PROTECT_NOT_NOTIFIED) ? area.start : area.end
      notifying(area.start..<end, on: &cpu) { cpu in
        splitPartialHugeEntries(area.range, area, on: &cpu)
        tableLock.withLock {
          forEachLeaf(area.range) { leaf, _ in
            table.set(leaf.slot, self.changed(leaf, area))
          }
        }
      }
    }
    mergeAreas(around: range)
  }

  /// Whether the range has any lowest table or leaf: mprotect notifies only then.
  private func hasTables(_ range: Range<UInt64>) -> Bool {
    var address = range.lowerBound
    while address < range.upperBound {
      guard let found = table.walk(address) else { return false }
      if found.level == 1 || found.entry.isPresent { return true }
      let size = UInt64(4096) << UInt64(9 * (found.level - 1))
      address = (address & ~(size - 1)) + size
    }
    return false
  }

  /// An entry with an area's new rights. Mirrors `change_pte_range`: a private page becomes writable at
  /// once only if it is exclusive and dirty.
  private func changed(_ leaf: HostLeaf, _ area: VMA) -> HostEntry {
    var entry = leaf.entry
    let canRead = area.flags.contains(.read) || area.flags.contains(.write)
    let canExecute = area.flags.contains(.execute)
    entry.isProtnone = !canRead && !canExecute
    guard area.flags.contains(.write) else {
      entry.isWritable = false
      return entry
    }
    if area.freshEntriesAreWritable {
      entry.isWritable = true
    } else if !entry.isWritable, entry.isDirty, let page = normalPage(entry),
      !area.flags.contains(.shared), kernel.isAnonymous(page)
    {
      entry.isWritable = kernel.machine.flags(of: page).contains(.anonExclusive)
    }
    return entry
  }

  /// Sets or clears `.hugePage` and `.noHugePage` of a range. Mirrors MADV_HUGEPAGE and MADV_NOHUGEPAGE.
  public func adviseHugePages(
    _ range: Range<UInt64>, _ wanted: Bool, on cpu: inout CPU
  ) throws(KernelErrno) {
    try check(range)
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    for area in try isolate(range, on: &cpu) {
      area.flags.subtract([.hugePage, .noHugePage])
      area.flags.insert(wanted ? .hugePage : .noHugePage)
    }
    mergeAreas(around: range)
  }

  /// Drops the contents of a range. EINVAL for areas that a driver has remapped and for locked ones,
  /// ENOMEM where part of the range has no area (what is there is dropped all the same). Mirrors
  /// MADV_DONTNEED.
  public func discard(_ range: Range<UInt64>, on cpu: inout CPU) throws(KernelErrno) {
    try check(range)
    mmapLock.lockShared()
    var covered: UInt64 = 0
    var failure: KernelErrno?
    var gather: [(pfn: PFN, holder: Holder)] = []
    for area in areas where area.start < range.upperBound && area.end > range.lowerBound {
      let part = range.clamped(to: area.range)
      covered += part.upperBound - part.lowerBound
      guard area.flags.isDisjoint(with: [.pfnmap, .locked]) else {
        failure = .einval
        break
      }
      if area.flags.contains(.hugetlb),
        (part.lowerBound | part.upperBound) & 0x1f_ffff != 0
      {
        failure = .einval
        break
      }
      if kernel.behaviour.drainsBatchesOnUnmap { kernel.drainLRUBatches(on: &cpu) }
      notifying(part, on: &cpu) { cpu in zap(part, area, &gather, on: &cpu) }
    }
    mmapLock.unlock()
    kernel.release(gather, on: &cpu)
    if let failure { throw failure }
    if covered < range.upperBound - range.lowerBound { throw .enomem }
  }

  /// Registers a monitor for absent entries of a range; nil removes it. Refused with EINVAL for areas of
  /// drivers. Mirrors UFFDIO_REGISTER in MISSING mode.
  public func registerMissingHandler(
    _ range: Range<UInt64>, on cpu: inout CPU, _ handler: MissingHandler?
  ) throws(KernelErrno) {
    try check(range)
    mmapLock.lockExclusive()
    defer { mmapLock.unlock() }
    for area in try isolate(range, on: &cpu) {
      if case .driver = area.backing { throw .einval }
      area.missingHandler = handler
    }
  }
}
