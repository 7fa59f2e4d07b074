internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

/// Puts a machine into a given state, checking that the state makes sense: what the lists say, what
/// the map says and what the counters say must be the same.
struct StateLoader {
  let machine: Machine
  let state: MachineState

  /// The runs of present frames of all zones, from their maps.
  static func segments(of state: MachineState) throws(MachineError) -> [MachineSegment] {
    var segments: [MachineSegment] = []
    for (index, zone) in state.zones.enumerated() {
      guard let map = zone.map else { throw .invalidState("zone \(zone.id) has no map") }
      var cursor = UInt64(zone.start)
      for run in map {
        guard UInt64(run.start) == cursor, run.count > 0 else {
          throw .invalidState(
            "zone \(zone.id): map run at \(PFN(run.start)): expected \(String(cursor, radix: 16))")
        }
        cursor += UInt64(run.count)
        guard run.frameClass != .absent else { continue }
        if let last = segments.last, last.zone == index, last.start + last.count == run.start {
          segments[segments.count - 1].count += run.count
        } else {
          segments.append(MachineSegment(start: run.start, count: run.count, zone: index))
        }
      }
      guard cursor == UInt64(zone.start) + UInt64(zone.spanned) else {
        throw .invalidState(
          "zone \(zone.id): map ends at \(String(cursor, radix: 16)): expected the end of the span")
      }
    }
    segments.sort { $0.start < $1.start }
    for (lower, upper) in zip(segments, segments.dropFirst())
    where UInt64(lower.start) + UInt64(lower.count) > UInt64(upper.start) {
      throw .invalidState("frame \(PFN(upper.start)) belongs to two zones")
    }
    return segments
  }

  func load() throws(MachineError) {
    let core = machine.core(cpu: 0)
    for (index, zone) in state.zones.enumerated() {
      try check(zone)
      let first = zone.start >> 9
      for (slot, type) in zone.pageblocks.enumerated() where type != 0xff {
        core.setPageblockType((first + UInt32(slot)) << 9, type)
      }
      var free = try loadMap(core, zone)
      for (slot, blocks) in zone.freeLists.enumerated() {
        for pfn in blocks {
          try take(&free, zone, pfn, order: slot / 5, from: .free)
          core.addBlock(
            core.zones + index, pfn, order: UInt32(slot / 5), type: UInt8(slot % 5), toBack: true)
        }
      }
      for cpu in zone.pagesets.indices { try loadPageset(zone, index, cpu, &free) }
      if let left = free.first(where: { $0.kind == .free || $0.kind == .perCPU }) {
        throw .invalidState(
          "zone \(zone.id): frame \(PFN(left.start)) is of class \(left.kind.rawValue) but on no list"
        )
      }
      let listed = zone.freeLists.enumerated().reduce(Int64(0)) { sum, entry in
        entry.offset % 5 == 4 ? sum : sum + Int64(entry.element.count) << Int64(entry.offset / 5)
      }
      guard listed == zone.freeExact else {
        throw .invalidState(
          "zone \(zone.id): free counter \(zone.freeExact), but \(listed) pages on the lists")
      }
    }
  }

  private func check(_ zone: MachineState.Zone) throws(MachineError) {
    let blocks =
      Int((UInt64(zone.start) + UInt64(zone.spanned) - 1) >> 9 - UInt64(zone.start) >> 9) + 1
    guard zone.pageblocks.count == blocks else {
      throw .invalidState(
        "zone \(zone.id): \(zone.pageblocks.count) pageblocks: expected \(blocks)")
    }
    guard zone.pageblocks.allSatisfy({ $0 < 5 || $0 == 0xff }) else {
      throw .invalidState("zone \(zone.id): a pageblock type is not 0 to 4")
    }
    guard zone.watermarks.count == 3, zone.lowmemReserve.count == 5, zone.freeLists.count == 55
    else {
      throw .invalidState("zone \(zone.id): expected 3 watermarks, 5 reserves, 55 lists")
    }
    guard zip(zone.watermarks, zone.watermarks.dropFirst()).allSatisfy({ $0 <= $1 }) else {
      throw .invalidState("zone \(zone.id): watermarks \(zone.watermarks): expected ascending ones")
    }
    guard zone.pagesets.count == state.cpuNodes.count else {
      throw .invalidState("zone \(zone.id): expected a pageset per CPU")
    }
    guard state.nodes.indices.contains(zone.id.node) else {
      throw .invalidState("zone \(zone.id): no such node")
    }
    for pageset in zone.pagesets
    where pageset.batch < 1 || pageset.batch > 65535 || pageset.high < 0 || pageset.freeFactor < 0
      || pageset.freeFactor > 5 || pageset.statThreshold < 0
      || pageset.lists.count != 14
    {
      throw .invalidState(
        "zone \(zone.id): a pageset's batch, high, free_factor or stat_threshold is out of range")
    }
  }

