import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

/// Pages that get another frame under their process.
@Suite struct MigrationTests {
  private func migrate(_ host: HostFixture, _ hva: UInt64, pages: Int) -> MigrationResult {
    host.process.migrate(host.range(hva, pages: pages), on: &host.cpu)
  }

  private func result(
    moved: Int = 0, busy: Int = 0, notMovable: Int = 0, outOfMemory: Int = 0
  ) -> MigrationResult {
    var result = MigrationResult()
    result.moved = moved
    result.busy = busy
    result.notMovable = notMovable
    result.outOfMemory = outOfMemory
    return result
  }

  /// A host whose pages are all on their lists, with its free pages.
  private func fixture(_ behaviour: HostBehaviour = .linux61, hugePages: Int = 0) throws -> (
    HostFixture, Int64
  ) {
    let host = try HostFixture(behaviour, memory: .mib(32), hugePages: hugePages)
    host.cpu.drainLocalPages()
    return (host, host.machine.freePageCount)
  }

  /// Ends the process and expects that nothing is left behind.
  private func end(_ host: HostFixture, _ before: Int64) {
    host.process.exit(on: &host.cpu)
    host.drain()
    host.kernel.drainLRUBatches(on: &host.other)
    host.cpu.drainLocalPages()
    host.other.drainLocalPages()
    #expect(host.machine.freePageCount == before)
    #expect(host.ledger.pages == [host.kernel.zeroPage])
    #expect(host.ledger.unmatchedPuts == [])
    #expect(host.notifier.isBalanced)
    #expect(host.machine.findings.findings == [])
    #expect(host.machine.invariantViolations() == [])
  }

