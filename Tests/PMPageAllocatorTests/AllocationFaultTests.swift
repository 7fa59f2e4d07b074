import PMUnits
import Testing

@testable import PMPageAllocator

/// Allocations that are made to fail: each number does what the kernel's documentation says.
@Suite struct AllocationFaultTests {
  /// Runs a body with a CPU of a new machine.
  private func withCPU(
    _ faults: AllocationFaults?, seed: UInt64 = 1, _ body: (inout CPU) throws -> Void
  ) throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    var cpu = try machine.claimCPU(0)
    cpu.failPageAllocSeed = seed
    cpu.failPageAlloc = faults
    try body(&cpu)
    #expect(machine.invariantViolations() == [])
    #expect(machine.findings.total == 0)
  }

  /// Which of `count` allocations fail; those that do not are freed at once.
  private func failures(
    _ cpu: inout CPU, _ count: Int, order: Int = 0, gfp: GFP = .kernel
  ) -> [Bool] {
    (0..<count).map { _ in
      guard let pfn = try? cpu.allocatePages(order: order, gfp: gfp) else { return true }
      cpu.freePages(pfn, order: order)
      return false
    }
  }

  @Test func `Without faults nothing fails and nothing is counted`() throws {
    try withCPU(nil) { cpu in
      #expect(!failures(&cpu, 1000).contains(true))
      #expect(cpu.injectedFailureCount == 0)
    }
  }

  @Test(arguments: [1, 2, 10, 37])
  func `With an interval every so manyth call fails`(_ interval: Int) throws {
    try withCPU(AllocationFaults(interval: interval, probability: 100, space: 0, times: -1)) {
      cpu in
      let failed = failures(&cpu, 1000)
      #expect(failed == (1...1000).map { $0 % interval == 0 })
      #expect(cpu.injectedFailureCount == 1000 / interval)
    }
  }

  @Test(arguments: [0, 1, 30, 99, 100])
  func `The probability is in percent, and the seed decides which`(_ percent: Int) throws {
    var runs: [[Bool]] = []
    for seed in [UInt64(7), 7, 8] {
      let faults = AllocationFaults(interval: 1, probability: percent, space: 0, times: -1)
      try withCPU(faults, seed: seed) { cpu in
        let failed = failures(&cpu, 20_000)
        let count = failed.filter { $0 }.count
        // Five standard deviations of a binomial distribution are below 355 here.
        #expect(abs(count - 200 * percent) <= (percent % 100 == 0 ? 0 : 355))
        #expect(cpu.injectedFailureCount == count)
        runs.append(failed)
      }
    }
    #expect(runs[0] == runs[1])
    #expect((runs[0] == runs[2]) == (percent % 100 == 0))
  }

  @Test func `The budget is used up before the first failure, by the sizes of the blocks`() throws {
    try withCPU(AllocationFaults(interval: 1, probability: 100, space: 8, times: -1)) { cpu in
      #expect(failures(&cpu, 10) == (1...10).map { $0 >= 8 })
      // 10 frames cover two blocks of four. The third is larger than the two that are left, which still
      // cover one single frame.
      cpu.failPageAlloc?.space = 10
      #expect(failures(&cpu, 3, order: 2) == [false, false, true])
      #expect(failures(&cpu, 2) == [false, true])
      // Calls that the budget covers do not count for the interval.
      cpu.failPageAlloc = AllocationFaults(interval: 3, probability: 100, space: 5, times: -1)
      #expect(failures(&cpu, 10) == (1...10).map { $0 > 4 && ($0 - 4) % 3 == 0 })
    }
  }

  @Test func `No more calls fail than the times allow`() throws {
    try withCPU(AllocationFaults(interval: 2, probability: 100, space: 0, times: 3)) { cpu in
      #expect(failures(&cpu, 20) == (1...20).map { $0 % 2 == 0 && $0 <= 6 })
      #expect(cpu.injectedFailureCount == 3)
      cpu.failPageAlloc?.times = 0
      #expect(failures(&cpu, 20).filter { $0 }.isEmpty)
      // Setting the faults starts anew; the sum of the failures goes on.
      cpu.failPageAlloc?.times = 2
      #expect(failures(&cpu, 20).filter { $0 }.count == 2)
      #expect(cpu.injectedFailureCount == 5)
    }
  }

  @Test func `Small orders and requests that must not fail are spared and not counted`() throws {
    var faults = AllocationFaults(interval: 2, probability: 100, space: 0, times: -1)
    faults.minimumOrder = 2
    try withCPU(faults) { cpu in
      #expect(failures(&cpu, 10, order: 1) == Array(repeating: false, count: 10))
      #expect(failures(&cpu, 1, order: 2) == [false])
      #expect(failures(&cpu, 5, order: 2, gfp: [.kernel, .noFail]).filter { $0 }.isEmpty)
      #expect(failures(&cpu, 1, order: 3) == [true])
      #expect(cpu.injectedFailureCount == 1)
    }
  }

  @Test func `A failure is the error that a lack of memory gives`() throws {
    try withCPU(AllocationFaults(interval: 1, probability: 100, space: 0, times: -1)) { cpu in
      #expect(throws: AllocationError.wouldReclaim) { try cpu.allocatePages() }
      #expect(throws: AllocationError.outOfMemory) { try cpu.allocatePages(gfp: .atomic) }
      #expect(throws: AllocationError.wouldReclaim) { try cpu.allocatePages(node: 0) }
      #expect(throws: AllocationError.wouldReclaim) { try cpu.allocateFolio(order: 3) }
      #expect(throws: AllocationError.wouldReclaim) { try cpu.allocateExact(bytes: 9000) }
      #expect(cpu.injectedFailureCount == 5)
      // Requests that are refused for another reason are not asked about.
      #expect(throws: AllocationError.invalidOrder(11)) {
        try cpu.allocatePages(order: 11, gfp: [.kernel, .noWarn])
      }
      #expect(throws: AllocationError.invalidMigratetype) {
        try cpu.allocatePages(gfp: [.movable, .reclaimable])
      }
      #expect(cpu.injectedFailureCount == 5)
    }
  }

  @Test func `A bulk allocation is asked once, and once more for a single page`() throws {
    try withCPU(AllocationFaults(interval: 1, probability: 100, space: 0, times: 1)) { cpu in
      var slots = [PFN?](repeating: nil, count: 20)
      #expect(cpu.allocateBulk(&slots) == 0)
      #expect(slots.allSatisfy { $0 == nil } && cpu.injectedFailureCount == 1)
      #expect(cpu.allocateBulk(&slots) == 20)
      cpu.failPageAlloc?.times = 1
      var one: [PFN?] = [nil]
      #expect(cpu.allocateBulk(&one) == 0)
      #expect(cpu.allocateBulk(&one) == 1)
      for pfn in slots + one { cpu.freePages(try #require(pfn), order: 0) }
      // A bulk is one call, however many pages it wants.
      cpu.failPageAlloc = AllocationFaults(interval: 3, probability: 100, space: 0, times: -1)
      let reached = (0..<6).map { _ in
        var slots = [PFN?](repeating: nil, count: 20)
        let reached = cpu.allocateBulk(&slots)
        for pfn in slots.compactMap({ $0 }) { cpu.freePages(pfn, order: 0) }
        return reached
      }
      #expect(reached == [20, 20, 0, 20, 20, 0])
      cpu.drainLocalPages()
    }
  }

  @Test func `Page fragments fall back to a single page, and then fail`() throws {
    try withCPU(AllocationFaults(interval: 1, probability: 100, space: 0, times: 1)) { cpu in
      let before = cpu.machine.freePageCount
      var cache = PageFragmentCache()
      let piece = try #require(try cache.allocate(bytes: 100, on: &cpu))
      #expect(cache.byteCount == 4096 && cpu.injectedFailureCount == 1)
      PageFragmentCache.free(piece, on: &cpu)
      cache.drain(on: &cpu)
      cpu.failPageAlloc?.times = 2
      #expect(throws: AllocationError.outOfMemory) { _ = try cache.allocate(bytes: 100, on: &cpu) }
      #expect(cache.block == nil && cpu.injectedFailureCount == 3)
      // Pages that the caller chose are not asked about.
      cpu.failPageAlloc?.times = -1
      try cpu.allocateContiguous(PFN(0x2000), count: 700)
      cpu.freeContiguous(PFN(0x2000), count: 700)
      #expect(cpu.injectedFailureCount == 3)
      cpu.drainLocalPages()
      #expect(cpu.machine.freePageCount == before)
    }
  }

  @Test func `Random requests under faults leak nothing`() throws {
    let steps = RandomRun.steps(release: 100_000, debug: 5000)
    RandomRun.announce("AllocationFaultTests", steps: steps)
    let faults = AllocationFaults(interval: 2, probability: 60, space: 100, times: -1)
    try withCPU(faults, seed: RandomRun.seed) { cpu in
      let before = cpu.machine.freePageCount
      var random = SplitMix64(seed: RandomRun.seed)
      var held: [(pfn: PFN, order: Int)] = []
      for _ in 0..<steps {
        if held.count > 40 || (random.chance(50) && !held.isEmpty) {
          let block = held.remove(at: random.below(held.count))
          cpu.freePages(block.pfn, order: block.order)
          continue
        }
        let order = random.below(8)
        if random.chance(20) {
          var slots = [PFN?](repeating: nil, count: random.below(30))
          _ = cpu.allocateBulk(&slots)
          held += slots.compactMap { $0.map { ($0, 0) } }
        } else if let pfn = try? cpu.allocatePages(
          order: order, gfp: random.chance(50) ? [.kernel, .comp] : .highUserMovable)
        {
          held.append((pfn, order))
        }
      }
      for block in held { cpu.freePages(block.pfn, order: block.order) }
      cpu.drainLocalPages()
      #expect(cpu.injectedFailureCount > steps / 20, "PHYSMEM_SEED=\(RandomRun.seed)")
      #expect(cpu.machine.freePageCount == before, "PHYSMEM_SEED=\(RandomRun.seed)")
    }
  }
}
