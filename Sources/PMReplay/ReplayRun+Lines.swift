internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

// Line by line, from the first state to the end.
extension ReplayRun {
  func nextLine(_ cpu: inout CPU) throws(TraceError) -> Bool {
    // The closure cannot capture the CPU, which is not copyable; it is lent for the call.
    try withUnsafeMutablePointer(to: &cpu) { cpu throws(TraceError) in
      try reader.withNextLine { bytes throws(TraceError) -> Bool in
        if bytes.first == UInt8(ascii: "#") { return true }
        if order.sawEnd { throw malformed("text after the 'end' line") }
        guard let trace else { return false }
        var scanner = TraceScanner(bytes)
        let word = try located { () throws(LineError) in try scanner.field() }
        if stateParser != nil {
          guard let state = try takeStateLine(scanner.text(word), &scanner) else { return true }
          if state.label == .end { heldLines.total = state.totalHeld }
          compare(state, trace.machine)
        } else if scanner.equals(word, "op") {
          try located { () throws(LineError) in
            try takeOperation(trace, &scanner, &cpu.pointee)
          }
        } else {
          try located { () throws(LineError) in
            try takeOther(scanner.shown(word), trace, &scanner)
          }
        }
        return true
      } ?? false
    }
  }

  private func takeOther(
    _ word: String, _ trace: LoadedTrace, _ scanner: inout TraceScanner
  ) throws(LineError) {
    switch word {
    case "state":
      let parser = try TraceStateParser(trace.header, &scanner)
      try order.checkState(parser.label, parser.operations, hasMap: parser.hasMap, done)
      stateParser = parser
    case "ck": try takeCheckpoint(trace.machine, &scanner)
    case "held":
      try order.checkHeld()
      try takeHeld(trace, &scanner)
    case "end":
      let count = try scanner.decimal("ops", 0...Int.max)
      let isTruncated = try scanner.decimal("truncated", 0...1) == 1
      try scanner.expectEnd()
      try order.end(count, isTruncated: isTruncated, done)
      try heldLines.checkTotal(profile: trace.header.profile)
    default:
      throw LineError("found '\(word)': expected op, ck, state, held or end")
    }
  }

  private func takeOperation(
    _ trace: LoadedTrace, _ scanner: inout TraceScanner, _ cpu: inout CPU
  ) throws(LineError) {
    try order.checkOperation(done)
    let parsed = try TraceOperationLine(&scanner, trace.limits)
    guard parsed.number == done else {
      throw LineError("op \(parsed.number): expected op \(done)")
    }
    var operation = parsed.operation
    if parsed.preset.contains(true) {
      patterns.append(parsed.preset)
      operation.pattern = UInt32(patterns.count)
    }
    done += 1
    guard mayFree(operation, trace.machine, scanner) else { return }
    operations.append(operation)
    let got = OperationPerformer.perform(operation, preset: parsed.preset, &cpu)
    noteAllocated(operation, got)
    try compare(parsed, got, trace, &scanner)
    if options.until == parsed.number { isStopped = true }
  }

  // MARK: freeing

  /// False, with a mismatch, where an operation would free a frame that is free already. The kernel
  /// of the traces stops when its lists break, so no trace holds that, and going on would have no
  /// meaning: the replay stops.
  private func mayFree(
    _ operation: TraceOperation, _ machine: Machine, _ scanner: TraceScanner
  ) -> Bool {
    let frames = framesFreed(by: operation, machine.frames)
    guard !frames.isEmpty else { return true }
    // Frames that operations allocated are in use for certain; the lists are looked through only
    // for others.
    if !allocated.removeAll(frames) {
      let listed = FrameSet(listedIn: machine.state(withMaps: false).zones)
      if let frame = frames.first(where: listed.contains) {
        lineText = scanner.shown(0..<scanner.bytes.count)
        check(
          false, "freed page \(PFN(frame))", expected: "in use", got: "free already", near: frame)
        isStopped = true
        return false
      }
    }
    return true
  }

  /// The frames that go back to the lists if an operation does what it says; some may be refused.
  private func framesFreed(by operation: TraceOperation, _ frames: FrameTable) -> Range<UInt32> {
    let pfn = operation.pfn
    switch operation.kind {
    case .freePages:
      let end = pfn + 1 << UInt32(operation.order)
      if frames.refcount(PFN(pfn)) == 1 { return pfn..<end }
      return frames.isCompoundHead(PFN(pfn)) ? pfn..<pfn : (pfn + 1)..<end
    case .freeExact: return pfn..<(pfn + UInt32((operation.count + 4095) >> 12))
    case .putPage:
      let head = frames.compoundHead(of: PFN(pfn))
      guard frames.refcount(head) == 1 else { return pfn..<pfn }
      let order = UInt32(frames.compoundOrder(head))
      return head.rawValue..<(head.rawValue + 1 << order)
    default: return pfn..<pfn
    }
  }

  private func noteAllocated(_ operation: TraceOperation, _ result: TraceResult) {
    switch result {
    case .page(let pfn?):
      switch operation.kind {
      case .allocExact: allocated.insert(pfn, UInt32((operation.count + 4095) >> 12))
      default: allocated.insert(pfn, 1 << UInt32(operation.order))
      }
    case .bulk(_, let pages):
      for case let pfn? in pages where pfn != TraceResult.presetSlot { allocated.insert(pfn, 1) }
    default: break
    }
  }
}
