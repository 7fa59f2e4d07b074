internal import CPhysmemLimits
internal import Histogram
internal import PMArena
internal import PMFrames
internal import PMGuestMap
internal import PMPageAllocator
internal import PMUnits

extension BenchmarkMeasurements {
  /// How the time of single operations is spread, each timed for itself on one pinned thread.
  ///
  /// The clock's own cost, which `clock` shows, is contained in all others; how fine it counts is the
  /// processor's matter (Zen: 10 ns), so that single times step while their mean does not. `stage2.map` maps frames in
  /// order, so that every 512th takes a table; `guest.read` reads 8 bytes at random of 2 MiB in 8 slots;
  /// `notifier.page` is an invalidation of one mapped page, start and end.
  mutating func measureLatency(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) throws {
    let watch = OperationWatch(seconds: options.seconds)
    let measures: [(String, @Sendable () throws -> Latency)] = [
      ("clock", { watch.time("clock") { _ in } }),
      ("refcount.pair", { try LatencySubject.references(watch) }),
      ("alloc.pair.o0", { try LatencySubject.pairs(watch, order: 0) }),
      ("alloc.pair.o9", { try LatencySubject.pairs(watch, order: 9) }),
      ("stage2.map", { try LatencySubject.maps(watch) }),
      ("guest.read", { try LatencySubject.reads(watch) }),
      ("notifier.page", { try LatencySubject.invalidations(watch) }),
    ]
    for (name, measure) in measures {
      progress("latency: \(name)")
      latency.append(try crew.alone(measure))
    }
  }
}

/// What is timed, one operation after another.
private enum LatencySubject {
  typealias Latency = BenchmarkMeasurements.Latency

  static func references(_ watch: OperationWatch) throws -> Latency {
    let frames = try Machine(MachineDescription(memory: .mib(64))).frames
    let pfn = PFN(0x2000)
    frames.setRefcount(pfn, 1)
    var dead = 0
    defer { BenchmarkCase.keep(dead) }
    return watch.time("refcount.pair") { _ in
      frames.increment(pfn)
      if frames.putAndTest(pfn) { dead += 1 }
    }
  }

  static func pairs(_ watch: OperationWatch, order: Int) throws -> Latency {
    let machine = try Machine(MachineDescription(memory: .gib(16)))
    var cpu = try machine.claimCPU(0)
    return watch.time("alloc.pair.o\(order)") { _ in
      if let pfn = try? cpu.allocatePages(order: order, gfp: .kernel) {
        cpu.freePages(pfn, order: order)
      }
    }
  }

  static func maps(_ watch: OperationWatch) throws -> Latency {
    let table = try Stage2Table()
    let most = 262_144
    var cursor = Stage2Cursor()
    var next = 0
    var failures = 0
    defer { pm_limit_keep(UInt64(failures)) }
    return watch.time(
      "stage2.map",
      before: {
        guard next + OperationWatch.batch > most else { return }
        table.zapAll()
        table.reclaimDetachedTables()
        next = 0
      },
      { _ in
        let pfn = PFN(UInt32(truncatingIfNeeded: 0x1000 &+ next))
        if table.map(GFN(UInt64(next)), pfn, .readWrite, &cursor) != .installed { failures += 1 }
        next += 1
      })
  }

  static func reads(_ watch: OperationWatch) throws -> Latency {
    let guest = try BenchmarkGuest(BenchmarkMachines.packed(.mib(64)), regions: 8)
    guest.bind()
    var random = SplitMix64(seed: 11)
    let addresses = (0..<OperationWatch.batch).map { _ in
      guest.address(of: Int(random.next() % UInt64(BenchmarkGuest.byteCount)) & ~7)
    }
    pm_limit_keep(guest.sum(addresses))
    var sum: UInt64 = 0
    defer { pm_limit_keep(sum) }
    return addresses.withUnsafeBufferPointer { addresses in
      watch.time("guest.read") { sum &+= guest.load(addresses[$0]) }
    }
  }

