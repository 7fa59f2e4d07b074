import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The details most likely to be got wrong (specification, section 13), one test each; those that a
/// worked example shows are not repeated.
@Suite struct TrapsTests {
  @Test func `1: frees go to the front of a CPU's list, and drains take from the back`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400, 0x410, 0x420])
    var cpu = try machine.claimCPU(0)
    for pfn: UInt32 in [0x400, 0x410, 0x420] { cpu.freePages(PFN(pfn), order: 0) }
    #expect(machine.cpuList(1) == [0x420, 0x410, 0x400])
    cpu.drainLocalPages()
    #expect(machine.freeList(0, .movable) == [0x420, 0x410, 0x400])
  }

  @Test func `2: a drain starts with the list just used and empties it before the next`() throws {
    let machine = try smallMachine(
      SmallZone(batch: 2, high: 8, otherTypes: [0x400: .unmovable]))
    machine.own(0x400...0x7ff)
    var cpu = try machine.claimCPU(0)
    for pfn: UInt32 in [0x400, 0x410, 0x420, 0x430, 0x600, 0x610] {
      cpu.freePages(PFN(pfn), order: 0)
    }
    for pfn: UInt32 in [0x620, 0x630] { cpu.freePages(PFN(pfn), order: 0) }
    // The eighth free drains two: the oldest of the movable list, not of all.
    #expect(machine.freeList(0, .movable) == [0x610, 0x600])
    #expect(machine.cpuList(0) == [0x430, 0x420, 0x410, 0x400])
    #expect(machine.cpuList(1) == [0x630, 0x620])
  }

  @Test func `3: a drained block goes to the list of the type it was cached with`() throws {
    let machine = try smallMachine(
      SmallZone(batch: 4, type: .movable, free: [FreeBlocks(1, .unmovable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x400))
    cpu.drainLocalPages()
    // The refill came from the unmovable list of a movable pageblock.
    #expect(machine.freeList(0, .unmovable) == [0x401])
    #expect(machine.freeList(0, .movable) == [])
    cpu.freePages(PFN(0x400), order: 0)
    cpu.drainLocalPages()
    #expect(machine.freeList(1, .movable) == [0x400])
  }

  @Test(arguments: [
    (Int32(63), 0, 63), (63, 1, 31), (63, 2, 15), (63, 3, 7), (63, 9, 2), (7, 3, 2), (1, 0, 1),
    (1, 3, 1), (1, 9, 1),
  ])
  func `4: a refill takes batch >> order blocks, at least two, or one where batch is one`(
    batch: Int32, order: Int, blocks: Int
  ) throws {
    let machine = try smallMachine(
      SmallZone(
        count: 4096, batch: batch,
        free: [FreeBlocks(10, .movable, 0x400, 0x800, 0xc00, 0x1000)]))
    var cpu = try machine.claimCPU(0)
    _ = try cpu.allocatePages(order: order, gfp: [.noWait, .movable])
    #expect(Int(machine.pageset().count) == (blocks - 1) << order)
  }

  @Test func `5: a split hands out the lowest piece and keeps the upper halves`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(5, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(order: 4, gfp: [.noWait, .movable]) == PFN(0x400))
    #expect(machine.freeList(4, .movable) == [0x410])
  }

  @Test func `6: what an exact allocation has too much goes to the back of the buddy lists`() throws
  {
    let machine = try smallMachine(
      SmallZone(
        batch: 1, free: [FreeBlocks(3, .movable, 0x408), FreeBlocks(0, .movable, 0x500)]))
    var cpu = try machine.claimCPU(0)
    let first = try cpu.allocateExact(bytes: 5 * 4096, gfp: [.noWait, .movable])
    #expect(first == PFN(0x408))
    for offset in 0..<5 { #expect(machine.frames.refcount(first + offset) == 1) }
    #expect(machine.freeList(0, .movable) == [0x500, 0x40d])
    #expect(machine.freeList(1, .movable) == [0x40e])
    #expect(machine.pageset().count == 0)
    cpu.freeExact(first, bytes: 5 * 4096)
    #expect(machine.cpuList(1) == [0x40c, 0x40b, 0x40a, 0x409, 0x408])
  }

  @Test func `8: a steal moves blocks to the back, also those on the right list already`() throws {
    let machine = try smallMachine(
      SmallZone(
        free: [
          FreeBlocks(6, .movable, 0x440), FreeBlocks(2, .movable, 0x420),
          FreeBlocks(1, .unmovable, 0x600, 0x40c),
        ]))
    var cpu = try machine.claimCPU(0)
    // Two free blocks of order 1 are too small; 84 free pages and 428 alike make a claim.
    #expect(try cpu.allocatePages(order: 2, gfp: .noWait) == PFN(0x420))
    #expect(machine.freeList(1, .unmovable) == [0x600, 0x40c])
    #expect(machine.freeList(6, .unmovable) == [0x440])
    #expect(machine.pageblockType(of: PFN(0x400)) == .unmovable)
  }

  @Test func `8: a pageblock in use by movable pages is not converted, but its free pages move`()
    throws
  {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(6, .movable, 0x440)]))
    for pfn in UInt32(0x500)...0x5ff { machine.setFlags(of: PFN(pfn), [.lru]) }
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x440))
    // 64 free and 192 alike would be enough; one more movable page is not.
    #expect(machine.pageblockType(of: PFN(0x400)) == .unmovable)
    let other = try smallMachine(SmallZone(free: [FreeBlocks(6, .movable, 0x440)]))
    for pfn in UInt32(0x4ff)...0x5ff { other.setFlags(of: PFN(pfn), [.lru]) }
    var second = try other.claimCPU(0)
    #expect(try second.allocatePages(gfp: .noWait) == PFN(0x440))
    #expect(other.pageblockType(of: PFN(0x400)) == .movable)
    #expect(other.freeList(5, .unmovable) == [0x460])
  }

  @Test func `9: rather than mix pageblocks of Normal the first pass takes from DMA32`() throws {
    let normal = SmallZone(
      kind: .normal, start: 0x1000, free: [FreeBlocks(8, .movable, 0x1000)])
    let dma32 = SmallZone(free: [FreeBlocks(0, .unmovable, 0x480, 0x490)])
    let machine = try smallMachine(dma32, normal)
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x480))
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x490))
    // DMA32 is empty now: the second pass mixes.
    #expect(try cpu.allocatePages(gfp: .noWait) == PFN(0x1000))
  }

  @Test func `10: every attempt halves the free factor, also one that fails`() throws {
    let machine = try smallMachine(SmallZone(freeFactor: 5, counter: 4000))
    var cpu = try machine.claimCPU(0)
    // The counter promises pages that no list has: each of the walks tries and fails, two for a
    // zone below Normal in the slow path and one before.
    #expect(throws: AllocationError.outOfMemory) { try cpu.allocatePages(gfp: .noWait) }
    #expect(machine.pageset().freeFactor == 0)
    let untouched = try smallMachine(SmallZone(freeFactor: 5))
    var other = try untouched.claimCPU(0)
    #expect(throws: AllocationError.outOfMemory) { try other.allocatePages(gfp: .noWait) }
    // Below the watermark a zone is not tried.
    #expect(untouched.pageset().freeFactor == 5)
  }

  @Test func `12: watermarks see the global counter only, not what is pending on a CPU`() throws {
    let blocks = FreeBlocks(5, .movable, 0x400)
    let short = try smallMachine(
      SmallZone(watermarks: [10, 20, 30], free: [blocks], counter: 20))
    var cpu = try short.claimCPU(0)
    // 32 pages are free, but the counter says 20: above MIN only.
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(order: 4, gfp: [.noWait, .noMemalloc, .movable])
    }
    let enough = try smallMachine(
      SmallZone(watermarks: [10, 20, 30], free: [blocks], counter: 36))
    var other = try enough.claimCPU(0)
    #expect(try other.allocatePages(order: 4, gfp: [.noWait, .noMemalloc, .movable]) == PFN(0x400))
  }

  @Test func `12: a boost raises the watermarks`() throws {
    let machine = try smallMachine(
      SmallZone(watermarks: [10, 20, 30], boost: 100, free: [FreeBlocks(6, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    #expect(throws: AllocationError.wouldReclaim) {
      try cpu.allocatePages(order: 4, gfp: [.kernel, .movable])
    }
    // An atomic single page may go below a boost.
    #expect(try cpu.allocatePages(gfp: [.atomic, .movable]) == PFN(0x400))
  }
}
