internal import PMPageAllocator
internal import PMUnits

// Checkpoint lines.
extension ReplayRun {
  func takeCheckpoint(_ machine: Machine, _ scanner: inout TraceScanner) throws(LineError) {
    let zone = try order.checkpoint(done)
    let number = try scanner.decimal(scanner.field())
    guard number == done else {
      throw LineError("ck \(number): expected \(done), as many operations stand before")
    }
    let id = try TraceStateParser.zoneID(scanner, scanner.field())
    guard machine.zoneIDs[zone] == id else {
      throw LineError("ck \(number) \(id): expected zone \(machine.zoneIDs[zone])")
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
    if order.tookCheckpoint(done) { report.checkpoints += 1 }
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
    let field = try scanner.value("nf")
    var groups = 0
    for group in scanner.parts(field, separator: UInt8(ascii: ";")) {
      var orders = 0
      for length in scanner.parts(group, separator: UInt8(ascii: ",")) {
        guard groups < 5, orders < 11 else {
          throw LineError("nf=: expected 5 groups of 11 lengths")
        }
        let (type, order) = (groups, orders)
        let expected = try scanner.decimal(length)
        let got = ours.freeLists[order * 5 + type].count
        check(
          expected == got, "checkpoint, zone \(name(zone)), blocks of order \(order) type \(type)",
          expected: "\(expected)", got: "\(got)", zone: zone)
        orders += 1
      }
      guard orders == 11 else { throw LineError("nf= has \(orders) lengths: expected 11") }
      groups += 1
    }
    guard groups == 5 else { throw LineError("nf= has \(groups) groups: expected 5") }
  }

  private func name(_ zone: Int) -> String {
    trace.map { "\($0.machine.zoneIDs[zone])" } ?? "\(zone)"
  }
}
