/// What a case gave.
///
/// Values and limits are in the case's unit. In reports the names are those of PERFORMANCE.md: snake
/// case, and null where there is nothing to tell.
public struct BenchmarkResult: Hashable, Sendable {
  /// The case's name.
  public var name: String
  /// The case's unit.
  public var unit: String
  /// Median over the rounds; nil where the case could not run.
  public var value: Double?
  /// Median of the limit over the rounds, in the same unit; nil where the case has none.
  public var limit: Double?
  /// Median of the rounds' ratios; nil where the case has no limit.
  public var ratio: Double?
  /// The number of the bar.
  public var bar: Double
  /// What the bar is compared with, and how.
  public var barKind: BenchmarkCase.Bar.Kind
  /// Whether the bar is met.
  public var met: Bool
  /// The number of the goal beyond the bar; nil where the bar is all there is.
  public var goal: Double?
  /// What the goal is compared with, and how.
  public var goalKind: BenchmarkCase.Bar.Kind?
  /// Threads at work.
  public var threads: Int
  /// Rounds.
  public var runs: Int
  /// The smallest value of a round.
  public var min: Double?
  /// The largest.
  public var max: Double?
  /// The rounds' values, in the order in which they were measured.
  public var samples: [Double]
  /// The rounds' limits in the same order; empty where the case has none.
  public var limitSamples: [Double]
  /// Why a case could not run.
  public var reason: String?
}

extension BenchmarkResult {
  /// The result of a case whose rounds gave these values beside these limits (none, or one a round).
  init(
    _ item: BenchmarkCase, samples: [Double] = [], limitSamples: [Double] = [],
    reason: String? = nil
  ) {
    name = item.name
    unit = item.unit
    threads = item.threads
    runs = samples.count
    self.samples = samples
    self.limitSamples = limitSamples
    self.reason = reason
    value = samples.isEmpty ? nil : samples.median
    limit = limitSamples.isEmpty ? nil : limitSamples.median
    ratio = BenchmarkResult.ratios(samples, limitSamples).map(\.median)
    min = samples.min()
    max = samples.max()
    bar = item.bar.number
    barKind = item.bar.kind
    goal = item.goal?.number
    goalKind = item.goal?.kind
    met = false
    met = reaches(bar, barKind)
  }

  /// The rounds' ratios to the limit; nil where a round has none.
  public var ratios: [Double]? { BenchmarkResult.ratios(samples, limitSamples) }

  private static func ratios(_ samples: [Double], _ limits: [Double]) -> [Double]? {
    guard !samples.isEmpty, samples.count == limits.count, limits.allSatisfy({ $0 > 0 }) else {
      return nil
    }
    return zip(samples, limits).map { $0 / $1 }
  }

  /// What was measured over the goal: ratio or value, as the goal's kind says. 1 is there; where the goal
  /// is at least so much, less is short of it, else more. Nil without goal or measurement.
  public var goalDistance: Double? {
    guard let goal, let goalKind, goal != 0 else { return nil }
    return (goalKind == .ratio ? ratio : value).map { $0 / goal }
  }

  /// Whether the goal is reached; nil without goal.
  public var goalMet: Bool? {
    guard let goal, let goalKind else { return nil }
    return reaches(goal, goalKind)
  }

  private func reaches(_ number: Double, _ kind: BenchmarkCase.Bar.Kind) -> Bool {
    switch kind {
    case .ratio: ratio.map { $0 <= number } ?? false
    case .atMost: value.map { $0 <= number } ?? false
    case .atLeast: value.map { $0 >= number } ?? false
    }
  }
}

extension BenchmarkResult: Codable {
  private enum CodingKeys: String, CodingKey {
    case name, unit, value, limit, ratio, bar, met, goal, threads, runs, min, max, samples, reason
    case barKind = "bar_kind"
    case goalKind = "goal_kind"
    case goalDistance = "goal_distance"
    case goalMet = "goal_met"
    case limitSamples = "limit_samples"
  }

  /// Writes every field; what there is not is null, except for the reason, which is left out.
  public func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(name, forKey: .name)
    try container.encode(unit, forKey: .unit)
    try container.encode(value, forKey: .value)
    try container.encode(limit, forKey: .limit)
    try container.encode(ratio, forKey: .ratio)
    try container.encode(bar, forKey: .bar)
    try container.encode(barKind, forKey: .barKind)
    try container.encode(met, forKey: .met)
    try container.encode(goal, forKey: .goal)
    try container.encode(goalKind, forKey: .goalKind)
    try container.encode(goalDistance, forKey: .goalDistance)
    try container.encode(goalMet, forKey: .goalMet)
    try container.encode(threads, forKey: .threads)
    try container.encode(runs, forKey: .runs)
    try container.encode(min, forKey: .min)
    try container.encode(max, forKey: .max)
    try container.encode(samples, forKey: .samples)
    try container.encode(limitSamples, forKey: .limitSamples)
    try container.encodeIfPresent(reason, forKey: .reason)
  }

  /// Reads a case. Goals and samples may be missing, as in reports from before there were any.
  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    name = try container.decode(String.self, forKey: .name)
    unit = try container.decode(String.self, forKey: .unit)
    value = try container.decodeIfPresent(Double.self, forKey: .value)
    limit = try container.decodeIfPresent(Double.self, forKey: .limit)
    ratio = try container.decodeIfPresent(Double.self, forKey: .ratio)
    bar = try container.decode(Double.self, forKey: .bar)
    barKind = try container.decode(BenchmarkCase.Bar.Kind.self, forKey: .barKind)
    met = try container.decode(Bool.self, forKey: .met)
    goal = try container.decodeIfPresent(Double.self, forKey: .goal)
    goalKind = try container.decodeIfPresent(BenchmarkCase.Bar.Kind.self, forKey: .goalKind)
    threads = try container.decode(Int.self, forKey: .threads)
    runs = try container.decode(Int.self, forKey: .runs)
    min = try container.decodeIfPresent(Double.self, forKey: .min)
    max = try container.decodeIfPresent(Double.self, forKey: .max)
    samples = try container.decodeIfPresent([Double].self, forKey: .samples) ?? []
    limitSamples = try container.decodeIfPresent([Double].self, forKey: .limitSamples) ?? []
    reason = try container.decodeIfPresent(String.self, forKey: .reason)
    // Every bar of a report is compared somewhere: a number that is none would make that silent.
    let numbers = samples + limitSamples + [bar, value, limit, ratio, goal].compactMap(\.self)
    guard numbers.allSatisfy(\.isFinite) else {
      throw DecodingError.dataCorruptedError(
        forKey: .samples, in: container, debugDescription: "expected finite numbers")
    }
    guard limitSamples.isEmpty || limitSamples.count == samples.count else {
      throw DecodingError.dataCorruptedError(
        forKey: .limitSamples, in: container,
        debugDescription:
          "\(limitSamples.count) limits beside \(samples.count) samples: expected as many, or none")
    }
  }
}
