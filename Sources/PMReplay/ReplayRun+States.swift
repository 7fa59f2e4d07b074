internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

extension ReplayRun {
  /// Compares a whole state, list by list.
  func compare(_ expected: TraceState, _ machine: Machine) {
    report.states += 1
    let ours = machine.state(withMaps: expected.hasMap)
    let label = "state \(expected.label.rawValue)"
    lineText = "\(label) op=\(expected.operations)"
    compareNodes(label, expected.state, ours)
    for (index, zone) in expected.state.zones.enumerated() {
      guard index < ours.zones.count, ours.zones[index].id == zone.id else {
        check(false, "\(label), zones", expected: "\(zone.id)", got: "another layout")
        return
      }
      compareZone("\(label), zone \(zone.id)", zone, ours.zones[index], index)
    }
    check(
      expected.totalHeld == held, "\(label), held pages", expected: "\(expected.totalHeld)",
      got: "\(held)")
  }

  private func compareNodes(_ label: String, _ expected: MachineState, _ ours: MachineState) {
    for (node, list) in expected.zonelists.enumerated() {
      check(
        list == ours.zonelists[node], "\(label), zonelists of node \(node)",
        expected: "\(list)", got: "\(ours.zonelists[node])")
    }
    for (index, node) in expected.nodes.enumerated() {
      check(
        node == ours.nodes[index], "\(label), node \(index)", expected: "\(node)",
        got: "\(ours.nodes[index])")
    }
  }

  private func compareZone(
    _ label: String, _ expected: MachineState.Zone, _ ours: MachineState.Zone, _ index: Int
  ) {
    func field(_ name: String, _ expected: some Equatable, _ got: some Equatable) {
      let texts = ("\(expected)", "\(got)")
      check(
        texts.0 == texts.1, "\(label), \(name)", expected: texts.0, got: texts.1, zone: index)
    }
    field("start", expected.start, ours.start)
    field("spanned", expected.spanned, ours.spanned)
    field("present", expected.present, ours.present)
    field("managed", expected.managed, ours.managed)
    field("watermarks", expected.watermarks, ours.watermarks)
    field("boost", expected.boost, ours.boost)
    field("highatomic", expected.highatomic, ours.highatomic)
    field("flags", expected.flags, ours.flags)
    field("contiguous", expected.contiguous, ours.contiguous)
    field("isolated", expected.isolated, ours.isolated)
    field("pageset_high", expected.pagesetHigh, ours.pagesetHigh)
    field("pageset_batch", expected.pagesetBatch, ours.pagesetBatch)
    field("drift_mark", expected.driftMark, ours.driftMark)
    field("free", expected.free, ours.free)
    field("free_exact", expected.freeExact, ours.freeExact)
    field("lowmem_reserve", expected.lowmemReserve, ours.lowmemReserve)
    compareList("\(label), pageblocks", expected.pageblocks, ours.pageblocks, index) { "\($0)" }
    for slot in 0..<55 {
      compareList(
        "\(label), free list order=\(slot / 5) mt=\(slot % 5)", expected.freeLists[slot],
        ours.freeLists[slot], index
      ) { "\(PFN($0))" }
    }
    let pageset = (expected.pagesets[0], ours.pagesets[0])
    field("count", pageset.0.count, pageset.1.count)
    field("high", pageset.0.high, pageset.1.high)
    field("batch", pageset.0.batch, pageset.1.batch)
    field("free_factor", pageset.0.freeFactor, pageset.1.freeFactor)
    field("expire", pageset.0.expire, pageset.1.expire)
    field("stat_diff", pageset.0.statDiff, pageset.1.statDiff)
    field("stat_threshold", pageset.0.statThreshold, pageset.1.statThreshold)
    for slot in 0..<14 {
      compareList(
        "\(label), per-CPU list \(slot)", pageset.0.lists[slot], pageset.1.lists[slot], index
      ) { "\(PFN($0.pfn))/\($0.type)!\($0.refcount)" }
    }
    guard let map = expected.map, let ourMap = ours.map else { return }
    compareMaps("\(label), map", map, ourMap, index)
  }

