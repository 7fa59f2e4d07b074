internal import CPhysmemShim
internal import PMArena
internal import PMUnits

/// The flat records of a machine besides its frame table: zones, pagesets, nodes, zonelists.
///
/// Zones, pagesets and nodes, which change, stand first and hold no pointers: a snapshot copies them.
final class MachineRecords: @unchecked Sendable {
  // Sendable: the pointers are constant; what changes behind them is said at `Machine`.

  let zones: UnsafeMutablePointer<pm_zone>
  let pagesets: UnsafeMutablePointer<pm_pageset>
  let nodes: UnsafeMutablePointer<pm_node>
  let segments: UnsafeMutablePointer<pm_segment>
  let zonelistBounds: UnsafeMutablePointer<UInt32>
  let zonelistEntries: UnsafeMutablePointer<UInt16>
  let runs: UnsafeMutablePointer<TakenRun>
  let hints: UnsafeMutablePointer<UInt32>
  let pfmemalloc: UnsafeMutablePointer<UInt8>
  let zoneCount: Int
  let segmentCount: Int
  let runCapacity: Int
  let hintCapacity: Int
  /// Bytes from the start that a snapshot has to copy.
  let changingByteCount: Int
  private let mapping: TableMapping

  var storage: UnsafeMutableRawPointer { mapping.base }
  var byteCount: Int { mapping.byteCount }

  /// List heads per zone: 5 migratetypes × 16, so that a type's heads share cache lines.
  private static let zoneHeads = 80
  private static let pagesetHeads = 16

  /// How far below link 0 the heads start: farther than `LinkWord` needs, and on a page of the host of
  /// their own. In whole cache lines.
  private static let firstHead = 1032

  static func listHeadCount(zones: Int, cpus: Int) -> Int {
    firstHead + zones * zoneHeads + zones * cpus * pagesetHeads
  }

  init(shape: MachineState, segments: [MachineSegment]) throws(HostError) {
    let zoneCount = shape.zones.count
    let cpuCount = shape.cpuNodes.count
    let entries = shape.zonelists.reduce(0) { $0 + $1.fallback.count + $1.thisNode.count }
    let batch = shape.zones.flatMap(\.pagesets).map(\.batch).max() ?? 1
    runCapacity = (max(Int(batch), 2) + 7) / 8 * 8
    // As many hints as a list may hold frames; untouched ones cost address space only.
    let high = shape.zones.flatMap(\.pagesets).map { Int($0.high) }.max() ?? 1
    hintCapacity = min(max(high + 64, 512).nextPowerOfTwo, 1 << 20)
    var size = 0
    func place(_ bytes: Int) -> Int {
      let offset = size
      size += (bytes + 63) & ~63
      return offset
    }
    let zonesAt = place(zoneCount * MemoryLayout<pm_zone>.stride)
    let pagesetsAt = place(zoneCount * cpuCount * MemoryLayout<pm_pageset>.stride)
    let nodesAt = place(shape.nodes.count * MemoryLayout<pm_node>.stride)
    changingByteCount = size
    let segmentsAt = place(max(segments.count, 1) * MemoryLayout<pm_segment>.stride)
    let boundsAt = place(shape.zonelists.count * 2 * 8 * 4)
    let entriesAt = place(max(entries, 1) * 2)
    let runsAt = place(cpuCount * runCapacity * MemoryLayout<TakenRun>.stride)
    let pfmemallocAt = place(cpuCount * 64)
    let hintsAt = place(cpuCount * zoneCount * hintCapacity * 4)
    let mapping = try TableMapping(byteCount: (size + 4095) & ~4095)
    let base = mapping.base
    zones = (base + zonesAt).bindMemory(to: pm_zone.self, capacity: zoneCount)
    pagesets = (base + pagesetsAt).bindMemory(
      to: pm_pageset.self, capacity: zoneCount * cpuCount)
    nodes = (base + nodesAt).bindMemory(to: pm_node.self, capacity: shape.nodes.count)
    self.segments = (base + segmentsAt).bindMemory(
      to: pm_segment.self, capacity: max(segments.count, 1))
    zonelistBounds = (base + boundsAt).bindMemory(
      to: UInt32.self, capacity: shape.zonelists.count * 16)
    zonelistEntries = (base + entriesAt).bindMemory(to: UInt16.self, capacity: max(entries, 1))
    runs = (base + runsAt).bindMemory(to: TakenRun.self, capacity: cpuCount * runCapacity)
    pfmemalloc = (base + pfmemallocAt).bindMemory(to: UInt8.self, capacity: cpuCount * 64)
    hints = (base + hintsAt).bindMemory(
      to: UInt32.self, capacity: cpuCount * zoneCount * hintCapacity)
    self.zoneCount = zoneCount
    segmentCount = segments.count
    self.mapping = mapping
    fillZones(shape, segments)
    fillZonelists(shape)
  }

