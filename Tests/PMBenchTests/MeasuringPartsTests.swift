import Glibc
import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMBench

@Suite struct MeasuringPartsTests {
  @Test func `A sweep visits few threads one by one and many by doubling`() {
    #expect(BenchmarkCrew.threadCounts(upTo: 0) == [1])
    #expect(BenchmarkCrew.threadCounts(upTo: 3) == [1, 2, 3])
    #expect(BenchmarkCrew.threadCounts(upTo: 12) == [1, 2, 3, 4, 5, 6, 7, 8, 12])
    #expect(BenchmarkCrew.threadCounts(upTo: 64).suffix(3) == [16, 32, 64])
  }

  @Test func `A crew runs every workload and keeps nothing of it`() {
    final class Tally {
      var before = 0, runs = 0, after = 0
    }
    let crew = BenchmarkCrew()
    var tallies: [Tally] = []
    weak var lent: Tally?
    do {
      tallies = [Tally(), Tally()]
      lent = tallies[0]
      let workloads = tallies.map { tally in
        Workload(
          operations: 10, before: { tally.before += 1 }, after: { tally.after += 1 },
          run: { tally.runs += 1 })
      }
      #expect(crew.inStep(workloads, seconds: 0.001) > 0)
      for tally in tallies {
        #expect(tally.runs >= 3)
        #expect(tally.before == tally.runs && tally.after == tally.runs)
      }
      #expect(tallies[0].runs == tallies[1].runs)
      let rates = crew.freely(workloads, seconds: 0.001)
      #expect(rates.count == 2 && rates.allSatisfy { $0 > 0 })
    }
    tallies = []
    #expect(lent == nil)
  }

  @Test func `A thread's error reaches the caller`() {
    struct Failure: Error {}
    let crew = BenchmarkCrew()
    #expect(throws: Failure.self) { try crew.alone { () throws -> Int in throw Failure() } }
  }

  @Test(arguments: [1, 8, 64, 4096])
  func `Each thread visits every shared page once before it begins anew`(pages: Int) {
    for thread in 0..<3 as Range<UInt32> {
      let mask = UInt32(pages - 1)
      var index = thread & mask
      var seen: Set<UInt32> = []
      for _ in 0..<pages {
        seen.insert(index)
        index = SharedCounts.next(index, thread: thread, mask: mask)
      }
      #expect(seen.count == pages && index == thread & mask)
    }
  }

  @Test(arguments: RefcountLayout.allCases)
  func `Contention leaves every count as it was`(layout: RefcountLayout) throws {
    let field = try SharedCounts(layout)
    field.prepare(pages: 64)
    let workloads = (0..<2).map { field.subject(pages: 64, thread: $0) }
    _ = BenchmarkCrew().freely(workloads, seconds: 0.002)
    for index in 0..<64 {
      #expect(field.frames.refcount(SharedCounts.first + index) == 1)
    }
    #expect(SharedCounts.first.rawValue % 16 == 0)
  }

  @Test func `A distribution knows its percentiles and its sum`() {
    var spread = OperationWatch.Spread()
    // 1 to 10000 ticks of 2 ns each.
    spread.record((1...10_000).map { UInt64($0) }, 2)
    let latency = spread.latency("x")
    #expect(latency.name == "x" && latency.count == 10_000)
    #expect(latency.mean == 10_001)
    // Three digits: one part in a thousand.
    for (value, exact) in [
      (latency.p50, 10_000.0), (latency.p90, 18_000), (latency.p99, 19_800),
      (latency.p999, 19_980), (latency.p9999, 19_998),
    ] {
      #expect(abs(Double(value) / exact - 1) < 0.002)
    }
    #expect(latency.max == 20_000)
    #expect(latency.bins.map(\.count).reduce(0, +) == 10_000)
    #expect(latency.bins.count < 300)
    var backwards = OperationWatch.Spread()
    backwards.record([.max], 1)
    #expect(backwards.latency("x").max == 0)
  }

