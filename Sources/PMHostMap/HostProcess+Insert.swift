internal import PMFrames
public import PMPageAllocator
public import PMUnits

// How drivers put pages into areas, with the refusals of each function. To be called from a driver's
// `mmap` or `fault`, which hold the mmap lock.
extension HostProcess {
  /// Sets the flags of a remapped area and makes special entries for adjacent frames; no reference is
  /// taken. EINVAL for a private area that is not covered as a whole, or where an entry is in the way.
  /// Mirrors `remap_pfn_range`.
  public func remapPFNRange(
    _ area: VMA, at address: UInt64, pfn: PFN, pageCount: Int
  ) throws(KernelErrno) {
    let byteCount = UInt64(pageCount) << 12
    guard address & 4095 == 0, address >= area.start, area.end - address >= byteCount else {
      throw .einval
    }
    if area.isCopyOnWrite, address != area.start || area.end - area.start != byteCount {
      throw .einval
    }
    area.flags.formUnion([.io, .pfnmap, .dontExpand, .dontDump])
    for index in 0..<pageCount {
      let entry = HostEntry(
        pfn: pfn + index, isWritable: area.freshEntriesAreWritable, isSpecial: true)
      guard install(address + UInt64(index) << 12, entry) else { throw .einval }
    }
  }

  /// Makes one special entry in a VM_PFNMAP area, or in a VM_MIXEDMAP area for a frame without a
  /// `struct page`; no reference is taken. An entry that is there stays. What the kernel answers with a
  /// BUG (both flags or none, a page in a mixed area, a private VM_PFNMAP area) is misuse and throws
  /// EINVAL. Mirrors `vmf_insert_pfn`.
  @discardableResult
  public func insertPFN(_ area: VMA, at address: UInt64, pfn: PFN) throws(KernelErrno) -> Bool {
    let isPFNMap = area.flags.contains(.pfnmap)
    guard isPFNMap != area.flags.contains(.mixedmap) else { throw .einval }
    guard isPFNMap || !kernel.hasPage(pfn) else { throw .einval }
    guard !(isPFNMap && area.isCopyOnWrite) else { throw .einval }
    guard area.range.contains(address) else { throw .efault }
    return install(
      address & ~4095,
      HostEntry(pfn: pfn, isWritable: area.freshEntriesAreWritable, isSpecial: true))
  }

  /// Makes one special entry in a VM_MIXEDMAP area, whether or not the frame has a `struct page`; no
  /// reference is taken. EINVAL without VM_MIXEDMAP. Mirrors `vmf_insert_mixed` on x86.
  @discardableResult
  public func insertMixed(_ area: VMA, at address: UInt64, pfn: PFN) throws(KernelErrno) -> Bool {
    guard area.flags.contains(.mixedmap) else { throw .einval }
    guard area.range.contains(address) else { throw .efault }
    return install(
      address & ~4095,
      HostEntry(pfn: pfn, isWritable: area.freshEntriesAreWritable, isSpecial: true))
  }

  /// Maps a page with a reference of its own, as an ordinary entry, and makes the area VM_MIXEDMAP.
  /// EINVAL for a page whose count is 0, for anonymous pages, slab pages and pages of a type, for a frame
  /// without a `struct page` and for a VM_PFNMAP area; EFAULT outside the area; EBUSY where an entry is.
  /// Mirrors `vm_insert_page`.
  public func insertPage(
    _ area: VMA, at address: UInt64, page: PFN, on cpu: inout CPU
  ) throws(KernelErrno) {
    guard area.range.contains(address) else { throw .efault }
    guard kernel.hasPage(page), kernel.frames.pageCount(page) > 0 else { throw .einval }
    if !area.flags.contains(.mixedmap) {
      guard !area.flags.contains(.pfnmap) else { throw .einval }
      area.flags.insert(.mixedmap)
    }
    guard !kernel.isAnonymous(page), !kernel.machine.flags(of: page).contains(.slab),
      kernel.frames.buddyOrder(page) == nil
    else { throw .einval }
    kernel.get(page, holder(address), on: &cpu)
    let entry = HostEntry(pfn: page, isWritable: area.freshEntriesAreWritable)
    guard install(address & ~4095, entry) else {
      kernel.put(page, holder(address), on: &cpu)
      throw .ebusy
    }
    kernel.machine.addMapcount(1, of: page)
  }

  /// Makes a special 2 MiB or 1 GiB entry in a VM_PFNMAP area; no reference is taken. EINVAL where
  /// address, frame or area do not fit. Mirrors `vmf_insert_pfn_pmd` and `vmf_insert_pfn_pud`.
  public func insertHugePFN(
    _ area: VMA, at address: UInt64, pfn: PFN, level: Int
  ) throws(KernelErrno) {
    guard level == 2 || level == 3, area.flags.contains(.pfnmap), !area.isCopyOnWrite else {
      throw .einval
    }
    let size = UInt64(4096) << UInt64(9 * (level - 1))
    guard address & (size - 1) == 0, pfn.physicalAddress & (size - 1) == 0,
      address >= area.start, area.end - address >= size
    else { throw .einval }
    let entry = HostEntry(
      pfn: pfn, isWritable: area.freshEntriesAreWritable, isSpecial: true, isLarge: true)
    let isOurs = tableLock.withLock { () -> Bool in
      if level == 2, table.hasLowerTable(address) { return false }
      guard let slot = table.slot(address, level: level), slot.pointee == 0 else { return false }
      table.set(slot, entry)
      return true
    }
    guard isOurs else { throw .ebusy }
  }

  /// Sets flags of an area, for a driver's `mmap`.
  public func insertFlags(_ flags: VMAFlags, of area: VMA) { area.flags.formUnion(flags) }
}
