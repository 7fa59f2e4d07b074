internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// Performs a trace of a real kernel's allocator and compares everything that it holds.
///
/// The first pass reads the file line by line, performs each operation on a machine in the trace's
/// first state and compares results, counts, free pages, checkpoints and states as they come. The
/// second puts the machine back and performs the operations alone, for the time they take.
public struct TraceReplayer {
  /// What to do beyond the plain comparison.
  public struct Options: Sendable {
    /// Go on after a mismatch and count them all.
    public var keepsGoing: Bool = false
    /// Stop after the operation of this number.
    public var until: Int?
    /// Keep the state after the last operation.
    public var keepsFinalState: Bool = false
    /// Make the second pass.
    public var measures: Bool = true
    /// How often the second pass is made; the fastest counts.
    public var passes: Int = 1

    /// The defaults: stop at the first mismatch, measure once.
    public init() {}
  }

  /// Replays a file. Throws where it is no trace or the host lacks memory; a difference between
  /// trace and machine is not an error but part of the report.
  public static func replay(
    _ path: String, options: Options = Options()
  ) throws(TraceError) -> ReplayReport {
    let run = try ReplayRun(path: path, options: options)
    return try run.perform()
  }
}

/// One replay.
final class ReplayRun {
  let path: String
  let options: TraceReplayer.Options
  let reader: TraceLineReader
  var report: ReplayReport
  var header: TraceHeader?
  var headerParser = TraceHeaderParser()
  var stateParser: TraceStateParser?
  var machine: Machine?
  var operations: [TraceOperation] = []
  var patterns: [[Bool]] = []
  var limits: TraceLimits?
  /// Operations performed.
  var done = 0
  /// Allocated pages as the trace's totals count them: all changes of the free pages, negated.
  var held: Int64 = 0
  var free: Int64 = 0
  var checkpointZone = 0
  var lastCheckpoint = -1
  var lastState = -1
  var sawEnd = false
  var listedFrames: ListedFrames?
  var sawFinalState = false
  var isStopped = false
  var line = 0
  /// A name for the operation that was performed last, for mismatches.
  var lineText = ""

  init(path: String, options: TraceReplayer.Options) throws(TraceError) {
    self.path = path
    self.options = options
    reader = try TraceLineReader(path: path)
    report = ReplayReport(file: path)
  }

  func perform() throws(TraceError) -> ReplayReport {
    var snapshot: MachineSnapshot?
    try withCPU { cpu throws(TraceError) in
      if let machine { snapshot = options.measures ? machine.snapshot() : nil }
      while !isStopped, try nextLine(&cpu) {}
    }
    guard let machine else { throw malformed("the file has no 'state begin'") }
    if !isStopped, !sawEnd {
      throw malformed("the file has no 'end' line: it is cut off")
    }
    report.operations = done
    report.findings = machine.findings.total
    if options.keepsFinalState {
      report.finalState = StateWriter.lines(
        of: machine.state(withMaps: true), label: sawFinalState ? "end" : "mid", operations: done,
        held: held)
    }
    if let snapshot, report.mismatches == 0 {
      report.seconds = measure(machine, snapshot)
    }
    return report
  }

  /// Reads up to the end of the first state, makes the machine, and runs `body` with its CPU.
  private func withCPU(
    _ body: (inout CPU) throws(TraceError) -> Void
  ) throws(TraceError) {
    while machine == nil {
      guard try readPrologueLine() else { throw malformed("the file ends before 'endstate begin'") }
    }
    guard let machine else { return }
    var cpu: CPU
    do { cpu = try machine.claimCPU(0) } catch {
      throw TraceError.noResources(file: path, message: "\(error)")
    }
    try body(&cpu)
  }

  func malformed(_ message: String) -> TraceError {
    .malformed(file: path, line: max(reader.lineNumber, 1), message: message)
  }

  /// Turns what is wrong with a line into an error of the file.
  private func located<Result>(
    _ body: () throws(LineError) -> Result
  ) throws(TraceError) -> Result {
    do { return try body() } catch { throw malformed(error.message) }
  }

  // MARK: the start of the file

  private func readPrologueLine() throws(TraceError) -> Bool {
    let hasLine = try reader.withNextLine { bytes throws(TraceError) -> Bool in
      if bytes.first == UInt8(ascii: "#") { return true }
      var scanner = TraceScanner(bytes)
      let word = try located { () throws(LineError) -> String in
        scanner.text(try scanner.field())
      }
      if stateParser != nil {
        let state = try located { () throws(LineError) in
          try stateParser?.take(word, &scanner) ?? nil
        }
        if let state { try begin(state) }
      } else if word == "state", headerParser.isComplete {
        header = headerParser.header
        stateParser = try located { () throws(LineError) in
          try TraceStateParser(headerParser.header, &scanner, line: reader.lineNumber)
        }
      } else {
        try located { () throws(LineError) in try headerParser.take(word, &scanner) }
      }
      return true
    }
    return hasLine ?? false
  }

  private func begin(_ state: TraceState) throws(TraceError) {
    guard state.label == .begin, state.operations == 0, state.hasMap else {
      throw malformed("the first state is '\(state.label.rawValue)': expected 'begin op=0 map=1'")
    }
    let machine: Machine
    do {
      machine = try Machine(state: state.state)
    } catch {
      switch error {
      case .invalidState(let message): throw malformed("state begin: \(message)")
      default: throw .noResources(file: path, message: "\(error)")
      }
    }
    self.machine = machine
    stateParser = nil
    held = state.totalHeld
    free = machine.freePageCount
    lastState = 0
    limits = TraceLimits(
      nodeCount: machine.nodeCount, zones: machine.zoneIDs,
      contains: { [unowned machine] pfn, frames in
        frames == 0
          || (Int(pfn) + Int(frames) <= machine.frames.frameCount
            && machine.zone(of: PFN(pfn)) != nil
            && machine.zone(of: PFN(pfn + frames - 1)) != nil)
      })
    // What was loaded has to come out again.
    compare(state)
  }

