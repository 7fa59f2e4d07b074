// swift-tools-version: 6.1
import PackageDescription

// A package of its own, so that those who embed physmem do not inherit the benchmark library.
let package = Package(
  name: "physmem-benchmarks",
  dependencies: [
    .package(name: "physmem", path: ".."),
    .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: []),
  ],
  targets: [
    // A case of PMBench as a benchmark.
    .target(
      name: "CaseAdapter",
      dependencies: [
        .product(name: "Benchmark", package: "benchmark"),
        .product(name: "PhysmemBench", package: "physmem"),
      ], path: "Benchmarks/CaseAdapter"),
    .executableTarget(
      name: "RefcountBenchmarks",
      dependencies: ["CaseAdapter", .product(name: "Benchmark", package: "benchmark")],
      path: "Benchmarks/RefcountBenchmarks",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    .executableTarget(
      name: "AllocatorBenchmarks",
      dependencies: ["CaseAdapter", .product(name: "Benchmark", package: "benchmark")],
      path: "Benchmarks/AllocatorBenchmarks",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
  ],
  swiftLanguageModes: [.v6]
)
