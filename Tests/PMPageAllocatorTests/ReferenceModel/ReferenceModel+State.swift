import PMPageAllocator
import PMUnits

extension ReferenceModel {
  /// The model in a given state, which has to have maps.
  convenience init(state: MachineState) {
    var zones: [Zone] = []
    var end: UInt32 = 0
    for given in state.zones {
      zones.append(ReferenceModel.zone(given))
      end = max(end, given.start + given.spanned)
    }
    func index(_ id: ZoneID) -> Int {
      state.zones.firstIndex { $0.id == id } ?? -1
    }
    let nodes = zip(state.nodes, state.zonelists).map { node, lists in
      Node(
        fallback: lists.fallback.map(index), thisnode: lists.thisNode.map(index),
        kswapdOrder: Int(node.kswapdOrder), kswapdHighestZoneIndex: Int(node.kswapdHighestZone))
    }
    self.init(endPFN: end, zones: zones, nodes: nodes, cpuNode: state.cpuNodes)
    watermarkBoostFactor = Int(state.watermarkBoostFactor)
    mobilityGroupingDisabled = state.isMobilityDisabled
    for (slot, zone) in state.zones.enumerated() { load(zone, at: slot) }
  }

  private static func zone(_ given: MachineState.Zone) -> Zone {
    var zone = Zone(
      node: given.id.node, kind: Int(given.id.kind.rawValue), start: given.start,
      spanned: given.spanned, present: [])
    zone.managed = Int(given.managed)
    zone.min = Int(given.watermarks[0])
    zone.low = Int(given.watermarks[1])
    zone.high = Int(given.watermarks[2])
    zone.boost = Int(given.boost)
    zone.highatomic = Int(given.highatomic)
    zone.boostedFlag = given.flags & 1 != 0
    zone.reclaimActive = given.flags & 2 != 0
    zone.lowmemReserve = given.lowmemReserve.map { Int($0) }
    zone.free = Int(given.free)
    zone.nrIsolate = Int(given.isolated)
    for run in given.map ?? [] where run.frameClass != .absent {
      if let last = zone.present.last, last.upperBound == run.start {
        zone.present[zone.present.count - 1] = last.lowerBound..<(run.start + run.count)
      } else {
        zone.present.append(run.start..<(run.start + run.count))
      }
    }
    return zone
  }

  private func load(_ zone: MachineState.Zone, at slot: Int) {
    for run in zone.map ?? [] {
      let flags: UInt32
      switch run.frameClass {
      case .lru: flags = Flag.lru
      case .slab: flags = 1 << 9
      case .reserved: flags = 1 << 12
      default: continue
      }
      for pfn in run.start..<(run.start + run.count) { pages[Int(pfn)].flags = flags }
    }
    for (block, type) in zone.pageblocks.enumerated() where type != 0xff {
      pageblocks[zone.start / Self.pageblockPages + UInt32(block)] = Int(type)
    }
    for (list, blocks) in zone.freeLists.enumerated() {
      for pfn in blocks {
        placeFreeBlock(zone: slot, order: list / 5, migratetype: list % 5, pfn: pfn)
      }
    }
    for (cpu, given) in zone.pagesets.enumerated() {
      pageSets[cpu][slot].high = Int(given.high)
      pageSets[cpu][slot].batch = Int(given.batch)
      pageSets[cpu][slot].freeFactor = Int(given.freeFactor)
      pageSets[cpu][slot].statDiff = Int(given.statDiff)
      pageSets[cpu][slot].statThreshold = Int(given.statThreshold)
      for (list, blocks) in given.lists.enumerated() {
        for block in blocks {
          placePerCPU(
            cpu: cpu, zone: slot, index: list, pfn: block.pfn, migratetype: Int(block.type),
            refcount: block.refcount)
        }
      }
    }
  }
}
