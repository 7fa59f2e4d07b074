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
  /// Where the state starts.
  var line: Int
}

/// Collects the lines of one state, from `state` to `endstate`.
struct TraceStateParser {
  private let header: TraceHeader
  let label: TraceState.Label
  let operations: Int
  private let hasMap: Bool
  private let line: Int
  private var nodes: [MachineState.Node] = []
  private var fallback: [[ZoneID]] = []
  private var thisNode: [[ZoneID]] = []
  private var zones: [MachineState.Zone] = []
  private var hasPageset: [Bool] = []
  private var totals: (free: Int64, held: Int64)?

  init(_ header: TraceHeader, _ scanner: inout TraceScanner, line: Int) throws(LineError) {
    self.header = header
    self.line = line
    let name = scanner.text(try scanner.field())
    guard let label = TraceState.Label(rawValue: name) else {
      throw LineError("state '\(name)': expected begin, mid, loaded or end")
    }
    self.label = label
    operations = try scanner.decimal("op", 0...Int(Int32.max))
    hasMap = try scanner.decimal("map", 0...1) == 1
    try scanner.expectEnd()
  }

  /// Takes one line; returns the state at its end.
  mutating func take(
    _ word: String, _ scanner: inout TraceScanner
  ) throws(LineError) -> TraceState? {
    switch word {
    case "zonelist": try takeZonelist(&scanner)
    case "node": try takeNode(&scanner)
    case "zone": try takeZone(&scanner)
    case "pb": try takePageblocks(&scanner)
    case "fl": try takeFreeList(&scanner)
    case "pcp": try takePageset(&scanner)
    case "pl": try takePerCPUList(&scanner)
    case "map": try takeMap(&scanner)
    case "totals":
      totals = (Int64(try scanner.decimal("free")), Int64(try scanner.decimal("held")))
    case "endstate":
      let name = scanner.text(try scanner.field())
      guard name == label.rawValue else {
        throw LineError("endstate \(name): expected \(label.rawValue)")
      }
      try scanner.expectEnd()
      return try finish()
    default: throw LineError("'\(word)' does not belong into a state")
    }
    try scanner.expectEnd()
    return nil
  }

  // MARK: lines

  /// `NODE.INDEX`.
  static func zoneID(_ scanner: TraceScanner, _ range: Range<Int>) throws(LineError) -> ZoneID {
    guard let (node, kind) = scanner.split(range, at: UInt8(ascii: ".")),
      let index = UInt8(exactly: try scanner.decimal(kind)), let zone = ZoneKind(rawValue: index)
    else { throw LineError("zone '\(scanner.text(range))': expected NODE.INDEX") }
    let number = try scanner.decimal(node)
    guard (0..<1024).contains(number) else {
      throw LineError("node \(number): expected 0 to 1023")
    }
    return ZoneID(node: number, kind: zone)
  }

  private mutating func takeZonelist(_ scanner: inout TraceScanner) throws(LineError) {
    let node = try scanner.decimal("node", 0...(header.nodeCount - 1))
    let kind = scanner.text(try scanner.value("kind"))
    try scanner.expect(":")
    var list: [ZoneID] = []
    while !scanner.isAtEnd {
      list.append(try TraceStateParser.zoneID(scanner, scanner.field()))
    }
    let count = kind == "fallback" ? fallback.count : thisNode.count
    guard kind == "fallback" || kind == "thisnode", node == count else {
      throw LineError("zonelist node=\(node) kind=\(kind) is out of order")
    }
    if kind == "fallback" { fallback.append(list) } else { thisNode.append(list) }
  }

