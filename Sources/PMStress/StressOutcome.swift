/// What a round did. What it found is in the ``StressControl``.
public struct StressOutcome: Hashable, Codable, Sendable {
  /// Operations by name.
  public var operations: [String: Int] = [:]
  /// Why the round could not be played on this machine, or nil: a resource that is missing.
  public var skipped: String?

  /// Nothing done yet.
  public init() {}

  /// A round that could not be played.
  public init(skipped: String) { self.skipped = skipped }

  /// Adds a thread's counts, which stand in the order of their names.
  mutating func add(_ counts: [Int], _ names: [String]) {
    for (name, count) in zip(names, counts) where count > 0 {
      operations[name, default: 0] += count
    }
  }

  /// Adds another round's work.
  public mutating func merge(_ other: StressOutcome) {
    operations.merge(other.operations, uniquingKeysWith: +)
    if let reason = other.skipped { skipped = reason }
  }
}
