internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

// What is compared, and how a difference is shown.
extension ReplayRun {
  /// Compares one value; the texts are only made for a difference.
  func check(
    _ matches: Bool, _ what: @autoclosure () -> String, expected: @autoclosure () -> String,
    got: @autoclosure () -> String, near pfn: UInt32? = nil, zone: Int? = nil
  ) {
    report.compared += 1
    if matches { return }
    report.mismatches += 1
    if report.firstMismatch == nil {
      report.firstMismatch = ReplayMismatch(
        operation: max(done - 1, 0), line: reader.lineNumber, what: what(), expected: expected(),
        got: got(), text: lineText, context: context(near: pfn, zone: zone))
    }
    if !options.keepsGoing { isStopped = true }
  }

  // MARK: operations

  func compare(
    _ parsed: TraceOperationLine, _ got: TraceResult, _ trace: LoadedTrace,
    _ scanner: inout TraceScanner
  ) throws(LineError) {
    let after = trace.machine.freePageCount
    let delta = Int(after - free)
    free = after
    held -= Int64(delta)
    if got != parsed.result || delta != parsed.delta { noteLine(scanner) }
    let page = pageOfInterest(parsed, got)
    compareResult(parsed.result, got, near: page)
    check(
      delta == parsed.delta, "change of free pages", expected: "\(parsed.delta)", got: "\(delta)",
      near: page)
    // After a mismatch the counts are another block's; it is reported, they are not.
    guard !isStopped, let base = parsed.base else { return }
    try compareCounts(parsed, base, trace, &scanner)
  }

  private func noteLine(_ scanner: TraceScanner) {
    let text = scanner.text(0..<min(scanner.bytes.count, 200))
    lineText = text + (scanner.bytes.count > 200 ? "…" : "")
  }

  private func compareResult(_ expected: TraceResult, _ got: TraceResult, near page: UInt32?) {
    guard case .bulk(let returned, let slots) = expected, case .bulk(let ours, let pages) = got
    else {
      check(
        got == expected, "result", expected: describe(expected), got: describe(got), near: page)
      return
    }
    check(returned == ours, "returned number", expected: "\(returned)", got: "\(ours)")
    for (index, slot) in slots.enumerated() {
      check(
        slot == pages[index], "element \(index)", expected: describe(slot),
        got: describe(pages[index]), near: slot ?? pages[index])
    }
  }

  private func pageOfInterest(_ parsed: TraceOperationLine, _ got: TraceResult) -> UInt32? {
    if parsed.operation.pfn != 0 { return parsed.operation.pfn }
    if case .page(let pfn) = parsed.result, let pfn { return pfn }
    if case .page(let pfn) = got { return pfn }
    return nil
  }

  private func describe(_ result: TraceResult) -> String {
    switch result {
    case .void: "void"
    case .flag(let value): value ? "1" : "0"
    case .page(let pfn): pfn.map { "\(PFN($0))" } ?? "NULL"
    case .bulk(let returned, _): "\(returned):"
    }
  }

  private func describe(_ slot: UInt32?) -> String {
    slot.map { $0 == TraceResult.presetSlot ? "m" : "\(PFN($0))" } ?? "-"
  }

