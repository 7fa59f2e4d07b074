import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Accessed and dirty marks, and the batches of the LRU lists: specification 2.5.
@Suite struct MarkTests {
  @Test func `A page on no list only toggles its mark`() throws {
    let host = try HostFixture()
    let page = try host.allocate()
    var seen: [Bool] = []
    for _ in 0..<4 {
      host.kernel.markAccessed(page, on: &host.cpu)
      seen.append(host.has(page, .referenced))
    }
    #expect(seen == [true, false, true, false])
    #expect(!host.has(page, .active) && host.count(page) == 1)
  }

  @Test func `The second mark of a listed page activates it when the batch is drained`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva)
    let page = try host.frame(hva)
    host.drain()
    host.kernel.markAccessed(page, on: &host.cpu)
    #expect(host.has(page, .referenced) && host.count(page) == 1)
    host.kernel.markAccessed(page, on: &host.cpu)
    #expect(!host.has(page, .referenced) && !host.has(page, .active))
    // The batch holds one reference until then.
    #expect(host.count(page) == 2)
    host.drain()
    #expect(host.has(page, .active) && host.count(page) == 1)
    host.kernel.markAccessed(page, on: &host.cpu)
    host.kernel.markAccessed(page, on: &host.cpu)
    #expect(host.has(page, [.referenced, .active]) && host.count(page) == 1)
  }

  @Test func `A page that still waits for its list becomes active at once`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 1)
    try host.write(hva)
    let page = try host.frame(hva)
    #expect(!host.has(page, .lru))
    host.kernel.markAccessed(page, on: &host.cpu)
    host.kernel.markAccessed(page, on: &host.cpu)
    #expect(host.has(page, .active) && host.count(page) == 2)
  }

  @Test func `A large folio is listed and activated without a batch, by its head`() throws {
    let host = try HostFixture.withHugePages()
    let hva = try host.map(pages: 512)
    try host.write(hva)
    let head = try host.frame(hva)
    host.kernel.markAccessed(head + 3, on: &host.cpu)
    #expect(host.has(head, .referenced) && !host.has(head + 3, .referenced))
    host.kernel.markAccessed(head + 9, on: &host.cpu)
    #expect(host.has(head, .active) && !host.has(head, .referenced))
    #expect(host.count(head) == 1)
    host.kernel.setDirty(head + 4)
    #expect(host.has(head, .dirty) && !host.has(head + 4, .dirty))
  }

  @Test(arguments: [(HostBehaviour.linux61, 15), (.linux618, 31)])
  func `A batch is drained with its last page`(_ behaviour: HostBehaviour, _ size: Int) throws {
    let host = try HostFixture(behaviour)
    let hva = try host.map(pages: size + 1)
    for index in 0..<(size - 1) { try host.write(hva + UInt64(index) << 12) }
    let pages = try (0..<(size - 1)).map { try host.frame(hva + UInt64($0) << 12) }
    #expect(pages.allSatisfy { host.count($0) == 2 && !host.has($0, .lru) })
    try host.write(hva + UInt64(size - 1) << 12)
    #expect(pages.allSatisfy { host.count($0) == 1 && host.has($0, .lru) })
    try host.write(hva + UInt64(size) << 12)
    #expect(host.count(try host.frame(hva + UInt64(size) << 12)) == 2)
  }

  @Test func `munmap and MADV_DONTNEED drain the batches first in 6.1, and not in 6_18`() throws {
    for (behaviour, count) in [(HostBehaviour.linux61, Int32(1)), (.linux618, 2)] {
      let host = try HostFixture(behaviour)
      let hva = try host.map(pages: 3)
      try host.write(hva)
      let page = try host.frame(hva)
      try host.process.discard(hva + 4096..<hva + 8192, on: &host.cpu)
      #expect(host.count(page) == count)
      try host.write(hva + 4096)
      let other = try host.frame(hva + 4096)
      try host.unmap(hva + 8192, pages: 1)
      #expect(host.count(other) == count)
      // A page whose entry goes while a batch holds it lives until the batch is drained.
      try host.unmap(hva, pages: 2)
      #expect(host.count(page) == count - 1)
      host.drain()
      #expect(host.count(page) == 0 && host.machine.findings.total == 0)
    }
  }

  @Test func `A run of pages of one compound page counts once in 6_18`() throws {
    for (behaviour, marks) in [(HostBehaviour.linux61, 4), (.linux618, 1)] {
      let host = try HostFixture(behaviour)
      let head = try host.allocate(order: 2, compound: true)
      let (_, hva) = try host.driver((0..<4).map { head + $0 }, .insertPage)
      #expect(host.count(head) == 5)
      try host.unmap(hva, pages: 4)
      #expect(host.recorder.accessed == Array(repeating: head, count: marks))
      #expect(host.count(head) == 1)
      // Four marks leave nothing on a page without a list, one leaves "referenced".
      #expect(host.has(head, .referenced) == (marks == 1))
    }
  }

  @Test func `A freed page loses its marks, a mark set afterwards is found by the next owner`()
    throws
  {
    let host = try HostFixture()
    let page = try host.allocate()
    host.kernel.setDirty(page)
    host.kernel.setReferenced(page)
    host.cpu.freePages(page, order: 0)
    #expect(!host.has(page, .dirty) && !host.has(page, .referenced))
    // The test stands where pages go to a CPU's list, not where they leave it.
    host.cpu.drainLocalPages()
    host.kernel.setDirty(page)
    var others: [PFN] = []
    while host.machine.findings.total == 0, let next = try? host.allocate() { others.append(next) }
    #expect(!others.contains(page))
    let bad = host.machine.findings.findings.compactMap {
      if case .badPage(let bad) = $0 { bad } else { nil }
    }
    #expect(bad.map(\.pfn) == [page])
    #expect(bad.first?.reason == "PAGE_FLAGS_CHECK_AT_PREP flag(s) set")
  }
}
