import Foundation
import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The shortest forms of what the lockstep found.
@Suite struct RegressionTests {
  @Test func `The last put takes a compound page off its LRU list before the test`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(6, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let block = try cpu.allocateFolio(order: 4, gfp: [.noWait, .movable])
    machine.setFlags(of: block, [.lru, .active])
    cpu.putPage(block)
    #expect(machine.badPages == [])
    #expect(machine.freeList(6, .movable) == [0x400])
    let other = try cpu.allocateFolio(order: 5, gfp: [.noWait, .movable])
    machine.setFlags(of: other, [.lru, .unevictable])
    cpu.releasePages([other])
    #expect(machine.badPages == [])
    #expect(machine.freePageCount == 64)
  }

  @Test func `Without grouping by mobility every request is unmovable`() throws {
    let zone = SmallZone(
      batch: 4, type: .unmovable,
      free: [FreeBlocks(4, .unmovable, 0x400), FreeBlocks(4, .movable, 0x600)])
    let machine = try smallMachine(zone) { $0.isMobilityDisabled = true }
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
    var slots: [PFN?] = [nil, nil]
    #expect(cpu.allocateBulk(&slots, gfp: [.noWait, .reclaimable]) == 2)
    #expect(slots == [PFN(0x401), PFN(0x402)])
    #expect(machine.pageset().lists[0].count == 1)
  }

  @Test func `A machine of fewer than five pageblocks per zone list does not group by mobility`()
    throws
  {
    // Fewer than 512 × 5 pages above the high watermark (specification 1.5).
    let small = try Machine(MachineDescription(memory: .mib(8)))
    #expect(small.state(withMaps: false).isMobilityDisabled)
    let larger = try Machine(MachineDescription(memory: .mib(24)))
    #expect(!larger.state(withMaps: false).isMobilityDisabled)
  }

