internal import ArgumentParser
internal import Foundation
internal import PMBench

/// `physmem bench compare`.
struct BenchCompare: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compare", abstract: "Tells a change between two reports from noise.",
    discussion: """
      Of a case with a limit the rounds' ratios to it are compared, so that a machine that runs slower as \
      a whole is no change; of any other the values. A case is unchanged where the bootstrap interval of the \
      ratio of medians (95 %) lies within the threshold; faster or slower where the interval is on one side \
      of no change and a rank test over the rounds says so too (Mann-Whitney, corrected for the number of \
      cases as Holm does); otherwise nobody can tell, and more rounds may.

      What differs between two runs as a whole (a busy neighbour, memory laid out anew) is in all rounds of \
      one and looks like a change. Measure on a quiet machine, or give more reports of each side: then a case \
      changed where every pair of reports says the same.

      Exit codes: 0 no regression, 1 a case is slower by the threshold or more and that is no noise, 64 \
      usage, 65 a file is no report or the reports have no case in common, 66 no such file.
      """)

  @Argument(help: "The report from before, as 'bench --json' prints it.", completion: .file())
  var before: String

  @Argument(help: "The report from after.", completion: .file())
  var after: String

  @Option(
    name: .customLong("also-before"),
    help: ArgumentHelp("One more report from before; may be repeated.", valueName: "file"),
    completion: .file())
  var moreBefore: [String] = []

  @Option(
    name: .customLong("also-after"),
    help: ArgumentHelp("One more report from after; may be repeated.", valueName: "file"),
    completion: .file())
  var moreAfter: [String] = []

  @Flag(help: "Print one JSON object.")
  var json = false

  @Option(
    help: ArgumentHelp(
      "Less is no change, slower by so many percent a regression.", valueName: "percent"))
  var threshold = 5.0

  @Option(help: "Seed of the bootstrap.")
  var seed: UInt64 = 1

  func validate() throws {
    if !(threshold >= 0 && threshold.isFinite) {
      throw ValidationError("--threshold \(threshold): expected percent, 0 or more.")
    }
  }

  func run() throws {
    let (first, second) = ([before] + moreBefore, [after] + moreAfter)
    let comparison = BenchmarkComparison(
      before: try first.map(read), after: try second.map(read),
      options: .init(thresholdPercent: threshold, seed: seed))
    guard !comparison.cases.isEmpty else {
      let files = (first + second).dropLast().joined(separator: ", ")
      Output.error("\(files) and \(second[second.count - 1]) have no case in common")
      throw ExitCode.malformedInput
    }
    if json {
      try Output.json(BenchCompareJSON(first, second, comparison))
    } else {
      Output.line(text(comparison))
    }
    if !comparison.regressions.isEmpty { throw ExitCode.mismatch }
  }

  private func read(_ path: String) throws -> BenchmarkReport {
    do throws(BenchmarkReportError) {
      return try BenchmarkReport.read(path)
    } catch {
      Output.error("\(error)")
      switch error {
      case .noInput: throw ExitCode.noInput
      case .malformed: throw ExitCode.malformedInput
      }
    }
  }

  private func text(_ comparison: BenchmarkComparison) -> String {
    func number(_ value: Double?) -> String { value.map { Decimals.text($0, 2) } ?? "-" }
    func percent(_ value: Double?) -> String { value.map(BenchCompare.percent) ?? "-" }
    var lines = comparison.machineDifferences.map { "the machines differ: \($0)" }
    let rows = comparison.cases.map { item in
      [
        item.name, item.quantity, number(item.medians[0]), number(item.medians[1]),
        percent(item.changePercent),
        item.lowPercent == nil
          ? "-" : "\(percent(item.lowPercent)) … \(percent(item.highPercent))",
        item.correctedProbability.map { String(format: "%.1g", $0) } ?? "-",
        item.isRegression ? "REGRESSION" : item.verdict.text,
      ]
    }
    let head = ["case", "of", "before", "after", "change", "interval", "p", "verdict"]
    lines += BenchText.table("", head, rows).drop(while: \.isEmpty)
    for item in comparison.cases {
      if let reason = item.reason { lines.append("cannot tell: \(item.name): \(reason)") }
    }
    for name in comparison.onlyBefore { lines.append("only before: \(name)") }
    for name in comparison.onlyAfter { lines.append("only after: \(name)") }
    let counts = BenchmarkComparison.Verdict.allCases.map { verdict in
      "\(comparison.cases.filter { $0.verdict == verdict }.count) \(verdict.text)"
    }
    let regressions = comparison.regressions.count
    lines.append(
      "\(counts.joined(separator: ", ")); \(regressions) slower by \(BenchCompare.plain(threshold)) % or more"
    )
    return lines.joined(separator: "\n")
  }

  private static func plain(_ value: Double) -> String {
    value == value.rounded() ? Decimals.text(value, 0) : "\(value)"
  }

  private static func percent(_ value: Double) -> String { String(format: "%+.1f %%", value) }
}

