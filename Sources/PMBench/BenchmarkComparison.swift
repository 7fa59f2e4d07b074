internal import PMFrames

/// Reports from before and after beside each other: which cases changed, and which differences are noise.
///
/// Of a case with a limit the rounds' ratios to it are compared, so that a machine that runs slower as a
/// whole is no change; of any other the values. A case changed where both of these say so:
///
/// - the rank test of Mann and Whitney over the rounds finds the two sides different, with the
///   probability corrected for the number of cases (Holm), so that one false alarm among all cases of a
///   comparison is as seldom as `1 - confidence`;
/// - the bootstrap interval of the ratio of medians is on one side of 1.
///
/// It did not where the interval lies within the threshold on both sides, whatever the test says: what
/// differs from one run to the next as a whole (another layout of memory, a neighbour on the host that stays
/// for the run) is the same in all rounds and looks like a change, often of one or two percent. Between the
/// two nobody can tell, and more rounds may.
///
/// Against larger offsets of whole runs there are more reports on a side: then a case changed where every
/// pair of a report from before and one from after says the same, and did not where all intervals lie
/// within the threshold. Of runs that differ by chance alone, n on a side, that comes 2 times in (2n over
/// n): 1 in 10 of three, 1 in 126 of five.
public struct BenchmarkComparison: Hashable, Sendable {
  /// How it is compared.
  public struct Options: Hashable, Sendable {
    /// What is less than this is no change, and a change for the worse from this on a regression, percent.
    public var thresholdPercent: Double
    /// The probability that no case of a comparison is called changed if none is, and that of a case's
    /// interval to hold the true ratio.
    public var confidence: Double
    /// Seed of the bootstrap.
    public var seed: UInt64

    /// 5 % and 95 % unless told otherwise.
    public init(thresholdPercent: Double = 5, confidence: Double = 0.95, seed: UInt64 = 1) {
      self.thresholdPercent = thresholdPercent
      self.confidence = confidence
      self.seed = seed
    }
  }

  /// What became of a case.
  public enum Verdict: String, Hashable, Codable, Sendable, CaseIterable {
    /// Better than before: a smaller time or ratio, a larger throughput.
    case faster
    /// Worse than before.
    case slower
    /// The same within the threshold.
    case noChange = "no_change"
    /// The rounds do not say.
    case cannotTell = "cannot_tell"
  }

  /// A case that is in all reports. With more than one on a side, rounds and numbers are those of the pair
  /// that differs least, or of the first where the pairs do not agree.
  public struct Case: Hashable, Sendable {
    /// Its name.
    public var name: String
    /// What is compared: `ratio` (to the limit) or the unit of the values.
    public var quantity: String
    /// Whether more is better.
    public var largerIsBetter: Bool
    /// Rounds before and after.
    public var rounds: [Int]
    /// Medians of what is compared, before and after; nil where there are no rounds.
    public var medians: [Double?]
    /// After over before, less 1, percent; nil where there is no such ratio.
    public var changePercent: Double?
    /// The interval's lower end, percent.
    public var lowPercent: Double?
    /// Its upper end.
    public var highPercent: Double?
    /// The rank test's probability; nil where it was not made.
    public var probability: Double?
    /// The same corrected for the number of cases.
    public var correctedProbability: Double?
    /// What became of the case.
    public var verdict: Verdict
    /// Whether it is slower by the threshold or more.
    public var isRegression: Bool
    /// Why nobody can tell.
    public var reason: String?

    /// Whether the whole interval is less than the threshold away, up and down by the same factor.
    func isWithin(_ thresholdPercent: Double) -> Bool {
      guard let lowPercent, let highPercent else { return false }
      let threshold = 1 + thresholdPercent / 100
      return 1 + lowPercent / 100 > 1 / threshold && 1 + highPercent / 100 < threshold
    }
  }

  /// How it was compared.
  public let options: Options
  /// The cases that are in all reports, in the order of the first from after.
  public let cases: [Case]
  /// Names of cases from before that not every report from after has.
  public let onlyBefore: [String]
  /// Names of cases from after that not every report from before has.
  public let onlyAfter: [String]
  /// What the two machines, real and modelled, differ in, as `processor: A before, B after`.
  public let machineDifferences: [String]

