// The names of the measurements' fields in reports: snake case, as everything in a report.

extension BenchmarkMeasurements.Contention {
  enum CodingKeys: String, CodingKey {
    case threads, pages, layout
    case nanoseconds = "ns"
    case limitNanoseconds = "limit_ns"
    case pairsPerSecond = "pairs_per_second"
  }
}

extension BenchmarkMeasurements.Bin {
  enum CodingKeys: String, CodingKey {
    case upTo = "up_to"
    case count
  }
}

extension BenchmarkMeasurements.Scaling {
  enum CodingKeys: String, CodingKey {
    case name, threads
    case operationsPerSecond = "ops_per_second"
    case idlePercent = "idle_percent"
  }
}

extension BenchmarkMeasurements.Allocator {
  enum CodingKeys: String, CodingKey {
    case allocator, benchmark, threads, order, iteration
    case memory = "memory_bytes"
    case getMin = "get_min"
    case getAverage = "get_avg"
    case getMax = "get_max"
    case putMin = "put_min"
    case putAverage = "put_avg"
    case putMax = "put_max"
    case initialization = "init_ns"
    case total = "total_ns"
    case allocations = "allocs"
  }
}

extension BenchmarkMeasurements.Backing {
  enum CodingKeys: String, CodingKey {
    case backing
    case byteCount = "bytes"
    case faultNanoseconds = "fault_ns"
    case pageByteCount = "page_bytes"
    case randomReadNanoseconds = "random_read_ns"
    case releaseNanoseconds = "release_ns"
  }
}

extension BenchmarkMeasurements.KVMCost {
  enum CodingKeys: String, CodingKey {
    case name, unit, value, model
    case byteCount = "bytes"
  }
}
