internal import PMPageAllocator
internal import PMUnits

/// A state as a trace holds it.
struct TraceState {
  enum Label: String { case begin, mid, loaded, end }
  var label: Label
  var operations: Int
  var hasMap: Bool
  var state: MachineState
  var totalFree: Int64
  var totalHeld: Int64
}

/// Collects the lines of one state, from `state` to `endstate`, in the format's order, and checks
/// that they agree with each other, so that a damaged file is told from a mismatch.
struct TraceStateParser {
  /// The records of a state.
  enum Record: String {
    case state, fallback, thisnode, node, zone, pb, fl, pcp, pl, map, totals, endstate
  }

  let header: TraceHeader
  let label: TraceState.Label
  let operations: Int
  let hasMap: Bool
  /// The record that was read last.
  var last: Record = .state
  var nodes: [MachineState.Node] = []
  var fallback: [[ZoneID]] = []
  var thisNode: [[ZoneID]] = []
  var zones: [MachineState.Zone] = []
  /// `free_exact` of the zone that is being read.
  var exactFree: Int64 = 0
  /// Pages on its lists so far, without isolated ones, and on its per-CPU lists.
  var listedFree: Int64 = 0
  var cached: Int64 = 0
  /// The last list of either kind, and the line of the pageset.
  var lastList = -1
  var lastSlot = -1
  var pagesetLine = 0
  /// Where the next map run has to start.
  var mapEnd: UInt64 = 0
  /// Free pages of the zones that are complete.
  var freePages: Int64 = 0
  var totals: (free: Int64, held: Int64) = (0, 0)

  init(_ header: TraceHeader, _ scanner: inout TraceScanner) throws(LineError) {
    self.header = header
    let name = scanner.shown(try scanner.field())
    guard let label = TraceState.Label(rawValue: name) else {
      throw LineError("state '\(name)': expected begin, mid, loaded or end")
    }
    self.label = label
    operations = try scanner.decimal("op", 0...Int(Int32.max))
    hasMap = try scanner.decimal("map", 0...1) == 1
    try scanner.expectEnd()
  }

  /// Takes one line of this number; returns the state at its end.
  mutating func take(
    _ word: String, _ scanner: inout TraceScanner, line: Int
  ) throws(LineError) -> TraceState? {
    switch word {
    case "zonelist": try takeZonelist(&scanner)
    case "node": try takeNode(&scanner)
    case "zone": try takeZone(&scanner)
    case "pb": try takePageblocks(&scanner)
    case "fl": try takeFreeList(&scanner)
    case "pcp":
      pagesetLine = line
      try takePageset(&scanner)
    case "pl": try takePerCPUList(&scanner)
    case "map": try takeMap(&scanner)
    case "totals": try takeTotals(&scanner)
    case "endstate":
      try follow(.endstate, [.totals])
      let name = scanner.shown(try scanner.field())
      guard name == label.rawValue else {
        throw LineError("endstate \(name): expected \(label.rawValue)")
      }
      try scanner.expectEnd()
      return finish()
    default: throw LineError("found '\(word.prefix(60))', which does not belong into a state")
    }
    try scanner.expectEnd()
    return nil
  }

  /// Goes on to a record, which may stand after those named only.
  mutating func follow(_ next: Record, _ before: Set<Record>) throws(LineError) {
    guard before.contains(last) else {
      throw LineError("'\(next.rawValue)' stands after '\(last.rawValue)': out of order")
    }
    last = next
  }

  private mutating func takeTotals(_ scanner: inout TraceScanner) throws(LineError) {
    try endZone()
    try follow(.totals, [.pcp, .pl, .map])
    totals = (Int64(try scanner.decimal("free")), Int64(try scanner.decimal("held")))
    guard freePages == totals.free else {
      throw LineError("free=\(totals.free): expected \(freePages), the sum over the zones")
    }
    for list in fallback + thisNode {
      for id in list where !zones.contains(where: { $0.id == id }) {
        throw LineError("a zonelist names zone \(id), which has no line")
      }
    }
  }

  /// Checks what can be checked of a zone after its last line.
  mutating func endZone() throws(LineError) {
    guard let zone = zones.last, let pageset = zone.pagesets.first else { return }
    guard cached == Int64(pageset.count) else {
      throw LineError(
        "count=\(pageset.count): expected \(cached), the pages on the per-CPU lists that follow",
        line: pagesetLine)
    }
    if hasMap {
      let end = UInt64(zone.start) + UInt64(zone.spanned)
      guard mapEnd == end else {
        let ends = (String(mapEnd, radix: 16), String(end, radix: 16))
        throw LineError("the map of zone \(zone.id) ends at \(ends.0): expected \(ends.1)")
      }
    }
    freePages += zone.freeExact + cached
  }

  private func finish() -> TraceState {
    let zonelists = zip(fallback, thisNode).map {
      MachineState.Zonelist(fallback: $0, thisNode: $1)
    }
    return TraceState(
      label: label, operations: operations, hasMap: hasMap,
      state: MachineState(
        nodes: nodes, zonelists: zonelists, zones: zones, cpuNodes: [header.node],
        watermarkBoostFactor: Int64(header.watermarkBoostFactor),
        isMobilityDisabled: header.isMobilityDisabled), totalFree: totals.free,
      totalHeld: totals.held)
  }

  /// `NODE.INDEX`.
  static func zoneID(_ scanner: TraceScanner, _ range: Range<Int>) throws(LineError) -> ZoneID {
    guard let (node, kind) = scanner.split(range, at: UInt8(ascii: ".")),
      let index = UInt8(exactly: try scanner.decimal(kind)), let zone = ZoneKind(rawValue: index)
    else { throw LineError("zone '\(scanner.shown(range))': expected NODE.INDEX") }
    let number = try scanner.decimal(node)
    guard (0..<1024).contains(number) else {
      throw LineError("node \(number): expected 0 to 1023")
    }
    return ZoneID(node: number, kind: zone)
  }
}