  /// Cases that are slower by the threshold or more.
  public var regressions: [Case] { cases.filter(\.isRegression) }

  /// Compares a report from before with one from after.
  public init(
    _ before: BenchmarkReport, _ after: BenchmarkReport, options: Options = Options()
  ) {
    self.init(before: [before], after: [after], options: options)
  }

  /// Compares reports from before with reports from after; pre: one of each at least.
  public init(before: [BenchmarkReport], after: [BenchmarkReport], options: Options = Options()) {
    precondition(!before.isEmpty && !after.isEmpty, "no report on a side: nothing to compare")
    self.options = options
    let namesBefore = before.map { Set($0.cases.map(\.name)) }
    let namesAfter = after.map { Set($0.cases.map(\.name)) }
    func isShared(_ name: String, _ sides: [Set<String>]) -> Bool {
      sides.allSatisfy { $0.contains(name) }
    }
    onlyBefore = before.flatMap { $0.cases.map(\.name) }.unique
      .filter { !isShared($0, namesAfter) }
    onlyAfter = after.flatMap { $0.cases.map(\.name) }.unique
      .filter { !isShared($0, namesBefore) }
    let names = after[0].cases.map(\.name).filter {
      isShared($0, namesBefore) && isShared($0, namesAfter)
    }
    machineDifferences =
      before.flatMap { old in
        after.flatMap { BenchmarkComparison.differences(old, $0) }
      }.unique
    let pairs = before.flatMap { old in
      after.map { BenchmarkComparison.judged(names, old, $0, options) }
    }
    cases = names.indices.map { index in
      BenchmarkComparison.agreed(pairs.map { $0[index] }, options)
    }
  }

  /// The cases of these names in one pair of reports.
  private static func judged(
    _ names: [String], _ before: BenchmarkReport, _ after: BenchmarkReport, _ options: Options
  ) -> [Case] {
    func byName(_ report: BenchmarkReport) -> [String: BenchmarkResult] {
      Dictionary(report.cases.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    }
    let (old, new) = (byName(before), byName(after))
    let sides = names.compactMap { name in
      old[name].flatMap { old in new[name].map { ComparedSides(old, $0) } }
    }
    let compared = sides.filter { $0.obstacle == nil }
    let probabilities = compared.map { RankTest.probability($0.before, $0.after) }
    let corrected = RankTest.holm(probabilities)
    var next = 0
    return sides.map { side in
      guard side.obstacle == nil else { return side.unknown }
      defer { next += 1 }
      return side.judged(
        probabilities[next], corrected[next], of: compared.count, options: options)
    }
  }

  /// What all pairs of reports say about a case.
  private static func agreed(_ pairs: [Case], _ options: Options) -> Case {
    var result = pairs[0]
    if pairs.count == 1 || pairs.contains(where: { $0.verdict != result.verdict }) == false {
      // The pair that differs least speaks for all: the others say more of the same.
      result =
        pairs.min { abs($0.changePercent ?? 0) < abs($1.changePercent ?? 0) } ?? pairs[0]
      result.isRegression = pairs.allSatisfy(\.isRegression)
      return result
    }
    result.isRegression = false
    // Small changes to and fro, all of them within the threshold, are none.
    if pairs.allSatisfy({ $0.isWithin(options.thresholdPercent) }) {
      result.verdict = .noChange
      return result
    }
    result.verdict = .cannotTell
    if let blind = pairs.first(where: { $0.verdict == .cannotTell }) {
      result.reason = blind.reason
    } else {
      result.reason = "the reports of one side differ as the sides do"
    }
    return result
  }

  private static func differences(
    _ reportBefore: BenchmarkReport, _ reportAfter: BenchmarkReport
  ) -> [String] {
    let (before, after) = (reportBefore.machine, reportAfter.machine)
    var facts = [
      ("processor", before.model, after.model), ("processors", "\(before.cpus)", "\(after.cpus)"),
      ("memory", "\(before.memory) bytes", "\(after.memory) bytes"),
      ("kernel", before.kernel, after.kernel),
    ]
    if let old = reportBefore.refcountLayout, let new = reportAfter.refcountLayout {
      facts.append(("counts", old.rawValue, new.rawValue))
    }
    return facts.filter { $0.1 != $0.2 }.map { "\($0.0): \($0.1) before, \($0.2) after" }
  }
}

/// A case's two sides, made comparable.
private struct ComparedSides {
  let name: String
  let quantity: String
  let largerIsBetter: Bool
  let before: [Double]
  let after: [Double]
  /// Why they cannot be compared.
  let obstacle: String?

