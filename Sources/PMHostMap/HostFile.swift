internal import PMFrames
public import PMPageAllocator
public import PMUnits

/// A file or a piece of shared anonymous memory: its pages in the page cache.
///
/// The cache never writes back and never evicts: a page stays until the file is truncated or closed for
/// good (``discard(on:)``).
public final class HostFile: @unchecked Sendable {
  // Sendable: the cache and the size are touched under `lock` only; the rest is constant.

  /// Which file system it is on.
  public enum Kind: String, Hashable, Sendable {
    /// tmpfs, ramfs and shared anonymous memory: no note of the first write, swap-backed pages.
    case tmpfs
    /// A file system on disk: the first write to a page is noted, folios may be large.
    case disk
    /// hugetlbfs.
    case hugetlb
    /// `memfd_secret`: pages that nobody but the process may reach.
    case secret
  }

  /// The host it belongs to.
  public let kernel: HostKernel
  /// A number for people.
  public let id: Int
  /// Which file system it is on.
  public let kind: Kind
  /// All mappings of the file.
  public let mappings = MappingList()
  private let lock = HostMutex()
  /// Held by whoever brings a page in; taken before `lock`.
  private let fillLock = HostMutex()
  private var cache: [UInt64: PFN] = [:]
  private var size: UInt64

  /// A file of `byteCount` bytes without any page yet.
  public init(kernel: HostKernel, kind: Kind, byteCount: UInt64) {
    self.kernel = kernel
    self.kind = kind
    id = kernel.newFileID()
    size = byteCount
  }

  /// The length in bytes.
  public var byteCount: UInt64 { lock.withLock { size } }

  /// Whether the file system wants to know of the first write to a page (`page_mkwrite`).
  public var notifiesWrites: Bool { kind == .disk }

  /// Frames of one folio of the cache: 512 in hugetlb files, more than 1 on disks with large folios.
  var folioOrder: Int {
    switch kind {
    case .tmpfs, .secret: 0
    case .disk: kernel.behaviour.diskFolioOrder
    case .hugetlb: Order.pageblock
    }
  }

  /// The cached frame of a page of the file, or nil.
  public func cached(_ page: UInt64) -> PFN? { lock.withLock { cache[page] } }

  /// Whether a page lies inside the file.
  func contains(_ page: UInt64) -> Bool { page << 12 < lock.withLock { size } }

  /// The pages of the cache.
  public var cachedPageCount: Int { lock.withLock { cache.count } }

  /// The frame of a page, brought into the cache if it is not there; nil where there is no memory.
  /// `isWrite` says that write(2) asks, which marks an old page accessed and a new one referenced.
  func frame(_ page: UInt64, forWriteCall: Bool = false, on cpu: inout CPU) -> PFN? {
    if let there = cached(page) {
      // tmpfs counts a write as an access; file systems on disk do not.
      if forWriteCall, kind == .tmpfs { kernel.markAccessed(there, on: &cpu) }
      return there
    }
    // One fault at a time brings pages in; who waited finds the page there.
    fillLock.lock()
    defer { fillLock.unlock() }
    if let there = cached(page) { return there }
    switch kind {
    case .hugetlb: return addHugePage(page)
    case .tmpfs, .disk, .secret: return addFolio(page, forWriteCall: forWriteCall, on: &cpu)
    }
  }

  private func addHugePage(_ page: UInt64) -> PFN? {
    guard let head = kernel.takeHugePage(.pageCache(file: id)) else { return nil }
    kernel.zero(head, order: Order.pageblock)
    kernel.machine.insertFlags([.uptodate, .dirty], of: head)
    kernel.machine.setMapping(mappingWord, of: head)
    let first = page & ~511
    lock.withLock { for offset in 0..<512 { cache[first + UInt64(offset)] = head + offset } }
    return lock.withLock { cache[page] }
  }

