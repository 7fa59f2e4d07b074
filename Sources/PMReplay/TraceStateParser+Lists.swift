internal import PMPageAllocator
internal import PMUnits

// The lines of a state that say where a zone's frames are: pageblocks, lists and maps.
extension TraceStateParser {
  mutating func takePageblocks(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    try follow(.pb, [.zone])
    var next = UInt64(zones[zone].start >> 9) << 9
    while !scanner.isAtEnd {
      let field = try scanner.field()
      guard let (start, rest) = scanner.split(field, at: UInt8(ascii: "+")),
        let (count, type) = scanner.split(rest, at: UInt8(ascii: ":"))
      else { throw LineError("found '\(scanner.shown(field))': expected START+COUNT:TYPE") }
      let first = try scanner.pfn(start)
      let blocks = try scanner.decimal(count)
      guard UInt64(first) == next, (1...(1 << 23)).contains(blocks) else {
        throw LineError(
          "pageblocks '\(scanner.shown(field))': expected some from \(String(next, radix: 16)) on")
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

  mutating func takeFreeList(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    try follow(.fl, [.pb, .fl])
    let order = try scanner.decimal("order", 0...Order.max)
    let type = try scanner.decimal("mt", 0...4)
    let count = try scanner.decimal("n", 1...Int(Int32.max))
    try scanner.expect(":")
    let list = order * 5 + type
    guard list > lastList else {
      throw LineError("the list order=\(order) mt=\(type) is out of order or stands twice")
    }
    lastList = list
    var blocks: [UInt32] = []
    blocks.reserveCapacity(min(count, 1 << 16))
    while !scanner.isAtEnd {
      let pfn = try scanner.pfn(scanner.field())
      try check(pfn, order, zones[zone])
      blocks.append(pfn)
    }
    guard blocks.count == count else {
      throw LineError("n=\(count), but \(blocks.count) blocks follow")
    }
    if type != 4 { listedFree += Int64(count) << Int64(order) }
    zones[zone].freeLists[list] = blocks
  }

  /// A listed block lies in its zone and starts at a multiple of its size.
  private func check(
    _ pfn: UInt32, _ order: Int, _ zone: MachineState.Zone
  ) throws(LineError) {
    let size = UInt64(1) << UInt64(order)
    guard UInt64(pfn) & (size - 1) == 0 else {
      throw LineError("block \(PFN(pfn)) is not aligned to order \(order)")
    }
    guard pfn >= zone.start, UInt64(pfn) + size <= UInt64(zone.start) + UInt64(zone.spanned) else {
      throw LineError("block \(PFN(pfn)) of order \(order) lies outside zone \(zone.id)")
    }
  }

  mutating func takePageset(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    try follow(.pcp, [.pb, .fl])
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
    let exact = zones[zone].freeExact
    guard exact == exactFree else {
      throw LineError(
        "stat_diff=\(pageset.statDiff): expected \(exactFree - zones[zone].free), as free and free_exact of the zone differ by"
      )
    }
    guard listedFree == exact else {
      throw LineError(
        "the free lists before hold \(listedFree) pages: expected free_exact=\(exact)")
    }
  }

  mutating func takePerCPUList(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    try follow(.pl, [.pcp, .pl])
    _ = try scanner.decimal("cpu", 0...0)
    let slot = try scanner.decimal("pindex", 0...13)
    let order = try scanner.decimal("order", 0...9)
    let type = try scanner.decimal("mt", 0...2)
    let expected = slot < 12 ? (slot / 3, slot % 3) : (9, slot - 12)
    guard (order, type) == expected else {
      throw LineError("pindex=\(slot): expected order=\(expected.0) mt=\(expected.1)")
    }
    let count = try scanner.decimal("n", 1...Int(Int32.max))
    try scanner.expect(":")
    guard slot > lastSlot else {
      throw LineError("the list pindex=\(slot) is out of order or stands twice")
    }
    lastSlot = slot
    var blocks: [MachineState.CachedBlock] = []
    while !scanner.isAtEnd {
      let block = try cachedBlock(scanner, scanner.field(), type: UInt8(type))
      try check(block.pfn, order, zones[zone])
      blocks.append(block)
    }
    guard blocks.count == count else {
      throw LineError("n=\(count), but \(blocks.count) blocks follow")
    }
    cached += Int64(count) << Int64(order)
    zones[zone].pagesets[0].lists[slot] = blocks
  }

  /// `PFN`, `PFN/TYPE` where the stored type is not the list's, `PFN!COUNT`, or both.
  private func cachedBlock(
    _ scanner: TraceScanner, _ field: Range<Int>, type: UInt8
  ) throws(LineError) -> MachineState.CachedBlock {
    var rest = field
    var count = 0
    if let (front, value) = scanner.split(rest, at: UInt8(ascii: "!")) {
      count = try scanner.decimal(value)
      rest = front
      guard count != 0 else { throw LineError("block '\(scanner.shown(field))': !0 is left out") }
    }
    var stored = Int(type)
    if let (front, value) = scanner.split(rest, at: UInt8(ascii: "/")) {
      stored = try scanner.decimal(value)
      rest = front
      guard stored != Int(type) else {
        throw LineError("block '\(scanner.shown(field))': the list's own type is left out")
      }
    }
    guard (0...4).contains(stored), let refcount = Int32(exactly: count) else {
      throw LineError("block '\(scanner.shown(field))': expected PFN/TYPE with a type of 0 to 4")
    }
    return MachineState.CachedBlock(
      pfn: try scanner.pfn(rest), type: UInt8(stored), refcount: refcount)
  }

  mutating func takeMap(_ scanner: inout TraceScanner) throws(LineError) {
    let zone = try currentZone(&scanner)
    guard hasMap else { throw LineError("a map in a state with map=0") }
    try follow(.map, [.pcp, .pl, .map])
    let end = UInt64(zones[zone].start) + UInt64(zones[zone].spanned)
    var runs = zones[zone].map ?? []
    zones[zone].map = nil
    while !scanner.isAtEnd {
      let field = try scanner.field()
      guard let (start, rest) = scanner.split(field, at: UInt8(ascii: "+")),
        let (count, name) = scanner.split(rest, at: UInt8(ascii: ":")),
        let kind = MachineState.FrameClass(rawValue: scanner.shown(name))
      else { throw LineError("found '\(scanner.shown(field))': expected START+COUNT:CLASS") }
      let run = MachineState.FrameRun(
        start: try scanner.pfn(start), count: try scanner.pfn(count), frameClass: kind)
      guard UInt64(run.start) == mapEnd, run.count > 0, mapEnd + UInt64(run.count) <= end else {
        throw LineError(
          "map '\(scanner.shown(field))': expected frames from \(String(mapEnd, radix: 16)) on, up to \(String(end, radix: 16))"
        )
      }
      mapEnd += UInt64(run.count)
      runs.append(run)
    }
    zones[zone].map = runs
  }
}
