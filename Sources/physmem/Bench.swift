internal import ArgumentParser
internal import Foundation
internal import PMBench

/// `physmem bench`.
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Times counts, allocator and guest mapping, each beside its limit in the same run.",
    discussion: """
      Subject and limit are measured in turn, at least nine rounds; the value is the median, the \
      ratio the median of the rounds' ratios. Exit code 1 where a bar is not met.
      """)

  @Argument(help: "Groups of cases: refcount, alloc, free, map, replay, machine. None: all.")
  var groups: [String] = []

  @Flag(help: "Print one JSON object.")
  var json = false

  @Option(help: "Rounds per case.")
  var rounds = 9

  @Option(help: "Only cases whose name contains this.")
  var filter: String?

  func validate() throws {
    let known = ["refcount", "alloc", "free", "map", "replay", "machine"]
    if let unknown = groups.first(where: { !known.contains($0) }) {
      throw ValidationError("unknown group '\(unknown)': expected \(known.joined(separator: ", "))")
    }
    if rounds < 1 { throw ValidationError("--rounds \(rounds): expected 1 or more.") }
  }

  func run() throws {
    // Freeing belongs to the allocator: `bench alloc` runs both.
    // Mapping is what stage-2 tables, guests, dirty logs and notifiers do.
    var wanted = groups
    if groups.contains("alloc") { wanted.append("free") }
    if groups.contains("map") { wanted += ["stage2", "guest", "dirty", "notifier"] }
    let cases = BenchmarkCase.all(wanted).filter { item in
      filter.map { item.name.contains($0) } ?? true
    }
    guard !cases.isEmpty else { throw ValidationError("no case has such a name") }
    let runner = BenchmarkRunner(rounds: rounds)
    var results: [BenchmarkResult] = []
    if !json { Output.line(Bench.heading) }
    for item in cases {
      let result = runner.run(item)
      results.append(result)
      if !json { Output.line(Bench.row(result)) }
    }
    let met = results.allSatisfy(\.met)
    if json {
      try Output.json(BenchJSON(results, met: met))
    } else {
      Output.line(met ? "all bars met" : "bars not met")
    }
    if !met { throw ExitCode.mismatch }
  }

  private static let heading =
    column("case", 28) + columns(["value", "unit", "limit", "ratio", "bar", "min", "max"]) + "  met"

  private static func row(_ result: BenchmarkResult) -> String {
    guard let value = result.value else {
      return column(result.name, 28) + "  not run: \(result.reason ?? "")"
    }
    func number(_ value: Double?) -> String { value.map { Decimals.text($0, 2) } ?? "-" }
    let sign = result.barKind == "at_least" ? "≥" : "≤"
    return column(result.name, 28)
      + columns([
        number(value), result.unit, number(result.limit), number(result.ratio),
        sign + number(result.bar), number(result.min), number(result.max),
      ]) + (result.met ? "  yes" : "  NO")
  }

  private static func columns(_ texts: [String]) -> String {
    texts.map { String(repeating: " ", count: max(1, 10 - $0.count)) + $0 }.joined()
  }

  private static func column(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
  }
}

/// The object that `bench --json` prints.
struct BenchJSON: Encodable {
  struct Case: Encodable {
    var result: BenchmarkResult

    enum Key: String, CodingKey {
      case name, unit, value, limit, ratio, bar, met, threads, runs, min, max, reason
      case barKind = "bar_kind"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: Key.self)
      try container.encode(result.name, forKey: .name)
      try container.encode(result.unit, forKey: .unit)
      try container.encode(result.value, forKey: .value)
      try container.encode(result.limit, forKey: .limit)
      try container.encode(result.ratio, forKey: .ratio)
      try container.encode(result.bar, forKey: .bar)
      try container.encode(result.barKind, forKey: .barKind)
      try container.encode(result.met, forKey: .met)
      try container.encode(result.threads, forKey: .threads)
      try container.encode(result.runs, forKey: .runs)
      try container.encode(result.min, forKey: .min)
      try container.encode(result.max, forKey: .max)
      try container.encodeIfPresent(result.reason, forKey: .reason)
    }
  }

  struct Host: Encodable {
    var cpus = ProcessInfo.processInfo.activeProcessorCount
    var model = Host.cpuModel()
    var kernel = ProcessInfo.processInfo.operatingSystemVersionString
    var memory = ProcessInfo.processInfo.physicalMemory

    private static func cpuModel() -> String {
      let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
      let line = text.split(separator: "\n").first { $0.hasPrefix("model name") }
      return line?.split(separator: ":").last.map { $0.trimmingCharacters(in: .whitespaces) } ?? ""
    }
  }

  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case machine, cases, met
    case limitNanoseconds = "limit_ns"
  }

  var schemaVersion = 1
  var machine = Host()
  /// L in this run: the limit of a case that is measured against it.
  var limitNanoseconds: Double?
  var cases: [Case]
  var met: Bool

  init(_ results: [BenchmarkResult], met: Bool) {
    let pairs = results.filter { $0.name == "refcount.pair" || $0.name.hasPrefix("alloc.pair") }
    limitNanoseconds = pairs.compactMap(\.limit).first
    cases = results.map(Case.init)
    self.met = met
  }
}
