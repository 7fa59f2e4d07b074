import PMFrames
import PMUnits

@testable import PMPageAllocator

/// Blocks of one order on one list, front first.
struct FreeBlocks {
  var order: Int
  var type: Migratetype
  var pfns: [UInt32]

  init(_ order: Int, _ type: Migratetype, _ pfns: UInt32...) {
    self.order = order
    self.type = type
    self.pfns = pfns
  }
}

/// A zone written down by hand. Frames that no list has are in use, with a count of 0.
struct SmallZone {
  var kind = ZoneKind.dma32
  var start: UInt32 = 0x400
  var count: UInt32 = 1024
  var managed: UInt64 = 4096
  var watermarks: [Int64] = [0, 0, 1]
  var boost: Int64 = 0
  var highatomic: Int64 = 0
  var lowmemReserve: [Int64] = [0, 0, 0, 0, 0]
  var batch: Int32 = 1
  var high: Int32 = 1000
  var freeFactor: Int16 = 0
  var statThreshold: Int32 = 0
  /// The type of every pageblock, and those that differ.
  var type = Migratetype.movable
  var otherTypes: [UInt32: Migratetype] = [:]
  var free: [FreeBlocks] = []
  /// What the watermark checks read; nil: what the lists hold.
  var counter: Int64?

  func state(node: Int = 0, cpus: Int = 1) -> MachineState.Zone {
    var lists = [[UInt32]](repeating: [], count: 55)
    var isFree = [Bool](repeating: false, count: Int(count))
    var listed: Int64 = 0
    for blocks in free {
      lists[blocks.order * 5 + Int(blocks.type.rawValue)] += blocks.pfns
      for pfn in blocks.pfns {
        let offset = Int(pfn - start)
        for frame in offset..<(offset + 1 << blocks.order) { isFree[frame] = true }
        listed += 1 << Int64(blocks.order)
      }
    }
    var types = [UInt8](
      repeating: type.rawValue, count: Int((start + count - 1) >> 9 - start >> 9) + 1)
    for (pfn, type) in otherTypes { types[Int(pfn >> 9 - start >> 9)] = type.rawValue }
    let pending = Int32(listed - (counter ?? listed))
    return MachineState.Zone(
      id: ZoneID(node: node, kind: kind), start: start, spanned: count, present: UInt64(count),
      managed: managed, watermarks: watermarks, boost: boost, highatomic: highatomic,
      pagesetHigh: high, pagesetBatch: batch, free: counter ?? listed,
      lowmemReserve: lowmemReserve, pageblocks: types, freeLists: lists,
      pagesets: (0..<cpus).map { cpu in
        MachineState.Pageset(
          count: 0, high: high, batch: batch, freeFactor: freeFactor,
          statDiff: cpu == 0 ? pending : 0, statThreshold: max(statThreshold, abs(pending)))
      },
      map: SmallZone.runs(isFree, from: start))
  }

  private static func runs(_ isFree: [Bool], from start: UInt32) -> [MachineState.FrameRun] {
    var runs: [MachineState.FrameRun] = []
    for (offset, isFree) in isFree.enumerated() {
      let kind: MachineState.FrameClass = isFree ? .free : .used
      if let last = runs.last, last.frameClass == kind {
        runs[runs.count - 1].count += 1
      } else {
        runs.append(
          MachineState.FrameRun(start: start + UInt32(offset), count: 1, frameClass: kind))
      }
    }
    return runs
  }
}

/// A machine with one node of zones written down by hand.
func smallMachine(
  _ zones: SmallZone..., cpus: Int = 1, model: KernelModel = .linux61,
  change: (inout MachineState) -> Void = { _ in }
) throws -> Machine {
  let states = zones.map { $0.state(cpus: cpus) }
  let ids = states.map(\.id).sorted()
  let frames = states.reduce(0) { $0 + $1.present }
  let end = states.map { $0.start + $0.spanned }.max() ?? 0
  let start = states.map(\.start).min() ?? 0
  var state = MachineState(
    nodes: [MachineState.Node(start: start, spanned: UInt64(end - start), present: frames)],
    zonelists: [MachineState.Zonelist(fallback: ids.reversed(), thisNode: ids.reversed())],
    zones: states.sorted { $0.id < $1.id }, cpuNodes: Array(repeating: 0, count: cpus))
  change(&state)
  return try Machine(state: state, model: model)
}

extension Machine {
  /// The heads on a list of a zone, front first.
  func freeList(_ order: Int, _ type: Migratetype, zone: Int = 0) -> [UInt32] {
    zoneState(zone, withMap: false).freeLists[order * 5 + Int(type.rawValue)]
  }

  /// The heads on a list of a CPU, front first.
  func cpuList(_ slot: Int, zone: Int = 0, cpu: Int = 0) -> [UInt32] {
    pageset(zone: zone, cpu: cpu).lists[slot].map(\.pfn)
  }

  func pageset(zone: Int = 0, cpu: Int = 0) -> MachineState.Pageset {
    zoneState(zone, withMap: false).pagesets[cpu]
  }

  /// Gives frames in use a count of 1, as if they had been allocated one by one.
  func own(_ pfns: some Sequence<UInt32>) {
    for pfn in pfns { frames.setRefcount(PFN(pfn), 1) }
  }

  /// The bad pages among the findings, as `PFN reason (moment)`.
  var badPages: [String] {
    findings.findings.compactMap {
      guard case .badPage(let page) = $0 else { return nil }
      return "\(page.pfn) \(page.reason) (\(page.moment.rawValue))"
    }
  }

  /// Whether the modelled kernel stopped because of a broken list.
  var metBUG: Bool {
    findings.findings.contains {
      if case .listCorruption = $0 { return true }
      return false
    }
  }
}
