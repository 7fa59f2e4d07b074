internal import PMPageAllocator
internal import PMUnits

// The lines of a state that describe nodes and zones.
extension TraceStateParser {
  mutating func takeZonelist(_ scanner: inout TraceScanner) throws(LineError) {
    let node = try scanner.decimal("node", 0...(header.nodeCount - 1))
    let kind = scanner.shown(try scanner.value("kind"))
    switch kind {
    case "fallback": try follow(.fallback, [.state, .node])
    case "thisnode": try follow(.thisnode, [.fallback])
    default: throw LineError("kind=\(kind): expected fallback or thisnode")
    }
    guard node == nodes.count else {
      throw LineError("node=\(node): expected node \(nodes.count) to come next")
    }
    try scanner.expect(":")
    var list: [ZoneID] = []
    while !scanner.isAtEnd {
      list.append(try TraceStateParser.zoneID(scanner, scanner.field()))
    }
    if kind == "fallback" { fallback.append(list) } else { thisNode.append(list) }
  }

  mutating func takeNode(_ scanner: inout TraceScanner) throws(LineError) {
    try follow(.node, [.thisnode])
    let number = try scanner.decimal(scanner.field())
    guard number == nodes.count, number < header.nodeCount else {
      throw LineError("node \(number): expected \(nodes.count) of \(header.nodeCount)")
    }
    nodes.append(
      MachineState.Node(
        start: try scanner.pfn("start"),
        spanned: UInt64(try scanner.decimal("spanned", 0...Int(Int32.max))),
        present: UInt64(try scanner.decimal("present", 0...Int(Int32.max))),
        kswapdOrder: UInt32(try scanner.decimal("kswapd_order", 0...10)),
        kswapdHighestZone: UInt32(try scanner.decimal("kswapd_highest_zoneidx", 0...5)),
        kswapdFailures: UInt32(try scanner.decimal("kswapd_failures", 0...Int(Int32.max)))))
  }

  mutating func takeZone(_ scanner: inout TraceScanner) throws(LineError) {
    try endZone()
    try follow(.zone, [.node, .pcp, .pl, .map])
    guard nodes.count == header.nodeCount else {
      throw LineError("\(nodes.count) nodes stand before: expected \(header.nodeCount)")
    }
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    if let last = zones.last, id <= last.id { throw LineError("zone \(id) is out of order") }
    guard id.node < nodes.count else {
      throw LineError("zone \(id): there are \(nodes.count) nodes")
    }
    let name = scanner.shown(try scanner.value("name"))
    guard name == id.kind.description else {
      throw LineError("name=\(name): zone \(id) is \(id.kind)")
    }
    let pages = 0...Int(Int32.max)
    let start = try scanner.pfn("start")
    let spanned = try scanner.decimal("spanned", 1...Int(Int32.max))
    guard UInt64(start) + UInt64(spanned) <= 0x8000_0000 else {
      throw LineError("zone \(id) ends above PFN 7fffffff")
    }
    let present = try scanner.decimal("present", pages)
    let managed = try scanner.decimal("managed", pages)
    var marks: [Int64] = []
    marks.append(Int64(try scanner.decimal("min", pages)))
    marks.append(Int64(try scanner.decimal("low", pages)))
    marks.append(Int64(try scanner.decimal("high", pages)))
    var zone = MachineState.Zone(
      id: id, start: start, spanned: UInt32(spanned), present: UInt64(present),
      managed: UInt64(managed), watermarks: marks, pagesetHigh: 0, pagesetBatch: 1, free: 0,
      lowmemReserve: [], pageblocks: [], pagesets: [])
    try takeZoneCounters(&scanner, &zone)
    zones.append(zone)
    listedFree = 0
    cached = 0
    lastList = -1
    lastSlot = -1
    mapEnd = UInt64(zone.start)
  }

  /// The fields of a zone line from `boost=` on.
  private mutating func takeZoneCounters(
    _ scanner: inout TraceScanner, _ zone: inout MachineState.Zone
  ) throws(LineError) {
    let pages = 0...Int(Int32.max)
    zone.boost = Int64(try scanner.decimal("boost", pages))
    zone.highatomic = Int64(try scanner.decimal("highatomic", pages))
    zone.flags = UInt32(try scanner.decimal("flags", 0...3))
    zone.contiguous = UInt32(try scanner.decimal("contiguous", 0...1))
    zone.isolated = UInt32(try scanner.decimal("isolated", pages))
    zone.pagesetHigh = Int32(try scanner.decimal("pageset_high", pages))
    zone.pagesetBatch = Int32(try scanner.decimal("pageset_batch", 1...65535))
    zone.driftMark = UInt32(try scanner.decimal("drift_mark", pages))
    zone.free = Int64(try scanner.decimal("free"))
    exactFree = Int64(try scanner.decimal("free_exact"))
    let reserves = try scanner.value("lowmem_reserve")
    for part in scanner.parts(reserves, separator: UInt8(ascii: ",")) {
      zone.lowmemReserve.append(Int64(try scanner.decimal(part)))
    }
    guard zone.lowmemReserve.count == 5 else {
      throw LineError("lowmem_reserve: expected 5 values, found \(zone.lowmemReserve.count)")
    }
    if hasMap { zone.map = [] }
  }

  /// The index of the zone that a line names: the one whose lines are being read.
  func currentZone(_ scanner: inout TraceScanner) throws(LineError) -> Int {
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    guard let last = zones.last, last.id == id else {
      throw LineError("zone \(id): its zone line does not stand before")
    }
    return zones.count - 1
  }
}
