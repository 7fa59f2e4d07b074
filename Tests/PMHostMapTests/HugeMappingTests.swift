import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Huge pages of all kinds: transparent, the huge zero page, of files, of the pool.
@Suite struct HugeMappingTests {
  private let huge: UInt64 = 0x20_0000

  @Test func `A write in an untouched aligned range maps 2 MiB of one compound page`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 1024)
    try host.write(hva + huge + 0x5000, 77)
    let head = try host.frame(hva + huge)
    let entry = try host.entry(hva + huge)
    #expect(host.level(hva + huge) == 2 && entry.isLarge && entry.isWritable && entry.isDirty)
    #expect(host.machine.frames.compoundOrder(head) == 9)
    // A large folio does not wait in a batch.
    #expect(host.count(head) == 1 && host.has(head, .lru))
    #expect(host.machine.mapcount(of: head + 5) == 1)
    #expect(try host.frame(hva + huge + 0x5000) == head + 5)
    #expect(host.process.frame(at: hva) == nil)
    #expect(host.notifier.events == [])
    let before = host.machine.freePageCount
    try host.unmap(hva, pages: 1024)
    #expect(host.machine.freePageCount == before + 512)
    #expect(host.machine.findings.total == 0)
  }

  @Test func `Huge pages need an aligned range, the advice and no entry in the way`() throws {
    let host = try HostFixture(HostBehaviour(transparentHugePages: .madvise), memory: .mib(32))
    let hva = try host.map(pages: 1024)
    try host.write(hva)
    #expect(host.level(hva) == 1)
    try host.process.adviseHugePages(host.range(hva, pages: 1024), true, on: &host.cpu)
    try host.write(hva + 0x1000)
    #expect(host.level(hva + 0x1000) == 1)
    try host.write(hva + huge)
    #expect(host.level(hva + huge) == 2)
    let short = try host.map(pages: 511, extra: .hugePage)
    try host.write(short)
    #expect(host.level(short) == 1)
    // After a munmap of the whole range its table is gone, and the place is free for 2 MiB again.
    try host.unmap(short, pages: 511)
    _ = try host.process.map(
      HostProcess.MapRequest(byteCount: huge, address: short, extra: .hugePage), on: &host.cpu)
    try host.write(short)
    #expect(host.level(short) == 2)
  }

  @Test func `A partial unmap splits the entry first, with a notifier over the whole 2 MiB`() throws
  {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva)
    let head = try host.frame(hva)
    try host.process.discard(hva + 0x3000..<hva + 0x5000, on: &host.cpu)
    #expect(
      host.notifier.events == [
        .start(hva + 0x3000..<hva + 0x5000), .start(hva..<hva + huge), .end(hva..<hva + huge),
        .end(hva + 0x3000..<hva + 0x5000),
      ])
    #expect(host.level(hva) == 1)
    #expect(host.count(head) == 510)
    #expect(host.machine.mapcount(of: head) == 1 && host.machine.mapcount(of: head + 3) == 0)
    #expect(try host.entry(hva + 0x1000).isWritable && host.entry(hva + 0x1000).isDirty)
    #expect(host.has(head, .dirty))
    #expect(host.process.frame(at: hva + 0x3000) == nil)
    // The pieces belong to the compound page, which goes as a whole with the last.
    let before = host.machine.freePageCount
    try host.process.discard(hva..<hva + 0x3000, on: &host.cpu)
    #expect(host.count(head) == 507 && host.machine.freePageCount == before)
    try host.unmap(hva, pages: 512)
    #expect(host.machine.freePageCount == before + 512)
    #expect(host.ledger.unmatchedPuts == [] && host.machine.findings.total == 0)
  }

  @Test func `Each piece of a split page is exclusive: writes go on in place`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva)
    let head = try host.frame(hva)
    try host.process.protect(host.range(hva, pages: 4), rights: .read, on: &host.cpu)
    #expect(host.level(hva) == 1 && host.count(head) == 512)
    try host.process.protect(host.range(hva, pages: 4), rights: [.read, .write], on: &host.cpu)
    host.notifier.events = []
    try host.write(hva + 0x2000)
    #expect(try host.frame(hva + 0x2000) == head + 2)
    #expect(host.notifier.events == [])
  }

  @Test func `After a fork a huge page is shared, split and copied piece by piece`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva, 5)
    let head = try host.frame(hva)
    let child = host.process.fork(on: &host.cpu)
    #expect(host.count(head) == 2 && host.machine.mapcount(of: head) == 2)
    host.notifier.events = []
    try host.write(hva, 6)
    #expect(host.notifier.starts == [hva..<hva + huge, hva..<hva + 4096])
    #expect(try host.frame(hva) != head && host.frame(hva + 4096) == head + 1)
    #expect(try child.read32(hva, on: &host.cpu) == 5)
    #expect(child.entry(at: hva)?.level == 2)
    // 511 pieces of the parent and the child's whole.
    #expect(host.count(head) == 512)
    child.exit(on: &host.cpu)
    #expect(host.count(head) == 511)
  }

  @Test func `A read maps the huge zero page, a write splits it and copies one piece`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    #expect(try host.read(hva + 0x7000) == 0)
    let zero = try host.frame(hva)
    #expect(host.level(hva) == 2)
    #expect(try !host.entry(hva).isWritable && !host.entry(hva).isSpecial)
    #expect(host.kernel.isHugeZeroPage(zero) && !host.has(zero, .reserved))
    #expect(host.machine.frames.compoundOrder(zero) == 9)
    let count = host.count(zero)
    #expect(host.notifier.events == [])
    try host.write(hva + 0x7000, 1)
    #expect(host.notifier.starts == [hva..<hva + huge, hva + 0x7000..<hva + 0x8000])
    #expect(host.notifier.isBalanced)
    #expect(host.level(hva) == 1)
    #expect(try host.entry(hva).pfn == host.kernel.zeroPage && host.entry(hva).isSpecial)
    #expect(try host.read(hva + 0x7000) == 1)
    #expect(host.count(zero) == count)
    // Shared by all ranges, and kept.
    let other = try host.map(pages: 512)
    _ = try host.read(other)
    #expect(try host.frame(other) == zero)
    try host.unmap(other, pages: 512)
    #expect(host.count(zero) == count && host.count(host.kernel.zeroPage) == 1)
  }

  @Test func `A large folio of a file is mapped whole and cleared by a write to a private mapping`()
    throws
  {
    let host = try HostFixture(.linux618, memory: .mib(32))
    let file = host.file(.disk, pages: 512)
    let hva = try host.map(file, pages: 512, isShared: true)
    _ = try host.read(hva)
    let head = try #require(file.cached(0))
    // The first fault brings the folio into the cache; the next maps what is cached.
    try host.unmap(hva, pages: 512)
    let again = try host.map(file, pages: 512, isShared: true)
    _ = try host.read(again)
    #expect(host.level(again) == 2 && host.machine.frames.compoundOrder(head) == 9)
    #expect(host.count(head) == 513)
    try host.unmap(again, pages: 512)
    #expect(host.count(head) == 512)
    file.discard(on: &host.cpu)
    #expect(host.count(head) == 0 && host.ledger.unmatchedPuts == [])
  }

  // MARK: the pool

  @Test func `A private huge page is read-only after a read and made writable in place`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 2)
    let hva = try host.map(pages: 512, extra: .hugetlb)
    _ = try host.read(hva)
    let head = try host.frame(hva)
    #expect(try !host.entry(hva).isWritable)
    #expect(host.count(head) == 1 && host.machine.mapcount(of: head) == 1)
    try host.write(hva + 0x3000)
    #expect(try host.frame(hva) == head && host.entry(hva).isWritable)
    #expect(host.notifier.events == [])
    // Shared after a fork: copied with a notifier; without a free page SIGBUS.
    let child = host.process.fork(on: &host.cpu)
    #expect(host.count(head) == 2)
    host.notifier.events = []
    try host.write(hva)
    #expect(try host.frame(hva) != head)
    #expect(host.notifier.starts == [hva..<hva + huge])
    #expect(host.kernel.freeHugePageCount == 0)
    let third = try host.map(pages: 512, extra: .hugetlb)
    #expect(throws: KernelErrno.efault) { try host.read(third) }
    child.exit(on: &host.cpu)
    #expect(host.kernel.freeHugePageCount == 1)
    #expect(throws: KernelErrno.einval) { try host.map(pages: 1, extra: .hugetlb) }
  }

  @Test func `The pool gives out last what came in last, with the flags of its user`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 3)
    let first = try host.map(pages: 512, extra: .hugetlb)
    let second = try host.map(pages: 512, extra: .hugetlb)
    try host.write(first)
    try host.write(second)
    let (one, two) = (try host.frame(first), try host.frame(second))
    host.kernel.setReferenced(two)
    try host.unmap(first, pages: 512)
    try host.unmap(second, pages: 512)
    // Unmapping passes "dirty" on and never "accessed".
    #expect(host.has(one, [.dirty, .uptodate]) && !host.has(one, .referenced))
    #expect(host.has(two, [.dirty, .uptodate, .referenced]))
    #expect(host.count(one) == 0 && host.count(two) == 0)
    let again = try host.map(pages: 512, extra: .hugetlb)
    _ = try host.read(again)
    #expect(try host.frame(again) == two)
    #expect(host.has(two, [.dirty, .uptodate, .referenced]))
    #expect(try host.read(again) == 0)
  }

  @Test func `A hugetlb file makes its pages dirty, and takes that away when they leave`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 1)
    let file = host.file(.hugetlb, pages: 512)
    let hva = try host.map(file, pages: 512, isShared: true)
    _ = try host.read(hva)
    let head = try host.frame(hva)
    #expect(try host.entry(hva).isWritable && !host.entry(hva).isDirty)
    #expect(host.has(head, [.dirty, .uptodate]))
    #expect(host.count(head) == 2)
    try host.process.discard(host.range(hva, pages: 512), on: &host.cpu)
    #expect(host.count(head) == 1 && host.process.frame(at: hva) == nil)
    _ = try host.read(hva)
    #expect(try host.frame(hva) == head)
    try host.unmap(hva, pages: 512)
    file.discard(on: &host.cpu)
    #expect(!host.has(head, .dirty) && !host.has(head, .uptodate))
    #expect(host.kernel.freeHugePageCount == 1 && host.count(head) == 0)
    #expect(host.ledger.unmatchedPuts == [])
  }
}
