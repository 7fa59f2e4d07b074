import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// The pool of a graphics driver: specification 7, and scenarios F1 and F8 of section 4.
@Suite struct TTMTests {
  private func orders(_ buffer: TTMPool.Buffer) -> [Int] { buffer.blocks.map(\.order) }

  @Test func `Blocks are the largest that fit, first count 1, order in the first frame's private`()
    throws
  {
    let host = try HostFixture(memory: .mib(32))
    let pool = TTMPool(machine: host.machine)
    let before = host.machine.freePageCount
    let buffer = try pool.allocate(pageCount: 13, on: &host.cpu)
    #expect(orders(buffer) == [3, 2, 0])
    #expect(buffer.pages.count == 13)
    for block in buffer.blocks {
      #expect(host.machine.details(of: block.first).private == UInt64(block.order))
      #expect(host.machine.frames.refcount(block.first) == 1)
      for index in 1..<max(1, 1 << block.order) {
        #expect(host.machine.frames.refcount(block.first + index) == 0)
      }
      #expect(!host.machine.frames.isCompoundHead(block.first))
    }
    let large = try pool.allocate(pageCount: 2048 + 1, on: &host.cpu)
    #expect(orders(large) == [10, 10, 0])
    // Cached blocks skip the pool.
    pool.free(buffer, on: &host.cpu)
    pool.free(large, on: &host.cpu)
    #expect(pool.pooledPageCount == 0 && host.machine.freePageCount == before)
    #expect(host.machine.findings.total == 0)
    #expect(throws: KernelErrno.einval) { try pool.allocate(pageCount: 0, on: &host.cpu) }
  }

