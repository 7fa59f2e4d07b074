import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// When notifiers are told of a change, and in what order: specification 1.4.
@Suite struct NotifierTests {
  @Test func `Every operation ends what it began, and entries change in between`() throws {
    let host = try HostFixture(
      HostBehaviour(transparentHugePages: .madvise), memory: .mib(32), hugePages: 2)
    let file = host.file(.tmpfs, pages: 4)
    let hva = try host.map(pages: 8)
    let huge = try host.map(pages: 512, extra: .hugePage)
    let pool = try host.map(pages: 512, extra: .hugetlb)
    let shared = try host.map(file, pages: 4, isShared: false)
    let (driver, mapped) = try host.driver([try host.allocate()], .insertPFN)
    func populate() throws {
      for address in [hva, hva + 4096, huge, pool] { try host.write(address) }
      for address in [hva + 0x2000, shared, mapped] { _ = try host.read(address) }
    }
    let operations: [(String, Int, (HostFixture) throws -> Void)] = [
      ("write over the zero page", 1, { try $0.write(hva + 0x2000) }),
      ("write over a file page", 1, { try $0.write(shared) }),
      (
        "mprotect", 1,
        {
          try $0.process.protect($0.range(hva, pages: 2), rights: .read, on: &$0.cpu)
          try $0.process.protect($0.range(hva, pages: 2), rights: [.read, .write], on: &$0.cpu)
        }
      ),
      ("MADV_DONTNEED", 1, { try $0.process.discard($0.range(hva, pages: 2), on: &$0.cpu) }),
      ("split", 2, { try $0.process.discard($0.range(huge, pages: 1), on: &$0.cpu) }),
      ("unmap_mapping_range", 1, { driver.mappings.unmap(on: &$0.cpu) }),
      ("fork", 1, { $0.process.fork(on: &$0.cpu).exit(on: &$0.cpu) }),
      ("truncate", 1, { file.truncate(to: 0, on: &$0.cpu) }),
      ("mremap", 1, { _ = try $0.process.remap($0.range(huge, pages: 512), on: &$0.cpu) }),
      ("munmap", 1, { try $0.unmap(hva, pages: 8) }),
    ]
    for (name, least, operation) in operations {
      if name != "truncate", name != "mremap", name != "munmap" {
        try populate()
      }
      host.notifier.events = []
      try operation(host)
      #expect(host.notifier.isBalanced, "\(name)")
      #expect(host.notifier.starts.count >= least, "\(name): \(host.notifier.events)")
    }
  }

  @Test func `An unmap is announced with the entries there and ends with them gone`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 2)
    try host.write(hva)
    host.drain()
    let page = try host.frame(hva)
    var seen: [Int32] = []
    host.notifier.onStart = { _ in
      #expect(host.process.frame(at: hva) == page)
      seen.append(host.count(page))
    }
    host.notifier.onEnd = { _ in
      #expect(host.process.frame(at: hva) == nil)
      // The page itself goes after the end.
      seen.append(host.count(page))
    }
    try host.unmap(hva, pages: 2)
    #expect(seen == [1, 1] && host.count(page) == 0)
  }

  @Test func `Upgrades in place and first faults tell nobody`() throws {
    let host = try HostFixture(memory: .mib(32), hugePages: 1)
    let file = host.file(.disk, pages: 1)
    let anonymous = try host.map(pages: 1)
    let disk = try host.map(file, pages: 1, isShared: true)
    let pool = try host.map(pages: 512, extra: .hugetlb)
    let (_, mapped) = try host.driver([try host.allocate()], .insertPFN)
    try host.write(anonymous)
    _ = try host.read(disk)
    try host.write(disk)
    _ = try host.read(pool)
    try host.write(pool)
    try host.write(mapped)
    try host.process.adviseHugePages(host.range(anonymous, pages: 1), true, on: &host.cpu)
    #expect(host.notifier.events == [])
  }

  @Test func `A removed notifier is told nothing more, all others are`() throws {
    let host = try HostFixture()
    let second = RangeNotifier()
    host.process.register(second)
    let hva = try host.map(pages: 1)
    try host.write(hva)
    host.process.unregister(host.notifier)
    try host.unmap(hva, pages: 1)
    #expect(host.notifier.events == [] && second.starts == [hva..<hva + 4096])
    host.process.exit(on: &host.cpu)
    #expect(host.notifier.events == [] && second.events.last == .release)
  }

  @Test func `Young marks are asked of entries and notifiers alike`() throws {
    let host = try HostFixture()
    let hva = try host.map(pages: 2)
    try host.write(hva)
    let range = hva..<hva + 4096
    #expect(host.process.testYoung(hva, on: &host.cpu))
    #expect(host.process.clearYoung(range, on: &host.cpu))
    #expect(try !host.entry(hva).isYoung && host.entry(hva).isDirty)
    #expect(!host.process.testYoung(hva, on: &host.cpu))
    #expect(!host.process.clearYoung(range, on: &host.cpu))
    host.notifier.isYoung = true
    #expect(host.process.testYoung(hva, on: &host.cpu))
    #expect(host.process.clearYoung(range, on: &host.cpu))
    #expect(!host.process.clearYoung(range, on: &host.cpu))
    _ = try host.read(hva)
    #expect(try host.entry(hva).isYoung)
  }
}