  init(_ before: BenchmarkResult, _ after: BenchmarkResult) {
    name = after.name
    let ratios = before.ratios.flatMap { old in after.ratios.map { (old, $0) } }
    quantity = ratios == nil ? after.unit : "ratio"
    // A bar on a ratio or an upper bar on a value wants less, whatever stands beside it.
    largerIsBetter = after.barKind == .atLeast
    (self.before, self.after) = ratios ?? (before.samples, after.samples)
    obstacle = ComparedSides.obstacle(before, after, isRatio: ratios != nil)
  }

  private static func obstacle(
    _ before: BenchmarkResult, _ after: BenchmarkResult, isRatio: Bool
  ) -> String? {
    for (side, item) in [("before", before), ("after", after)] where item.value == nil {
      return "did not run \(side): \(item.reason ?? "no reason given")"
    }
    for (side, item) in [("before", before), ("after", after)] where item.samples.isEmpty {
      return "the report from \(side) has no samples of the rounds"
    }
    if !isRatio, before.unit != after.unit {
      return "units differ: \(before.unit) before, \(after.unit) after"
    }
    if (before.barKind == .atLeast) != (after.barKind == .atLeast) {
      return "bars differ in kind: \(before.barKind.rawValue), \(after.barKind.rawValue)"
    }
    return nil
  }

  /// The case when nothing can be said.
  var unknown: BenchmarkComparison.Case {
    BenchmarkComparison.Case(
      name: name, quantity: quantity, largerIsBetter: largerIsBetter,
      rounds: [before.count, after.count],
      medians: [before, after].map { $0.isEmpty ? nil : $0.median }, verdict: .cannotTell,
      isRegression: false, reason: obstacle)
  }

  /// The case with its verdict, as one of so many.
  func judged(
    _ probability: Double, _ corrected: Double, of count: Int,
    options: BenchmarkComparison.Options
  ) -> BenchmarkComparison.Case {
    var result = unknown
    result.probability = probability
    result.correctedProbability = corrected
    let level = 1 - options.confidence
    guard before != after, Set(before + after).count > 1 else {
      result.verdict = .noChange
      (result.changePercent, result.lowPercent, result.highPercent) = (0, 0, 0)
      return result
    }
    guard
      let interval = MedianRatio(
        before, after, confidence: options.confidence, seed: options.seed)
    else {
      result.reason = "a round's value is not above 0, so that there is no ratio"
      return result
    }
    result.changePercent = (interval.ratio - 1) * 100
    result.lowPercent = (interval.low - 1) * 100
    result.highPercent = (interval.high - 1) * 100
    // How much worse, as a factor: that of a throughput is before over after.
    let worse =
      largerIsBetter
      ? (1 / interval.ratio, 1 / interval.high, 1 / interval.low)
      : (interval.ratio, interval.low, interval.high)
    if result.isWithin(options.thresholdPercent) {
      result.verdict = .noChange
    } else if corrected < level, worse.1 > 1 {
      result.verdict = .slower
      result.isRegression = worse.0 >= 1 + options.thresholdPercent / 100
    } else if corrected < level, worse.2 < 1 {
      result.verdict = .faster
    } else if RankTest.smallest(before.count, after.count) * Double(count) >= level {
      result.reason =
        "\(before.count) and \(after.count) rounds are too few to find a change among \(count) cases"
    } else {
      result.reason = "the rounds are spread too widely: more of them may tell"
    }
    return result
  }
}