  @Test func `Idle time is the part of all time, guests not counted twice`() {
    let earlier = ProcessorTimes("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    let later = ProcessorTimes("cpu  150 0 150 880 120 0 0 0 80 0\n")
    #expect(later.idlePercent(since: earlier) == 100.0 * 200 / 300)
    #expect(earlier.idlePercent(since: earlier) == nil)
    #expect(ProcessorTimes("intr 5").idlePercent(since: ProcessorTimes("")) == nil)
    #expect(ProcessorTimes.now().total > 0)
  }
}

@Suite struct BufferTests {
  private func check(_ buffers: [UInt], aligned byteCount: UInt) {
    #expect(!buffers.contains(noBuffer) && Set(buffers).count == buffers.count)
    #expect(buffers.allSatisfy { $0 % byteCount == 0 })
    let sorted = buffers.sorted()
    #expect(zip(sorted, sorted.dropFirst()).allSatisfy { $1 - $0 >= byteCount })
  }

  @Test(arguments: [0, 9])
  func `Mapped buffers are apart and aligned to their size`(order: Int) {
    var source = MappedBuffers(order: order)
    let buffers = (0..<40).map { _ in source.get() }
    check(buffers, aligned: 4096 << UInt(order))
    for buffer in buffers {
      // The last page is there, and the next get may use the address again.
      UnsafeMutablePointer<UInt8>(bitPattern: buffer + (4096 << UInt(order)) - 1)?.pointee = 1
      source.put(buffer)
    }
  }

  @Test(arguments: [0, 9])
  func `A heap's buffers are apart and aligned to their size`(order: Int) {
    // The C library's own heap: it is there everywhere.
    let heap = HeapLibrary(alignedAlloc: { aligned_alloc($0, $1) }, free: { free($0) })
    var source = HeapBuffers(heap, order: order)
    let buffers = (0..<40).map { _ in source.get() }
    check(buffers, aligned: 4096 << UInt(order))
    for buffer in buffers { source.put(buffer) }
  }

  @Test(arguments: BufferBench.Kind.allCases)
  func `Benchmarks give every frame back`(kind: BufferBench.Kind) throws {
    for order in [0, 9] {
      let machine = try Machine(MachineDescription(memory: .mib(64)))
      let free = machine.freePageCount
      do {
        var source = try FrameBuffers(machine, cpu: 0, order: order)
        let buffers = (0..<8).map { _ in source.get() }
        check(buffers, aligned: 1 << UInt(order))
        #expect(machine.freePageCount == free - Int64(8 << order))
        for buffer in buffers { source.put(buffer) }
      }
      #expect(machine.freePageCount == free)
      #expect(machine.invariantViolations().isEmpty)
      let bench = BufferBench(
        peer: .physmem, kind: kind, order: order, threads: 2, operations: 100, iterations: 3,
        memory: 64 << 20, buffered: 16 << 20)
      let rows = try bench.run(BenchmarkCrew())
      #expect(rows.map(\.iteration) == [0, 1, 2])
      #expect(rows.allSatisfy { $0.threads == 2 && $0.benchmark == kind.rawValue })
      #expect(rows.allSatisfy { $0.allocations == (kind == .bulk ? bench.count : 100) })
    }
  }

  @Test func `More buffers than memory end a benchmark with what was short`() {
    let bench = BufferBench(
      peer: .physmem, kind: .bulk, order: 9, threads: 2, operations: 1, iterations: 2,
      memory: 16 << 20, buffered: 64 << 20)
    #expect {
      try bench.run(BenchmarkCrew())
    } throws: { error in
      "\(error)".contains("physmem has no memory for 2 × 16 buffers of order 9")
    }
  }

  @Test func `A missing library says what to install, a foreign one what it lacks`() {
    #expect {
      try HeapLibrary.open(["libphysmem-is-not-there.so.9"], package: "libsomething1")
    } throws: { error in
      "\(error)".contains("libphysmem-is-not-there.so.9")
        && "\(error)".contains("apt-get install libsomething1")
    }
    #expect {
      try HeapLibrary.open(["libnuma.so.1"], package: "libsomething1")
    } throws: { error in
      "\(error)".contains("libnuma.so.1 has no heap of its own")
    }
  }
}
