internal import PMPageAllocator
internal import PMUnits

/// Limits that operations are checked against while they are read.
struct TraceLimits {
  var nodeCount: Int
  var zones: [ZoneID]
  var layout: FrameLayout
}

/// Where frames are: the runs of present frames of each zone, from a state's maps.
struct FrameLayout {
  private var starts: [UInt32] = []
  private var ends: [UInt32] = []

  /// The runs of the state's zones; nothing where a zone has no map.
  init(_ zones: [MachineState.Zone]) {
    var runs: [(start: UInt32, end: UInt32, zone: Int)] = []
    for (index, zone) in zones.enumerated() {
      for run in zone.map ?? [] where run.frameClass != .absent {
        if let last = runs.last, last.zone == index, last.end == run.start {
          runs[runs.count - 1].end += run.count
        } else {
          runs.append((run.start, run.start + run.count, index))
        }
      }
    }
    runs.sort { $0.start < $1.start }
    starts = runs.map(\.start)
    ends = runs.map(\.end)
  }

  /// Whether all frames of a block exist and lie in one zone.
  func contains(_ pfn: UInt32, _ frames: UInt32) -> Bool {
    var low = 0
    var high = starts.count
    while low < high {
      let middle = (low + high) / 2
      if starts[middle] <= pfn { low = middle + 1 } else { high = middle }
    }
    guard low > 0 else { return false }
    return UInt64(pfn) + UInt64(frames) <= UInt64(ends[low - 1])
  }
}

/// An operation line, except for the counts at its end, which stay text until they are compared.
struct TraceOperationLine {
  var number: Int
  var operation: TraceOperation
  /// Slots set before a bulk call; empty where none was.
  var preset: [Bool]
  var result: TraceResult
  var delta: Int
  /// Where the block starts whose counts stand at the end, or nil.
  var base: UInt32?

  /// Reads `N NAME ARGS -> RESULT d=D[ ; BASE`; the scanner then stands at the counts.
  init(_ scanner: inout TraceScanner, _ limits: TraceLimits) throws(LineError) {
    number = try scanner.decimal(scanner.field())
    let name = try scanner.field()
    guard let kind = TraceOperation.Kind(scanner, name) else {
      throw LineError("unknown operation '\(scanner.shown(name))'")
    }
    operation = TraceOperation(kind: kind)
    preset = []
    result = .void
    delta = 0
    try takeArguments(&scanner, limits)
    try scanner.expect("->")
    try takeResult(&scanner)
    delta = try scanner.decimal("d")
    base = nil
    guard hasCounts else {
      try scanner.expectEnd()
      return
    }
    try scanner.expect(";")
    base = try scanner.pfn(scanner.field())
    guard !scanner.isAtEnd else { throw LineError("no counts follow") }
  }

  /// Whether counts stand at the end: not after bulk calls, drains and NULL.
  private var hasCounts: Bool {
    if case .page(nil) = result { return false }
    return operation.kind != .allocBulk && operation.kind != .drain
  }

  /// How many frames the counts have to cover: those of the block that was allocated or named; nil
  /// for operations on a page, whose block has the size that it was once allocated with.
  var blockFrames: UInt32? {
    switch operation.kind {
    case .allocPages, .allocPagesNode, .folioAlloc, .freePages, .splitPage:
      return 1 << UInt32(operation.order)
    case .allocExact:
      return Order.holding(bytes: UInt64(operation.count)).map { 1 << UInt32($0) }
    case .freeExact: return UInt32((operation.count + 4095) >> 12)
    default: return nil
    }
  }

  private mutating func takeArguments(
    _ scanner: inout TraceScanner, _ limits: TraceLimits
  ) throws(LineError) {
    switch operation.kind {
    case .allocPages, .folioAlloc:
      try takeGFP(&scanner)
      operation.order = Int8(try scanner.decimal("order", 0...Order.max))
      _ = try scanner.value("sym")
    case .allocPagesNode:
      operation.place = Int16(try scanner.decimal("nid", 0...(limits.nodeCount - 1)))
      try takeGFP(&scanner)
      operation.order = Int8(try scanner.decimal("order", 0...Order.max))
      _ = try scanner.value("sym")
    case .allocBulk:
      try takeGFP(&scanner)
      operation.count = try scanner.decimal("n", 0...(1 << 20))
      _ = try scanner.value("sym")
      try takePreset(&scanner)
    case .allocExact:
      try takeGFP(&scanner)
      operation.count = try scanner.decimal("bytes", 0...(1 << 40))
      _ = try scanner.value("sym")
    case .freeExact:
      operation.pfn = try scanner.pfn("pfn")
      operation.count = try scanner.decimal("bytes", 1...(1 << 22))
      try check(limits, frames: UInt32((operation.count + 4095) >> 12))
    case .freePages, .splitPage:
      operation.pfn = try scanner.pfn("pfn")
      operation.order = Int8(try scanner.decimal("order", 0...Order.max))
      let frames = UInt32(1) << UInt32(operation.order)
      guard operation.pfn & (frames - 1) == 0 else {
        throw LineError("PFN \(PFN(operation.pfn)) is not aligned to order \(operation.order)")
      }
      try check(limits, frames: frames)
    case .getPage, .putPage, .tryGetPage, .getPageUnlessZero:
      operation.pfn = try scanner.pfn("pfn")
      try check(limits, frames: 1)
    case .freeze, .unfreeze:
      operation.pfn = try scanner.pfn("pfn")
      operation.count = try scanner.decimal("count", Int(Int32.min)...Int(Int32.max))
      try check(limits, frames: 1)
    case .drain:
      let zone = try scanner.value("zone")
      if !scanner.equals(zone, "all") {
        let id = try TraceStateParser.zoneID(scanner, zone)
        guard let index = limits.zones.firstIndex(of: id) else {
          throw LineError("zone \(id): the machine has no such zone")
        }
        operation.place = Int16(index + 1)
      }
    }
  }

