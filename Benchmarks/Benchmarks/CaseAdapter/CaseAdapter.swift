public import Benchmark
import PMBench

/// Registers the cases of these groups (`refcount`, `alloc`, `free`, `machine`, `replay`) as benchmarks
/// under their own names. An iteration is one repetition of the case: so many operations that a
/// repetition takes some ten microseconds or more. Cases that compare throughputs run their two
/// threads together.
public func registerCases(_ groups: [String]) {
  for item in BenchmarkCase.all(groups) {
    let holder = Prepared(item)
    Benchmark(
      item.name,
      configuration: .init(
        metrics: [.wallClock], warmupIterations: 3, scalingFactor: .one,
        maxDuration: .seconds(2), maxIterations: 1000,
        thresholds: [.wallClock: .init(relative: [.p50: 30.0])])
    ) { benchmark in
      let repetition = try holder.repetition()
      repetition.before()
      benchmark.startMeasurement()
      repetition.run()
      benchmark.stopMeasurement()
      repetition.after()
    }
  }
}

/// Makes the case's data at its first use, so that unselected cases cost nothing.
private final class Prepared {
  private let item: BenchmarkCase
  private var made: Workload?

  init(_ item: BenchmarkCase) { self.item = item }

  func repetition() throws -> Workload {
    if let made { return made }
    let workload = try item.prepare().repetition
    made = workload
    return workload
  }
}
