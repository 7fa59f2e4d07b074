internal import PMPageAllocator
internal import PMUnits

/// What the `held` lines say in all.
struct HeldLines {
  /// What the last state says.
  var total: Int64 = 0
  /// Frames of lines so far.
  private(set) var frames = FrameSet()
  private(set) var count: Int64 = 0
  /// Blocks with more frames than a line has bits for.
  var hasUnknown = false
  /// The frames on lists at the end.
  var listed: FrameSet?

  mutating func insert(_ frame: UInt32) throws(LineError) {
    guard !frames.contains(frame) else { throw LineError("page \(PFN(frame)) is held twice") }
    frames.insert(frame, 1)
    count += 1
  }

  /// The lines name all held pages, except for those that a hazard lost.
  func checkTotal(profile: String) throws(LineError) {
    let agrees = hasUnknown || (profile == "H" ? count <= total : count == total)
    guard agrees else {
      throw LineError(
        "the held lines name \(count) pages: expected held=\(total) of the last state")
    }
  }
}

// What is held at the end.
extension ReplayRun {
  /// The fields of a `held` line.
  private struct HeldBlock {
    var pfn: UInt32
    var order: Int
    var kind: String
    var references: Int
    var extra: UInt64

    /// Frames of the block, before any were freed.
    var frames: UInt32 {
      kind == "exact" ? UInt32((extra + 4095) >> 12) : 1 << UInt32(order)
    }

    /// Whether the frame of this offset is still there.
    func holds(_ offset: UInt32) -> Bool {
      kind != "holed" || offset >= 64 || extra >> UInt64(offset) & 1 == 1
    }

    init(_ scanner: inout TraceScanner) throws(LineError) {
      pfn = try scanner.pfn("pfn")
      order = try scanner.decimal("order", 0...Order.max)
      kind = scanner.shown(try scanner.value("kind"))
      references = try scanner.decimal("xref", 0...Int(Int32.max) - 1)
      let field = try scanner.value("aux")
      let extra = UInt64(try scanner.decimal(field))
      self.extra = extra
      try scanner.expectEnd()
      switch kind {
      case "nc", "comp", "folio", "leak":
        guard extra == 0 else { throw LineError("aux=\(extra): expected 0 with kind=\(kind)") }
      case "exact":
        guard (1...(1 << 22)).contains(extra) else {
          throw LineError("aux=\(extra): expected 1 to 4194304 bytes with kind=exact")
        }
      case "holed":
        guard extra > 0, order >= 6 || extra >> UInt64(1 << order) == 0 else {
          throw LineError("aux=\(extra): expected a bit per page with kind=holed order=\(order)")
        }
      default:
        throw LineError("kind=\(kind): expected nc, comp, folio, exact, holed or leak")
      }
      guard pfn & (1 << UInt32(order) - 1) == 0 else {
        throw LineError("PFN \(PFN(pfn)) is not aligned to order \(order)")
      }
    }
  }

  func takeHeld(_ trace: LoadedTrace, _ scanner: inout TraceScanner) throws(LineError) {
    lineText = scanner.shown(0..<scanner.bytes.count)
    let block = try HeldBlock(&scanner)
    guard trace.limits.layout.contains(block.pfn, block.frames) else {
      throw LineError("PFN \(PFN(block.pfn)) is in no zone of the machine")
    }
    if block.kind == "holed", block.order > 6 { heldLines.hasUnknown = true }
    for offset in 0..<block.frames where block.holds(offset) {
      let frame = block.pfn + offset
      try heldLines.insert(frame)
      let isListed = listed(trace.machine).contains(frame)
      check(
        !isListed, "held page \(PFN(frame))", expected: "in use", got: "on a list", near: frame)
      guard let expected = expectedMarks(block, offset) else { continue }
      let got = FrameMarks(trace.machine.frames, PFN(frame))
      check(
        got == expected, "held page \(PFN(frame))", expected: "\(expected)", got: "\(got)",
        near: frame)
    }
  }

  /// Count and marks of a held page; nil where the line does not tell them.
  private func expectedMarks(_ block: HeldBlock, _ offset: UInt32) -> FrameMarks? {
    var expected = FrameMarks()
    switch block.kind {
    case "leak": return nil
    case "holed":
      guard offset == 0 else { return nil }
      expected.count = Int32(1 + block.references)
    default:
      let isCompound = block.order > 0 && block.kind != "nc" && block.kind != "exact"
      expected.count = offset == 0 ? Int32(1 + block.references) : block.kind == "exact" ? 1 : 0
      expected.isHead = isCompound && offset == 0
      expected.isTail = isCompound && offset > 0
    }
    return expected
  }

  /// All pages on lists, at the end.
  private func listed(_ machine: Machine) -> FrameSet {
    if let known = heldLines.listed { return known }
    let frames = FrameSet(listedIn: machine.state(withMaps: false).zones)
    heldLines.listed = frames
    return frames
  }
}