  private mutating func takeGFP(_ scanner: inout TraceScanner) throws(LineError) {
    let range = try scanner.value("gfp")
    let value = try scanner.prefixedHexadecimal(range)
    guard value <= UInt64(GFP.allowedMask) else {
      throw LineError("gfp=\(scanner.shown(range)): expected at most 0x7ffffff")
    }
    let gfp = GFP(rawValue: UInt32(value))
    guard gfp.migratetype != nil else {
      throw LineError(
        "gfp=\(scanner.shown(range)): __GFP_MOVABLE and __GFP_RECLAIMABLE exclude each other")
    }
    guard !gfp.contains(.directReclaim) else {
      throw LineError(
        "gfp=\(scanner.shown(range)): no trace holds __GFP_DIRECT_RECLAIM, which would reclaim")
    }
    operation.gfp = gfp.rawValue
  }

  private mutating func takePreset(_ scanner: inout TraceScanner) throws(LineError) {
    let range = try scanner.value("pre")
    if scanner.equals(range, "-") { return }
    preset = [Bool](repeating: false, count: operation.count)
    guard range.count == operation.count else {
      throw LineError("pre= has \(range.count) digits: expected n=\(operation.count)")
    }
    for (index, position) in range.enumerated() {
      switch scanner.bytes[position] {
      case UInt8(ascii: "0"): break
      case UInt8(ascii: "1"): preset[index] = true
      default: throw LineError("pre=\(scanner.shown(range)): expected digits 0 and 1")
      }
    }
  }

  private func check(_ limits: TraceLimits, frames: UInt32) throws(LineError) {
    guard limits.layout.contains(operation.pfn, frames) else {
      let what = frames == 1 ? "PFN" : "the block of \(frames) frames at"
      throw LineError("\(what) \(PFN(operation.pfn)) is in no zone of the machine")
    }
  }

  private mutating func takeResult(_ scanner: inout TraceScanner) throws(LineError) {
    switch operation.kind {
    case .allocPages, .allocPagesNode, .folioAlloc, .allocExact:
      let field = try scanner.field()
      result = .page(scanner.equals(field, "NULL") ? nil : try scanner.pfn(field))
    case .tryGetPage, .getPageUnlessZero, .freeze:
      let field = try scanner.field()
      let value = try scanner.decimal(field)
      guard value == 0 || value == 1 else {
        throw LineError("result \(value): expected 0 or 1")
      }
      result = .flag(value == 1)
    case .allocBulk:
      try takeBulkResult(&scanner)
    case .freeExact, .freePages, .getPage, .putPage, .unfreeze, .splitPage, .drain:
      try scanner.expect("void")
      result = .void
    }
  }

  private mutating func takeBulkResult(_ scanner: inout TraceScanner) throws(LineError) {
    let field = try scanner.field()
    guard let (value, colon) = scanner.split(field, at: UInt8(ascii: ":")), colon.isEmpty else {
      throw LineError("found '\(scanner.shown(field))': expected 'R:'")
    }
    let returned = try scanner.decimal(value)
    var slots: [UInt32?] = []
    if operation.count > 0 {
      let list = try scanner.field()
      slots.reserveCapacity(operation.count)
      for part in scanner.parts(list, separator: UInt8(ascii: ",")) {
        if scanner.equals(part, "-") {
          slots.append(nil)
        } else if scanner.equals(part, "m") {
          slots.append(TraceResult.presetSlot)
        } else {
          slots.append(try scanner.pfn(part))
        }
      }
    }
    guard slots.count == operation.count else {
      throw LineError("\(slots.count) elements: expected n=\(operation.count)")
    }
    result = .bulk(returned, slots)
  }
}
