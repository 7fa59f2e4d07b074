import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// How drivers put pages into areas, and what each way refuses: specification 1.3.
@Suite struct DriverKitTests {
  /// A driver whose `mmap` is the test's.
  private final class Scripted: HostDriver, @unchecked Sendable {
    // Sendable: one thread uses it.
    let name = "scripted"
    let mappings = MappingList()
    var onMap: (VMA, HostProcess, inout CPU) throws(KernelErrno) -> Void = {
      (_, _, _) throws(KernelErrno) in
    }
    private(set) var area: VMA?

    func mmap(_ area: VMA, in process: HostProcess, on cpu: inout CPU) throws(KernelErrno) {
      self.area = area
      try onMap(area, process, &cpu)
    }
    func fault(
      _ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU
    ) -> DriverAnswer { .sigbus }
  }

  /// An area of a scripted driver.
  private func area(
    _ host: HostFixture, pages: Int, isShared: Bool = true, flags: VMAFlags = []
  ) throws -> VMA {
    let driver = Scripted()
    _ = try host.map(
      pages: pages, isShared: isShared, backing: .driver(driver), extra: flags)
    return try #require(driver.area)
  }

  @Test func `remap_pfn_range makes special entries, sets flags and counts nothing`() throws {
    let host = try HostFixture()
    let first = try host.allocate(order: 1)
    let area = try area(host, pages: 2)
    try host.process.remapPFNRange(area, at: area.start, pfn: first, pageCount: 2)
    #expect(area.flags.isSuperset(of: [.io, .pfnmap, .dontExpand, .dontDump]))
    for index in 0..<2 {
      let entry = try host.entry(area.start + UInt64(index) << 12)
      #expect(entry.pfn == first + index)
      #expect(entry.isSpecial && entry.isWritable && entry.isYoung && !entry.isDirty)
    }
    #expect(host.machine.frames.refcount(first) == 1)
    #expect(host.machine.frames.refcount(first + 1) == 0)
    #expect(host.machine.mapcount(of: first) == 0)
    try host.unmap(area.start, pages: 2)
    #expect(host.machine.frames.refcount(first) == 1 && host.recorder.accessed == [])
    #expect(!host.has(first, .referenced))
    host.cpu.freePages(first, order: 1)
    #expect(host.machine.findings.total == 0)
  }