  private func compareList<Element: Equatable>(
    _ what: String, _ expected: [Element], _ ours: [Element], _ zone: Int,
    _ text: (Element) -> String
  ) {
    report.compared += expected.count
    if expected == ours {
      check(true, what, expected: "", got: "")
      return
    }
    let position =
      zip(expected, ours).enumerated().first { $1.0 != $1.1 }?.offset
      ?? min(expected.count, ours.count)
    func around(_ list: [Element]) -> String {
      let window = list[max(0, position - 2)..<min(list.count, position + 6)]
      return "\(list.count) entries, at \(max(0, position - 2)): "
        + window.map(text).joined(separator: " ")
    }
    check(false, what, expected: around(expected), got: around(ours), zone: zone)
  }

  /// Runs may be cut differently; the class of each frame counts.
  private func compareMaps(
    _ what: String, _ expected: [MachineState.FrameRun], _ ours: [MachineState.FrameRun],
    _ zone: Int
  ) {
    func joined(_ runs: [MachineState.FrameRun]) -> [MachineState.FrameRun] {
      runs.reduce(into: []) { list, run in
        if let last = list.last, last.frameClass == run.frameClass {
          list[list.count - 1].count += run.count
        } else {
          list.append(run)
        }
      }
    }
    compareList(what, joined(expected), joined(ours), zone) {
      "\(PFN($0.start))+\(String($0.count, radix: 16)):\($0.frameClass.rawValue)"
    }
  }

  // MARK: context

  /// Our lists around a page, or of a zone: what one looks at first.
  func context(near pfn: UInt32?, zone named: Int?) -> [String] {
    guard let machine = trace?.machine else { return [] }
    var lines: [String] = []
    var zone = named
    if let pfn, Int(pfn) < machine.frames.frameCount {
      lines.append("page \(PFN(pfn)): \(whereabouts(machine, PFN(pfn)))")
      zone = zone ?? machine.zone(of: PFN(pfn)).flatMap(machine.zoneIndex)
    }
    guard let zone else { return lines }
    let state = machine.zoneState(zone, withMap: false)
    lines.append(
      "zone \(state.id): free \(state.free) (exact \(state.freeExact)), low \(state.watermarks[1]), boost \(state.boost), highatomic \(state.highatomic)"
    )
    for slot in 0..<55 where !state.freeLists[slot].isEmpty {
      let blocks = state.freeLists[slot]
      let names = blocks.prefix(8).map { " \(PFN($0))" }.joined()
      lines.append(
        "  fl order=\(slot / 5) mt=\(slot % 5) n=\(blocks.count) :\(names)\(blocks.count > 8 ? " …" : "")"
      )
    }
    let pageset = state.pagesets[0]
    lines.append(
      "  pcp count \(pageset.count), high \(pageset.high), batch \(pageset.batch), free_factor \(pageset.freeFactor), diff \(pageset.statDiff)"
    )
    for (slot, blocks) in pageset.lists.enumerated() where !blocks.isEmpty {
      let names = blocks.prefix(8).map { " \(PFN($0.pfn))/\($0.type)" }.joined()
      lines.append(
        "  pl pindex=\(slot) n=\(blocks.count) :\(names)\(blocks.count > 8 ? " …" : "")")
    }
    return lines
  }

  private func whereabouts(_ machine: Machine, _ pfn: PFN) -> String {
    let count = machine.frames.refcount(pfn)
    let place =
      switch machine.whereabouts(of: pfn) {
      case .hole: "in no zone"
      case .free(let head, let order): "free, in block \(head) of order \(order)"
      case .perCPU(let cpu, let head, let order):
        "on a list of CPU \(cpu), in block \(head) of order \(order)"
      case .used: "in use"
      }
    return "\(place), count \(count), pageblock \(machine.pageblockType(of: pfn))"
  }
}
