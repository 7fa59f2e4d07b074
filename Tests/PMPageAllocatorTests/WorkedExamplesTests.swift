import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The nine worked examples of the specification, section 12.
@Suite struct WorkedExamplesTests {
  @Test func `E1: a refill appends ascending pages and leaves the rest as ascending blocks`() throws
  {
    let machine = try smallMachine(
      SmallZone(batch: 63, free: [FreeBlocks(10, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    var taken: [PFN] = []
    for _ in 0..<3 { taken.append(try cpu.allocatePages(gfp: [.noWait, .movable])) }
    #expect(taken == [PFN(0x400), PFN(0x401), PFN(0x402)])
    #expect(machine.cpuList(1) == Array(0x403...0x43e))
    #expect(machine.pageset().count == 60)
    #expect(machine.freeList(0, .movable) == [0x43f])
    for order in 1...5 { #expect(machine.freeList(order, .movable) == []) }
    #expect(machine.freeList(6, .movable) == [0x440])
    #expect(machine.freeList(7, .movable) == [0x480])
    #expect(machine.freeList(8, .movable) == [0x500])
    #expect(machine.freeList(9, .movable) == [0x600])
  }

  @Test func `E2: a fallback to whole pageblocks takes them over without a boost`() throws {
    let machine = try smallMachine(
      SmallZone(kind: .normal, batch: 63, free: [FreeBlocks(10, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x400))
    #expect(machine.pageblockType(of: PFN(0x400)) == .unmovable)
    #expect(machine.pageblockType(of: PFN(0x600)) == .unmovable)
    #expect(machine.zoneState(0, withMap: false).boost == 0)
    #expect(machine.freeList(9, .unmovable) == [0x600])
    #expect(machine.freeList(0, .unmovable) == [0x43f])
  }

  @Test func `E3: frees past the per-CPU lists go to the front, unless the next buddy is free`()
    throws
  {
    let machine = try smallMachine(SmallZone(batch: 1, high: 0))
    machine.own(0x400...0x404)
    var cpu = try machine.claimCPU(0)
    for pfn: UInt32 in [0x400, 0x402, 0x404, 0x401] { cpu.freePages(PFN(pfn), order: 0) }
    #expect(machine.freeList(1, .movable) == [0x400])
    #expect(machine.freeList(0, .movable) == [0x404, 0x402])
  }

  @Test func `E4: drains grow with the free factor up to the limit`() throws {
    let machine = try smallMachine(
      SmallZone(count: 4096, watermarks: [0, 0, 1], batch: 63, high: 252))
    var cpu = try machine.claimCPU(0)
    var next: UInt32 = 0x400
    func free(_ count: Int) -> [Int] {
      for _ in 0..<count {
        machine.own([next])
        cpu.freePages(PFN(next), order: 0)
        next += 2
      }
      return [Int(machine.pageset().count), Int(machine.pageset().freeFactor)]
    }
    #expect(free(251) == [251, 0])
    #expect(free(1) == [189, 1])
    #expect(free(63) == [126, 2])
    #expect(free(126) == [63, 2])
    #expect(free(189) == [63, 2])
  }

  @Test func `E5: a high-order free while the factor is raised drains everything`() throws {
    let machine = try smallMachine(SmallZone(count: 1024, batch: 7, high: 28))
    var cpu = try machine.claimCPU(0)
    for index in 0..<UInt32(28) {
      machine.own([0x500 + index * 2])
      cpu.freePages(PFN(0x500 + index * 2), order: 0)
    }
    #expect(machine.pageset().count == 21)
    #expect(machine.pageset().freeFactor == 1)
    machine.own([0x400])
    cpu.freePages(PFN(0x400), order: 2)
    #expect(machine.pageset().count == 0)
    #expect(machine.pageset().freeFactor == 1)
    #expect(machine.freeList(2, .movable) == [0x400])
    // Oldest first, each to the front.
    #expect(machine.freeList(0, .movable) == (0..<28).map { 0x500 + (27 - $0) * 2 })
  }

  @Test func `E6: a claim moves the whole pageblock, and the smallest block is taken`() throws {
    let machine = try smallMachine(
      SmallZone(
        free: [
          FreeBlocks(3, .movable, 0x408), FreeBlocks(6, .movable, 0x440),
          FreeBlocks(8, .movable, 0x500),
        ]))
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x408))
    #expect(machine.pageblockType(of: PFN(0x400)) == .unmovable)
    #expect(machine.zoneState(0, withMap: false).boost == 512)
    #expect(machine.freeList(0, .unmovable) == [0x409])
    #expect(machine.freeList(1, .unmovable) == [0x40a])
    #expect(machine.freeList(2, .unmovable) == [0x40c])
    #expect(machine.freeList(6, .unmovable) == [0x440])
    #expect(machine.freeList(8, .unmovable) == [0x500])
  }

  @Test func `E7: a movable request that cannot claim takes the smallest block alone`() throws {
    let machine = try smallMachine(
      SmallZone(
        type: .unmovable,
        free: [
          FreeBlocks(3, .unmovable, 0x408), FreeBlocks(2, .unmovable, 0x404),
          FreeBlocks(1, .unmovable, 0x402),
        ]))
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x402))
    #expect(machine.freeList(0, .movable) == [0x403])
    #expect(machine.freeList(3, .unmovable) == [0x408])
    #expect(machine.freeList(2, .unmovable) == [0x404])
    #expect(machine.pageblockType(of: PFN(0x400)) == .unmovable)
    #expect(machine.zoneState(0, withMap: false).boost == 512)
  }

  @Test func `E8: a block whose next merge waits for one neighbour goes to the back`() throws {
    let machine = try smallMachine(
      SmallZone(
        high: 0, free: [FreeBlocks(1, .movable, 0x402), FreeBlocks(0, .movable, 0x500)]))
    machine.own([0x400, 0x401])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 0)
    #expect(machine.freeList(0, .movable) == [0x500, 0x400])
  }

  @Test func `E9: a block with a second owner is freed in pieces, without its first page`() throws {
    let machine = try smallMachine(SmallZone())
    machine.frames.setRefcount(PFN(0x408), 2)
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x408), order: 3)
    #expect(machine.cpuList(3 * 2 + 1) == [0x40c])
    #expect(machine.cpuList(3 * 1 + 1) == [0x40a])
    #expect(machine.cpuList(1) == [0x409])
    #expect(machine.frames.refcount(PFN(0x408)) == 1)
    cpu.putPage(PFN(0x408))
    #expect(machine.cpuList(1) == [0x408, 0x409])
    #expect(machine.findings.total == 0)
  }
}
