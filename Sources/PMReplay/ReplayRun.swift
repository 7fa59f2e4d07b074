internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// One replay.
final class ReplayRun {
  let path: String
  let options: TraceReplayer.Options
  let reader: TraceLineReader
  var report: ReplayReport
  var headerParser = TraceHeaderParser()
  var stateParser: TraceStateParser?
  var trace: LoadedTrace?
  var operations: [TraceOperation] = []
  var patterns: [[Bool]] = []
  /// Where in the file the reader is.
  var order = TraceOrder()
  /// Operations performed.
  var done = 0
  /// Allocated pages as the trace's totals count them: all changes of the free pages, negated.
  var held: Int64 = 0
  var free: Int64 = 0
  /// Frames that operations allocated and did not try to free since.
  var allocated = FrameSet()
  /// The sizes that blocks were allocated with, as one bit per order, by first frame; single frames
  /// are left out.
  var blockOrders: [UInt32: UInt16] = [:]
  var heldLines = HeldLines()
  var isStopped = false
  /// The line that is compared, or a name for it, for mismatches.
  var lineText = ""

  /// What the start of a file gives.
  struct LoadedTrace {
    var header: TraceHeader
    var machine: Machine
    var limits: TraceLimits
  }

  init(path: String, options: TraceReplayer.Options) throws(TraceError) {
    self.path = path
    self.options = options
    reader = try TraceLineReader(path: path)
    report = ReplayReport(file: path)
  }

  func perform() throws(TraceError) -> ReplayReport {
    while trace == nil { try readPrologueLine() }
    guard let machine = trace?.machine else { return report }
    let snapshot = options.measures ? machine.snapshot() : nil
    try performOperations(machine)
    report.operations = done
    report.findings = machine.findings.total
    if options.keepsFinalState {
      report.finalState = StateWriter.lines(
        of: machine.state(withMaps: true), label: order.sawLastState ? "end" : "mid",
        operations: done, held: held)
    }
    if let snapshot, report.mismatches == 0 {
      report.seconds = measure(machine, snapshot)
    }
    return report
  }

  private func performOperations(_ machine: Machine) throws(TraceError) {
    var cpu: CPU
    do { cpu = try machine.claimCPU(0) } catch {
      throw TraceError.noResources(file: path, message: "\(error)")
    }
    while !isStopped, try nextLine(&cpu) {}
    if !isStopped, !order.sawEnd {
      throw malformed("the file is cut off: expected more lines up to an 'end' line")
    }
  }

  func malformed(_ message: String, line: Int? = nil) -> TraceError {
    .malformed(file: path, line: line ?? max(reader.lineNumber, 1), message: message)
  }

  /// Turns what is wrong with a line into an error of the file.
  func located<Result>(
    _ body: () throws(LineError) -> Result
  ) throws(TraceError) -> Result {
    do { return try body() } catch { throw malformed(error.message, line: error.line) }
  }

  // MARK: the start of the file

  private func readPrologueLine() throws(TraceError) {
    let hasLine = try reader.withNextLine { bytes throws(TraceError) -> Bool in
      if bytes.first == UInt8(ascii: "#") { return true }
      var scanner = TraceScanner(bytes)
      let word = try located { () throws(LineError) -> String in
        scanner.text(try scanner.field())
      }
      if stateParser != nil {
        if let state = try takeStateLine(word, &scanner) { try begin(state) }
      } else if word == "state", headerParser.isComplete {
        stateParser = try located { () throws(LineError) in
          let parser = try TraceStateParser(headerParser.header, &scanner)
          guard parser.label == .begin, parser.operations == 0, parser.hasMap else {
            throw LineError("the first state: expected 'state begin op=0 map=1'")
          }
          return parser
        }
      } else {
        try located { () throws(LineError) in try headerParser.take(word, &scanner) }
      }
      return true
    }
    guard hasLine == nil else { return }
    let expected = stateParser == nil ? headerParser.expectation : "'endstate begin'"
    throw malformed(
      reader.lineNumber == 0
        ? "the file is empty: expected \(expected)" : "the file is cut off: expected \(expected)")
  }

  func takeStateLine(
    _ word: String, _ scanner: inout TraceScanner
  ) throws(TraceError) -> TraceState? {
    // Taken out of the property while it changes, so that its arrays have one owner.
    guard var parser = stateParser else { return nil }
    stateParser = nil
    let state = try located { () throws(LineError) in
      try parser.take(word, &scanner, line: reader.lineNumber)
    }
    if state == nil { stateParser = parser }
    return state
  }

  private func begin(_ state: TraceState) throws(TraceError) {
    let machine: Machine
    do {
      machine = try Machine(state: state.state, refcountLayout: options.refcountLayout)
    } catch {
      switch error {
      case .invalidState(let message): throw malformed("state begin: \(message)")
      default: throw .noResources(file: path, message: "\(error)")
      }
    }
    trace = LoadedTrace(
      header: headerParser.header, machine: machine,
      limits: TraceLimits(
        nodeCount: machine.nodeCount, zones: machine.zoneIDs,
        layout: FrameLayout(state.state.zones)))
    order.begin(headerParser.header, zones: machine.zoneIDs.count)
    held = state.totalHeld
    free = machine.freePageCount
    // What was loaded has to come out again.
    compare(state, machine)
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
