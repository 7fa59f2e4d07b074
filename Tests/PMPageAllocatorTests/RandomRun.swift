import Foundation
import PMUnits

extension SplitMix64 {
  /// True `percent` times of a hundred.
  mutating func chance(_ percent: Int) -> Bool { below(100) < percent }

  /// True once in `count` times.
  mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }

  mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }
}

/// What the environment says about random tests.
enum RandomRun {
  /// `PHYSMEM_SEED`, or another one each time.
  static let seed: UInt64 =
    ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
    ?? UInt64.random(in: 1...999_999_999)

  /// `PHYSMEM_STEPS`, or the given number.
  static func steps(release: Int, debug: Int) -> Int {
    if let steps = ProcessInfo.processInfo.environment["PHYSMEM_STEPS"].flatMap({ Int($0) }) {
      return steps
    }
    #if DEBUG
      return debug
    #else
      return release
    #endif
  }

  /// How many operations lie between two complete comparisons: `PHYSMEM_COMPARE`, or 64. With 1 a
  /// difference is found by the operation that makes it.
  static let comparisonInterval: Int =
    ProcessInfo.processInfo.environment["PHYSMEM_COMPARE"].flatMap { Int($0) } ?? 64

  /// The command that repeats a run.
  static func replay(_ test: String, steps: Int) -> String {
    #if DEBUG
      let configuration = ""
    #else
      let configuration = "-c release -Xswiftc -enable-testing "
    #endif
    return "env PHYSMEM_SEED=\(seed) PHYSMEM_STEPS=\(steps) "
      + "swift test \(configuration)--filter \(test)"
  }

  /// Prints the seed and the command that repeats the run.
  static func announce(_ test: String, steps: Int) {
    print("\(test): seed \(seed), \(steps) steps; replay: \(replay(test, steps: steps))")
  }
}
