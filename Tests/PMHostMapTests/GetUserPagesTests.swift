import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Lookups of user pages: specification 8.
@Suite struct GetUserPagesTests {
  private let holder = Holder.pin("test")

  private func fast(
    _ host: HostFixture, _ hva: UInt64, _ flags: GUPFlags = .get
  ) -> PFN? {
    host.process.getUserPageFast(hva, flags, holder, on: &host.cpu)
  }

  private func slow(
    _ host: HostFixture, _ hva: UInt64, _ flags: GUPFlags = .get
  ) -> HostProcess.LookupResult {
    host.process.getUserPage(hva, flags, holder, on: &host.cpu)
  }

  private func refusal(_ host: HostFixture) -> String? {
    host.recorder.steps.last { $0.hasPrefix("fast GUP: ") }.map { String($0.dropFirst(10)) }
  }

  // MARK: fast

  @Test func `Fast takes a reference, sets "referenced" and neither faults nor looks at the area`()
    throws
  {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    #expect(fast(host, hva) == nil)
    #expect(host.process.frame(at: hva) == nil)
    try host.write(hva)
    host.drain()
    let page = try host.frame(hva)
    #expect(fast(host, hva, [.get, .write]) == page)
    #expect(host.count(page) == 2 && host.has(page, .referenced))
    // No toggle: the mark is set, not counted.
    #expect(fast(host, hva) == page)
    #expect(host.has(page, .referenced) && !host.has(page, .active))
    #expect(host.recorder.accessed == [])
    #expect(host.ledger.holders(of: page).contains { $0.holder == holder && $0.count == 2 })
    host.process.release(page, .get, holder, on: &host.cpu)
    host.process.release(page, .get, holder, on: &host.cpu)
    #expect(host.count(page) == 1)
    // An ordinary entry in a VM_PFNMAP area: the fast way does not care.
    let copied = try host.driver([host.allocate()], .remap, isShared: false).hva
    try host.write(copied)
    #expect(fast(host, copied, [.get, .write]) != nil)
    #expect(slow(host, copied) == .failed(.efault))
  }

  @Test func `Fast refuses in the kernel's order`() throws {
    let host = try HostFixture()
    #expect(fast(host, 0x1000) == nil)
    #expect(refusal(host) == "no entry")

    let hva = try host.map(pages: 1)
    try host.write(hva)
    host.drain()
    let page = try host.frame(hva)
    host.machine.insertFlags(.hwpoison, of: page)
    #expect(fast(host, hva) == nil)
    #expect(refusal(host) == "poisoned")
    host.machine.frames.setRefcount(page, 0)
    #expect(fast(host, hva) == nil)
    #expect(refusal(host) == "the count of the folio is 0")
    try host.process.protect(host.range(hva, pages: 1), rights: .read, on: &host.cpu)
    #expect(fast(host, hva, [.get, .write]) == nil)
    #expect(refusal(host) == "read-only entry")
    try host.process.protect(host.range(hva, pages: 1), rights: [], on: &host.cpu)
    #expect(fast(host, hva, [.get, .write]) == nil)
    #expect(refusal(host) == "PROT_NONE entry")
    host.machine.frames.setRefcount(page, 1)
    #expect(host.count(page) == 1)

    // A frame without a page, special and read-only: first the right, then "special".
    let device = try host.driver([PFN(0x10_0000)], .remap, isShared: false).hva
    #expect(fast(host, device, [.get, .write]) == nil)
    #expect(refusal(host) == "read-only entry")
    #expect(fast(host, device) == nil)
    #expect(refusal(host) == "special entry")

    let secret = try host.map(host.file(.secret, pages: 1), pages: 1, isShared: true)
    try host.write(secret)
    host.drain()
    let before = host.count(try host.frame(secret))
    #expect(fast(host, secret) == nil)
    #expect(host.count(try host.frame(secret)) == before)
  }