  private func fillZones(_ shape: MachineState, _ segments: [MachineSegment]) {
    for (index, node) in shape.nodes.enumerated() {
      nodes[index] = pm_node(
        kswapd_order: node.kswapdOrder, kswapd_highest_zoneidx: node.kswapdHighestZone,
        kswapd_failures: node.kswapdFailures, start: node.start, spanned_pages: node.spanned,
        present_pages: node.present)
    }
    for (index, segment) in segments.sorted(by: { $0.start < $1.start }).enumerated() {
      self.segments[index] = pm_segment(
        start: segment.start, count: segment.count, zone: UInt32(segment.zone), reserved: 0)
    }
    for (index, zone) in shape.zones.enumerated() {
      let record = zones + index
      record.pointee.start = zone.start
      record.pointee.spanned = zone.spanned
      record.pointee.present_pages = zone.present
      record.pointee.managed_pages = zone.managed
      record.pointee.node = UInt16(zone.id.node)
      record.pointee.kind = UInt16(zone.id.kind.rawValue)
      record.pointee.index = UInt16(index)
      record.pointee.list_base = -Int32(
        MachineRecords.firstHead + (index + 1) * MachineRecords.zoneHeads)
      record.pointee.drift_mark = zone.driftMark
      record.pointee.contiguous = zone.contiguous
      record.pointee.flags = zone.flags
      record.pointee.watermark_boost = zone.boost
      record.pointee.nr_reserved_highatomic = zone.highatomic
      record.pointee.nr_free_pages = zone.free
      record.pointee.nr_isolate_pageblock = zone.isolated
      for mark in 0..<3 { pm_zone_watermark(record)[mark] = zone.watermarks[mark] }
      // PROMO lies one gap above HIGH.
      pm_zone_watermark(record)[3] = 2 * zone.watermarks[2] - zone.watermarks[1]
      for kind in 0..<5 { pm_zone_lowmem_reserve(record)[kind] = zone.lowmemReserve[kind] }
      record.pointee.roomy_above = MachineRecords.roomyAbove(zone, shape.watermarkBoostFactor)
      record.pointee.roomy = zone.free > record.pointee.roomy_above ? 1 : 0
      record.pointee.reserved2 = sharesBlocks(index) ? 1 : 0
      for (cpu, pageset) in zone.pagesets.enumerated() {
        let slot = cpu * zoneCount + index
        pagesets[slot].high = pageset.high
        pagesets[slot].batch = pageset.batch
        pagesets[slot].free_factor = pageset.freeFactor
        pagesets[slot].expire = pageset.expire
        pagesets[slot].stat_diff = pageset.statDiff
        pagesets[slot].stat_threshold = pageset.statThreshold
        pagesets[slot].zone = UInt32(index)
        pagesets[slot].list_base = -Int32(
          MachineRecords.firstHead + zoneCount * MachineRecords.zoneHeads + (slot + 1)
            * MachineRecords.pagesetHeads)
      }
    }
  }

  /// From how many free pages on every test of the zone passes that finds a block: above the LOW mark
  /// with the largest boost, the largest reserve against other zones, all highatomic pageblocks there can
  /// be and the other frames of a block of the highest order.
  private static func roomyAbove(_ zone: MachineState.Zone, _ boostFactor: Int64) -> Int64 {
    let high = zone.watermarks[2]
    let boostCap = max(high / 10000 * boostFactor + high % 10000 * boostFactor / 10000, 512)
    let highatomic = max(zone.highatomic, Int64(zone.managed / 100) + 1024)
    return zone.watermarks[1] + max(zone.boost, boostCap) + (zone.lowmemReserve.max() ?? 0)
      + highatomic + 1023
  }

  /// Whether another zone's frames lie in the same block of the highest order as some of this one's,
  /// so that a merge has to look where its buddy belongs.
  private func sharesBlocks(_ zone: Int) -> Bool {
    for index in 0..<segmentCount where segments[index].zone == UInt32(zone) {
      for neighbour in [index - 1, index + 1] where neighbour >= 0 && neighbour < segmentCount {
        guard segments[neighbour].zone != UInt32(zone) else { continue }
        let lower = segments[min(index, neighbour)]
        let upper = segments[max(index, neighbour)]
        if (lower.start + lower.count - 1) >> 10 == upper.start >> 10 { return true }
      }
    }
    return false
  }

  private func fillZonelists(_ shape: MachineState) {
    var cursor = 0
    for (node, lists) in shape.zonelists.enumerated() {
      for (kind, list) in [lists.fallback, lists.thisNode].enumerated() {
        let bounds = zonelistBounds + (node * 2 + kind) * 8
        let start = cursor
        for id in list {
          guard let zone = shape.zones.firstIndex(where: { $0.id == id }) else { continue }
          zonelistEntries[cursor] = UInt16(zone)
          cursor += 1
        }
        for highest in 0..<5 {
          let first = (start..<cursor).first {
            Int(zones[Int(zonelistEntries[$0])].kind) <= highest
          }
          bounds[highest] = UInt32(first ?? cursor)
        }
        bounds[7] = UInt32(cursor)
      }
    }
  }
}

extension Int {
  /// The smallest power of two that is not below this positive number.
  fileprivate var nextPowerOfTwo: Int {
    self <= 1 ? 1 : 1 << (Int.bitWidth - (self - 1).leadingZeroBitCount)
  }
}
