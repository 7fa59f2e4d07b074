internal import ArgumentParser
internal import Foundation
internal import PMBench
internal import PMFrames

/// `physmem bench run`.
struct BenchRun: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Measures and says which bars are met.",
    discussion: """
      Subject and limit are measured in turn, at least nine rounds; the value is the median, the \
      ratio the median of the rounds' ratios. The bar is what has to be reached, the goal what is to be \
      reached beyond it. Exit code 1 where a bar is not met, 69 where a file cannot be written, which is \
      looked at before anything is measured.

      --csv fills a directory: cases.csv and samples.csv, and what was measured beside the cases, where \
      tools of the field have tables in their columns and units: scaling/ as will-it-scale has \
      (tasks,processes,processes_idle,threads,threads_idle,linear; a file per case), allocators/ as LLFree's \
      bench has (alloc,x,order,iteration,memory,get_min,…).
      """)

  @Argument(help: "Groups of cases: refcount, alloc, free, map, guest, replay, machine. None: all.")
  var groups: [String] = []

  @Flag(help: "Print one JSON object.")
  var json = false

  @Option(
    help: """
      Measure beside the cases: contention, latency, scaling, allocators, backings, kvm, separated by \
      commas, or all.
      """)
  var measure: MeasuredGroups?

  @Flag(help: "Cut what --measure measures down to a look of a few seconds.")
  var quick = false

  @Flag(help: "Leave the cases out: --measure alone.")
  var measureOnly = false

  @Option(help: "Rounds per case.")
  var rounds = 9

  @Option(help: "Only cases whose name contains this.")
  var filter: String?

  @Option(help: RefcountLayout.help)
  var refcountLayout: RefcountLayout = .packed

  @Option(
    help: ArgumentHelp("Write tables of comma-separated values there.", valueName: "directory"),
    completion: .directory)
  var csv: String?

  @Option(
    help: ArgumentHelp("Write a page with drawings, in one file.", valueName: "file"),
    completion: .file(extensions: ["html"]))
  var html: String?

  func validate() throws {
    let known = ["refcount", "alloc", "free", "map", "guest", "replay", "machine"]
    if let unknown = groups.first(where: { !known.contains($0) }) {
      throw ValidationError("unknown group '\(unknown)': expected \(known.joined(separator: ", "))")
    }
    if measureOnly, measure == nil {
      throw ValidationError("--measure-only: --measure is missing.")
    }
    if quick, measure == nil { throw ValidationError("--quick: --measure is missing.") }
    if rounds < 1 { throw ValidationError("--rounds \(rounds): expected 1 or more.") }
    if let csv, csv.hasSuffix(".csv") || csv.isEmpty {
      throw ValidationError(
        "--csv '\(csv)': expected a directory, which gets cases.csv and others.")
    }
    if html?.isEmpty == true { throw ValidationError("--html: expected the name of a file.") }
  }

  func run() throws {
    let cases = try wanted()
    if measure?.groups.contains(.allocators) == true {
      BenchmarkMeasurements.restartWithRoomForPeers()
    }
    let files = try OutputFiles.checked { try BenchFiles(csv: csv, html: html) }
    let runner = BenchmarkRunner(rounds: rounds)
    var results: [BenchmarkResult] = []
    if !json, !cases.isEmpty { Output.line(BenchText.heading) }
    for item in cases {
      let result = runner.run(item)
      results.append(result)
      if !json { Output.line(BenchText.row(result)) }
    }
    let report = BenchmarkReport(
      results, measurements: try measurements(), refcountLayout: refcountLayout)
    // Standard output first: a disk that is full now does not take the result with it.
    if json {
      try Output.json(report)
    } else {
      if let measured = report.measurements { Output.line(BenchText.measurements(measured)) }
      if !cases.isEmpty { Output.line(report.met ? "all bars met" : "bars not met") }
    }
    try OutputFiles.checked { try files.write(report) }
    if !report.met { throw ExitCode.mismatch }
  }

  private func wanted() throws -> [BenchmarkCase] {
    if measureOnly { return [] }
    // Freeing belongs to the allocator: `bench alloc` runs both.
    // Mapping is what stage-2 tables, guests, dirty logs and notifiers do.
    var wanted = groups
    if groups.contains("alloc") { wanted.append("free") }
    if groups.contains("map") { wanted += ["stage2", "guest", "dirty", "notifier"] }
    let cases = BenchmarkCase.all(wanted, refcountLayout: refcountLayout).filter { item in
      filter.map { item.name.contains($0) } ?? true
    }
    guard !cases.isEmpty else { throw ValidationError("no case has such a name") }
    return cases
  }

  /// What is measured beside the cases; nil where nothing was asked for.
  private func measurements() throws -> BenchmarkMeasurements? {
    guard let measure else { return nil }
    let showsProgress = isatty(2) != 0
    func show(_ text: String) {
      guard showsProgress else { return }
      try? FileHandle.standardError.write(contentsOf: Data("\r\u{1b}[K\(text)".utf8))
    }
    defer { show("") }
    return BenchmarkMeasurements.run(
      groups: measure.groups, options: .init(quick: quick), progress: { show("measuring \($0)") })
  }
}

/// The argument of `--measure`.
struct MeasuredGroups: ExpressibleByArgument {
  /// The groups in the order in which they are measured.
  var groups: [BenchmarkMeasurements.Group]

  /// Reads names separated by commas, or `all`.
  init?(argument: String) {
    let names = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    let found = names.compactMap(BenchmarkMeasurements.Group.init)
    if argument == "all" {
      groups = BenchmarkMeasurements.Group.allCases
    } else if found.count == names.count {
      groups = BenchmarkMeasurements.Group.allCases.filter(found.contains)
    } else {
      return nil
    }
  }
}

/// The files that `bench run` writes besides standard output.
private struct BenchFiles {
  private let csv: OutputFolder?
  private let html: OutputFile?

  /// Looks whether they can be written, and makes the directory.
  init(csv: String?, html: String?) throws(OutputFileError) {
    if let csv { self.csv = try OutputFolder(csv) } else { self.csv = nil }
    if let html { self.html = try OutputFile(html) } else { self.html = nil }
  }

  func write(_ report: BenchmarkReport) throws(OutputFileError) {
    if let csv {
      for file in BenchmarkTables(report).files { try csv.write(file.text, to: file.path) }
    }
    try html?.write(BenchmarkPage(report).html)
  }
}