  private func addFolio(_ page: UInt64, forWriteCall: Bool, on cpu: inout CPU) -> PFN? {
    // The largest folio that is aligned in the file and lies inside it.
    var order = folioOrder
    while order > 0 {
      let first = firstPage(page, order)
      if (first + (1 << UInt64(order))) << 12 <= byteCount { break }
      order -= 1
    }
    let gfp: GFP = order > 0 ? [.highUserMovable, .comp, .zero] : [.highUserMovable, .zero]
    guard let head = try? cpu.allocatePages(order: order, gfp: gfp) else { return nil }
    let pages = 1 << order
    let holder = Holder.pageCache(file: id)
    // The cache holds one reference per page; the first is the allocation's own.
    kernel.ledger?.get(head, holder, count: pages)
    if pages > 1 { kernel.frames.add(head, Int32(pages - 1)) }
    let isSwapBacked = kind == .tmpfs
    kernel.machine.insertFlags(
      isSwapBacked ? [.uptodate, .swapbacked] : [.uptodate], of: head)
    if forWriteCall, isSwapBacked { kernel.machine.insertFlags(.referenced, of: head) }
    kernel.machine.setMapping(mappingWord, of: head)
    let first = firstPage(page, order)
    lock.withLock { for offset in 0..<pages { cache[first + UInt64(offset)] = head + offset } }
    kernel.addToLRU(head, on: &cpu)
    return head + Int(page - first)
  }

  /// The first page of the aligned folio around a page.
  private func firstPage(_ page: UInt64, _ order: Int) -> UInt64 {
    page & ~((1 << UInt64(order)) - 1)
  }

  /// What `mapping` holds in the file's pages: a pointer to its address space, so not 0 and with both low
  /// bits clear. Bit 4 tells secret memory.
  private var mappingWord: UInt64 { UInt64(id) << 12 | (kind == .secret ? 0x10 : 0) }

  /// Fills pages with a byte, as write(2) does, page by page. Throws ENOMEM or ENOSPC.
  public func write(
    pages: Range<UInt64>, pattern: UInt8, on cpu: inout CPU
  ) throws(KernelErrno) {
    lock.withLock { size = max(size, pages.upperBound << 12) }
    for page in pages {
      guard let pfn = frame(page, forWriteCall: true, on: &cpu) else { throw .enospc }
      kernel.setDirty(pfn)
      kernel.bytes(of: pfn)?.initializeMemory(as: UInt8.self, repeating: pattern, count: 4096)
    }
  }

  /// Writes the dirty pages back: they become clean. Mirrors `fsync` on a disk.
  public func sync() {
    guard kind == .disk else { return }
    let heads = lock.withLock { Set(cache.values.map { kernel.frames.compoundHead(of: $0) }) }
    for head in heads { kernel.machine.removeFlags(.dirty, of: head) }
  }

  /// Forbids writing for good. EBUSY where a page has a reference that neither the cache nor a mapping
  /// explains: somebody may still write through it. Mirrors F_ADD_SEALS with F_SEAL_WRITE on a file
  /// without shared writable mappings.
  public func sealWrites(on cpu: inout CPU) throws(KernelErrno) {
    kernel.drainLRUBatches(on: &cpu)
    let pages = lock.withLock { Set(cache.values.map { kernel.frames.compoundHead(of: $0) }) }
    for head in pages {
      let order = kernel.frames.compoundOrder(head)
      var explained = Int32(1 << order) + kernel.machine.details(of: head).wholeMapcount
      for index in 0..<(1 << order) {
        explained += kernel.machine.details(of: head + index).mapcount + 1
      }
      if kernel.frames.refcount(head) != explained { throw .ebusy }
    }
  }

  /// Cuts the file: mappings of the pages behind the end go first, then the pages. Mirrors
  /// `truncate_pagecache`.
  public func truncate(to byteCount: UInt64, on cpu: inout CPU) {
    let first = (byteCount + 4095) >> 12
    lock.withLock { size = byteCount }
    mappings.unmap(pages: first..<(1 << 52), on: &cpu)
    drop(from: first, on: &cpu)
  }

  /// The file goes for good: all its pages leave the cache. Its mappings must be gone.
  public func discard(on cpu: inout CPU) { drop(from: 0, on: &cpu) }

  private func drop(from first: UInt64, on cpu: inout CPU) {
    let gone = lock.withLock { () -> [PFN] in
      let pages = cache.keys.filter { $0 >= first }.sorted()
      let frames = pages.compactMap { cache[$0] }
      for page in pages { cache[page] = nil }
      return frames
    }
    let holder = Holder.pageCache(file: id)
    if kind == .hugetlb {
      for pfn in gone where kernel.frames.isCompoundHead(pfn) {
        kernel.machine.removeFlags([.dirty, .uptodate], of: pfn)
        kernel.put(pfn, holder, on: &cpu)
      }
      return
    }
    for pfn in gone where !kernel.frames.isCompoundTail(pfn) {
      kernel.machine.setMapping(0, of: pfn)
      kernel.machine.removeFlags(.dirty, of: pfn)
    }
    kernel.release(gone.map { (pfn: $0, holder: holder) }, on: &cpu)
  }
}
