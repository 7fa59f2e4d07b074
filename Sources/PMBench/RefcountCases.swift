internal import CPhysmemLimits
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

extension BenchmarkCase {
  private static let repetitions = 10_000

  /// One word with a line of its own for the C loops.
  private static func word() -> UnsafeMutablePointer<Int32> {
    let word = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
      .bindMemory(to: Int32.self, capacity: 16)
    word.initialize(repeating: 1, count: 16)
    return word
  }

  /// L, the unit of all bars: a get and a put-and-test in plain C on one hot word.
  static func pairLimit() -> Workload {
    let count = word()
    return Workload(operations: repetitions) { pm_limit_pair(count, repetitions) }
  }

  private static func pair(_ frames: FrameTable, _ pfn: PFN) -> Workload {
    frames.setRefcount(pfn, 1)
    return Workload(operations: repetitions) {
      var dead = 0
      for _ in 0..<repetitions {
        frames.increment(pfn)
        if frames.putAndTest(pfn) { dead += 1 }
      }
      keep(dead)
    }
  }

  private static let kept = Atomic(0)

  /// Keeps a value that is only computed to be timed. Stores it: the compiler leaves out an argument
  /// that nobody reads, and with it what computes it.
  @inline(never)
  static func keep(_ value: Int) { kept.store(value, ordering: .relaxed) }

  static func refcountCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    [
      BenchmarkCase(
        "refcount.pair", "get and put of a hot frame", bar: .ratio(1.05), goal: .ratio(1)
      ) {
        let machine = try machine(.mib(64))
        return .single(pair(machine.frames, PFN(0x2000)), limit: pairLimit())
      },
      BenchmarkCase(
        "refcount.pair.2t", "the same frame from two threads", bar: .ratio(1.05), goal: .ratio(1),
        threads: 2
      ) {
        let machine = try machine(.mib(64))
        let pfn = PFN(0x2000)
        let count = word()
        let limit = Workload(operations: repetitions) { pm_limit_pair(count, repetitions) }
        return .paired(
          [pair(machine.frames, pfn), pair(machine.frames, pfn)], limit: [limit, limit])
      },
      BenchmarkCase(
        "refcount.tryget", "get unless zero and put of a hot frame", bar: .ratio(1.10),
        goal: .ratio(1)
      ) {
        let frames = try machine(.mib(64)).frames
        let pfn = PFN(0x2000)
        frames.setRefcount(pfn, 1)
        let count = word()
        let subject = Workload(operations: repetitions) {
          var refused = 0
          for _ in 0..<repetitions {
            if !frames.getPageUnlessZero(pfn) { refused += 1 }
            if frames.putAndTest(pfn) { refused += 1 }
          }
          keep(refused)
        }
        return .single(
          subject,
          limit: Workload(operations: repetitions) { pm_limit_tryget(count, repetitions) })
      },
      BenchmarkCase(
        "refcount.freeze", "freeze and unfreeze of a hot frame", bar: .ratio(1.10), goal: .ratio(1)
      ) {
        let frames = try machine(.mib(64)).frames
        let pfn = PFN(0x2000)
        frames.setRefcount(pfn, 1)
        let count = word()
        let subject = Workload(operations: repetitions) {
          var refused = 0
          for _ in 0..<repetitions {
            if !frames.freeze(pfn, expected: 1) { refused += 1 }
            frames.unfreeze(pfn, to: 1)
          }
          keep(refused)
        }
        return .single(
          subject,
          limit: Workload(operations: repetitions) { pm_limit_freeze(count, repetitions) })
      },
      BenchmarkCase(
        "refcount.range", "get over 512 frames in one call", bar: .ratio(1.10), goal: .ratio(1)
      ) {
        let frames = try machine(.mib(64)).frames
        let words = UnsafeMutablePointer<Int32>.allocate(capacity: 512)
        words.initialize(repeating: 0, count: 512)
        let subject = Workload(operations: 512 * 64) {
          for _ in 0..<64 { frames.increment(from: PFN(0x2000), count: 512) }
        }
        let limit = Workload(operations: 512 * 64) {
          for _ in 0..<64 { pm_limit_sequential(words, 512) }
        }
        return .single(subject, limit: limit)
      },
      BenchmarkCase(
        "refcount.cold", "get over random frames of 64 GiB", bar: .ratio(1.2), goal: .ratio(1)
      ) { try coldFrames(machine) },
    ]
  }

  private static func coldFrames(_ machine: BenchmarkMachines) throws -> Subject {
    let frames = try machine(.gib(64)).frames
    let frameCount = 16 << 20
    let sampled = 1 << 20
    for index in 0..<frameCount { frames.setRefcount(PFN(UInt32(index)), 1) }
    let words = UnsafeMutablePointer<Int32>.allocate(capacity: frameCount)
    words.initialize(repeating: 1, count: frameCount)
    var random = SplitMix64(seed: 7)
    let indices = (0..<sampled).map { _ in
      UInt32(truncatingIfNeeded: random.next() % UInt64(frameCount))
    }
    let pfns = indices.map { PFN($0) }
    let subject = Workload(operations: sampled) {
      keep(pfns.withUnsafeBufferPointer { frames.increment($0) ? 1 : 0 })
    }
    let limit = Workload(operations: sampled) {
      indices.withUnsafeBufferPointer { pm_limit_random(words, $0.baseAddress!, sampled) }
    }
    return .single(subject, limit: limit)
  }
}