extension BenchmarkComparison.Verdict {
  /// The verdict in words.
  fileprivate var text: String {
    switch self {
    case .faster: "faster"
    case .slower: "slower"
    case .noChange: "no change"
    case .cannotTell: "cannot tell"
    }
  }
}

/// The object that `bench compare --json` prints.
struct BenchCompareJSON: Encodable {
  struct Case: Encodable {
    var item: BenchmarkComparison.Case

    enum CodingKeys: String, CodingKey {
      case name, verdict, regression, compared, before, after, reason
      case largerIsBetter = "larger_is_better"
      case roundsBefore = "rounds_before"
      case roundsAfter = "rounds_after"
      case changePercent = "change_percent"
      case lowPercent = "low_percent"
      case highPercent = "high_percent"
      case probability = "p"
      case correctedProbability = "p_corrected"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(item.name, forKey: .name)
      try container.encode(item.verdict, forKey: .verdict)
      try container.encode(item.isRegression, forKey: .regression)
      try container.encode(item.quantity, forKey: .compared)
      try container.encode(item.largerIsBetter, forKey: .largerIsBetter)
      try container.encode(item.rounds[0], forKey: .roundsBefore)
      try container.encode(item.rounds[1], forKey: .roundsAfter)
      try container.encode(item.medians[0], forKey: .before)
      try container.encode(item.medians[1], forKey: .after)
      try container.encode(item.changePercent, forKey: .changePercent)
      try container.encode(item.lowPercent, forKey: .lowPercent)
      try container.encode(item.highPercent, forKey: .highPercent)
      try container.encode(item.probability, forKey: .probability)
      try container.encode(item.correctedProbability, forKey: .correctedProbability)
      try container.encodeIfPresent(item.reason, forKey: .reason)
    }
  }

  enum CodingKeys: String, CodingKey {
    case before, after, confidence, seed, cases, regressions
    case schemaVersion = "schema_version"
    case thresholdPercent = "threshold_percent"
    case onlyBefore = "only_before"
    case onlyAfter = "only_after"
    case machineDifferences = "machine_differences"
  }

  var schemaVersion = 1
  var before: [String]
  var after: [String]
  var thresholdPercent: Double
  var confidence: Double
  var seed: UInt64
  var machineDifferences: [String]
  var cases: [Case]
  var onlyBefore: [String]
  var onlyAfter: [String]
  /// Names of the cases that are slower by the threshold or more.
  var regressions: [String]

  init(_ before: [String], _ after: [String], _ comparison: BenchmarkComparison) {
    self.before = before
    self.after = after
    thresholdPercent = comparison.options.thresholdPercent
    confidence = comparison.options.confidence
    seed = comparison.options.seed
    machineDifferences = comparison.machineDifferences
    cases = comparison.cases.map(Case.init)
    onlyBefore = comparison.onlyBefore
    onlyAfter = comparison.onlyAfter
    regressions = comparison.regressions.map(\.name)
  }
}
