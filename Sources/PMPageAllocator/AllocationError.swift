/// Why an allocation returned no page, where the kernel returns NULL.
public enum AllocationError: Error, Hashable, Sendable {
  /// No zone that the request may use had a page above its watermark.
  case outOfMemory
  /// The same, for a request with `__GFP_DIRECT_RECLAIM`: the kernel would reclaim or compact now,
  /// which is not modelled.
  case wouldReclaim
  /// The order is not 0 to 10. The kernel warns once and returns NULL.
  case invalidOrder(Int)
  /// `__GFP_MOVABLE` and `__GFP_RECLAIMABLE` together; the kernel does not define the outcome.
  case invalidMigratetype
  /// The size is 0 or above 4 MiB, so that no order holds it.
  case invalidSize(UInt64)
  /// The node does not exist or has no zone that the request may use.
  case noZone
}

extension AllocationError: CustomStringConvertible {
  /// One line that says what was refused.
  public var description: String {
    switch self {
    case .outOfMemory: "out of memory: no zone above its watermark had a page"
    case .wouldReclaim: "out of memory: the request would reclaim, which is not modelled"
    case .invalidOrder(let order): "order \(order): expected 0 to 10"
    case .invalidMigratetype: "__GFP_MOVABLE and __GFP_RECLAIMABLE exclude each other"
    case .invalidSize(let bytes): "\(bytes) bytes: expected 1 byte to 4 MiB"
    case .noZone: "no zone of that node serves the request"
    }
  }
}