  /// `COUNT[h|t][bO][*N]`, separated by commas.
  private func compareCounts(
    _ parsed: TraceOperationLine, _ base: UInt32, _ trace: LoadedTrace,
    _ scanner: inout TraceScanner
  ) throws(LineError) {
    var pfn = base
    let field = try scanner.field()
    try scanner.expectEnd()
    for token in scanner.parts(field, separator: UInt8(ascii: ",")) {
      var body = token
      var count: UInt32 = 1
      if let (front, repeats) = scanner.split(token, at: UInt8(ascii: "*")) {
        let number = try scanner.decimal(repeats)
        guard (2...(1 << 20)).contains(number) else {
          throw LineError("'\(scanner.shown(token))': expected COUNT[h|t][bO][*N], N from 2 on")
        }
        count = UInt32(number)
        body = front
      }
      let expected = try frame(scanner, body)
      guard trace.limits.layout.contains(base, pfn - base + count) else {
        throw LineError("the counts go to PFN \(PFN(pfn + count - 1)), which is not in the zone")
      }
      for frame in pfn..<(pfn + count) {
        let got = FrameMarks(trace.machine.frames, PFN(frame))
        if got != expected { noteLine(scanner) }
        check(
          got == expected, "count of \(PFN(frame))", expected: "\(expected)", got: "\(got)",
          near: frame)
      }
      pfn += count
    }
    if !isStopped { try checkBlock(parsed, base..<pfn, trace.machine) }
  }

  /// The counts are those of one block: that which was allocated or named, or, for an operation on a
  /// page, that page alone or a block around it that was once allocated. A count that is missing
  /// would not be compared.
  private func checkBlock(
    _ parsed: TraceOperationLine, _ frames: Range<UInt32>, _ machine: Machine
  ) throws(LineError) {
    let base = frames.lowerBound
    let count = UInt32(frames.count)
    if let expected = parsed.blockFrames {
      var first = parsed.operation.pfn
      if case .page(let pfn?) = parsed.result { first = pfn }
      guard base == first, count == expected else {
        throw LineError(
          "\(count) counts from \(PFN(base)) on: expected \(expected) from \(PFN(first)) on")
      }
      let order = UInt16(expected.trailingZeroBitCount)
      if case .page = parsed.result, count > 1 { blockOrders[base, default: 0] |= 1 << order }
      return
    }
    let pfn = parsed.operation.pfn
    var orders = blockOrders[base, default: 0] | 1
    // The head of a compound page is logged with the whole of it. A machine that differs from the
    // trace already cannot tell.
    if base == pfn, report.mismatches == 0, machine.frames.isCompoundHead(PFN(pfn)) {
      orders = 1 << UInt16(machine.frames.compoundOrder(PFN(pfn)))
    }
    guard frames.contains(pfn), count.nonzeroBitCount == 1, count <= 1024,
      orders >> UInt16(count.trailingZeroBitCount) & 1 == 1, Int(count) >= parsed.delta
    else {
      throw LineError(
        "\(count) counts from \(PFN(base)) on: expected those of the block of the page")
    }
  }

  private func frame(_ scanner: TraceScanner, _ range: Range<Int>) throws(LineError) -> FrameMarks {
    var body = range
    var marks = FrameMarks()
    if let (front, order) = scanner.split(body, at: UInt8(ascii: "b")) {
      marks.buddyOrder = try scanner.decimal(order)
      body = front
    }
    if let last = body.last {
      if scanner.bytes[last] == UInt8(ascii: "h") { marks.isHead = true }
      if scanner.bytes[last] == UInt8(ascii: "t") { marks.isTail = true }
      if marks.isHead || marks.isTail { body = body.lowerBound..<last }
    }
    let count = try scanner.decimal(body)
    guard let value = Int32(exactly: count) else {
      throw LineError("count \(count): expected a signed 32-bit number")
    }
    marks.count = value
    return marks
  }
}

/// Count and marks of a frame, as an operation line prints them.
struct FrameMarks: Equatable, CustomStringConvertible {
  var count: Int32 = 0
  var isHead = false
  var isTail = false
  var buddyOrder: Int?

  init() {}

  init(_ frames: FrameTable, _ pfn: PFN) {
    count = frames.refcount(pfn)
    isHead = frames.isCompoundHead(pfn)
    isTail = frames.isCompoundTail(pfn)
    buddyOrder = frames.buddyOrder(pfn)
  }

  var description: String {
    "\(count)\(isHead ? "h" : "")\(isTail ? "t" : "")\(buddyOrder.map { "b\($0)" } ?? "")"
  }
}