  static func invalidations(_ watch: OperationWatch) throws -> Latency {
    let guest = try BenchmarkVM(.packed, pageCount: OperationWatch.batch)
    try guest.dirtyAll()
    return watch.time(
      "notifier.page", before: { try? guest.dirtyAll() },
      { guest.invalidate(pages: $0..<$0 + 1) })
  }
}

/// Times operations one by one and sorts their times into a histogram.
struct OperationWatch: Sendable {
  /// Operations between two looks at the rest of the world.
  static let batch = 1024
  /// So many operations are timed however little time there is, so that 99.99 percent means something.
  private static let least = 1 << 16
  private static let most = 1 << 24

  private let seconds: Double
  private let hasCounter: Bool
  private let nanosecondsPerTick: Double

  /// A watch that times each kind of operation for about `seconds`. Takes a moment to compare the
  /// processor's counter with the kernel's clock.
  init(seconds: Double) {
    self.seconds = seconds
    hasCounter = pm_limit_has_counter()
    guard hasCounter else {
      nanosecondsPerTick = 1
      return
    }
    let start = pm_limit_nanoseconds()
    let startTicks = pm_limit_now(true)
    while pm_limit_nanoseconds() < start + 10_000_000 {}
    let end = pm_limit_nanoseconds()
    let ticks = pm_limit_now(true) - startTicks
    nanosecondsPerTick = Double(end - start) / Double(ticks)
  }

  /// Times `operation`, which is given its number in its batch; `before` puts a batch's data in place and
  /// is not timed. The first batch does not count.
  @inline(__always)
  func time(
    _ name: String, before: () -> Void = {}, _ operation: (Int) -> Void
  ) -> BenchmarkMeasurements.Latency {
    var times = [UInt64](repeating: 0, count: OperationWatch.batch)
    var spread = Spread()
    let hasCounter = hasCounter
    let start = ContinuousClock.now
    var isWarm = false
    while true {
      before()
      times.withUnsafeMutableBufferPointer { times in
        for index in times.indices {
          let begin = pm_limit_now(hasCounter)
          operation(index)
          times[index] = pm_limit_now(hasCounter) &- begin
        }
      }
      if isWarm { spread.record(times, nanosecondsPerTick) }
      isWarm = true
      let isOver = start.duration(to: .now).inSeconds >= seconds
      if isOver && spread.count >= OperationWatch.least || spread.count >= OperationWatch.most {
        break
      }
    }
    return spread.latency(name)
  }

  /// The distribution of times.
  struct Spread {
    private var histogram = Histogram<UInt64>(numberOfSignificantValueDigits: .three)
    private var sum = 0.0
    private(set) var count = 0

    init() {}

    mutating func record(_ ticks: [UInt64], _ nanosecondsPerTick: Double) {
      for ticks in ticks {
        // A thread that moved between processors may see a counter step back.
        let time = max(0, Double(Int64(bitPattern: ticks)) * nanosecondsPerTick)
        histogram.record(UInt64(time.rounded()))
        sum += time
      }
      count += ticks.count
    }

    func latency(_ name: String) -> BenchmarkMeasurements.Latency {
      // Bins of one digit: 16 for each doubling, enough for a picture.
      var coarse = Histogram<UInt64>(numberOfSignificantValueDigits: .one)
      for value in histogram.recordedValues() { coarse.record(value.value, count: value.count) }
      let bins = coarse.recordedValues().map {
        BenchmarkMeasurements.Bin(upTo: $0.value, count: Int($0.count))
      }
      func percentile(_ percent: Double) -> UInt64 { histogram.valueAtPercentile(percent) }
      return BenchmarkMeasurements.Latency(
        name: name, count: count, mean: sum / Double(max(count, 1)), p50: percentile(50),
        p90: percentile(90), p99: percentile(99), p999: percentile(99.9),
        p9999: percentile(99.99), max: histogram.maxRecorded, bins: bins)
    }
  }
}