  private mutating func takeNode(_ scanner: inout TraceScanner) throws(LineError) {
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

  private mutating func takeZone(_ scanner: inout TraceScanner) throws(LineError) {
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    if let last = zones.last, id <= last.id { throw LineError("zone \(id) is out of order") }
    let name = scanner.text(try scanner.value("name"))
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
    zone.boost = Int64(try scanner.decimal("boost", pages))
    zone.highatomic = Int64(try scanner.decimal("highatomic", pages))
    zone.flags = UInt32(try scanner.decimal("flags", 0...3))
    zone.contiguous = UInt32(try scanner.decimal("contiguous", 0...1))
    zone.isolated = UInt32(try scanner.decimal("isolated", pages))
    zone.pagesetHigh = Int32(try scanner.decimal("pageset_high", pages))
    zone.pagesetBatch = Int32(try scanner.decimal("pageset_batch", 1...65535))
    zone.driftMark = UInt32(try scanner.decimal("drift_mark", pages))
    zone.free = Int64(try scanner.decimal("free"))
    let exact = Int64(try scanner.decimal("free_exact"))
    // Kept until the pageset gives the difference.
    exactFree.append(exact)
    let reserves = try scanner.value("lowmem_reserve")
    for part in scanner.parts(reserves, separator: UInt8(ascii: ",")) {
      zone.lowmemReserve.append(Int64(try scanner.decimal(part)))
    }
    guard zone.lowmemReserve.count == 5 else {
      throw LineError("lowmem_reserve: expected 5 values, found \(zone.lowmemReserve.count)")
    }
    if hasMap { zone.map = [] }
    zones.append(zone)
    hasPageset.append(false)
  }

  private var exactFree: [Int64] = []

  /// The index of the zone that a line names: the one whose lines are being read.
  private func currentZone(_ scanner: inout TraceScanner) throws(LineError) -> Int {
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    guard let last = zones.last, last.id == id else {
      throw LineError("zone \(id): its zone line does not stand before")
    }
    return zones.count - 1
  }

  private mutating func takePageblocks(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    var next = UInt64(zones[zone].start >> 9) << 9
    while !scanner.isAtEnd {
      let field = try scanner.field()
      guard let (start, rest) = scanner.split(field, at: UInt8(ascii: "+")),
        let (count, type) = scanner.split(rest, at: UInt8(ascii: ":"))
      else { throw LineError("found '\(scanner.text(field))': expected START+COUNT:TYPE") }
      let first = try scanner.pfn(start)
      let blocks = try scanner.decimal(count)
      guard UInt64(first) == next, (1...(1 << 23)).contains(blocks) else {
        throw LineError("pageblocks '\(scanner.text(field))': expected to start at \(PFN(UInt32(next)))")
      }
      let value = scanner.equals(type, "x") ? 0xff : try scanner.decimal(type)
      guard value == 0xff || (0...4).contains(value) else {
        throw LineError("pageblock type \(value): expected 0 to 4 or x")
      }
      zones[zone].pageblocks.append(contentsOf: repeatElement(UInt8(value), count: blocks))
      next += UInt64(blocks) << 9
    }
    let end = UInt64(zones[zone].start) + UInt64(zones[zone].spanned)
    guard next >= end, next < end + 512 else {
      throw LineError("pageblocks end at \(String(next, radix: 16)): expected the end of the zone")
    }
  }

  private mutating func takeFreeList(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    let order = try scanner.decimal("order", 0...Order.max)
    let type = try scanner.decimal("mt", 0...4)
    let count = try scanner.decimal("n", 1...Int(Int32.max))
    try scanner.expect(":")
    guard zones[zone].freeLists[order * 5 + type].isEmpty else {
      throw LineError("the list order=\(order) mt=\(type) stands twice")
    }
    var blocks: [UInt32] = []
    blocks.reserveCapacity(min(count, 1 << 16))
    while !scanner.isAtEnd { blocks.append(try scanner.pfn(scanner.field())) }
    guard blocks.count == count else {
      throw LineError("n=\(count), but \(blocks.count) blocks follow")
    }
    zones[zone].freeLists[order * 5 + type] = blocks
  }

  private mutating func takePageset(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    guard !hasPageset[zone] else { throw LineError("the pageset stands twice") }
    _ = try scanner.decimal("cpu", 0...0)
    let wide = 0...Int(Int32.max)
    var pageset = MachineState.Pageset(
      count: Int32(try scanner.decimal("count", wide)),
      high: Int32(try scanner.decimal("high", wide)),
      batch: Int32(try scanner.decimal("batch", 1...65535)), statThreshold: 0)
    pageset.freeFactor = Int16(try scanner.decimal("free_factor", 0...5))
    pageset.expire = Int16(try scanner.decimal("expire", 0...32767))
    pageset.statDiff = Int32(try scanner.decimal("stat_diff", -127...127))
    pageset.statThreshold = Int32(try scanner.decimal("stat_threshold", 0...127))
    zones[zone].pagesets = [pageset]
    hasPageset[zone] = true
  }

  private mutating func takePerCPUList(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    guard hasPageset[zone] else { throw LineError("the pcp line does not stand before") }
    _ = try scanner.decimal("cpu", 0...0)
    let slot = try scanner.decimal("pindex", 0...13)
    let order = try scanner.decimal("order", 0...9)
    let type = try scanner.decimal("mt", 0...2)
    let expected = slot < 12 ? (slot / 3, slot % 3) : (9, slot - 12)
    guard (order, type) == expected else {
      throw LineError(
        "pindex=\(slot): expected order=\(expected.0) mt=\(expected.1)")
    }
    let count = try scanner.decimal("n", 1...Int(Int32.max))
    try scanner.expect(":")
    guard zones[zone].pagesets[0].lists[slot].isEmpty else {
      throw LineError("the list pindex=\(slot) stands twice")
    }
    var blocks: [MachineState.CachedBlock] = []
    while !scanner.isAtEnd {
      blocks.append(try cachedBlock(scanner, scanner.field(), type: UInt8(type)))
    }
    guard blocks.count == count else {
      throw LineError("n=\(count), but \(blocks.count) blocks follow")
    }
    zones[zone].pagesets[0].lists[slot] = blocks
  }

  /// `PFN`, `PFN/TYPE`, `PFN!COUNT` or both.
  private func cachedBlock(
    _ scanner: TraceScanner, _ field: Range<Int>, type: UInt8
  ) throws(LineError) -> MachineState.CachedBlock {
    var rest = field
    var count = 0
    if let (front, value) = scanner.split(rest, at: UInt8(ascii: "!")) {
      count = try scanner.decimal(value)
      rest = front
    }
    var stored = Int(type)
    if let (front, value) = scanner.split(rest, at: UInt8(ascii: "/")) {
      stored = try scanner.decimal(value)
      rest = front
    }
    guard (0...4).contains(stored), let refcount = Int32(exactly: count) else {
      throw LineError("block '\(scanner.text(field))': expected PFN/TYPE with a type of 0 to 4")
    }
    return MachineState.CachedBlock(
      pfn: try scanner.pfn(rest), type: UInt8(stored), refcount: refcount)
  }

  private mutating func takeMap(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    guard hasMap else { throw LineError("a map in a state with map=0") }
    var runs = zones[zone].map ?? []
    zones[zone].map = nil
    while !scanner.isAtEnd {
      let field = try scanner.field()
      guard let (start, rest) = scanner.split(field, at: UInt8(ascii: "+")),
        let (count, name) = scanner.split(rest, at: UInt8(ascii: ":")),
        let kind = MachineState.FrameClass(rawValue: scanner.text(name))
      else { throw LineError("found '\(scanner.text(field))': expected START+COUNT:CLASS") }
      runs.append(
        MachineState.FrameRun(
          start: try scanner.pfn(start), count: try scanner.pfn(count), frameClass: kind))
    }
    zones[zone].map = runs
  }

  // MARK: the whole

  /// Checks that the state agrees with itself, so that a damaged file is told from a mismatch.
  private func finish() throws(LineError) -> TraceState {
    guard let totals else { throw LineError("the state has no totals line") }
    guard nodes.count == header.nodeCount else {
      throw LineError("\(nodes.count) node lines: expected \(header.nodeCount)")
    }
    guard fallback.count == nodes.count, thisNode.count == nodes.count else {
      throw LineError("expected two zonelist lines per node")
    }
    guard !zones.isEmpty else { throw LineError("the state has no zone") }
    var free: Int64 = 0
    for (index, zone) in zones.enumerated() {
      guard hasPageset[index] else { throw LineError("zone \(zone.id) has no pcp line") }
      guard !zone.pageblocks.isEmpty else { throw LineError("zone \(zone.id) has no pb line") }
      guard zone.id.node < nodes.count else {
        throw LineError("zone \(zone.id): there are \(nodes.count) nodes")
      }
      try check(zone, exact: exactFree[index])
      free += zone.freeExact + Int64(zone.pagesets[0].count)
    }
    guard free == totals.free else {
      throw LineError("totals free=\(totals.free), but the zones have \(free)")
    }
    for list in fallback + thisNode {
      for id in list where !zones.contains(where: { $0.id == id }) {
        throw LineError("a zonelist names zone \(id), which has no line")
      }
    }
    let zonelists = zip(fallback, thisNode).map { MachineState.Zonelist(fallback: $0, thisNode: $1) }
    return TraceState(
      label: label, operations: operations, hasMap: hasMap,
      state: MachineState(
        nodes: nodes, zonelists: zonelists, zones: zones, cpuNodes: [header.node],
        watermarkBoostFactor: Int64(header.watermarkBoostFactor),
        isMobilityDisabled: header.isMobilityDisabled), totalFree: totals.free,
      totalHeld: totals.held, line: line)
  }

  private func check(_ zone: MachineState.Zone, exact: Int64) throws(LineError) {
    guard zone.freeExact == exact else {
      throw LineError("zone \(zone.id): free_exact=\(exact), but free and stat_diff say \(zone.freeExact)")
    }
    var listed: Int64 = 0
    for (slot, blocks) in zone.freeLists.enumerated() where slot % 5 != 4 {
      listed += Int64(blocks.count) << Int64(slot / 5)
    }
    guard listed == exact else {
      throw LineError("zone \(zone.id): free_exact=\(exact), but \(listed) pages are listed")
    }
    var cached = 0
    for (slot, blocks) in zone.pagesets[0].lists.enumerated() {
      cached += blocks.count << (slot < 12 ? slot / 3 : 9)
    }
    guard cached == Int(zone.pagesets[0].count) else {
      throw LineError(
        "zone \(zone.id): count=\(zone.pagesets[0].count), but \(cached) pages are on per-CPU lists")
    }
    let limits = UInt64(zone.start)..<(UInt64(zone.start) + UInt64(zone.spanned))
    for (slot, blocks) in zone.freeLists.enumerated() {
      for pfn in blocks
      where !limits.contains(UInt64(pfn)) || !limits.contains(UInt64(pfn) + 1 << UInt64(slot / 5) - 1) {
        throw LineError("zone \(zone.id): block \(PFN(pfn)) lies outside the zone")
      }
    }
  }
}
