internal import PMPageAllocator
internal import PMUnits

/// A CPU that closures can share: at any time one of them uses it.
final class BenchmarkCPU {
  private var cpu: CPU
  /// Frames that the workload holds.
  let pages: UnsafeMutableBufferPointer<PFN>

  init(_ machine: Machine, _ index: Int = 0, capacity: Int = 0) throws {
    cpu = try machine.claimCPU(index)
    // On pages of its own: no line is shared with what another thread's list starts or ends on.
    let bytes = (max(capacity, 1) * MemoryLayout<PFN>.stride + 4095) & ~4095
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes, alignment: 4096)
    pages = memory.bindMemory(to: PFN.self)
    pages.initialize(repeating: PFN(0))
  }

  deinit { pages.deallocate() }

  /// Lends the CPU for a loop.
  func use(_ body: (inout CPU, UnsafeMutableBufferPointer<PFN>) -> Void) { body(&cpu, pages) }

  /// Allocates `count` blocks and notes them.
  func fill(_ count: Int, order: Int, gfp: GFP = .kernel) {
    use { cpu, pages in
      for index in 0..<count {
        guard let pfn = try? cpu.allocatePages(order: order, gfp: gfp) else {
          fatalError("block \(index) of \(count) of order \(order): out of memory in a benchmark")
        }
        pages[index] = pfn
      }
    }
  }

  /// Frees what `fill` allocated, in the order of the list.
  func empty(_ count: Int, order: Int) {
    use { cpu, pages in
      for index in 0..<count { cpu.freePages(pages[index], order: order) }
    }
  }

  /// Empties the CPU's lists, so that all memory merges again and every repetition starts alike.
  func drain() { use { cpu, _ in cpu.drainLocalPages() } }

  /// `empty` in one call.
  func emptyAtOnce(_ count: Int, order: Int) {
    use { cpu, pages in
      cpu.freePages(UnsafeBufferPointer(rebasing: pages[0..<count]), order: order)
    }
  }

  /// Puts the list in random order.
  func shuffle(_ count: Int, seed: UInt64) {
    var random = SplitMix64(seed: seed)
    for index in stride(from: count - 1, to: 0, by: -1) {
      pages.swapAt(index, Int(random.next() % UInt64(index + 1)))
    }
  }
}

extension BenchmarkCase {
  /// A block allocated and freed, again and again.
  private static func pairs(_ cpu: BenchmarkCPU, order: Int, repetitions: Int) -> Workload {
    Workload(operations: repetitions) {
      cpu.use { cpu, _ in
        for _ in 0..<repetitions {
          if let pfn = try? cpu.allocatePages(order: order, gfp: .kernel) {
            cpu.freePages(pfn, order: order)
          }
        }
      }
    }
  }

  private static func pairCase(
    _ machine: BenchmarkMachines, _ order: Int, bar: Double, goal: Double
  ) -> BenchmarkCase {
    BenchmarkCase(
      "alloc.pair.o\(order)", "a block of order \(order) allocated and freed", bar: .ratio(bar),
      goal: .ratio(goal)
    ) {
      let cpu = try BenchmarkCPU(machine(.gib(16)))
      return .single(
        pairs(cpu, order: order, repetitions: order == 0 ? 4000 : 1000), limit: pairLimit())
    }
  }

  static func allocatorCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    let orders = [4, 5, 6, 7, 8, 10].map { pairCase(machine, $0, bar: 12, goal: 6) }
    return [pairCase(machine, 0, bar: 2.5, goal: 1.5)] + bulkCases(machine)
      + [pairCase(machine, 9, bar: 20, goal: 8)] + orders + [hugeCase(machine)]
      + scalingCases(machine)
  }

  private static func bulkCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    [
      BenchmarkCase(
        "alloc.bulk.o0", "single frames of 4 GiB allocated one after another", bar: .ratio(4),
        goal: .ratio(1)
      ) {
        let count = 700_000
        let cpu = try BenchmarkCPU(machine(.gib(4)), capacity: count)
        let subject = Workload(
          operations: count, after: { cpu.empty(count, order: 0) },
          run: { cpu.fill(count, order: 0) })
        return .single(subject, limit: pairLimit())
      },
      BenchmarkCase("free.bulk.o0", "the same freed in order", bar: .ratio(4), goal: .ratio(1)) {
        let count = 700_000
        let cpu = try BenchmarkCPU(machine(.gib(4)), capacity: count)
        let subject = Workload(
          operations: count, before: { cpu.fill(count, order: 0) },
          run: { cpu.empty(count, order: 0) })
        return .single(subject, limit: pairLimit())
      },
      BenchmarkCase(
        "free.random.o0", "single frames of 16 GiB freed in random order", bar: .ratio(15),
        goal: .atMost(21)
      ) {
        let count = 3_900_000
        let cpu = try BenchmarkCPU(machine(.gib(16)), capacity: count)
        var seed: UInt64 = 0
        let subject = Workload(
          operations: count,
          before: {
            seed += 1
            cpu.fill(count, order: 0)
            cpu.shuffle(count, seed: seed)
          }, run: { cpu.emptyAtOnce(count, order: 0) })
        return .single(subject, limit: pairLimit())
      },
    ]
  }

  private static func hugeCase(_ machine: BenchmarkMachines) -> BenchmarkCase {
    BenchmarkCase(
      "alloc.bulk.o9.1t", "blocks of order 9 of 1 TiB allocated one after another", bar: .ratio(15),
      goal: .ratio(7)
    ) {
      let count = 500_000
      let cpu = try BenchmarkCPU(machine(.tib(1)), capacity: count)
      let subject = Workload(
        operations: count, after: { cpu.empty(count, order: 9) }, run: { cpu.fill(count, order: 9) }
      )
      return .single(subject, limit: pairLimit())
    }
  }

  private static func scalingCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    [
      BenchmarkCase(
        "alloc.scaling.pair", "throughput of two CPUs over one, order-0 pairs", unit: "x",
        bar: .atLeast(1.85), goal: .atLeast(1.95), threads: 2
      ) {
        let machine = try machine(.gib(16), cpus: 2)
        let cpus = try (0..<2).map { try BenchmarkCPU(machine, $0) }
        let workloads = cpus.map { pairs($0, order: 0, repetitions: 4000) }
        return .scaling(one: workloads[0], two: workloads)
      },
      BenchmarkCase(
        "alloc.scaling.bulk", "throughput of two CPUs over one, single frames allocated in bulk",
        unit: "x", bar: .atLeast(1.6), goal: .atLeast(1.95), threads: 2
      ) {
        let count = 700_000
        let machine = try machine(.gib(16), cpus: 2)
        let cpus = try (0..<2).map { try BenchmarkCPU(machine, $0, capacity: count) }
        let workloads = cpus.map { cpu in
          Workload(
            operations: count,
            after: {
              cpu.empty(count, order: 0)
              cpu.drain()
            }, run: { cpu.fill(count, order: 0) })
        }
        return .scaling(one: workloads[0], two: workloads)
      },
    ]
  }
}
