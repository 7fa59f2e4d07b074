import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Faults on small pages, copies, system calls on areas: specification 1.3.
@Suite struct HostMappingTests {
  @Test func `An anonymous read maps the zero page, special and read-only, without a count`() throws
  {
    let host = try HostFixture()
    let before = host.machine.freePageCount
    let hva = try host.map(pages: 1)
    #expect(try host.read(hva) == 0)
    let entry = try host.entry(hva)
    #expect(entry.pfn == host.kernel.zeroPage)
    #expect(entry.isSpecial && !entry.isWritable && entry.isYoung && !entry.isDirty)
    #expect(host.count(host.kernel.zeroPage) == 1)
    #expect(host.machine.freePageCount == before)
    #expect(host.notifier.events == [])
  }

  @Test func `An anonymous write brings a page at once, dirty and without a notifier`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 42)
    let (entry, page) = (try host.entry(hva), try host.frame(hva))
    #expect(!entry.isSpecial && entry.isWritable && entry.isYoung && entry.isDirty)
    // One reference of the entry, one of the batch on the way to the LRU list.
    #expect(host.count(page) == 2)
    host.drain()
    #expect(host.count(page) == 1)
    #expect(host.machine.mapcount(of: page) == 1)
    #expect(host.has(page, [.lru, .uptodate, .swapbacked, .anonExclusive]))
    #expect(try host.read(hva) == 42)
    #expect(host.notifier.events == [])
  }

  @Test func `A write over the zero page is copied between start and end`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    _ = try host.read(hva)
    host.notifier.onStart = { _ in
      #expect(host.process.frame(at: hva) == host.kernel.zeroPage)
    }
    host.notifier.onEnd = { _ in #expect(host.process.frame(at: hva) != host.kernel.zeroPage) }
    try host.write(hva, 1)
    #expect(host.notifier.events == [.start(hva..<hva + 4096), .end(hva..<hva + 4096)])
    #expect(host.count(host.kernel.zeroPage) == 1)
  }

  @Test func `After a fork a write copies with a notifier, and the last user writes in place`()
    throws
  {
    let host = try HostFixture()
    let hva = try host.map(pages: 2)
    try host.write(hva, 5)
    try host.write(hva + 4096, 6)
    host.drain()
    let page = try host.frame(hva)
    let child = host.process.fork(on: &host.cpu)
    #expect(host.notifier.starts == [host.range(hva, pages: 2)] && host.notifier.isBalanced)
    #expect(host.count(page) == 2 && host.machine.mapcount(of: page) == 2)
    #expect(!host.has(page, .anonExclusive))
    #expect(try !host.entry(hva).isWritable)
    #expect(child.entry(at: hva)?.entry.isWritable == false)
    host.notifier.events = []
    try host.write(hva, 50)
    #expect(host.notifier.starts == [hva..<hva + 4096])
    #expect(try host.frame(hva) != page)
    #expect(try child.read32(hva, on: &host.cpu) == 5)
    #expect(host.count(page) == 1)
    // The child's page is its own now: written in place.
    try child.write32(hva, 51, on: &host.cpu)
    #expect(child.frame(at: hva) == page)
    child.exit(on: &host.cpu)
    let second = try host.frame(hva + 4096)
    host.notifier.events = []
    try host.write(hva + 4096, 60)
    #expect(try host.frame(hva + 4096) == second)
    #expect(host.notifier.events == [])
    #expect(host.has(second, .anonExclusive))
  }

  @Test func `Fork and exit of both give everything back`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 1)
    let before = host.machine.freePageCount
    let file = host.file(.tmpfs, pages: 4)
    let anonymous = try host.map(pages: 8)
    let shared = try host.map(file, pages: 4, isShared: true)
    let huge = try host.map(pages: 512, extra: .hugetlb)
    for index in 0..<8 { try host.write(anonymous + UInt64(index) << 12) }
    for index in 0..<4 { try host.write(shared + UInt64(index) << 12) }
    try host.write(huge)
    let child = host.process.fork(on: &host.cpu)
    for index in 0..<4 { try child.write32(anonymous + UInt64(index) << 12, 1, on: &host.cpu) }
    _ = try child.read32(shared, on: &host.cpu)
    #expect(host.kernel.freeHugePageCount == 0)
    host.process.exit(on: &host.cpu)
    #expect(host.notifier.events.last == .release)
    child.exit(on: &host.cpu)
    file.discard(on: &host.cpu)
    host.drain()
    #expect(host.machine.freePageCount == before)
    #expect(host.kernel.freeHugePageCount == 1)
    #expect(host.ledger.pages == [host.kernel.zeroPage])
    #expect(host.ledger.unmatchedPuts == [])
    #expect(host.machine.invariantViolations() == [] && host.machine.findings.total == 0)
  }

  @Test func `A private file page is copied at once where nothing was mapped`() throws {
    let host = try HostFixture()
    let file = host.file(.tmpfs, pages: 2)
    try file.write(pages: 0..<2, pattern: 0x11, on: &host.cpu)
    let hva = try host.map(file, pages: 2, isShared: false)
    try host.write(hva, 1)
    #expect(host.notifier.events == [])
    #expect(try host.frame(hva) != file.cached(0))
    _ = try host.read(hva + 4096)
    let cached = try #require(file.cached(1))
    #expect(try host.frame(hva + 4096) == cached)
    #expect(try !host.entry(hva + 4096).isWritable)
    try host.write(hva + 4096, 2)
    #expect(host.notifier.starts == [hva + 4096..<hva + 8192])
    #expect(host.machine.mapcount(of: cached) == 0)
    #expect(try host.read(hva + 4100) == 0x1111_1111)
  }

  @Test func `A shared read maps writable on tmpfs and read-only on a disk`() throws {
    let host = try HostFixture()
    for (kind, isWritable) in [(HostFile.Kind.tmpfs, true), (.disk, false)] {
      let file = host.file(kind, pages: 1)
      let hva = try host.map(file, pages: 1, isShared: true)
      _ = try host.read(hva)
      let page = try host.frame(hva)
      #expect(try host.entry(hva).isWritable == isWritable)
      #expect(try !host.entry(hva).isDirty)
      #expect(!host.has(page, .dirty))
      try host.write(hva)
      #expect(try host.frame(hva) == page && host.entry(hva).isWritable)
      // A fault that makes an entry writable marks the page; a plain write only the entry.
      #expect(host.has(page, .dirty) == !isWritable)
      #expect(try host.entry(hva).isDirty)
    }
    let file = host.file(.tmpfs, pages: 1)
    let hva = try host.map(file, pages: 1, isShared: true)
    try host.write(hva)
    #expect(host.has(try host.frame(hva), .dirty))
    #expect(host.notifier.events == [])
  }

  @Test func `A read fault maps the cached pages of its aligned window of 16`() throws {
    let host = try HostFixture()
    let file = host.file(.disk, pages: 40)
    try file.write(pages: 3..<34, pattern: 1, on: &host.cpu)
    // The area begins at page 2 of the file; windows are of addresses.
    let hva = try host.map(
      pages: 38, rights: .read, isShared: true, backing: .file(file), pageOffset: 2)
    _ = try host.read(hva + 20 << 12)
    let mapped = (0..<38).filter { host.process.frame(at: hva + UInt64($0) << 12) != nil }
    #expect(mapped == Array(16..<32))
    for index in mapped {
      let entry = try host.entry(hva + UInt64(index) << 12)
      #expect(entry.isYoung && !entry.isDirty)
      #expect(entry.pfn == file.cached(UInt64(index + 2)))
    }
    // What is not cached is neither mapped around nor read in: pages 34 and on.
    let cached = file.cachedPageCount
    _ = try host.read(hva + 33 << 12)
    #expect(file.cachedPageCount == cached + 1)
    #expect((32..<38).filter { host.process.frame(at: hva + UInt64($0) << 12) != nil } == [33])
  }

  @Test func `mprotect keeps frame, marks and references, and notifies where something is`() throws
  {
    let host = try HostFixture()
    let hva = try host.map(pages: 4)
    try host.write(hva)
    host.drain()
    let (entry, page) = (try host.entry(hva), try host.frame(hva))
    try host.process.protect(host.range(hva, pages: 1), rights: .read, on: &host.cpu)
    #expect(host.notifier.starts == [hva..<hva + 4096])
    var expected = entry
    expected.isWritable = false
    #expect(try host.entry(hva) == expected)
    try host.process.protect(host.range(hva, pages: 1), rights: [], on: &host.cpu)
    #expect(try host.entry(hva).isProtnone && host.entry(hva).isDirty)
    #expect(throws: KernelErrno.efault) { try host.read(hva) }
    // Exclusive and dirty: writable again without a fault.
    try host.process.protect(host.range(hva, pages: 1), rights: [.read, .write], on: &host.cpu)
    #expect(try host.entry(hva) == entry)
    #expect(host.count(page) == 1 && host.machine.mapcount(of: page) == 1)
    // No table below another range: no notifier.
    let empty = try host.map(pages: 1)
    host.notifier.events = []
    try host.process.protect(host.range(empty, pages: 1), rights: .read, on: &host.cpu)
    #expect(host.notifier.events == [])
    #expect(throws: KernelErrno.enomem) {
      try host.process.protect(0x1000..<0x2000, rights: .read, on: &host.cpu)
    }
    #expect(throws: KernelErrno.einval) {
      try host.process.protect(hva + 1..<hva + 4096, rights: .read, on: &host.cpu)
    }
  }

  @Test func `munmap marks and puts pages of files, and only puts anonymous ones`() throws {
    let host = try HostFixture()
    let file = host.file(.tmpfs, pages: 2)
    let hva = try host.map(file, pages: 2, isShared: true)
    _ = try host.read(hva)
    let clean = try host.frame(hva)
    try host.write(hva + 4096)
    let dirty = try host.frame(hva + 4096)
    host.machine.removeFlags(.dirty, of: dirty)
    let anonymous = try host.map(pages: 1)
    try host.write(anonymous)
    host.drain()
    host.recorder.accessed = []
    #expect(host.count(clean) == 2)
    try host.unmap(hva, pages: 2)
    #expect(host.has(clean, .referenced) && !host.has(clean, .dirty))
    #expect(host.has(dirty, [.referenced, .dirty]))
    #expect(host.recorder.accessed == [clean, dirty])
    #expect(host.count(clean) == 1 && host.machine.mapcount(of: clean) == 0)
    let before = host.machine.freePageCount
    try host.unmap(anonymous, pages: 1)
    #expect(host.machine.freePageCount == before + 1)
    #expect(host.recorder.accessed == [clean, dirty])
    #expect(host.process.areaInfo(at: hva) == nil)
  }

  @Test func `MADV_DONTNEED drops what is there and refuses what it must not touch`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 1)
    let hva = try host.map(pages: 2)
    try host.write(hva, 9)
    try host.process.discard(host.range(hva, pages: 2), on: &host.cpu)
    #expect(host.process.frame(at: hva) == nil)
    #expect(try host.read(hva) == 0)
    #expect(host.notifier.isBalanced && host.notifier.starts == [host.range(hva, pages: 2)])
    // A hole: what is there is dropped all the same.
    try host.write(hva, 9)
    #expect(throws: KernelErrno.enomem) {
      try host.process.discard(hva..<hva + 4 << 12, on: &host.cpu)
    }
    #expect(host.process.frame(at: hva) == nil)
    let mapped = try host.driver([host.allocate()], .remap).hva
    #expect(throws: KernelErrno.einval) {
      try host.process.discard(host.range(mapped, pages: 1), on: &host.cpu)
    }
    #expect(host.process.frame(at: mapped) != nil)
    let locked = try host.map(pages: 1, extra: .locked)
    #expect(throws: KernelErrno.einval) {
      try host.process.discard(host.range(locked, pages: 1), on: &host.cpu)
    }
    let huge = try host.map(pages: 512, extra: .hugetlb)
    try host.write(huge)
    #expect(throws: KernelErrno.einval) {
      try host.process.discard(host.range(huge, pages: 1), on: &host.cpu)
    }
    try host.process.discard(host.range(huge, pages: 512), on: &host.cpu)
    #expect(host.kernel.freeHugePageCount == 1)
  }

  @Test func `mremap moves entries with their marks and notifies the old place`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 3)
    try host.write(hva + 4096, 3)
    host.drain()
    let (entry, page) = (try host.entry(hva + 4096), try host.frame(hva + 4096))
    let there = try host.process.remap(host.range(hva, pages: 3), on: &host.cpu)
    #expect(there != hva)
    #expect(host.notifier.starts == [host.range(hva, pages: 3)])
    #expect(host.process.frame(at: hva + 4096) == nil)
    #expect(try host.entry(there + 4096) == entry)
    #expect(host.count(page) == 1)
    #expect(try host.read(there + 4096) == 3)
    #expect(host.process.areaInfo(at: hva) == nil)
    #expect(throws: KernelErrno.einval) {
      try host.process.remap(host.range(there, pages: 3), to: there + 4096, on: &host.cpu)
    }
    #expect(throws: KernelErrno.efault) {
      try host.process.remap(host.range(hva, pages: 3), on: &host.cpu)
    }
    try host.unmap(there, pages: 3)
    #expect(host.ledger.unmatchedPuts == [] && host.ledger.pages == [host.kernel.zeroPage])
  }

  @Test func `An access outside of any area, or behind a file's end, is EFAULT`() throws {
    let host = try HostFixture()
    #expect(throws: KernelErrno.efault) { try host.read(0x1000) }
    let file = host.file(.tmpfs, pages: 1)
    let hva = try host.map(file, pages: 2, isShared: true)
    _ = try host.read(hva)
    #expect(throws: KernelErrno.efault) { try host.read(hva + 4096) }
    let page = try host.frame(hva)
    file.truncate(to: 0, on: &host.cpu)
    #expect(host.process.frame(at: hva) == nil)
    #expect(throws: KernelErrno.efault) { try host.read(hva) }
    host.drain()
    #expect(host.count(page) == 0)
    #expect(host.notifier.isBalanced && !host.notifier.starts.isEmpty)
  }
}
