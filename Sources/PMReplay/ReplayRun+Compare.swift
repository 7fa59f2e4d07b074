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
    _ parsed: TraceOperationLine, _ got: TraceResult, _ scanner: inout TraceScanner
  ) throws(LineError) {
    guard let machine else { return }
    let after = machine.freePageCount
    let delta = Int(after - free)
    free = after
    held -= Int64(delta)
    if got != parsed.result || delta != parsed.delta {
      let text = scanner.text(0..<min(scanner.bytes.count, 200))
      lineText = text + (scanner.bytes.count > 200 ? "…" : "")
    }
    let page = pageOfInterest(parsed, got)
    check(
      got == parsed.result, "result", expected: describe(parsed.result), got: describe(got),
      near: page)
    if case .bulk(_, let slots) = parsed.result { report.compared += slots.count }
    check(
      delta == parsed.delta, "change of free pages", expected: "\(parsed.delta)", got: "\(delta)",
      near: page)
    guard let base = parsed.base else { return }
    try compareCounts(machine, base, &scanner)
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
    case .bulk(let returned, let slots):
      "\(returned): "
        + slots.map { slot in
          slot.map { $0 == TraceResult.presetSlot ? "m" : "\(PFN($0))" } ?? "-"
        }.joined(separator: ",")
    }
  }

  /// `COUNT[h|t][bO][*N]`, separated by commas.
  private func compareCounts(
    _ machine: Machine, _ base: UInt32, _ scanner: inout TraceScanner
  ) throws(LineError) {
    var pfn = base
    let field = try scanner.field()
    try scanner.expectEnd()
    for token in scanner.parts(field, separator: UInt8(ascii: ",")) {
      var body = token
      var count: UInt32 = 1
      if let (front, repeats) = scanner.split(token, at: UInt8(ascii: "*")) {
        let number = try scanner.decimal(repeats)
        guard (1...(1 << 20)).contains(number) else {
          throw LineError("'\(scanner.text(token))': expected COUNT[h|t][bO][*N]")
        }
        count = UInt32(number)
        body = front
      }
      let expected = try frame(scanner, body)
      guard let limits, limits.contains(pfn, count) else {
        throw LineError("PFN \(PFN(pfn)) is in no zone of the machine")
      }
      for _ in 0..<count {
        let got = FrameMarks(machine.frames, PFN(pfn))
        if got != expected { lineText = scanner.text(0..<min(scanner.bytes.count, 200)) }
        check(
          got == expected, "count of \(PFN(pfn))", expected: "\(expected)", got: "\(got)", near: pfn)
        pfn += 1
      }
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

  // MARK: checkpoints

  /// Between operations only whole groups of checkpoint lines may stand.
  func checkCheckpointComplete() throws(TraceError) {
    guard checkpointZone == 0 else {
      throw malformed("the checkpoint after \(done) operations lacks zones")
    }
  }

  func takeCheckpoint(_ machine: Machine, _ scanner: inout TraceScanner) throws(LineError) {
    let number = try scanner.decimal(scanner.field())
    guard number == done else {
      throw LineError("ck \(number): \(done) operations stand before")
    }
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    guard checkpointZone < machine.zoneIDs.count, machine.zoneIDs[checkpointZone] == id else {
      throw LineError("ck \(number) of zone \(id) is out of order")
    }
    let zone = checkpointZone
    checkpointZone += 1
    if checkpointZone == machine.zoneIDs.count {
      checkpointZone = 0
      lastCheckpoint = done
      report.checkpoints += 1
    }
    let ours = machine.zoneState(zone, withMap: false)
    let pageset = ours.pagesets[0]
    lineText = scanner.text(0..<min(scanner.bytes.count, 160))
    try compareField(&scanner, "free", ours.free, zone)
    try compareField(&scanner, "diff", Int64(pageset.statDiff), zone)
    try compareField(&scanner, "pcp", Int64(pageset.count), zone)
    try compareField(&scanner, "ff", Int64(pageset.freeFactor), zone)
    try compareField(&scanner, "boost", ours.boost, zone)
    try compareField(&scanner, "highatomic", ours.highatomic, zone)
    try compareField(&scanner, "flags", Int64(ours.flags), zone)
    try compareLengths(&scanner, ours, zone)
    try compareHash(&scanner, "fh", StateHash.freeLists(ours), zone)
    try compareHash(&scanner, "ph", StateHash.perCPULists(pageset), zone)
    try compareHash(&scanner, "bh", StateHash.pageblocks(ours), zone)
    try scanner.expectEnd()
  }

  private func compareField(
    _ scanner: inout TraceScanner, _ key: StaticString, _ got: Int64, _ zone: Int
  ) throws(LineError) {
    let expected = Int64(try scanner.decimal(key))
    check(
      expected == got, "checkpoint, zone \(name(zone)), \(key)", expected: "\(expected)",
      got: "\(got)", zone: zone)
  }

  private func compareHash(
    _ scanner: inout TraceScanner, _ key: StaticString, _ got: UInt64, _ zone: Int
  ) throws(LineError) {
    let expected = try scanner.hexadecimal(scanner.value(key))
    check(
      expected == got, "checkpoint, zone \(name(zone)), \(key)",
      expected: String(expected, radix: 16), got: String(got, radix: 16), zone: zone)
  }

  private func compareLengths(
    _ scanner: inout TraceScanner, _ ours: MachineState.Zone, _ zone: Int
  ) throws(LineError) {
    let groups = scanner.parts(try scanner.value("nf"), separator: UInt8(ascii: ";"))
    guard groups.count == 5 else { throw LineError("nf= has \(groups.count) groups: expected 5") }
    for (type, group) in groups.enumerated() {
      let lengths = scanner.parts(group, separator: UInt8(ascii: ","))
      guard lengths.count == 11 else {
        throw LineError("nf= has \(lengths.count) lengths in a group: expected 11")
      }
      for (order, length) in lengths.enumerated() {
        let expected = try scanner.decimal(length)
        let got = ours.freeLists[order * 5 + type].count
        check(
          expected == got, "checkpoint, zone \(name(zone)), blocks of order \(order) type \(type)",
          expected: "\(expected)", got: "\(got)", zone: zone)
      }
    }
  }

  func name(_ zone: Int) -> String { machine.map { "\($0.zoneIDs[zone])" } ?? "\(zone)" }

  // MARK: what is held at the end

  func takeHeld(_ machine: Machine, _ scanner: inout TraceScanner) throws(LineError) {
    let pfn = try scanner.pfn("pfn")
    let order = try scanner.decimal("order", 0...Order.max)
    let kind = scanner.text(try scanner.value("kind"))
    let references = try scanner.decimal("xref", 0...Int(Int32.max))
    let extra = UInt64(try scanner.decimal("aux", 0...Int.max))
    try scanner.expectEnd()
    guard ["nc", "comp", "folio", "exact", "holed", "leak"].contains(kind) else {
      throw LineError("kind=\(kind): expected nc, comp, folio, exact, holed or leak")
    }
    guard let limits, limits.contains(pfn, 1 << UInt32(order)) else {
      throw LineError("PFN \(PFN(pfn)) is in no zone of the machine")
    }
    lineText = "held pfn=\(PFN(pfn)) order=\(order) kind=\(kind) xref=\(references) aux=\(extra)"
    let frames: Int
    switch kind {
    case "exact": frames = Int((extra + 4095) >> 12)
    default: frames = 1 << order
    }
    for offset in 0..<frames {
      if kind == "holed", offset < 64, extra >> UInt64(offset) & 1 == 0 { continue }
      let frame = pfn + UInt32(offset)
      check(
        !listed.contains(frame), "held page \(PFN(frame))", expected: "in use", got: "on a list",
        near: frame)
      guard kind != "leak", kind != "holed" else { continue }
      var expected = FrameMarks()
      let isCompound = order > 0 && (kind == "comp" || kind == "folio")
      expected.count =
        offset == 0 ? Int32(1 + references) : kind == "exact" ? 1 : 0
      expected.isHead = isCompound && offset == 0
      expected.isTail = isCompound && offset > 0
      let got = FrameMarks(machine.frames, PFN(frame))
      check(
        got == expected, "held page \(PFN(frame))", expected: "\(expected)", got: "\(got)",
        near: frame)
    }
  }

  /// All pages on lists, at the end.
  private var listed: ListedFrames {
    if let known = listedFrames { return known }
    let frames = ListedFrames(machine?.state(withMaps: false).zones ?? [])
    listedFrames = frames
    return frames
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

/// The frames on buddy and per-CPU lists, as one bit each.
struct ListedFrames {
  private var words: [UInt64] = []

  init(_ zones: [MachineState.Zone]) {
    for zone in zones {
      for (slot, blocks) in zone.freeLists.enumerated() {
        for pfn in blocks { insert(pfn, 1 << UInt32(slot / 5)) }
      }
      for pageset in zone.pagesets {
        for (slot, blocks) in pageset.lists.enumerated() {
          for block in blocks { insert(block.pfn, 1 << UInt32(slot < 12 ? slot / 3 : 9)) }
        }
      }
    }
  }

  private mutating func insert(_ pfn: UInt32, _ count: UInt32) {
    let last = Int(pfn + count - 1) >> 6
    if last >= words.count {
      words.append(contentsOf: repeatElement(0, count: last + 1 - words.count))
    }
    for frame in pfn..<(pfn + count) { words[Int(frame >> 6)] |= 1 << UInt64(frame & 63) }
  }

  func contains(_ pfn: UInt32) -> Bool {
    let word = Int(pfn >> 6)
    return word < words.count && words[word] >> UInt64(pfn & 63) & 1 == 1
  }
}