  @Test func `Contents, rights, marks and books go to the new frame`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 5)
    for page in 0..<4 { try host.write(hva + UInt64(page) << 12 + 8, UInt32(100 + page)) }
    try host.process.protect(host.range(hva + 4096, pages: 1), rights: .read, on: &host.cpu)
    try host.process.protect(host.range(hva + 8192, pages: 1), rights: [], on: &host.cpu)
    _ = host.process.clearYoung(host.range(hva + 3 << 12, pages: 1), on: &host.cpu)
    host.drain()
    let addresses = (0..<4).map { hva + UInt64($0) << 12 }
    let frames = try addresses.map { try host.frame($0) }
    let entries = try addresses.map { try host.entry($0) }
    host.machine.insertFlags([.referenced, .active, .workingset], of: frames[0])
    let flags = frames.map { host.flags($0) }
    host.notifier.events = []
    #expect(migrate(host, hva, pages: 5) == result(moved: 4))
    #expect(host.notifier.starts == addresses.map { $0..<($0 + 4096) })
    #expect(host.notifier.isBalanced)
    for (index, address) in addresses.enumerated() {
      let frame = try host.frame(address)
      #expect(frame != frames[index])
      let entry = try host.entry(address)
      let moved = entry.pfn.physicalAddress ^ entries[index].pfn.physicalAddress
      #expect(entry.rawValue ^ entries[index].rawValue == moved)
      // The count, and the LRU batch.
      #expect(host.count(frame) == 2 && host.machine.mapcount(of: frame) == 1)
      #expect(
        host.ledger.holders(of: frame).map(\.holder)
          == [
            .lruBatch(cpu: 0), .mapping(process: host.process.id, address: address),
          ].sorted { $0.description < $1.description })
    }
    // An old frame serves the next page at once; that of the last page is free.
    #expect(host.count(frames[3]) == 0 && host.ledger.count(of: frames[3]) == 0)
    #expect(host.machine.details(of: frames[3]) == PageDetails())
    host.drain()
    for index in 0..<4 { #expect(try host.flags(host.frame(addresses[index])) == flags[index]) }
    try host.process.protect(host.range(hva, pages: 5), rights: [.read, .write], on: &host.cpu)
    for page in 0..<4 { #expect(try host.read(addresses[page] + 8) == UInt32(100 + page)) }
    #expect(migrate(host, hva, pages: 5) == result(moved: 4))
    for page in 0..<4 { #expect(try host.read(addresses[page] + 8) == UInt32(100 + page)) }
    end(host, before)
  }

  @Test func `While the entry is out, no lookup finds the page`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 1)
    let frame = try host.frame(hva)
    // A lookup between the notifier's start and the copy: it has its reference in time.
    host.notifier.onStart = { _ in
      let holder = Holder.pin("late")
      #expect(host.process.getUserPageFast(hva, .get, holder, on: &host.other) == frame)
    }
    #expect(migrate(host, hva, pages: 1) == result(busy: 1))
    #expect(try host.frame(hva) == frame)
    host.notifier.onStart = nil
    // And one behind it gets the new frame.
    host.notifier.onEnd = { _ in
      let found = host.process.getUserPageFast(hva, .get, Holder.pin("end"), on: &host.other)
      #expect(found != nil && found != frame)
    }
    host.process.release(frame, .get, Holder.pin("late"), on: &host.other)
    #expect(migrate(host, hva, pages: 1) == result(moved: 1))
    host.notifier.onEnd = nil
    host.process.release(try host.frame(hva), .get, Holder.pin("end"), on: &host.other)
    end(host, before)
  }

  @Test(arguments: [GUPFlags.get, [.pin, .write], .pin])
  func `A page that somebody holds is busy, and nothing about it changes`(_ flags: GUPFlags) throws
  {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 11)
    host.drain()
    let holder = Holder.pin("driver")
    guard case .page(let frame) = host.process.getUserPage(hva, flags, holder, on: &host.cpu) else {
      Issue.record("no page")
      return
    }
    host.cpu.drainLocalPages()
    let free = host.machine.freePageCount
    let entry = try host.entry(hva)
    let count = host.count(frame)
    let details = host.machine.details(of: frame)
    #expect(migrate(host, hva, pages: 1) == result(busy: 1))
    #expect(try host.entry(hva) == entry)
    #expect(host.count(frame) == count && host.machine.details(of: frame) == details)
    host.cpu.drainLocalPages()
    #expect(host.machine.freePageCount == free)
    host.process.release(frame, flags, holder, on: &host.cpu)
    #expect(migrate(host, hva, pages: 1) == result(moved: 1))
    #expect(try host.frame(hva) != frame)
    #expect(try host.read(hva) == 11)
    end(host, before)
  }

  @Test func `A page in another CPU's LRU batch is busy until that is drained`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 1)
    try host.process.write32(hva, 3, on: &host.other)
    #expect(migrate(host, hva, pages: 1) == result(busy: 1))
    host.kernel.drainLRUBatches(on: &host.other)
    #expect(migrate(host, hva, pages: 1) == result(moved: 1))
    #expect(try host.read(hva) == 3)
    end(host, before)
  }

  @Test func `A page that fork shares is busy and lost by nobody`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 2)
    try host.write(hva, 21)
    try host.write(hva + 4096, 22)
    let child = host.process.fork(on: &host.cpu)
    let frame = try host.frame(hva)
    host.notifier.events = []
    #expect(migrate(host, hva, pages: 2) == result(busy: 2))
    #expect(child.migrate(host.range(hva, pages: 2), on: &host.cpu) == result(busy: 2))
    #expect(host.notifier.events == [])
    #expect(try host.frame(hva) == frame && child.frame(at: hva) == frame)
    // The parent's copy and the page that is the child's alone now can be moved.
    try host.write(hva, 31)
    #expect(migrate(host, hva, pages: 2) == result(moved: 1, busy: 1))
    #expect(child.migrate(host.range(hva, pages: 2), on: &host.cpu) == result(moved: 1, busy: 1))
    #expect(try host.read(hva) == 31 && child.read32(hva, on: &host.cpu) == 21)
    try child.write32(hva + 4096, 32, on: &host.cpu)
    #expect(try host.read(hva + 4096) == 22)
    child.exit(on: &host.cpu)
    #expect(migrate(host, hva, pages: 2) == result(moved: 2))
    #expect(try host.read(hva) == 31 && host.read(hva + 4096) == 22)
    end(host, before)
  }

  @Test func `A read-only page that became exclusive stays writable without a copy`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 1)
    let child = host.process.fork(on: &host.cpu)
    child.exit(on: &host.cpu)
    #expect(migrate(host, hva, pages: 1) == result(moved: 1))
    #expect(try !host.entry(hva).isWritable)
    host.drain()
    let frame = try host.frame(hva)
    try host.write(hva, 2)
    #expect(try host.frame(hva) == frame && host.read(hva) == 2)
    end(host, before)
  }

  @Test func `Zero page, drivers' pages, files and huge pages are not movable`() throws {
    let (host, before) = try fixture(
      HostBehaviour(transparentHugePages: .madvise), hugePages: 1)
    let zero = try host.map(pages: 2)
    #expect(try host.read(zero) == 0)
    let pages = [try host.allocate(), try host.allocate()]
    var hvas: [UInt64] = []
    for style in [RemapDriver.Style.remap, .insertPFN, .insertMixed, .insertPage, .faultPage] {
      let hva = try host.driver(pages, style).hva
      _ = try host.read(hva)
      hvas.append(hva)
    }
    let file = host.file(.tmpfs, pages: 1)
    hvas.append(try host.map(file, pages: 1, isShared: true))
    _ = try host.read(hvas[hvas.count - 1])
    let huge = try host.map(pages: 512, extra: .hugePage)
    try host.write(huge)
    let pool = try host.map(pages: 512, extra: .hugetlb)
    try host.write(pool)
    host.notifier.events = []
    let frames = try (hvas + [zero, huge, pool]).map { try host.frame($0) }
    // The second page is absent and not counted.
    #expect(migrate(host, zero, pages: 2) == result(notMovable: 1))
    for hva in hvas {
      let entries = [hva, hva + 4096].filter { host.process.entry(at: $0) != nil }.count
      #expect(migrate(host, hva, pages: 2) == result(notMovable: entries))
    }
    #expect(migrate(host, huge, pages: 512) == result(notMovable: 1))
    #expect(migrate(host, pool, pages: 512) == result(notMovable: 1))
    // Split into small entries, its pieces are still parts of one page.
    try host.process.protect(host.range(huge, pages: 1), rights: .read, on: &host.cpu)
    #expect(host.level(huge) == 1)
    host.notifier.events = []
    #expect(migrate(host, huge, pages: 512) == result(notMovable: 512))
    #expect(host.notifier.events == [])
    #expect(try (hvas + [zero, huge, pool]).map { try host.frame($0) } == frames)
    host.process.exit(on: &host.cpu)
    file.discard(on: &host.cpu)
    for page in pages { host.cpu.putPage(page) }
    #expect(host.kernel.freeHugePageCount == 1)
    end(host, before)
  }

  @Test func `The copies of a private mapping move, the file's pages stay`() throws {
    let (host, before) = try fixture()
    let file = host.file(.tmpfs, pages: 4)
    try file.write(pages: 0..<4, pattern: 0x5a, on: &host.cpu)
    let hva = try host.map(file, pages: 4, isShared: false)
    try host.write(hva + 4096, 77)
    #expect(try host.read(hva) == 0x5a5a_5a5a)
    let present = (0..<4).filter { host.process.entry(at: hva + UInt64($0) << 12) != nil }.count
    #expect(migrate(host, hva, pages: 4) == result(moved: 1, notMovable: present - 1))
    #expect(try host.read(hva + 4096) == 77 && host.read(hva + 4100) == 0x5a5a_5a5a)
    host.process.exit(on: &host.cpu)
    file.discard(on: &host.cpu)
    end(host, before)
  }

  @Test func `Without memory for the copy nothing moves and nothing is lost`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 8)
    for page in 0..<8 { try host.write(hva + UInt64(page) << 12, UInt32(page)) }
    let frames = try (0..<8).map { try host.frame(hva + UInt64($0) << 12) }
    host.notifier.events = []
    host.cpu.failPageAlloc = AllocationFaults(interval: 1, probability: 100, space: 0, times: -1)
    #expect(migrate(host, hva, pages: 8) == result(outOfMemory: 8))
    #expect(host.notifier.events == [])
    #expect(try (0..<8).map { try host.frame(hva + UInt64($0) << 12) } == frames)
    host.cpu.failPageAlloc = AllocationFaults(interval: 2, probability: 100, space: 0, times: -1)
    #expect(migrate(host, hva, pages: 8) == result(moved: 4, outOfMemory: 4))
    for page in 0..<8 { #expect(try host.read(hva + UInt64(page) << 12) == UInt32(page)) }
    host.cpu.failPageAlloc = nil
    end(host, before)
  }

  @Test func `A range of any shape is walked to its end`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 3)
    for page in 0..<3 { try host.write(hva + UInt64(page) << 12, UInt32(page)) }
    let all = UInt64(0)..<(1 << 47)
    #expect(host.process.migrate(all, on: &host.cpu) == result(moved: 3))
    #expect(host.process.migrate(0..<UInt64.max, on: &host.cpu) == result(moved: 3))
    // A range that touches a page covers it.
    #expect(host.process.migrate(hva + 4095..<hva + 4097, on: &host.cpu) == result(moved: 2))
    #expect(host.process.migrate(hva..<hva, on: &host.cpu) == result())
    end(host, before)
  }
}
