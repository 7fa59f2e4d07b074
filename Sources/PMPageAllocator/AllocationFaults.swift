/// When allocations shall fail although there is memory. Mirrors `struct fault_attr` of the kernel's
/// fault injection with its four numbers, as `fail_page_alloc=INTERVAL,PROBABILITY,SPACE,TIMES` sets them.
///
/// A value; the CPU that has one counts in it, see ``CPU/failPageAlloc``.
public struct AllocationFaults: Hashable, Codable, Sendable {
  /// Only every so manyth call is looked at. 1 or more.
  public var interval: Int
  /// How likely a call that is looked at fails, in percent, 0 to 100.
  public var probability: Int
  /// Frames that may be allocated before the first failure.
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
