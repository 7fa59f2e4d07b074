import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@Suite("Contiguous ranges and page fragments")
struct ContiguousTests {
  private func machine() throws -> Machine {
    try Machine(MachineDescription(memory: .mib(64)))
  }

  @Test("A free range is taken whole and given back whole, wherever it starts")
  func ranges() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    let free = machine.freePageCount
    for (first, count) in [
      (0x1800, 1), (0x1803, 300), (0x1a00, 512), (0x1bff, 1030), (0x2000, 4096),
    ] {
      let start = PFN(UInt32(first))
      try cpu.allocateContiguous(start, count: count)
      #expect(machine.freePageCount == free - Int64(count))
      for offset in 0..<count {
        #expect(machine.frames.refcount(start + offset) == 1)
        #expect(machine.whereabouts(of: start + offset) == .used)
      }
      #expect(machine.whereabouts(of: start - 1) != .used)
      #expect(machine.invariantViolations() == [])
      cpu.freeContiguous(start, count: count)
      cpu.drainLocalPages()
      #expect(machine.freePageCount == free)
      #expect(machine.invariantViolations() == [])
      #expect(machine.pageblockType(of: start) == .movable)
    }
    #expect(machine.findings.total == 0)
  }

  @Test("A range with a page in use is refused and nothing changes")
  func busy() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    let page = try cpu.allocatePages(order: 0, gfp: .highUserMovable)
    cpu.drainLocalPages()
    let free = machine.freePageCount
    let start = PFN(page.rawValue & ~511)
    #expect(throws: ContiguousError.busy(page)) { try cpu.allocateContiguous(start, count: 512) }
    #expect(machine.freePageCount == free)
    #expect(machine.invariantViolations() == [])
    #expect(machine.pageblockType(of: start) == .movable)
    cpu.freePages(page, order: 0)
    try cpu.allocateContiguous(start, count: 512)
    cpu.freeContiguous(start, count: 512)
    #expect(machine.invariantViolations() == [])
  }

  @Test(
    "A range outside a zone is refused",
    arguments: [(0x3f00, 512), (0x1800, 0), (0x0, 4), (0xff0, 32)])
  func invalid(first: UInt32, count: Int) throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    #expect(throws: ContiguousError.invalidRange(PFN(first), count: count)) {
      try cpu.allocateContiguous(PFN(first), count: count)
    }
  }

  @Test("A count other than 1 is warned about once when a range is given back")
  func warning() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    try cpu.allocateContiguous(PFN(0x1800), count: 4)
    cpu.getPage(PFN(0x1801))
    cpu.getPage(PFN(0x1802))
    cpu.freeContiguous(PFN(0x1800), count: 4)
    #expect(machine.findings.total == 1)
    #expect(machine.frames.refcount(PFN(0x1801)) == 1)
    cpu.putPage(PFN(0x1801))
    cpu.putPage(PFN(0x1802))
    #expect(machine.invariantViolations() == [])
  }

  // MARK: fragments

  private func piece(
    _ cache: inout PageFragmentCache, _ cpu: inout CPU, bytes: Int, alignment: Int = 1,
    gfp: GFP = .atomic
  ) throws -> UInt64 {
    let address = try cache.allocate(bytes: bytes, alignment: alignment, gfp: gfp, on: &cpu)
    return try #require(address)
  }

  private func block(of cache: borrowing PageFragmentCache) throws -> PFN {
    let block = cache.block
    return try #require(block)
  }

  @Test("Pieces come from the end of an order-3 block, aligned down, and the last one frees it")
  func pieces() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    let free = machine.freePageCount
    var cache = PageFragmentCache()
    let first = try piece(&cache, &cpu, bytes: 1000)
    let block = try block(of: cache)
    #expect(first == block.physicalAddress + 32768 - 1000)
    #expect(machine.frames.refcount(block) == 32769)
    #expect(machine.frames.compoundOrder(block) == 3)
    let second = try piece(&cache, &cpu, bytes: 100, alignment: 64)
    #expect(second == block.physicalAddress + UInt64((32768 - 1000 - 100) & ~63))
    cache.drain(on: &cpu)
    #expect(machine.frames.refcount(block) == 2)
    PageFragmentCache.free(first, on: &cpu)
    #expect(machine.freePageCount == free - 8)
    PageFragmentCache.free(second, on: &cpu)
    #expect(machine.freePageCount == free)
    #expect(machine.invariantViolations() == [])
  }

  @Test("A used-up block is kept where its pieces are freed, and left to them where not")
  func reuse() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    var cache = PageFragmentCache()
    let first = try piece(&cache, &cpu, bytes: 30000)
    let used = try block(of: cache)
    PageFragmentCache.free(first, on: &cpu)
    let second = try piece(&cache, &cpu, bytes: 30000)
    #expect(try block(of: cache) == used, "all pieces were freed: the block is used again")
    _ = try piece(&cache, &cpu, bytes: 30000)
    #expect(try block(of: cache) != used, "a piece is still out: the block is left to it")
    #expect(machine.frames.refcount(used) == 1)
    PageFragmentCache.free(second, on: &cpu)
    #expect(machine.frames.refcount(used) == 0)
    let tooLarge = try cache.allocate(bytes: 40000, on: &cpu)
    #expect(tooLarge == nil, "no block is that large")
    cache.drain(on: &cpu)
  }

  @Test("Without an order-3 block a cache works on single frames")
  func small() throws {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    var held: [(PFN, Int)] = []
    for order in stride(from: 10, through: 1, by: -1) {
      while let block = try? cpu.allocatePages(order: order, gfp: .memalloc) {
        held.append((block, order))
      }
    }
    let free = machine.freePageCount
    #expect(free < 8)
    if let last = held.popLast() { cpu.freePages(last.0, order: last.1) }
    var cache = PageFragmentCache()
    let small = try piece(&cache, &cpu, bytes: 64, gfp: .memalloc)
    let size = cache.byteCount
    #expect(size == 4096)
    PageFragmentCache.free(small, on: &cpu)
    cache.drain(on: &cpu)
    for (block, order) in held { cpu.freePages(block, order: order) }
    #expect(machine.invariantViolations() == [])
  }
}