  @Test func `Fast pins no page that others share, unless for writing`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva)
    host.drain()
    let page = try host.frame(hva)
    #expect(fast(host, hva, .pin) == page)
    host.process.release(page, .pin, holder, on: &host.cpu)
    let child = host.process.fork(on: &host.cpu)
    #expect(fast(host, hva, .pin) == nil)
    #expect(refusal(host) == "pin of a shared anonymous page")
    #expect(fast(host, hva, .get) == page)
    host.process.release(page, .get, holder, on: &host.cpu)
    #expect(host.count(page) == 2)
    child.exit(on: &host.cpu)
  }

  // MARK: slow

  @Test func `Slow refuses areas by their flags before any look at the entry`() throws {
    let host = try HostFixture()
    #expect(slow(host, 0x1000) == .failed(.efault))
    let mapped = try host.driver([host.allocate()], .remap).hva
    #expect(slow(host, mapped) == .failed(.efault))
    let readOnly = try host.map(pages: 1, rights: .read)
    #expect(slow(host, readOnly, [.get, .write]) == .failed(.efault))
    #expect(host.process.frame(at: readOnly) == nil)
    let writeOnly = try host.map(pages: 1, rights: .write)
    #expect(slow(host, writeOnly) == .failed(.efault))
    #expect(slow(host, writeOnly, [.get, .write]) != .failed(.efault))
    let secret = try host.map(host.file(.secret, pages: 1), pages: 1, isShared: true)
    #expect(slow(host, secret) == .failed(.efault))
    #expect(host.process.frame(at: secret) == nil)
  }

  @Test func `Slow faults pages in and breaks copy-on-write`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 2)
    #expect(slow(host, hva) == .page(host.kernel.zeroPage))
    #expect(host.count(host.kernel.zeroPage) == 2)
    host.process.release(host.kernel.zeroPage, .get, holder, on: &host.cpu)
    guard case .page(let page) = slow(host, hva, [.get, .write]) else {
      return #expect(Bool(false), "no page")
    }
    #expect(page != host.kernel.zeroPage && host.count(host.kernel.zeroPage) == 1)
    #expect(host.notifier.starts == [hva..<hva + 4096])
    #expect(try host.frame(hva) == page)
    #expect(slow(host, hva + 4096, .write) != .failed(.efault))
    // Without a request for pages nothing is taken.
    host.drain()
    #expect(host.count(try host.frame(hva + 4096)) == 1)
  }

  @Test func `Slow says EEXIST for special entries and ENOMEM for pages without a count`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    let special = try host.driver([page], .insertMixed).hva
    #expect(slow(host, special) == .failed(.eexist))
    #expect(slow(host, special, []) == .page(page))
    #expect(host.count(page) == 1)
    let zero = try host.driver([host.kernel.zeroPage], .insertMixed).hva
    #expect(slow(host, zero, [.get, .write]) == .page(host.kernel.zeroPage))
    host.process.release(host.kernel.zeroPage, .get, holder, on: &host.cpu)
    let counted = try host.driver([page], .insertPage).hva
    host.machine.frames.setRefcount(page, 0)
    #expect(slow(host, counted) == .failed(.enomem))
    #expect(slow(host, counted) == .failed(.enomem))
    #expect(host.machine.findings.total == 1)
    host.machine.frames.setRefcount(page, 2)
  }

  @Test func `Slow passes on what the handler says`() throws {
    let host = try HostFixture()
    let file = host.file(.tmpfs, pages: 1)
    let hva = try host.map(file, pages: 2, isShared: true)
    #expect(slow(host, hva + 4096) == .failed(.efault))
    let poisoned = try host.map(pages: 1)
    try host.write(poisoned)
    let page = try host.frame(poisoned)
    host.machine.insertFlags(.hwpoison, of: page)
    #expect(slow(host, poisoned, .get) == .failed(.efault))
    #expect(slow(host, poisoned, [.get, .hwpoison]) == .failed(.ehwpoison))
    host.machine.removeFlags(.hwpoison, of: page)
    let missing = try host.map(pages: 2)
    var answers: [MissingAnswer] = [.page(pattern: 0x21), .signal]
    nonisolated(unsafe) let next = { answers.removeLast() }
    try host.process.registerMissingHandler(
      host.range(missing, pages: 2), on: &host.cpu
    ) { _ in next() }
    #expect(slow(host, missing, [.get, .noWait]) == .wouldBlock)
    #expect(answers.count == 2)
    #expect(slow(host, missing) == .failed(.eintr))
    guard case .page(let brought) = slow(host, missing) else {
      return #expect(Bool(false), "no page")
    }
    host.drain()
    #expect(host.count(brought) == 2 && host.notifier.events == [])
    #expect(try host.read(missing) == 0x2121_2121)
    while (try? host.allocate()) != nil {}
    while (try? host.cpu.allocatePages(gfp: .highUserMovable)) != nil {}
    let hungry = try host.map(pages: 1)
    #expect(slow(host, hungry, [.get, .write]) == .failed(.enomem))
  }

  @Test func `FOLL_TOUCH marks small pages, the entry of a transparent huge one, no pool page`()
    throws
  {
    let host = try HostFixture(
      HostBehaviour(transparentHugePages: .always), memory: .mib(32), hugePages: 1)
    let page = try host.allocate()
    let small = try host.driver([page], .insertPage).hva
    #expect(slow(host, small, [.get, .touch]) == .page(page))
    #expect(host.has(page, .referenced) && !host.has(page, .dirty))
    #expect(slow(host, small, [.get, .touch, .write]) == .page(page))
    #expect(host.has(page, .dirty))
    #expect(host.recorder.accessed == [page, page])
    let clean = try host.allocate()
    let written = try host.driver([clean], .insertPage).hva
    try host.write(written)
    // The entry is dirty: the page's own mark is left to the unmap.
    #expect(slow(host, written, [.get, .touch, .write]) == .page(clean))
    #expect(!host.has(clean, .dirty))

    let huge = try host.map(pages: 512)
    try host.write(huge)
    _ = host.process.clearYoung(host.range(huge, pages: 512), on: &host.cpu)
    host.recorder.accessed = []
    #expect(try slow(host, huge + 4096, [.get, .touch]) == .page(host.frame(huge) + 1))
    #expect(try host.entry(huge).isYoung)
    let pool = try host.map(pages: 512, extra: .hugetlb)
    try host.write(pool)
    _ = host.process.clearYoung(host.range(pool, pages: 512), on: &host.cpu)
    #expect(try slow(host, pool + 4096, [.get, .touch]) == .page(host.frame(pool) + 1))
    #expect(try !host.entry(pool).isYoung)
    #expect(host.recorder.accessed == [])
    // The shared zero page is marked like any other.
    let zero = try host.driver([host.kernel.zeroPage], .insertMixed).hva
    #expect(slow(host, zero, [.get, .touch]) == .page(host.kernel.zeroPage))
    #expect(host.has(host.kernel.zeroPage, .referenced))
  }

  // MARK: pins

  @Test(arguments: [false, true]) func `A pin is 1024 references of a small page`(
    _ isFast: Bool
  ) throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva)
    host.drain()
    let page = try host.frame(hva)
    if isFast {
      #expect(fast(host, hva, [.pin, .write]) == page)
    } else {
      #expect(slow(host, hva, [.pin, .write]) == .page(page))
    }
    #expect(host.count(page) == 1025)
    #expect(host.machine.details(of: page).pincount == 0)
    #expect(host.process.mayBePinned(page) && host.process.hasPinned)
    #expect(host.ledger.holders(of: page).contains { $0.holder == holder && $0.count == 1024 })
    host.process.release(page, .pin, holder, on: &host.cpu)
    #expect(host.count(page) == 1 && !host.process.mayBePinned(page))
  }

  @Test(arguments: [false, true]) func `A pin of a large folio is one reference and one pin`(
    _ isFast: Bool
  ) throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva)
    let head = try host.frame(hva)
    for index in 0..<3 {
      let address = hva + UInt64(index) << 12
      if isFast {
        #expect(fast(host, address, [.pin, .write]) == head + index)
      } else {
        #expect(slow(host, address, [.pin, .write]) == .page(head + index))
      }
    }
    #expect(host.count(head) == 4 && host.machine.details(of: head).pincount == 3)
    for index in 0..<3 { host.process.release(head + index, .pin, holder, on: &host.cpu) }
    #expect(host.count(head) == 1 && host.machine.details(of: head).pincount == 0)
  }

  @Test func `A pin of the zero page counts nothing, a reference does`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    let zero = host.kernel.zeroPage
    #expect(slow(host, hva, .pin) == .page(zero))
    #expect(host.count(zero) == 1)
    host.process.release(zero, .pin, holder, on: &host.cpu)
    #expect(host.count(zero) == 1)
    #expect(slow(host, hva, .get) == .page(zero))
    #expect(host.count(zero) == 2)
    host.process.release(zero, .get, holder, on: &host.cpu)
    #expect(host.count(zero) == 1)
  }

  @Test func `A fork copies pinned pages, so that the pin stays with the parent's`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 2)
    try host.write(hva, 1)
    try host.write(hva + 4096, 2)
    host.drain()
    let (pinned, plain) = (try host.frame(hva), try host.frame(hva + 4096))
    #expect(slow(host, hva, [.pin, .write]) == .page(pinned))
    let child = host.process.fork(on: &host.cpu)
    #expect(try host.entry(hva).isWritable && host.has(pinned, .anonExclusive))
    #expect(child.frame(at: hva) != pinned)
    #expect(child.frame(at: hva + 4096) == plain)
    #expect(try child.read32(hva, on: &host.cpu) == 1)
    host.notifier.events = []
    try host.write(hva, 3)
    #expect(try host.frame(hva) == pinned && host.notifier.events == [])
    host.process.release(pinned, .pin, holder, on: &host.cpu)
    child.exit(on: &host.cpu)
    host.drain()
    #expect(host.count(pinned) == 1 && host.ledger.unmatchedPuts == [])
  }

  @Test func `A fork of a read-only area keeps the copy of a pinned page read-only`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 1)
    host.drain()
    let page = try host.frame(hva)
    #expect(slow(host, hva, [.pin, .write]) == .page(page))
    try host.process.protect(host.range(hva, pages: 1), rights: .read, on: &host.cpu)
    let child = host.process.fork(on: &host.cpu)
    #expect(child.frame(at: hva) != page)
    #expect(child.entry(at: hva)?.entry.isWritable == false)
    host.process.release(page, .pin, holder, on: &host.cpu)
  }

  @Test func `A fork copies a pinned huge page too`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva, 1)
    let head = try host.frame(hva)
    #expect(slow(host, hva, [.pin, .write]) == .page(head))
    let child = host.process.fork(on: &host.cpu)
    #expect(child.frame(at: hva) != head)
    try host.write(hva, 2)
    #expect(try host.frame(hva) == head)
    #expect(try child.read32(hva, on: &host.cpu) == 1)
    host.process.release(head, .pin, holder, on: &host.cpu)
    child.exit(on: &host.cpu)
    host.process.exit(on: &host.cpu)
    host.drain()
    #expect(host.count(head) == 0 && host.ledger.unmatchedPuts == [])
  }
}
