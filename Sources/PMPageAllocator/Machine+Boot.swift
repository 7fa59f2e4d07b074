internal import CPhysmemShim
internal import PMArena
internal import PMFrames
internal import PMUnits

extension Machine {
  /// A machine as it is after boot: everything free, all pageblocks movable, lists in the order in
  /// which boot frees memory.
  ///
  /// Costs the same at any size: blocks of the highest order are linked by the zeroes of fresh memory.
  public convenience init(_ description: MachineDescription) throws(MachineError) {
    try description.check()
    let plan = BootPlan(description)
    let configuration = try plan.arenaConfiguration(description)
    try self.init(
      shape: plan.shape, segments: plan.segments, arena: configuration, model: description.model,
      refcountLayout: description.refcountLayout,
      zeroesOnAllocation: description.parameters.initOnAlloc)
    let core = core(cpu: 0)
    for segment in plan.segments {
      let end = segment.start + segment.count
      // The first MiB of a PC is kept back.
      let firstFree = description.reservesFirstMegabyte ? max(segment.start, 0x100) : segment.start
      if firstFree > segment.start {
        for index in segment.start..<min(firstFree, end) {
          core.setState(index, FrameState.touched | FrameState.reserved)
          core.markUnusual(index)
        }
      }
      if firstFree < end { core.releaseAtBoot(core.zones + segment.zone, firstFree..<end) }
    }
    for zone in plan.shape.zones.indices {
      // Boot counts exactly; what the releases left pending was for nobody to see.
      core.zones[zone].nr_free_pages = plan.shape.zones[zone].free
      core.noteRoom(core.zones + zone, plan.shape.zones[zone].free)
      core.pagesets[zone].stat_diff = 0
    }
    frames.adviseHugePages()
  }
}

extension Core {
  /// Frees a run of frames as boot does: naturally aligned blocks, ascending, to the back of the
  /// lists. Mirrors `__free_pages_memory`.
  func releaseAtBoot(_ zone: UnsafeMutablePointer<pm_zone>, _ frames: Range<UInt32>) {
    let pageset = pagesets + Int(zone.pointee.index)
    var cursor = frames.lowerBound
    while cursor < frames.upperBound {
      let left = frames.upperBound - cursor
      if cursor & 1023 == 0, left >= 1024 {
        let blocks = left >> 10
        linkUntouched(zone, cursor, blocks: blocks)
        cursor += blocks << 10
        continue
      }
      let order = min(
        UInt32(cursor.trailingZeroBitCount), UInt32(31 - left.leadingZeroBitCount), 10)
      freeBlock(zone, pageset, cursor, order: order, type: 1, toTail: true)
      cursor += 1 << order
    }
  }

  /// Appends a run of untouched blocks of the highest order: only its ends are written.
  private func linkUntouched(
    _ zone: UnsafeMutablePointer<pm_zone>, _ first: UInt32, blocks: UInt32
  ) {
    let head = freeList(zone, order: 10, type: 1)
    let last = first + (blocks - 1) << 10
    let before = previous(head)
    setPrevious(first, before)
    setNext(before, first)
    setNext(last, head)
    setPrevious(head, last)
    let mask = pm_zone_nonempty(zone) + 1
    mask.pointee |= 1 << 10
    (pm_zone_nr_free(zone) + 10).pointee += blocks
  }
}

/// A description worked out: zones with their limits, segments, zonelists.
struct BootPlan {
  var shape: MachineState
  var segments: [MachineSegment] = []