  @Test
  func `A steal that brings nothing ends, because the kernel would loop for ever`() async {
    // A process of its own, so that an endless loop would be ended.
    await #expect(processExitsWith: .success) {
      let order = 4
      alarm(100)
      let machine = try smallMachine(
        SmallZone(free: [FreeBlocks(6, .movable, 0x440)], counter: 200))
      machine.own([0x400, 0x480])
      var cpu = try machine.claimCPU(0)
      // A free of too much finds the free block inside and takes its mark.
      cpu.freePages(PFN(0x400), order: 7)
      // One more free page in the pageblock, so that a claim moves something, but too little.
      cpu.freePages(PFN(0x480), order: 0)
      cpu.drainLocalPages()
      _ = try? cpu.allocatePages(order: order, gfp: .noWait)
      guard machine.badPages == ["440 nonzero mapcount (free)"], machine.metBUG else {
        fatalError("findings: \(machine.findings.findings)")
      }
    }
  }

  @Test func `A free of order 9 is tested where the pageblock is split`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(10, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let first = try cpu.allocatePages(gfp: [.noWait, .movable])
    cpu.freePages(first, order: 9)
    #expect(
      machine.badPages
        == (0...8).map { "\(first + 1 << $0) nonzero mapcount (free)" })
    #expect(machine.pageset().count == 0)
  }

  @Test func `Get and put of a free head from boot is noticed by the removal beside it`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(32)))
    var cpu = try machine.claimCPU(0)
    let dma32 = machine.zoneIndex(ZoneID(node: 0, kind: .dma32)) ?? 0
    let list = machine.freeList(10, .movable, zone: dma32)
    cpu.getPage(PFN(list[1]))
    cpu.putPage(PFN(list[1]))
    #expect(machine.findings.total == 0)
    #expect(throws: AllocationError.self) {
      try cpu.allocatePages(order: 10, gfp: [.noWait, .movable, .thisNode])
    }
    #expect(machine.metBUG)
  }

  @Test func `A free of order 10 is tested at the pageblock in its middle`() throws {
    let machine = try smallMachine(
      SmallZone(count: 2048, free: [FreeBlocks(10, .movable, 0x400, 0x800)]))
    var cpu = try machine.claimCPU(0)
    let first = try cpu.allocatePages(order: 9, gfp: [.noWait, .movable])
    let second = try cpu.allocatePages(order: 9, gfp: [.noWait, .movable])
    #expect(second == first + 512)
    cpu.freePages(first, order: 10)
    #expect(machine.badPages == ["\(second) nonzero _refcount (free)"])
    let third = try cpu.allocatePages(order: 9, gfp: [.noWait, .movable])
    cpu.drainLocalPages()
    cpu.freePages(third, order: 10)
    #expect(machine.badPages.last == "\(third + 512) nonzero mapcount (free)")
  }

  @Test func `A split block of order 9 or 10 freed with its old order leaks`() throws {
    for order in [9, 10] {
      let machine = try smallMachine(SmallZone(free: [FreeBlocks(10, .movable, 0x400)]))
      var cpu = try machine.claimCPU(0)
      let block = try cpu.allocatePages(order: order, gfp: [.noWait, .movable])
      cpu.splitPage(block, order: order)
      cpu.freePages(block, order: order)
      #expect(machine.badPages.count == 1 << order - 1)
    }
  }

  @Test func `Pages of an exact allocation freed as one block leak`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(10, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let block = try cpu.allocateExact(bytes: 512 * 4096, gfp: [.noWait, .movable])
    cpu.freePages(block, order: 9)
    #expect(machine.badPages.count == 511)
  }

  @Test(arguments: [0x400, 0x401])
  func `A poisoned page survives in a free block and is found by the refill`(_ poisoned: UInt32)
    throws
  {
    let machine = try smallMachine(SmallZone(batch: 2))
    machine.own([0x400])
    machine.setFlags(of: PFN(poisoned), [.hwpoison])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 1)
    cpu.drainLocalPages()
    #expect(machine.flags(of: PFN(poisoned)) == [.hwpoison])
    #expect(throws: AllocationError.outOfMemory) {
      try cpu.allocatePages(order: 1, gfp: [.noWait, .movable])
    }
    // Silently: the block is dropped without a report.
    #expect(machine.findings.total == 0)
    #expect(machine.freePageCount == 0)
  }

  @Test func `A poisoned tail stays poisoned in a compound page`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(4, .movable, 0x600)]))
    machine.own([0x400])
    machine.setFlags(of: PFN(0x401), [.hwpoison])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 1)
    #expect(try cpu.allocateFolio(order: 1, gfp: [.noWait, .movable]) == PFN(0x400))
    #expect(machine.flags(of: PFN(0x401)) == [.hwpoison])
    #expect(machine.frames.isCompoundTail(PFN(0x401)))
  }

  @Test func `A node without memory counts as a node of the machine`() throws {
    // With more than one node, Normal avoids mixing only if its node has a DMA32 zone (2.6).
    var description = MachineDescription(
      nodes: [
        MachineDescription.Node(memory: .mib(32)), MachineDescription.Node(memory: ByteCount(0)),
      ], cpus: 2)
    description.lowMemoryEnd = .mib(16)
    description.parameters.minFreeKiB = 128
    var state = try Machine(description).state(withMaps: true)
    // Normal has a free block below order 9 of another type only; DMA has one of any type.
    let normal = state.zones.firstIndex { $0.id.kind == .normal } ?? 0
    let slot = 10 * 5 + 1
    for block in state.zones[normal].freeLists[slot] {
      state.zones[normal].freeLists[8 * 5 + 1] += [block, block + 256, block + 512, block + 768]
    }
    state.zones[normal].freeLists[slot] = []
    let machine = try Machine(state: state)
    var cpu = try machine.claimCPU(0)
    let pfn = try cpu.allocatePages(gfp: .noWait)
    #expect(machine.zone(of: pfn)?.kind == .normal)
  }

  @Test func `A compound free clears the mapping of a tail that was freed alone before`() throws {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(4, .movable, 0x400)]))
    var cpu = try machine.claimCPU(0)
    let block = try cpu.allocateFolio(order: 2, gfp: [.noWait, .movable])
    cpu.splitPage(block, order: 2)
    cpu.freePages(block + 2, order: 0)
    #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == block + 2)
    machine.frames.setRefcount(block + 2, 0)
    cpu.putPage(block)
    // One report per page with a count, none for the mapping.
    #expect(
      machine.badPages == ["\(block + 1)", "\(block + 3)"].map { "\($0) nonzero _refcount (free)" })
  }
}
