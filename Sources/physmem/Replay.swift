internal import ArgumentParser
internal import PMFrames
internal import PMReplay

/// `physmem replay`.
struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Performs traces of a real kernel's allocator and compares everything they hold.",
    discussion: """
      Loads the first state of each trace, performs every operation, and compares results, \
      reference counts, free pages, checkpoints, states list by list and what is held at the end. \
      Traces may be gzip compressed.
      """)

  @Argument(help: "Traces in the format physmem-trace 1.")
  var traces: [String]

  @Flag(help: "Print one JSON object.")
  var json = false

  @Flag(help: "Go on after a mismatch and count them all.")
  var keepGoing = false

  @Option(help: "Stop after the operation of this number.")
  var until: Int?

  @Flag(help: "Print the state after the last operation, in the format of traces.")
  var dumpState = false

  @Option(help: RefcountLayout.help)
  var refcountLayout: RefcountLayout = .packed

  func validate() throws {
    if json, dumpState { throw ValidationError("--dump-state prints text and excludes --json.") }
    if let until, until < 0 { throw ValidationError("--until \(until): expected 0 or more.") }
  }

  func run() throws {
    var options = TraceReplayer.Options()
    options.keepsGoing = keepGoing
    options.until = until
    options.keepsFinalState = dumpState
    options.passes = 3
    options.refcountLayout = refcountLayout
    var reports: [ReplayReport] = []
    for trace in traces {
      let report: ReplayReport
      do throws(TraceError) {
        report = try TraceReplayer.replay(trace, options: options)
      } catch {
        Output.error("\(error)")
        switch error {
        case .noInput: throw ExitCode.noInput
        case .malformed: throw ExitCode.malformedInput
        case .noResources: throw ExitCode.unavailable
        }
      }
      reports.append(report)
      if !json { print(report) }
    }
    let mismatches = reports.reduce(0) { $0 + $1.mismatches }
    if json {
      try Output.json(ReplayJSON(reports))
    } else {
      let operations = reports.reduce(0) { $0 + $1.operations }
      Output.line("\(operations) operations, \(mismatches) mismatches")
    }
    if mismatches > 0 { throw ExitCode.mismatch }
  }

  private func print(_ report: ReplayReport) {
    let rate = report.operationsPerSecond / 1e6
    let speed = report.seconds > 0 ? ", \(Decimals.text(rate, 1)) million ops/s" : ""
    Output.line(
      "\(report.file): \(report.operations) operations, \(report.checkpoints) checkpoints, \(report.states) states, \(report.compared) values compared, \(report.mismatches) mismatches, \(report.findings) findings\(speed)"
    )
    if let mismatch = report.firstMismatch {
      Output.line(
        "  first mismatch at operation \(mismatch.operation), line \(mismatch.line): \(mismatch.what)"
      )
      Output.line("    trace:    \(mismatch.text)")
      Output.line("    expected: \(mismatch.expected)")
      Output.line("    got:      \(mismatch.got)")
      for line in mismatch.context { Output.line("    \(line)") }
    }
    for line in report.finalState ?? [] { Output.line(line) }
  }
}

/// The object that `replay --json` prints.
struct ReplayJSON: Encodable {
  struct File: Encodable {
    var report: ReplayReport

    enum Key: String, CodingKey {
      case file, ops, checkpoints, states, compared, mismatches, seconds
      case firstMismatch = "first_mismatch"
      case operationsPerSecond = "ops_per_second"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: Key.self)
      try container.encode(report.file, forKey: .file)
      try container.encode(report.operations, forKey: .ops)
      try container.encode(report.checkpoints, forKey: .checkpoints)
      try container.encode(report.states, forKey: .states)
      try container.encode(report.compared, forKey: .compared)
      try container.encode(report.mismatches, forKey: .mismatches)
      try container.encode(report.seconds, forKey: .seconds)
      try container.encode(report.operationsPerSecond, forKey: .operationsPerSecond)
      if let mismatch = report.firstMismatch {
        try container.encode(Mismatch(mismatch), forKey: .firstMismatch)
      } else {
        try container.encodeNil(forKey: .firstMismatch)
      }
    }
  }

  struct Mismatch: Encodable {
    var op: Int
    var line: Int
    var what: String
    var expected: String
    var got: String
    var trace: String
    var context: [String]

    init(_ mismatch: ReplayMismatch) {
      op = mismatch.operation
      line = mismatch.line
      what = mismatch.what
      expected = mismatch.expected
      got = mismatch.got
      trace = mismatch.text
      context = mismatch.context
    }
  }

  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case files, ops, mismatches
  }

  var schemaVersion = 1
  var files: [File]
  var ops: Int
  var mismatches: Int

  init(_ reports: [ReplayReport]) {
    files = reports.map(File.init)
    ops = reports.reduce(0) { $0 + $1.operations }
    mismatches = reports.reduce(0) { $0 + $1.mismatches }
  }
}