  @Test func `remap_pfn_range of a private area covers all of it or nothing`() throws {
    let host = try HostFixture()
    let first = try host.allocate(order: 1)
    let area = try area(host, pages: 2, isShared: false)
    #expect(throws: KernelErrno.einval) {
      try host.process.remapPFNRange(area, at: area.start, pfn: first, pageCount: 1)
    }
    #expect(throws: KernelErrno.einval) {
      try host.process.remapPFNRange(area, at: area.start + 4096, pfn: first, pageCount: 1)
    }
    try host.process.remapPFNRange(area, at: area.start, pfn: first, pageCount: 2)
    #expect(try !host.entry(area.start).isWritable)
    // A write makes a copy, an ordinary page of the process in an area of the driver.
    try host.write(area.start, 4)
    #expect(try host.entry(area.start).pfn != first && !host.entry(area.start).isSpecial)
    #expect(host.notifier.starts == [area.start..<area.start + 4096])
    #expect(host.machine.frames.refcount(first) == 1)
    #expect(throws: KernelErrno.einval) {
      try host.process.remapPFNRange(area, at: area.start, pfn: first, pageCount: 2)
    }
  }

  @Test func `The remapping driver maps a private area in one piece`() throws {
    let host = try HostFixture()
    let first = try host.allocate(order: 1)
    let hva = try host.driver([first, first + 1], .remap, isShared: false).hva
    #expect(try host.frame(hva + 4096) == first + 1)
  }

  @Test func `vmf_insert_pfn wants VM_PFNMAP or VM_MIXEDMAP, and no page in the latter`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    let device = PFN(0x10_0000)
    func insert(_ area: VMA, _ pfn: PFN) throws(KernelErrno) -> Bool {
      try host.process.insertPFN(area, at: area.start, pfn: pfn)
    }
    let bare = try area(host, pages: 1)
    #expect(throws: KernelErrno.einval) { try insert(bare, page) }
    let both = try area(host, pages: 1, flags: [.pfnmap, .mixedmap])
    #expect(throws: KernelErrno.einval) { try insert(both, page) }
    let mixed = try area(host, pages: 1, flags: .mixedmap)
    #expect(throws: KernelErrno.einval) { try insert(mixed, page) }
    #expect(try insert(mixed, device))
    let copied = try area(host, pages: 1, isShared: false, flags: .pfnmap)
    #expect(throws: KernelErrno.einval) { try insert(copied, page) }
    let mapped = try area(host, pages: 1, flags: .pfnmap)
    #expect(throws: KernelErrno.efault) {
      try host.process.insertPFN(mapped, at: mapped.end, pfn: page)
    }
    #expect(try insert(mapped, page))
    // What is there stays.
    #expect(try !insert(mapped, device))
    #expect(try host.entry(mapped.start).pfn == page)
    #expect(host.count(page) == 1)
    let other = try area(host, pages: 1, flags: .pfnmap)
    #expect(throws: KernelErrno.einval) {
      try host.process.insertMixed(other, at: other.start, pfn: page)
    }
    let special = try area(host, pages: 1, flags: .mixedmap)
    #expect(try host.process.insertMixed(special, at: special.start, pfn: page))
    #expect(try host.entry(special.start).isSpecial && host.count(page) == 1)
  }

  @Test func `vm_insert_page takes one reference and makes an ordinary entry`() throws {
    let host = try HostFixture()
    let head = try host.allocate(order: 1, compound: true)
    let area = try area(host, pages: 2)
    try host.process.insertPage(area, at: area.start + 4096, page: head + 1, on: &host.cpu)
    #expect(area.flags.contains(.mixedmap) && !area.flags.contains(.pfnmap))
    let entry = try host.entry(area.start + 4096)
    #expect(!entry.isSpecial && entry.isWritable && !entry.isDirty && entry.isYoung)
    #expect(host.count(head) == 2 && host.machine.mapcount(of: head + 1) == 1)
    #expect(throws: KernelErrno.ebusy) {
      try host.process.insertPage(area, at: area.start + 4096, page: head, on: &host.cpu)
    }
    #expect(host.count(head) == 2)
    try host.unmap(area.start, pages: 2)
    // No guest anywhere: the unmap itself marks the page.
    #expect(host.count(head) == 1 && host.has(head, .referenced))
  }

  @Test func `vm_insert_page refuses what has no count, an owner's type or no page`() throws {
    let host = try HostFixture()
    let block = try host.allocate(order: 1)
    let anonymous = try host.map(pages: 1)
    try host.write(anonymous)
    let slab = try host.allocate()
    host.machine.insertFlags(.slab, of: slab)
    let free = try host.allocate(order: 4)
    host.cpu.freePages(free, order: 4)
    host.machine.frames.setRefcount(free, 1)
    let area = try area(host, pages: 1)
    for page in [block + 1, try host.frame(anonymous), slab, free, PFN(0x10_0000)] {
      #expect(throws: KernelErrno.einval, "frame \(page)") {
        try host.process.insertPage(area, at: area.start, page: page, on: &host.cpu)
      }
    }
    host.machine.frames.setRefcount(free, 0)
    #expect(throws: KernelErrno.efault) {
      try host.process.insertPage(area, at: area.end, page: block, on: &host.cpu)
    }
    let mapped = try self.area(host, pages: 1, flags: .pfnmap)
    #expect(throws: KernelErrno.einval) {
      try host.process.insertPage(mapped, at: mapped.start, page: block, on: &host.cpu)
    }
    #expect(host.process.frame(at: area.start) == nil && host.count(block) == 1)
    // The driver of that style goes on with the other pages and answers SIGBUS there.
    let (driver, hva) = try host.driver([block, block + 1], .insertPage)
    #expect(driver.insertionErrors == [nil, .einval])
    #expect(throws: KernelErrno.efault) { try host.read(hva + 4096) }
    host.machine.removeFlags(.slab, of: slab)
  }

  @Test func `Huge entries want their alignment, VM_PFNMAP and an empty place`() throws {
    let host = try HostFixture(memory: .mib(32))
    let block = try host.allocate(order: 9)
    let area = try area(host, pages: 1024, flags: .pfnmap)
    func insert(_ address: UInt64, _ pfn: PFN, _ level: Int = 2) throws(KernelErrno) {
      try host.process.insertHugePFN(area, at: address, pfn: pfn, level: level)
    }
    #expect(throws: KernelErrno.einval) { try insert(area.start, block, 1) }
    #expect(throws: KernelErrno.einval) { try insert(area.start + 4096, block) }
    #expect(throws: KernelErrno.einval) { try insert(area.start, block + 1) }
    #expect(throws: KernelErrno.einval) { try insert(area.end, block) }
    let plain = try self.area(host, pages: 512)
    #expect(throws: KernelErrno.einval) {
      try host.process.insertHugePFN(plain, at: plain.start, pfn: block, level: 2)
    }
    try insert(area.start, block)
    #expect(host.level(area.start + 0x5000) == 2)
    #expect(try host.frame(area.start + 0x5000) == block + 5)
    #expect(throws: KernelErrno.ebusy) { try insert(area.start, block) }
    #expect(host.count(block) == 1)
    try host.unmap(area.start, pages: 1024)
    #expect(host.count(block) == 1 && host.recorder.accessed == [])
  }

  @Test func `The page of a fault handler brings its own reference`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    let shared = try host.driver([page], .faultPage).hva
    #expect(host.count(page) == 1)
    _ = try host.read(shared)
    #expect(host.count(page) == 2 && host.machine.mapcount(of: page) == 1)
    #expect(try !host.entry(shared).isSpecial)
    let copied = try host.driver([page], .faultPage, isShared: false).hva
    try host.write(copied, 1)
    #expect(try host.frame(copied) != page && host.count(page) == 2)
    #expect(host.notifier.events == [])
    try host.unmap(shared, pages: 1)
    try host.unmap(copied, pages: 1)
    #expect(host.count(page) == 1 && host.ledger.unmatchedPuts == [])
    host.machine.frames.setRefcount(page, 0)
    let none = try host.driver([page], .faultPage).hva
    #expect(throws: KernelErrno.efault) { try host.read(none) }
    host.machine.frames.setRefcount(page, 1)
  }

  @Test func `unmap_mapping_range clears a part in every process, copies where asked`() throws {
    let host = try HostFixture()
    let block = try host.allocate(order: 2)
    let (driver, hva) = try host.driver((0..<4).map { block + $0 }, .insertPFN)
    let child = host.process.fork(on: &host.cpu)
    for index in 0..<4 {
      _ = try host.read(hva + UInt64(index) << 12)
      _ = try child.read32(hva + UInt64(index) << 12, on: &host.cpu)
    }
    host.notifier.events = []
    driver.mappings.unmap(pages: 1..<3, on: &host.cpu)
    for process in [host.process, child] {
      #expect(
        (0..<4).map { process.frame(at: hva + UInt64($0) << 12) != nil } == [
          true, false, false, true,
        ])
    }
    #expect(host.notifier.starts == [hva + 4096..<hva + 3 << 12] && host.notifier.isBalanced)
    let file = host.file(.tmpfs, pages: 2)
    let mapped = try host.map(file, pages: 2, isShared: false)
    try host.write(mapped)
    _ = try host.read(mapped + 4096)
    file.mappings.unmap(evenCopies: false, on: &host.cpu)
    #expect(host.process.frame(at: mapped) != nil)
    #expect(host.process.frame(at: mapped + 4096) == nil)
    file.mappings.unmap(on: &host.cpu)
    #expect(host.process.frame(at: mapped) == nil)
  }

  @Test func `A driver that refuses leaves no area and no reference behind`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    let driver = Scripted()
    driver.onMap = { area, process, cpu throws(KernelErrno) in
      try process.insertPage(area, at: area.start, page: page, on: &cpu)
      throw .eacces
    }
    #expect(throws: KernelErrno.eacces) {
      try host.map(pages: 1, isShared: true, backing: .driver(driver))
    }
    let area = try #require(driver.area)
    #expect(host.process.areaInfo(at: area.start) == nil)
    #expect(host.process.frame(at: area.start) == nil && host.count(page) == 1)
    #expect(host.ledger.pages == [host.kernel.zeroPage])
    // `remap_pfn_range` over a frame without a page is fine, `vm_insert_page` is not.
    _ = try host.driver([PFN(0x10_0000)], .remap)
    #expect(throws: KernelErrno.einval) { try host.driver([PFN(0x10_0000)], .insertPage) }
  }

  @Test func `Reserved pages keep their count, and leak the block they are freed in`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    RemapDriver.reserve([page], in: host.machine)
    #expect(host.kernel.isReserved(page) && host.count(page) == 1)
    RemapDriver.unreserve([page], in: host.machine)
    host.cpu.freePages(page, order: 0)
    #expect(host.machine.findings.total == 0)
    // The first page of a block is not tested for it, the others are, and a bad one leaks the block.
    let block = try host.allocate(order: 1)
    RemapDriver.reserve([block + 1], in: host.machine)
    host.cpu.freePages(block, order: 1)
    #expect(host.machine.findings.total == 1)
    #expect(host.machine.whereabouts(of: block) == .used)
    #expect(host.kernel.isReserved(block + 1))
  }
}
