import Benchmark
import CaseAdapter

let benchmarks: @Sendable () -> Void = {
  registerCases(["refcount"])
}
