internal import CPhysmemLimits
internal import PMFrames
internal import PMGuestMap
internal import PMPageAllocator
internal import PMUnits

extension BenchmarkMeasurements {
  /// Throughput with 1 … n threads, each on a CPU of one machine.
  ///
  /// `alloc.pair` allocates and frees a block again and again, `alloc.bulk` allocates single frames only
  /// (freeing is not timed), `refcount.own` has a line per thread and `refcount.shared` one page for all,
  /// `stage2.map` installs pages into one table, each thread into its own part of the guest.
  ///
  /// `line.transfer` stands beside them where there are two threads: how often a second a line goes from
  /// one CPU to the other. It says how near the CPUs are to each other, which in a virtual machine may
  /// change from minute to minute, and whatever shares a lock changes with it.
  mutating func measureScaling(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) throws {
    // The kernel counts idle time in ticks of 10 ms.
    let seconds = max(options.seconds, 0.1)
    var isIdleKnown = true
    for name in ScalingField.names {
      for threads in options.threadCounts(crew) where threads == 2 || name != "line.transfer" {
        progress("scaling: \(name), \(threads) threads")
        let field = try ScalingField(threads: threads, quick: options.quick)
        let workloads = try field.workloads(name)
        let before = ProcessorTimes.now()
        let rate = crew.inStep(workloads, seconds: seconds)
        let idle = ProcessorTimes.now().idlePercent(since: before)
        if idle == nil { isIdleKnown = false }
        scaling.append(
          Scaling(
            name: name, threads: threads, operationsPerSecond: rate, idlePercent: idle ?? 0))
      }
    }
    if !isIdleKnown {
      skip("scaling.idle", "/proc/stat counts no time here: idle percentages are 0; mount /proc")
    }
  }
}

/// A machine with a CPU per thread, and what the threads do on it.
private final class ScalingField {
  static let names = [
    "alloc.pair.o0", "alloc.bulk.o0", "alloc.pair.o9", "refcount.own", "refcount.shared",
    "stage2.map", "line.transfer",
  ]

  private let machine: Machine
  private let threads: Int
  /// Frames that a thread takes or maps in one repetition.
  private let batch: Int

  init(threads: Int, quick: Bool) throws {
    // Untouched memory costs nothing; watermarks and per-CPU lists shall play no part.
    let size = ByteCount.gib(UInt64(max(16, 2 * threads)))
    machine = try Machine(MachineDescription(memory: size, cpus: threads))
    self.threads = threads
    batch = quick ? 1 << 15 : 1 << 17
  }

  func workloads(_ name: String) throws -> [Workload] {
    switch name {
    case "alloc.pair.o0": try (0..<threads).map { try pairs($0, order: 0, operations: 4000) }
    case "alloc.pair.o9": try (0..<threads).map { try pairs($0, order: 9, operations: 1000) }
    case "alloc.bulk.o0": try (0..<threads).map(bulk)
    case "refcount.own": (0..<threads).map { references(PFN(UInt32(0x2000 + 64 * $0))) }
    case "refcount.shared": (0..<threads).map { _ in references(PFN(0x2000)) }
    case "stage2.map": try maps()
    case "line.transfer": handovers()
    default: preconditionFailure("no benchmark \(name)")
    }
  }

  private func pairs(_ thread: Int, order: Int, operations: Int) throws -> Workload {
    let cpu = try BenchmarkCPU(machine, thread)
    return Workload(operations: operations) {
      cpu.use { cpu, _ in
        for _ in 0..<operations {
          if let pfn = try? cpu.allocatePages(order: order, gfp: .kernel) {
            cpu.freePages(pfn, order: order)
          }
        }
      }
    }
  }

  private func bulk(_ thread: Int) throws -> Workload {
    let count = batch
    let cpu = try BenchmarkCPU(machine, thread, capacity: count)
    return Workload(
      operations: count,
      after: {
        cpu.empty(count, order: 0)
        cpu.drain()
      }, run: { cpu.fill(count, order: 0) })
  }

  private func references(_ pfn: PFN) -> Workload {
    let frames = machine.frames
    frames.setRefcount(pfn, 1)
    let operations = 4000
    return Workload(operations: operations) {
      var dead = 0
      for _ in 0..<operations {
        frames.increment(pfn)
        if frames.putAndTest(pfn) { dead += 1 }
      }
      BenchmarkCase.keep(dead)
    }
  }

  private func handovers() -> [Workload] {
    let line = SharedLine()
    let steps = 500
    return (0..<2 as Range<UInt32>).map { side in
      Workload(operations: steps) { pm_limit_hand_over(line.word, side, steps) }
    }
  }

  private func maps() throws -> [Workload] {
    let table = try Stage2Table()
    let count = batch
    return (0..<threads).map { thread in
      let start = thread * count
      return Workload(
        operations: count,
        after: {
          // All threads come here after the last has mapped, and one of them empties the table while
          // the others wait.
          guard thread == 0 else { return }
          table.zapAll()
          table.reclaimDetachedTables()
        },
        run: {
          var cursor = Stage2Cursor()
          var failures = 0
          for index in start..<start + count {
            let pfn = PFN(UInt32(truncatingIfNeeded: 0x1000 &+ index))
            if table.map(GFN(UInt64(index)), pfn, .readWrite, &cursor) != .installed {
              failures += 1
            }
          }
          pm_limit_keep(UInt64(failures))
        })
    }
  }
}

/// A word with a line of its own, which lives as long as the workloads that use it.
private final class SharedLine {
  let word: UnsafeMutablePointer<UInt32>

  init() {
    word = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 128)
      .bindMemory(to: UInt32.self, capacity: 32)
    word.initialize(repeating: 0, count: 32)
  }

  deinit { word.deallocate() }
}
