internal import PMUnits

/// One operation of a trace in 24 bytes and, for bulk calls with slots already set, a pattern.
struct TraceOperation {
  enum Kind: UInt8, CaseIterable {
    case allocPages, allocPagesNode, folioAlloc, allocBulk, allocExact, freeExact, freePages
    case getPage, putPage, tryGetPage, getPageUnlessZero, freeze, unfreeze, splitPage, drain

    var name: StaticString {
      switch self {
      case .allocPages: "alloc_pages"
      case .allocPagesNode: "alloc_pages_node"
      case .folioAlloc: "folio_alloc"
      case .allocBulk: "alloc_pages_bulk_array"
      case .allocExact: "alloc_pages_exact"
      case .freeExact: "free_pages_exact"
      case .freePages: "__free_pages"
      case .getPage: "get_page"
      case .putPage: "put_page"
      case .tryGetPage: "try_get_page"
      case .getPageUnlessZero: "get_page_unless_zero"
      case .freeze: "page_ref_freeze"
      case .unfreeze: "page_ref_unfreeze"
      case .splitPage: "split_page"
      case .drain: "drain_local_pages"
      }
    }
  }

  var kind: Kind
  var order: Int8 = 0
  /// Preferred node, or zone index + 1 of a drain with 0 for all.
  var place: Int16 = 0
  var pfn: UInt32 = 0
  var gfp: UInt32 = 0
  /// Index into the replay's patterns plus one, or 0.
  var pattern: UInt32 = 0
  /// Bytes, a count, or a number of slots.
  var count: Int = 0
}

/// What a trace says an operation gave.
enum TraceResult: Equatable {
  case void
  case flag(Bool)
  case page(UInt32?)
  /// The return value; a PFN, nil for an empty slot, `presetSlot` for one that was set before.
  case bulk(Int, [UInt32?])

  static let presetSlot = UInt32.max
}

/// An operation line, except for the counts at its end, which stay text until they are compared.
struct TraceOperationLine {
  var number: Int
  var operation: TraceOperation
  /// Slots set before a bulk call.
  var preset: [Bool]
  var result: TraceResult
  var delta: Int
  /// Where the counts start in the line, or nil.
  var base: UInt32?
}

/// Limits that operations are checked against while they are read.
struct TraceLimits {
  var nodeCount: Int
  var zones: [ZoneID]
  /// Whether all frames of a block lie in zones.
  var contains: (_ pfn: UInt32, _ frames: UInt32) -> Bool
}

extension TraceOperationLine {
  /// Reads `N NAME ARGS -> RESULT d=D[ ; BASE`; the scanner then stands at the counts.
  init(_ scanner: inout TraceScanner, _ limits: TraceLimits) throws(LineError) {
    number = try scanner.decimal(scanner.field())
    let name = try scanner.field()
    guard let kind = TraceOperation.Kind.allCases.first(where: { scanner.equals(name, $0.name) })
    else { throw LineError("unknown operation '\(scanner.text(name))'") }
    operation = TraceOperation(kind: kind)
    preset = []
    result = .void
    delta = 0
    try takeArguments(&scanner, limits)
    try scanner.expect("->")
    try takeResult(&scanner)
    delta = try scanner.decimal("d")
    base = nil
    if !scanner.isAtEnd {
      try scanner.expect(";")
      base = try scanner.pfn(scanner.field())
      guard !scanner.isAtEnd else { throw LineError("no counts follow") }
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
      operation.count = try scanner.decimal("bytes", 0...(1 << 22))
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
      throw LineError("gfp=\(scanner.text(range)): expected at most 0x7ffffff")
    }
    let gfp = GFP(rawValue: UInt32(value))
    guard gfp.migratetype != nil else {
      throw LineError(
        "gfp=\(scanner.text(range)): __GFP_MOVABLE and __GFP_RECLAIMABLE exclude each other")
    }
    operation.gfp = gfp.rawValue
  }

  private mutating func takePreset(_ scanner: inout TraceScanner) throws(LineError) {
    let range = try scanner.value("pre")
    preset = [Bool](repeating: false, count: operation.count)
    if scanner.equals(range, "-") { return }
    guard range.count == operation.count else {
      throw LineError("pre= has \(range.count) digits: expected n=\(operation.count)")
    }
    for (index, position) in range.enumerated() {
      switch scanner.bytes[position] {
      case UInt8(ascii: "0"): break
      case UInt8(ascii: "1"): preset[index] = true
      default: throw LineError("pre=\(scanner.text(range)): expected digits 0 and 1")
      }
    }
  }

  private func check(_ limits: TraceLimits, frames: UInt32) throws(LineError) {
    guard limits.contains(operation.pfn, frames) else {
      throw LineError("PFN \(PFN(operation.pfn)) is in no zone of the machine")
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
      throw LineError("found '\(scanner.text(field))': expected 'R:'")
    }
    let returned = try scanner.decimal(value)
    var slots: [UInt32?] = []
    if operation.count > 0 {
      let list = try scanner.field()
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
