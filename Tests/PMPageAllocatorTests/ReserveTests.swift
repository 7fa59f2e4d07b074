import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// Reserves, per-CPU orders, merging and lists: the rest of section 13.
@Suite struct ReserveTests {
  @Test func `13: a request that cannot wait may take highatomic blocks without a lower mark`()
    throws
  {
    let machine = try smallMachine(
      SmallZone(
        watermarks: [10, 20, 30], highatomic: 512, otherTypes: [0x400: .highatomic],
        free: [FreeBlocks(5, .highatomic, 0x400)]))
    var cpu = try machine.claimCPU(0)
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(gfp: [.noWait, .noMemalloc, .movable])
    }
    #expect(throws: AllocationError.wouldReclaim) { try cpu.allocatePages(gfp: .kernel) }
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
    // A high-order request finds no list of its own type.
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(order: 1, gfp: [.noWait, .movable])
    }
    #expect(try cpu.allocatePages(order: 1, gfp: .atomic) == PFN(0x402))
  }

  @Test func `14: a highatomic request reserves the pageblock of the page it got`() throws {
    let machine = try smallMachine(
      SmallZone(
        managed: 100_000, watermarks: [20, 60, 100],
        free: [FreeBlocks(5, .unmovable, 0x420), FreeBlocks(0, .unmovable, 0x600)]))
    var cpu = try machine.claimCPU(0)
    // 33 free pages are below LOW, and above a quarter of MIN.
    #expect(try cpu.allocatePages(order: 1, gfp: .atomic) == PFN(0x420))
    #expect(machine.pageblockType(of: PFN(0x420)) == .highatomic)
    #expect(machine.zoneState(0, withMap: false).highatomic == 512)
    #expect(machine.freeList(4, .highatomic) == [0x430])
    #expect(machine.freeList(0, .unmovable) == [0x600])
    // Its pages go to the movable list of the CPU, and back to the reserve.
    cpu.freePages(PFN(0x420), order: 1)
    #expect(machine.cpuList(3 + 1) == [0x420])
    cpu.drainLocalPages()
    #expect(machine.freeList(5, .highatomic) == [0x420])
  }

  @Test(arguments: 0...10)
  func `15: orders 0 to 3 and 9 are freed to the CPU's lists, the others are not`(_ order: Int)
    throws
  {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: order)
    let isPerCPU = order <= 3 || order == 9
    #expect(machine.pageset().count == (isPerCPU ? Int32(1) << Int32(order) : 0))
    #expect(machine.freeList(order, .movable) == (isPerCPU ? [] : [0x400]))
    if isPerCPU { #expect(machine.cpuList(order <= 3 ? order * 3 + 1 : 13) == [0x400]) }
  }

  @Test func `15: unmovable and reclaimable blocks of order 9 share a list`() throws {
    let machine = try smallMachine(
      SmallZone(
        count: 2048, high: 5000, otherTypes: [0x400: .unmovable, 0x600: .reclaimable],
        free: [FreeBlocks(10, .movable, 0x800)]))
    machine.own([0x400, 0x600])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 9)
    cpu.freePages(PFN(0x600), order: 9)
    #expect(machine.cpuList(12) == [0x600, 0x400])
    #expect(try cpu.allocatePages(order: 9, gfp: .noWait) == PFN(0x600))
  }

  @Test(arguments: [Migratetype.movable, .unmovable, .reclaimable, .highatomic])
  func `16: whole pageblocks merge unless one of them is a reserve`(_ other: Migratetype) throws {
    let machine = try smallMachine(
      SmallZone(
        otherTypes: [0x600: other],
        free: [FreeBlocks(9, other, 0x600), FreeBlocks(8, .movable, 0x500)]))
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 8)
    #expect(machine.freeList(10, .movable) == (other == .highatomic ? [] : [0x400]))
    #expect(machine.freeList(9, .movable) == (other == .highatomic ? [0x400] : []))
    // Merging never changes a pageblock's type.
    #expect(machine.pageblockType(of: PFN(0x600)) == other)
  }

  @Test func `17: a count below zero is not the last reference`() throws {
    let machine = try smallMachine(SmallZone())
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 2)
    #expect(machine.frames.refcount(PFN(0x400)) == -1)
    #expect(machine.cpuList(3 + 1) == [0x402])
    #expect(machine.cpuList(1) == [0x401])
    #expect(machine.findings.findings == [.refcountUnderflow(pfn: PFN(0x400), count: -1)])
  }

  @Test func `18: a free to the CPU's lists erases the first page's flags without a test`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    machine.setFlags(of: PFN(0x400), [.locked, .slab, .reserved, .lru])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 1)
    #expect(machine.flags(of: PFN(0x400)) == [])
    cpu.drainLocalPages()
    #expect(machine.freeList(1, .movable) == [0x400])
    #expect(machine.findings.total == 0)
  }

  @Test func `19: released pages come back in the order of the array`() throws {
    let machine = try smallMachine(SmallZone())
    let pfns: [UInt32] = [0x410, 0x404, 0x460, 0x402]
    machine.own(pfns)
    var cpu = try machine.claimCPU(0)
    cpu.releasePages(pfns.map { PFN($0) })
    #expect(machine.cpuList(1) == pfns)
  }

  @Test func `19: a bulk request adds its size to the LOW mark and keeps the free factor`() throws {
    let zone = SmallZone(
      watermarks: [0, 8, 9], batch: 4, freeFactor: 4, free: [FreeBlocks(4, .movable, 0x400)])
    let machine = try smallMachine(zone)
    var cpu = try machine.claimCPU(0)
    // 16 free pages against 8 + 7 and one more.
    var slots: [PFN?] = Array(repeating: nil, count: 7)
    #expect(cpu.allocateBulk(&slots, gfp: [.noWait, .movable]) == 7)
    #expect(slots == (0..<7).map { PFN(0x400 + UInt32($0)) })
    #expect(machine.pageset().freeFactor == 4)
    // Against 8 + 8 only a single page comes, the ordinary way.
    let other = try smallMachine(zone)
    var second = try other.claimCPU(0)
    slots = Array(repeating: nil, count: 8)
    #expect(second.allocateBulk(&slots, gfp: [.noWait, .movable]) == 1)
    #expect(other.pageset().freeFactor == 2)
  }

  @Test func `A bulk request passes over the slots that are set`() throws {
    let machine = try smallMachine(SmallZone(batch: 4, free: [FreeBlocks(6, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let set = PFN(0x7ff)
    var slots: [PFN?] = [set, nil, set, nil, nil]
    #expect(cpu.allocateBulk(&slots, gfp: [.noWait, .movable]) == 5)
    #expect(slots == [set, PFN(0x400), set, PFN(0x401), PFN(0x402)])
    #expect(cpu.allocateBulk(&slots, gfp: [.noWait, .movable]) == 5)
    var none: [PFN?] = []
    #expect(cpu.allocateBulk(&none) == 0)
  }
}
