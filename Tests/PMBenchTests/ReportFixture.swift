import Foundation

@testable import PMBench

/// Reports made of numbers that are known.
enum ReportFixture {
  static let machine = BenchmarkReport.Machine(
    cpus: 4, model: "Model <A> & \"B\"", kernel: "6.18.2", memory: 16 << 30)

  /// A case's result from its rounds.
  static func result(
    _ name: String, unit: String = "ns", bar: BenchmarkCase.Bar = .ratio(2),
    goal: BenchmarkCase.Bar? = nil, _ samples: [Double], _ limits: [Double] = [],
    reason: String? = nil
  ) -> BenchmarkResult {
    let item = BenchmarkCase(name, "", unit: unit, bar: bar, goal: goal) {
      .figure { (0, nil) }
    }
    return BenchmarkResult(item, samples: samples, limitSamples: limits, reason: reason)
  }

  /// Cases of every kind, and every measurement.
  static var full: BenchmarkReport {
    BenchmarkReport(
      [
        result("alloc.pair.o0", bar: .ratio(2.5), goal: .ratio(1.5), [8, 10, 9], [4, 4, 5]),
        result("free.random.o0", bar: .ratio(15), goal: .atMost(21), [90, 99, 84], [4, 4, 4]),
        result("alloc.scaling.pair", unit: "x", bar: .atLeast(1.85), goal: .atLeast(1.95), [1.5]),
        result("machine.create.1t", unit: "us", bar: .atMost(1000), [20, 30], [2, 2]),
        result(
          "replay.ops", unit: "Mops/s", bar: .atLeast(3), [], reason: "no \"trace\", none\nat all"),
      ], measurements: measurements, machine: machine)
  }

  static var measurements: BenchmarkMeasurements {
    var measured = BenchmarkMeasurements()
    for threads in [1, 2] {
      for pages in [1, 64, 4096] {
        measured.contention.append(
          .init(
            threads: threads, pages: pages, layout: "packed", nanoseconds: 5 * Double(threads),
            limitNanoseconds: 4.5, pairsPerSecond: 2.5e8))
      }
      measured.scaling.append(
        .init(
          name: "alloc.pair.o0", threads: threads,
          operationsPerSecond: 1e8 * Double(threads) * 0.96,
          idlePercent: 50 / Double(threads)))
    }
    measured.latency = [
      .init(
        name: "refcount.pair<x>", count: 1001, mean: 25.5, p50: 24, p90: 30, p99: 40, p999: 90,
        p9999: 90_000, max: 90_112,
        bins: [
          .init(upTo: 24, count: 600), .init(upTo: 30, count: 399), .init(upTo: 90, count: 1),
          .init(upTo: 90_112, count: 1),
        ])
    ]
    measured.allocators = [
      .init(
        allocator: "physmem", benchmark: "bulk", threads: 2, order: 0, iteration: 1,
        memory: 3 << 29, getMin: 20, getAverage: 21, getMax: 22, putMin: 30, putAverage: 31,
        putMax: 32, initialization: 5000, total: 7_500_000, allocations: 196_608)
    ]
    measured.backings = [
      .init(
        backing: "anonymous", byteCount: 1 << 28, faultNanoseconds: 1600.5, pageByteCount: 4096,
        randomReadNanoseconds: 80, releaseNanoseconds: 127)
    ]
    measured.kvm = [
      .init(name: "kvm.slot.add", unit: "us", value: 20, model: 3.5, byteCount: 1 << 30),
      .init(name: "kvm.fault", unit: "ns", value: 755, model: nil, byteCount: 1 << 28),
    ]
    measured.skipped = [.init(name: "jemalloc", reason: "not installed: apt-get install <lib>")]
    return measured
  }

  /// The text of a report with a change made to its object.
  static func text(_ change: (inout [String: Any]) -> Void) throws -> Data {
    let data = try JSONEncoder().encode(full)
    var object = try JSONSerialization.jsonObject(with: data) as? [String: Any] ?? [:]
    change(&object)
    return try JSONSerialization.data(withJSONObject: object)
  }
}

/// Random numbers of a distribution, the same for the same seed.
struct Draws {
  private var generator: SystemlessGenerator

  init(seed: UInt64) { generator = SystemlessGenerator(state: seed) }

  /// From 0 to below 1.
  mutating func uniform() -> Double { Double.random(in: 0..<1, using: &generator) }

  /// Around 0, standard deviation 1.
  mutating func normal() -> Double {
    (-2 * log(1 - uniform())).squareRoot() * cos(2 * .pi * uniform())
  }

  /// Rounds around a value with a relative standard deviation.
  mutating func rounds(_ count: Int, around value: Double, noise: Double) -> [Double] {
    (0..<count).map { _ in value * (1 + noise * normal()) }
  }
}

/// A linear congruential generator (Knuth's numbers), its upper half.
private struct SystemlessGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    func step() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state >> 32
    }
    return step() << 32 | step()
  }
}