  init(_ description: MachineDescription) {
    let ranges = description.ranges()
    let movable = description.movableStarts(ranges)
    var zones: [ZoneID: MachineState.Zone] = [:]
    var pieces: [(start: UInt64, end: UInt64, id: ZoneID)] = []
    for range in ranges {
      let movableStart = movable[range.node] ?? UInt64.max
      let borders: [(ZoneKind, UInt64, UInt64)] = [
        (.dma, description.reservesFirstMegabyte ? 1 : 0, MachineDescription.dmaEnd),
        (.dma32, MachineDescription.dmaEnd, MachineDescription.dma32End),
        (.normal, MachineDescription.dma32End, UInt64.max),
      ]
      for (kind, low, high) in borders {
        let start = max(range.start, low)
        let end = min(range.end, high, movableStart)
        if start < end { pieces.append((start, end, ZoneID(node: range.node, kind: kind))) }
      }
      let start = max(range.start, movableStart)
      if start < range.end {
        pieces.append((start, range.end, ZoneID(node: range.node, kind: .movable)))
      }
    }
    for piece in pieces {
      let lowReserved = description.reservesFirstMegabyte && piece.start < 0x100
      // The BIOS hole below 1 MiB is not present, and the rest of the first MiB not managed.
      let hole = lowReserved && piece.end >= 0x100 ? UInt64(0x100 - 0x9f) : 0
      let reserved = lowReserved ? min(piece.end, 0x100) - piece.start : 0
      let count = piece.end - piece.start
      if var zone = zones[piece.id] {
        zone.spanned = UInt32(piece.end - UInt64(zone.start))
        zone.present += count - hole
        zone.managed += count - reserved
        zones[piece.id] = zone
      } else {
        zones[piece.id] = MachineState.Zone(
          id: piece.id, start: UInt32(piece.start), spanned: UInt32(count), present: count - hole,
          managed: count - reserved, watermarks: [0, 0, 0], pagesetHigh: 0, pagesetBatch: 1,
          free: 0, lowmemReserve: [], pageblocks: [], pagesets: [])
      }
    }
    let ordered = zones.values.sorted { $0.id < $1.id }
    shape = MachineState(
      nodes: BootPlan.nodes(description, ranges), zonelists: [], zones: ordered,
      cpuNodes: description.cpuNodes,
      watermarkBoostFactor: Int64(description.parameters.watermarkBoostFactor),
      // Too small for a pageblock per migratetype and zonelist (specification 1.5).
      isMobilityDisabled: ordered.reduce(0) { $0 + $1.managed } < 512 * 5)
    shape.zonelists = description.nodes.indices.map { zonelist(description, from: $0) }
    for piece in pieces {
      guard let zone = ordered.firstIndex(where: { $0.id == piece.id }) else { continue }
      segments.append(
        MachineSegment(
          start: UInt32(piece.start), count: UInt32(piece.end - piece.start), zone: zone))
    }
    setLimits(description)
  }

  private static func nodes(
    _ description: MachineDescription, _ ranges: [MachineDescription.Range]
  ) -> [MachineState.Node] {
    description.nodes.indices.map { node in
      let own = ranges.filter { $0.node == node }
      let start = own.first?.start ?? 0
      return MachineState.Node(
        start: UInt32(start), spanned: (own.last?.end ?? start) - start,
        present: own.reduce(0) { $0 + $1.count })
    }
  }

  /// Nodes by distance, each with its zones from the highest down. Mirrors `build_zonelists` with
  /// `find_next_best_node`: equal distances go to higher numbers first, wrapping around, then to the
  /// node that fewer others have chosen as their first.
  private func zonelist(
    _ description: MachineDescription, from node: Int
  ) -> MachineState.Zonelist {
    var load = [Int](repeating: 0, count: description.nodes.count)
    var order: [Int] = []
    for origin in 0...node {
      order = []
      var left = Set(shape.zones.map(\.id.node))
      var lastDistance = -1
      if left.remove(origin) != nil { order.append(origin) }
      while !left.isEmpty {
        let best = left.min { lhs, rhs in
          weight(description, origin, lhs, load[lhs]) < weight(description, origin, rhs, load[rhs])
        }
        guard let best else { break }
        left.remove(best)
        let distance = description.distance(origin, best)
        if distance != lastDistance { load[best] += 1 }
        lastDistance = distance
        order.append(best)
      }
    }
    func zones(_ node: Int) -> [ZoneID] {
      shape.zones.filter { $0.id.node == node && $0.present > 0 }.map(\.id).reversed()
    }
    return MachineState.Zonelist(fallback: order.flatMap(zones), thisNode: zones(node))
  }

  private func weight(
    _ description: MachineDescription, _ origin: Int, _ node: Int, _ load: Int
  ) -> (Int, Int, Int) {
    let hasCPU = description.cpuNodes.contains(node) ? 1 : 0
    return (description.distance(origin, node) + (node < origin ? 1 : 0) + hasCPU, load, node)
  }

