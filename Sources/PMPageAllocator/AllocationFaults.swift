internal import PMUnits

/// When allocations shall fail although there is memory. Mirrors `struct fault_attr` of the kernel's
/// fault injection with its four numbers, as `fail_page_alloc=INTERVAL,PROBABILITY,SPACE,TIMES` sets them.
///
/// A value; the CPU that has one counts in it, see ``CPU/failPageAlloc``. The kernel's switches
/// `ignore-gfp-highmem` and `ignore-gfp-wait`, which spare most requests by default, are off here.
public struct AllocationFaults: Hashable, Codable, Sendable {
  /// Only every so manyth call that the budget does not cover is looked at; 0 and 1: every one.
  public var interval: Int
  /// How likely a call that is looked at fails, in percent, 0 to 100.
  public var probability: Int
  /// The budget in frames: an allocation smaller than what is left of it is let through and taken
  /// from it. 0: no budget.
  public var space: Int
  /// How many failures at most; -1: no limit.
  public var times: Int
  /// Allocations below this order do not fail (`min-order`, 0 here, 1 in the kernel).
  public var minimumOrder: Int = 0

  /// Faults from the kernel's four numbers.
  public init(interval: Int, probability: Int, space: Int, times: Int) {
    self.interval = interval
    self.probability = probability
    self.space = space
    self.times = times
  }
}

/// What the decisions of one CPU have used up.
struct AllocationFaultState {
  private var space = 0
  private var times = 0
  private var calls = 0
  private var random: SplitMix64

  /// Nothing used up yet.
  init(_ faults: AllocationFaults?, seed: UInt64) {
    space = faults?.space ?? 0
    times = faults?.times ?? 0
    random = SplitMix64(seed: seed)
  }

  /// Whether an allocation of 2^order frames fails. Mirrors `should_fail`: the budget first, then the
  /// interval, then the probability.
  mutating func decide(_ faults: AllocationFaults, order: UInt32) -> Bool {
    guard faults.probability > 0, times != 0 else { return false }
    let frames = 1 << Int(order)
    if space > frames {
      space -= frames
      return false
    }
    calls &+= 1
    if faults.interval > 1, calls % faults.interval != 0 { return false }
    guard nextPercent() < faults.probability else { return false }
    if times > 0 { times -= 1 }
    return true
  }

  /// A number from 0 to 99.
  private mutating func nextPercent() -> Int { Int((random.next() >> 32) % 100) }
}

extension CPU {
  /// Whether a request shall fail. Mirrors `should_fail_alloc_page`, Linux 6.1. Where nothing is to
  /// fail, which is always but in tests, it costs one comparison.
  @inline(__always)
  mutating func shouldFail(order: UInt32, gfp: UInt32) -> Bool {
    failPageAlloc != nil && injectsFailure(order: order, gfp: gfp)
  }

  @inline(never)
  private mutating func injectsFailure(order: UInt32, gfp: UInt32) -> Bool {
    guard let faults = failPageAlloc, Int(order) >= faults.minimumOrder,
      gfp & GFP.noFail.rawValue == 0, faultState.decide(faults, order: order)
    else { return false }
    injectedFailureCount += 1
    return true
  }
}
