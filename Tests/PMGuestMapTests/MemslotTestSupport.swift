import Foundation
import PMUnits

/// A small generator whose whole state is its seed (SplitMix64), so that a run can be replayed.
struct MemslotRandom: RandomNumberGenerator {
  /// `PHYSMEM_SEED`, or another one each time.
  static let seed: UInt64 =
    ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
    ?? UInt64.random(in: 1...999_999_999)

  private var numbers: SplitMix64

  /// The generator of one test; prints how to repeat its run.
  init(_ test: String) {
    let seed = MemslotRandom.seed
    numbers = SplitMix64(seed: seed)
    print("\(test): seed \(seed); replay: env PHYSMEM_SEED=\(seed) swift test --filter \(test)")
  }

  mutating func next() -> UInt64 {
    numbers.next()
  }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
  mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }
}

/// Runs a body on threads of its own and waits for all of them.
func onMemslotThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  let group = DispatchGroup()
  for index in 0..<count {
    group.enter()
    Thread.detachNewThread {
      body(index)
      group.leave()
    }
  }
  group.wait()
}