  private mutating func setLimits(_ description: MachineDescription) {
    let parameters = description.parameters
    let cpuCount = description.cpuNodes.count
    let lowmem = shape.zones.reduce(0) { $0 + $1.managed }
    var high = [UInt64](repeating: 0, count: shape.zones.count)
    func buffer() -> UInt64 {
      shape.zones.indices.reduce(0) { sum, zone in
        guard shape.zones[zone].id.kind <= .normal else { return sum }
        let managed = shape.zones[zone].managed
        return sum + (managed > high[zone] ? managed - high[zone] : 0)
      }
    }
    func marks(_ kiB: UInt64) -> [(min: UInt64, low: UInt64, high: UInt64)] {
      shape.zones.map {
        Watermarks.marks(
          managed: $0.managed, lowmem: lowmem, minFreeKiB: kiB,
          scaleFactor: parameters.watermarkScaleFactor)
      }
    }
    var minFree = parameters.minFreeKiB ?? Watermarks.minFreeKiB(buffer: buffer())
    let hasHugePages = parameters.transparentHugePages ?? (lowmem >= ByteCount.mib(512).frames)
    if parameters.minFreeKiB == nil, hasHugePages {
      high = marks(minFree).map(\.high)
      let populated = shape.zones.filter { $0.id.kind <= .normal && $0.managed > 0 }.count
      minFree = max(
        minFree, Watermarks.recommendedMinFreeKiB(populatedZones: populated, buffer: buffer()))
    }
    for (index, mark) in marks(minFree).enumerated() {
      let zone = shape.zones[index]
      let siblings = shape.zones.filter { $0.id.node == zone.id.node }
      var managed = [UInt64](repeating: 0, count: 5)
      for sibling in siblings { managed[Int(sibling.id.kind.rawValue)] = sibling.managed }
      let cpus = description.cpuNodes.filter { $0 == zone.id.node }.count
      let batch = Watermarks.batch(managed: zone.managed)
      let pagesetHigh = Watermarks.high(
        low: mark.low, managed: zone.managed, fraction: parameters.perCPUPagelistHighFraction,
        cpus: cpus == 0 ? cpuCount : cpus, batch: batch)
      let threshold = Watermarks.statThreshold(managed: zone.managed, cpus: cpuCount)
      shape.zones[index].watermarks = [Int64(mark.min), Int64(mark.low), Int64(mark.high)]
      shape.zones[index].lowmemReserve = Watermarks.lowmemReserve(
        zone: Int(zone.id.kind.rawValue), managed: managed, ratios: parameters.lowmemReserveRatio)
      shape.zones[index].pagesetHigh = pagesetHigh
      shape.zones[index].pagesetBatch = batch
      shape.zones[index].driftMark = Watermarks.driftMark(
        min: mark.min, low: mark.low, high: mark.high, threshold: threshold, cpus: cpuCount)
      shape.zones[index].free = Int64(zone.managed)
      shape.zones[index].pagesets = Array(
        repeating: MachineState.Pageset(
          count: 0, high: pagesetHigh, batch: batch, statThreshold: threshold), count: cpuCount)
    }
  }

  /// The arena that such a machine needs, its nodes bound to the host's where the host has several.
  func arenaConfiguration(
    _ description: MachineDescription
  ) throws(MachineError) -> ArenaConfiguration {
    let ranges = description.ranges()
    // Asking the host costs more than making a small machine, and one node needs no answer.
    var hostNodes: [Int] = []
    if description.nodes.count > 1, description.nodes.contains(where: { $0.hostNode == nil }) {
      hostNodes = ((try? Host.nodes()) ?? []).map(\.id)
    }
    var bound: [ArenaConfiguration.NodeRange] = []
    for range in ranges {
      let wanted =
        description.nodes[range.node].hostNode
        ?? (hostNodes.count > 1 && hostNodes.contains(range.node) ? range.node : nil)
      guard let wanted else { continue }
      bound.append(
        ArenaConfiguration.NodeRange(
          startOffset: range.start << 12, byteCount: ByteCount(range.count << 12),
          hostNode: wanted))
    }
    return ArenaConfiguration(
      byteCount: ByteCount((ranges.last?.end ?? 0) << 12), backing: description.backing,
      nodeRanges: bound, reserve: description.reservesHostMemory)
  }
}
