import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// What misuse does on a kernel like that of the traces (specification 8.5), row by row.
@Suite struct MisuseTests {
  @Test func `A double free of a page on a CPU's list lowers its count and is found by the drain`()
    throws
  {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 0)
    cpu.freePages(PFN(0x400), order: 0)
    #expect(machine.frames.refcount(PFN(0x400)) == -1)
    #expect(machine.cpuList(1) == [0x400])
    #expect(machine.findings.findings == [.refcountUnderflow(pfn: PFN(0x400), count: -1)])
    cpu.drainLocalPages()
    #expect(machine.badPages == ["400 nonzero _refcount (drain)"])
    #expect(machine.whereabouts(of: PFN(0x400)) == .used)
    #expect(machine.pageset().count == 0)
  }

  @Test func `A page freed twice and handed out again has a count of 1`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(4, .movable, 0x600)]))
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 0)
    cpu.freePages(PFN(0x400), order: 0)
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
    #expect(machine.frames.refcount(PFN(0x400)) == 1)
    #expect(machine.badPages == [])
  }

  @Test func `A double free of a page in the buddy lists leaks the next block that contains it`()
    throws
  {
    let machine = try smallMachine(
      SmallZone(free: [FreeBlocks(5, .movable, 0x400), FreeBlocks(4, .movable, 0x600)]))
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x403), order: 0)
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(order: 5, gfp: [.noWait, .movable])
    }
    #expect(machine.badPages == ["403 nonzero _refcount (allocation)"])
    #expect(machine.whereabouts(of: PFN(0x400)) == .used)
    #expect(machine.freePageCount == 16)
  }

  @Test func `A refill drops a block with a bad page and goes on`() throws {
    let machine = try smallMachine(SmallZone(batch: 4, free: [FreeBlocks(3, .movable, 0x400)]))
    machine.frames.setRefcount(PFN(0x401), -1)
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
    // The bad page used up one of the four.
    #expect(machine.cpuList(1) == [0x402, 0x403])
    #expect(machine.badPages == ["401 nonzero _refcount (refill)"])
  }

  @Test func `A double free of a larger block frees its pieces again`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 2)
    cpu.freePages(PFN(0x400), order: 2)
    // The block and, from inside it, two pieces: one page has two owners.
    #expect(machine.cpuList(3 * 2 + 1) == [0x400])
    #expect(machine.cpuList(3 + 1) == [0x402])
    #expect(machine.cpuList(1) == [0x401])
  }

  @Test func `A second free of a compound block finds no head mark and frees pieces`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(5, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let block = try cpu.allocateFolio(order: 2, gfp: [.noWait, .movable])
    cpu.putPage(block + 3)
    #expect(!machine.frames.isCompoundHead(block))
    cpu.freePages(block, order: 2)
    #expect(machine.cpuList(1) == [(block + 1).rawValue])
    #expect(machine.cpuList(3 + 1) == [(block + 2).rawValue])
  }

  @Test func `A put without a reference lowers the count and says nothing else`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(0, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    cpu.putPage(PFN(0x400))
    cpu.putPage(PFN(0x400))
    #expect(machine.frames.refcount(PFN(0x400)) == -2)
    #expect(
      machine.findings.findings == [
        .refcountUnderflow(pfn: PFN(0x400), count: -1),
        .refcountUnderflow(pfn: PFN(0x400), count: -2),
      ])
  }

  @Test func `A referenced tail makes its block leak`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400, 0x402, 0x410, 0x411])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 2)
    #expect(machine.badPages == ["402 nonzero _refcount (free)"])
    #expect(machine.pageset().count == 0)
    #expect(machine.frames.refcount(PFN(0x402)) == 1)
    cpu.freePages(PFN(0x410), order: 4)
    #expect(machine.badPages.last == "411 nonzero _refcount (free)")
    #expect(machine.freePageCount == 0)
  }

  @Test func `The referenced first page of a piece is accepted and dropped by the drain`() throws {
    let machine = try smallMachine(SmallZone())
    machine.frames.setRefcount(PFN(0x400), 2)
    machine.own([0x402])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 2)
    #expect(machine.cpuList(3 + 1) == [0x402])
    #expect(machine.findings.total == 0)
    cpu.drainLocalPages()
    #expect(machine.badPages == ["402 nonzero _refcount (drain)"])
    #expect(machine.pageset().count == 0)
    #expect(machine.freeList(0, .movable) == [0x401])
  }

  @Test func `Get and put of the front page of a CPU's list is a kernel BUG`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 0)
    cpu.getPage(PFN(0x400))
    cpu.putPage(PFN(0x400))
    #expect(machine.findings.isHalted)
    #expect(
      machine.findings.findings
        == [.listCorruption(pfn: PFN(0x400), what: "list_add corruption or double add")])
  }

  @Test func `Get and put of another page of a CPU's list breaks a later removal`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400, 0x410, 0x420])
    var cpu = try machine.claimCPU(0)
    for pfn: UInt32 in [0x400, 0x410, 0x420] { cpu.freePages(PFN(pfn), order: 0) }
    cpu.getPage(PFN(0x410))
    cpu.putPage(PFN(0x410))
    #expect(!machine.metBUG)
    cpu.drainLocalPages()
    #expect(machine.metBUG)
  }

  @Test func `Get and put of a free block's head breaks the list it was on`() throws {
    let machine = try smallMachine(
      SmallZone(free: [FreeBlocks(0, .movable, 0x404, 0x400, 0x408)]))
    var cpu = try machine.claimCPU(0)
    cpu.getPage(PFN(0x400))
    cpu.putPage(PFN(0x400))
    #expect(machine.findings.total == 0)
    // It is handed out from the CPU's list, and its old neighbours still point to it.
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(gfp: [.noWait, .movable])
    }
    #expect(machine.findings.isHalted)
    #expect(machine.metBUG)
  }

  @Test func `A split block freed with its old order leaks with a report per tail`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.splitPage(PFN(0x400), order: 2)
    cpu.freePages(PFN(0x400), order: 2)
    #expect(
      machine.badPages
        == ["401", "402", "403"].map { "\($0) nonzero _refcount (free)" })
    #expect(machine.freePageCount == 0)
  }

  @Test func `A free of more than was allocated leaks the block where neighbours are in use`()
    throws
  {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400, 0x402])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 2)
    #expect(machine.badPages == ["402 nonzero _refcount (free)"])
    // Where the neighbours look clean, memory has two owners from now on.
    machine.own([0x408])
    cpu.freePages(PFN(0x408), order: 2)
    #expect(machine.cpuList(3 * 2 + 1) == [0x408])
  }

  @Test func `A put of a tail of a compound block frees the whole block`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(6, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let block = try cpu.allocateFolio(order: 5, gfp: [.noWait, .movable])
    cpu.getPage(block + 7)
    #expect(machine.frames.refcount(block) == 2)
    cpu.freePages(block, order: 5)
    #expect(machine.freePageCount == 32)
    cpu.putPage(block + 31)
    #expect(machine.freeList(6, .movable) == [0x400])
  }

  @Test func `A count that passes the largest value or falls below zero is a finding`() throws {
    let machine = try smallMachine(SmallZone())
    machine.frames.setRefcount(PFN(0x400), Int32.max)
    var cpu = try machine.claimCPU(0)
    cpu.getPage(PFN(0x400))
    #expect(
      machine.findings.findings == [.refcountOverflow(pfn: PFN(0x400), count: Int32.min)])
    #expect(machine.frames.refcount(PFN(0x400)) == Int32.min)
    machine.findings.removeAll()
    machine.frames.setRefcount(PFN(0x401), 1)
    cpu.putPage(PFN(0x401), count: 3)
    #expect(machine.findings.findings == [.refcountUnderflow(pfn: PFN(0x401), count: -2)])
    let isTaken = cpu.tryGetPage(PFN(0x401))
    #expect(!isTaken)
    #expect(machine.frames.refcount(PFN(0x401)) == -2)
  }
}