  /// A run of frames of one class that no list has claimed yet.
  private struct Unclaimed {
    var start: UInt32
    var end: UInt32
    var kind: MachineState.FrameClass
  }

  /// Writes the states of all frames of a zone and returns the runs that lists have to claim.
  private func loadMap(
    _ core: Core, _ zone: MachineState.Zone
  ) throws(MachineError) -> [Unclaimed] {
    var runs: [Unclaimed] = []
    for run in zone.map ?? [] {
      let value: UInt16
      switch run.frameClass {
      case .absent: continue
      case .reserved: value = FrameState.touched | FrameState.reserved
      case .slab: value = FrameState.touched | FrameState.slab
      case .lru: value = FrameState.touched | FrameState.lru
      case .used, .free, .perCPU: value = FrameState.touched
      }
      pm_states_fill(core.states + Int(run.start), Int(run.count), value)
      for block in (run.start >> 9)...((run.start + run.count - 1) >> 9) {
        core.markUnusual(block << 9)
      }
      if run.frameClass == .free || run.frameClass == .perCPU {
        runs.append(
          Unclaimed(start: run.start, end: run.start + run.count, kind: run.frameClass))
      }
    }
    return runs
  }

  /// Claims a block's frames from the runs; each may be claimed once.
  private func take(
    _ runs: inout [Unclaimed], _ zone: MachineState.Zone, _ pfn: UInt32, order: Int,
    from kind: MachineState.FrameClass
  ) throws(MachineError) {
    let end = UInt64(pfn) + 1 << UInt64(order)
    guard pfn & (1 << UInt32(order) - 1) == 0 else {
      throw .invalidState("zone \(zone.id): block \(PFN(pfn)) is not aligned to order \(order)")
    }
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if UInt64(runs[middle].end) <= UInt64(pfn) { low = middle + 1 } else { high = middle }
    }
    guard low < runs.count, runs[low].start <= pfn, end <= UInt64(runs[low].end),
      runs[low].kind == kind
    else {
      throw .invalidState(
        "zone \(zone.id): block \(PFN(pfn)) of order \(order) is on a list, but not of class \(kind.rawValue) in the map or on two lists"
      )
    }
    let run = runs[low]
    var rest: [Unclaimed] = []
    if run.start < pfn { rest.append(Unclaimed(start: run.start, end: pfn, kind: kind)) }
    if end < UInt64(run.end) {
      rest.append(Unclaimed(start: UInt32(end), end: run.end, kind: kind))
    }
    runs.replaceSubrange(low...low, with: rest)
  }

  private func loadPageset(
    _ zone: MachineState.Zone, _ index: Int, _ cpu: Int, _ runs: inout [Unclaimed]
  ) throws(MachineError) {
    let core = machine.core(cpu: cpu)
    let pageset = zone.pagesets[cpu]
    let record = core.pagesets + index
    var count: Int32 = 0
    for (slot, blocks) in pageset.lists.enumerated() {
      let order = Core.order(ofPerCPUIndex: UInt32(slot))
      for block in blocks {
        guard block.type < 5 else {
          throw .invalidState("zone \(zone.id): block \(PFN(block.pfn)) has type \(block.type)")
        }
        try take(&runs, zone, block.pfn, order: Int(order), from: .perCPU)
        core.setState(
          block.pfn, FrameState.touched | UInt16(block.type) << FrameState.migratetypeShift)
        machine.frames.setRefcount(PFN(block.pfn), block.refcount)
        core.addBack(UInt32(bitPattern: record.pointee.list_base) + UInt32(slot), block.pfn)
        count += 1 << Int32(order)
      }
    }
    guard count == pageset.count else {
      throw .invalidState(
        "zone \(zone.id): per-CPU count \(pageset.count), but \(count) pages on the lists")
    }
    record.pointee.count = count
  }
}