  @Test func `Where an order has none the next lower one serves, and without any all goes back`()
    throws
  {
    let host = try HostFixture(memory: .mib(8))
    let pool = TTMPool(machine: host.machine)
    // Nothing above order 1 is left: of one block every fourth page is kept.
    var held: [(first: PFN, order: Int)] = []
    for order in stride(from: 10, through: 2, by: -1) {
      let gfp: GFP = [.highUser, .memalloc]
      while let first = try? host.cpu.allocatePages(order: order, gfp: gfp) {
        held.append((first, order))
      }
    }
    let largest = try #require(held.first)
    try #require(largest.order >= 8)
    host.cpu.splitPage(largest.first, order: largest.order)
    for index in 0..<(1 << largest.order) where index & 3 != 0 {
      host.cpu.freePages(largest.first + index, order: 0)
    }
    host.cpu.drainLocalPages()
    let before = host.machine.freePageCount
    let buffer = try pool.allocate(pageCount: 16, on: &host.cpu)
    #expect(orders(buffer) == Array(repeating: 1, count: 8))
    #expect(buffer.pages.count == 16)
    pool.free(buffer, on: &host.cpu)
    #expect(host.machine.freePageCount == before)
    #expect(throws: KernelErrno.enomem) {
      try pool.allocate(pageCount: Int(before) + 1, on: &host.cpu)
    }
    #expect(host.machine.freePageCount == before)
  }

  @Test func `Other caching types are pooled by type and order, cleared, last in first out`() throws
  {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let first = try pool.allocate(pageCount: 4, caching: .writeCombined, on: &host.cpu)
    let second = try pool.allocate(pageCount: 4, caching: .writeCombined, on: &host.cpu)
    let block = first.blocks[0].first
    host.kernel.bytes(of: block + 1)?.storeBytes(of: 0xff, as: UInt8.self)
    let before = host.machine.freePageCount
    pool.free(second, on: &host.cpu)
    pool.free(first, on: &host.cpu)
    #expect(pool.pooledPageCount == 8 && host.machine.freePageCount == before)
    #expect((0..<4).map { host.machine.frames.refcount(block + $0) } == [1, 0, 0, 0])
    #expect(host.kernel.bytes(of: block + 1)?.load(as: UInt8.self) == 0)
    let uncached = try pool.allocate(pageCount: 4, caching: .uncached, on: &host.cpu)
    #expect(uncached.blocks[0].first != block && pool.pooledPageCount == 8)
    let again = try pool.allocate(pageCount: 4, caching: .writeCombined, on: &host.cpu)
    #expect(again.blocks[0].first == block && pool.pooledPageCount == 4)
    let smaller = try pool.allocate(pageCount: 2, caching: .writeCombined, on: &host.cpu)
    #expect(orders(smaller) == [1] && pool.pooledPageCount == 4)
  }

  @Test func `The pool keeps to its limit and shrinks type by type`() throws {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine, pageLimit: 6)
    let before = host.machine.freePageCount
    let combined = try pool.allocate(pageCount: 4, caching: .writeCombined, on: &host.cpu)
    let uncached = try pool.allocate(pageCount: 4, caching: .uncached, on: &host.cpu)
    pool.free(combined, on: &host.cpu)
    #expect(pool.pooledPageCount == 4)
    pool.free(uncached, on: &host.cpu)
    #expect(pool.pooledPageCount == 4)
    #expect(host.machine.frames.refcount(combined.blocks[0].first) == 0)
    #expect(pool.shrink(on: &host.cpu) == 4 && pool.shrink(on: &host.cpu) == 0)
    #expect(host.machine.freePageCount == before && host.machine.findings.total == 0)
  }

  @Test func `The free trusts the first frame's private: a reset one loses the rest`() throws {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let buffer = try pool.allocate(pageCount: 4, on: &host.cpu)
    let first = buffer.blocks[0].first
    let before = host.machine.freePageCount
    host.machine.setPrivate(0, of: first)
    pool.free(buffer, on: &host.cpu)
    #expect(host.machine.freePageCount == before + 1)
    #expect(host.machine.whereabouts(of: first + 1) == .used)
  }

  @Test func `F1 a free of a block whose head somebody holds leaves the head to the last put`()
    throws
  {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let buffer = try pool.allocate(pageCount: 4, on: &host.cpu)
    let first = buffer.blocks[0].first
    host.kernel.get(first, .pin("test"), on: &host.cpu)
    var frees: [(PFN, Int)] = []
    host.cpu.pageFreeEvent = { pfn, order, _ in frees.append((pfn, order)) }
    pool.free(buffer, on: &host.cpu)
    #expect(frees.map(\.0) == [first + 2, first + 1] && frees.map(\.1) == [1, 0])
    #expect(host.machine.frames.refcount(first) == 1)
    #expect(host.machine.whereabouts(of: first) == .used)
    host.kernel.put(first, .pin("test"), on: &host.cpu)
    #expect(frees.last?.0 == first && frees.last?.1 == 0)
    for index in 0..<4 { #expect(host.machine.whereabouts(of: first + index) != .used) }
    #expect(host.machine.findings.total == 0)
  }

  @Test func `F8 a block given to the pool keeps the reference that somebody has`() throws {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let buffer = try pool.allocate(pageCount: 4, caching: .uncached, on: &host.cpu)
    let first = buffer.blocks[0].first
    host.kernel.get(first, .pin("test"), on: &host.cpu)
    pool.free(buffer, on: &host.cpu)
    #expect(host.machine.frames.refcount(first) == 2)
    host.kernel.put(first, .pin("test"), on: &host.cpu)
    #expect(host.machine.frames.refcount(first) == 1)
    #expect(pool.shrink(on: &host.cpu) == 4 && host.machine.findings.total == 0)
  }

  @Test func `An object is mapped shared only, 16 pages a fault, special and uncounted`() throws {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let object = TTMBufferObject(pool: pool, pageCount: 24)
    #expect(throws: KernelErrno.einval) {
      try host.map(pages: 24, isShared: false, backing: .driver(object))
    }
    let hva = try host.map(pages: 24, isShared: true, backing: .driver(object))
    let info = try #require(host.process.areaInfo(at: hva))
    #expect(info.flags.isSuperset(of: [.pfnmap, .io, .dontExpand, .dontDump]))
    #expect(object.buffer == nil)
    try host.write(hva + 4096, 5)
    let pages = try #require(object.buffer).pages
    let mapped = (0..<24).filter { host.process.frame(at: hva + UInt64($0) << 12) != nil }
    #expect(mapped == Array(1...16))
    for index in mapped {
      let entry = try host.entry(hva + UInt64(index) << 12)
      #expect(entry.pfn == pages[index] && entry.isSpecial && entry.isWritable)
    }
    #expect(host.machine.frames.refcount(pages[0]) == 1)
    #expect(host.machine.frames.refcount(pages[1]) == 0)
    #expect(throws: KernelErrno.einval) {
      try host.process.discard(host.range(hva, pages: 24), on: &host.cpu)
    }
    // Eviction: unmapped everywhere first, then freed; the next access brings other pages.
    let before = host.machine.freePageCount
    object.evict(on: &host.cpu)
    #expect(host.process.frame(at: hva + 4096) == nil && object.buffer == nil)
    #expect(host.machine.freePageCount == before + 24)
    #expect(host.notifier.starts == [host.range(hva, pages: 24)] && host.notifier.isBalanced)
    #expect(try host.read(hva + 4096) == 0)
    try host.unmap(hva, pages: 24)
    object.free(on: &host.cpu)
    #expect(host.machine.freePageCount == before + 24 && host.machine.findings.total == 0)
  }

  @Test func `A fault behind the object is SIGBUS, one without memory is ENOMEM`() throws {
    let host = try HostFixture()
    let pool = TTMPool(machine: host.machine)
    let object = TTMBufferObject(pool: pool, pageCount: 2)
    let hva = try host.map(pages: 4, isShared: true, backing: .driver(object))
    _ = try host.read(hva)
    #expect(host.process.frame(at: hva + 0x2000) == nil)
    #expect(throws: KernelErrno.efault) { try host.read(hva + 0x2000) }
    let hungry = TTMBufferObject(pool: pool, pageCount: 2)
    let mapped = try host.map(pages: 2, isShared: true, backing: .driver(hungry))
    while (try? host.allocate()) != nil {}
    #expect(throws: KernelErrno.enomem) { try host.read(mapped) }
  }
}