  // MARK: line by line

  private func nextLine(_ cpu: inout CPU) throws(TraceError) -> Bool {
    // The closure cannot capture the CPU, which is not copyable; it is lent for the call.
    try withUnsafeMutablePointer(to: &cpu) { cpu throws(TraceError) in
      try reader.withNextLine { bytes throws(TraceError) -> Bool in
        line = reader.lineNumber
        if bytes.first == UInt8(ascii: "#") { return true }
        if sawEnd { throw malformed("text after the 'end' line") }
        var scanner = TraceScanner(bytes)
        if let parser = stateParser {
          try takeStateLine(parser, &scanner)
          return true
        }
        let word = try located { () throws(LineError) in try scanner.field() }
        if scanner.equals(word, "op") {
          try takeOperation(&scanner, &cpu.pointee)
        } else {
          try takeOther(scanner.text(word), &scanner)
        }
        return true
      } ?? false
    }
  }

  private func takeStateLine(
    _ parser: TraceStateParser, _ scanner: inout TraceScanner
  ) throws(TraceError) {
    var parser = parser
    let state = try located { () throws(LineError) -> TraceState? in
      let word = scanner.text(try scanner.field())
      return try parser.take(word, &scanner)
    }
    stateParser = parser
    guard let state else { return }
    stateParser = nil
    lineText = "state \(state.label.rawValue) op=\(state.operations)"
    compare(state)
    sawFinalState = state.label == .end
  }

  private func takeOther(_ word: String, _ scanner: inout TraceScanner) throws(TraceError) {
    guard let header, let machine else { return }
    switch word {
    case "state":
      let parser = try located { () throws(LineError) in
        try TraceStateParser(header, &scanner, line: reader.lineNumber)
      }
      try checkState(parser)
      stateParser = parser
    case "ck":
      guard !sawFinalState else { throw malformed("a checkpoint after the last state") }
      try located { () throws(LineError) in try takeCheckpoint(machine, &scanner) }
    case "held":
      guard sawFinalState else { throw malformed("'held' before the last state") }
      try located { () throws(LineError) in try takeHeld(machine, &scanner) }
    case "end":
      guard sawFinalState else { throw malformed("'end' before the last state") }
      try located { () throws(LineError) in
        let count = try scanner.decimal("ops", 0...Int.max)
        _ = try scanner.decimal("truncated", 0...1)
        try scanner.expectEnd()
        guard count == done else { throw LineError("ops=\(count), but \(done) operations stand here") }
      }
      sawEnd = true
    default: throw malformed("'\(word)' does not belong here")
    }
  }

  private func checkState(_ parser: TraceStateParser) throws(TraceError) {
    guard parser.operations == done else {
      throw malformed("state op=\(parser.operations): \(done) operations stand before")
    }
    guard parser.label != .begin, !sawFinalState else {
      throw malformed("state '\(parser.label.rawValue)' does not belong here")
    }
    try checkCheckpointComplete()
    if parser.label == .end, header?.checkpointInterval != 0, lastCheckpoint != done {
      throw malformed("the checkpoint before the last state is missing")
    }
    lastState = done
  }

  private func takeOperation(
    _ scanner: inout TraceScanner, _ cpu: inout CPU
  ) throws(TraceError) {
    guard let limits, let header else { return }
    guard !sawFinalState else { throw malformed("an operation after the last state") }
    try checkCheckpointComplete()
    let interval = header.checkpointInterval
    if interval > 0, done % interval == 0, lastCheckpoint != done {
      throw malformed("the checkpoint after \(done) operations is missing")
    }
    if header.dumpInterval > 0, done % header.dumpInterval == 0, lastState != done {
      throw malformed("the state after \(done) operations is missing")
    }
    let parsed = try located { () throws(LineError) in
      try TraceOperationLine(&scanner, limits)
    }
    guard parsed.number == done else {
      throw malformed("op \(parsed.number): expected op \(done)")
    }
    var operation = parsed.operation
    if parsed.preset.contains(true) {
      patterns.append(parsed.preset)
      operation.pattern = UInt32(patterns.count)
    }
    operations.append(operation)
    let got = OperationPerformer.perform(operation, preset: parsed.preset, &cpu)
    done += 1
    try located { () throws(LineError) in try compare(parsed, got, &scanner) }
    if options.until == parsed.number { isStopped = true }
  }

  // MARK: the second pass

  /// Seconds for the operations alone: the fastest of the passes.
  private func measure(_ machine: Machine, _ snapshot: MachineSnapshot) -> Double {
    guard var cpu = try? machine.claimCPU(0) else { return 0 }
    var best = Double.infinity
    for _ in 0..<max(options.passes, 1) {
      machine.restore(snapshot)
      let clock = ContinuousClock()
      let started = clock.now
      for operation in operations {
        let preset = operation.pattern == 0 ? [] : patterns[Int(operation.pattern) - 1]
        OperationPerformer.performAlone(operation, preset: preset, &cpu)
      }
      let elapsed = started.duration(to: clock.now)
      let parts = elapsed.components
      best = min(best, Double(parts.seconds) + Double(parts.attoseconds) * 1e-18)
    }
    return best
  }
}
