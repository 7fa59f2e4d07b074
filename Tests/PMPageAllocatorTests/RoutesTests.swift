import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The short ways of the allocator, where they must leave a request to the general way.
@Suite struct RoutesTests {
  /// Faults that never fire: with them every request goes the general way.
  private static let never = AllocationFaults(interval: 1, probability: 0, space: 0, times: 0)

  @Test(arguments: [0, 1, 4, 9, 10])
  func `A request with all GFP bits is refused, on a new CPU and after faults were set`(
    _ order: Int
  ) throws {
    for memory in [ByteCount.mib(64), .mib(512), .gib(4)] {
      let machine = try Machine(MachineDescription(memory: memory))
      var cpu = try machine.claimCPU(0)
      let all = GFP(rawValue: .max)
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      cpu.freePages(try cpu.allocatePages(order: order), order: order)
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      cpu.failPageAlloc = RoutesTests.never
      cpu.failPageAlloc = nil
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      #expect(machine.invariantViolations() == [])
    }
  }

  @Test func `The same request goes the short way and the general way to the same frames`() throws {
    // A hook makes every free the general way; a fault that never fires makes every request so.
    let short = try Machine(MachineDescription(memory: .gib(1), cpus: 2))
    let general = try Machine(MachineDescription(memory: .gib(1), cpus: 2))
    var cpu = try short.claimCPU(0)
    var other = try general.claimCPU(0)
    other.failPageAlloc = RoutesTests.never
    var events = 0
    other.pageFreeEvent = { _, _, _ in events += 1 }
    var random = SplitMix64(seed: RandomRun.seed)
    RandomRun.announce("RoutesTests", steps: 20_000)
    var held: [(PFN, Int)] = []
    var frees = 0
    for _ in 0..<20_000 {
      if held.count < 40 || random.next() & 1 == 0 {
        let order = Int(random.next() % 11)
        let gfp: GFP = random.next() & 3 == 0 ? .highUserMovable : .kernel
        let mine = try? cpu.allocatePages(order: order, gfp: gfp)
        let theirs = try? other.allocatePages(order: order, gfp: gfp)
        #expect(mine == theirs)
        if let mine { held.append((mine, order)) }
      } else {
        held.swapAt(Int(random.next() % UInt64(held.count)), held.count - 1)
        let (pfn, order) = held.removeLast()
        cpu.freePages(pfn, order: order)
        other.freePages(pfn, order: order)
        frees += 1
      }
    }
    #expect(events == frees)
    #expect(short.state(withMaps: true) == general.state(withMaps: true))
    #expect(short.invariantViolations() == [])
  }

  @Test func `After a bad block the next one may be stolen, and the boost wakes kswapd`() throws {
    // One block of the type, with a raised count in it; the others are of another type.
    func machine() throws -> Machine {
      var movable = FreeBlocks(8, .movable)
      movable.pfns = (0..<16).map { 0x600 + $0 * 0x200 }
      return try smallMachine(
        SmallZone(
          count: 0x4000, managed: 0x4000, free: [FreeBlocks(4, .unmovable, 0x400), movable]))
    }
    let short = try machine()
    let general = try machine()
    short.frames.setRefcount(PFN(0x403), 1)
    general.frames.setRefcount(PFN(0x403), 1)
    var cpu = try short.claimCPU(0)
    var other = try general.claimCPU(0)
    other.failPageAlloc = RoutesTests.never
    // The first request, which finds nothing, tells the short way what such requests come to.
    let mine = [try? cpu.allocatePages(order: 10), try? cpu.allocatePages(order: 4)]
    let theirs = [try? other.allocatePages(order: 10), try? other.allocatePages(order: 4)]
    #expect(mine == theirs)
    #expect(mine[0] == nil && mine[1] != nil)
    #expect(cpu.route.gfp == GFP.kernel.rawValue && short.findings.total > 0)
    #expect(short.state(withMaps: true) == general.state(withMaps: true))
    #expect(short.findings.total == general.findings.total)
  }

  @Test func `A corrupted list is reported once`() throws {
    let machine = try Machine(MachineDescription(memory: .gib(1)))
    let reference = try Machine(MachineDescription(memory: .gib(1)))
    var totals: [Int] = []
    for (machine, isShort) in [(machine, true), (reference, false)] {
      var cpu = try machine.claimCPU(0)
      if !isShort { cpu.failPageAlloc = RoutesTests.never }
      cpu.freePages(try cpu.allocatePages(order: 4), order: 4)
      // The next block of order 10 no longer points back to its list.
      let core = machine.core(cpu: 0)
      for zone in 0..<core.zoneCount {
        for type in UInt8(0)..<3 {
          let head = core.freeList(core.zones + zone, order: 10, type: type)
          let first = core.next(head)
          if Int32(bitPattern: first) >= 0 { core.setPrevious(first, first) }
        }
      }
      _ = try? cpu.allocatePages(order: 4)
      totals.append(Int(machine.findings.total))
    }
    #expect(totals[0] == totals[1])
    #expect(totals[0] > 0)
  }

  @Test func `A contiguous range is noted: freed as one block, it is tested page by page`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    var cpu = try machine.claimCPU(0)
    try cpu.allocateContiguous(PFN(0x2000), count: 512)
    cpu.freePages(PFN(0x2000), order: 9)
    #expect(machine.findings.total == 511)
    #expect(machine.whereabouts(of: PFN(0x2001)) == .used)
    #expect(machine.frames.refcount(PFN(0x2001)) == 1)
  }
}
