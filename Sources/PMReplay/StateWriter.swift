public import PMPageAllocator
internal import PMUnits

/// Writes a machine's state as a trace writes it, so that it can be compared with one by eye or by
/// tool, and read again.
public struct StateWriter {
  private var lines: [String] = []

  /// The lines of a state, from `state LABEL` to `endstate LABEL`. Maps are written where the state
  /// has them.
  public static func lines(
    of state: MachineState, label: String, operations: Int, held: Int64
  ) -> [String] {
    var writer = StateWriter()
    writer.write(state, label: label, operations: operations, held: held)
    return writer.lines
  }

  private mutating func write(
    _ state: MachineState, label: String, operations: Int, held: Int64
  ) {
    let hasMaps = state.zones.allSatisfy { $0.map != nil }
    lines.append("state \(label) op=\(operations) map=\(hasMaps ? 1 : 0)")
    for (index, node) in state.nodes.enumerated() {
      let list = state.zonelists[index]
      for (kind, ids) in [("fallback", list.fallback), ("thisnode", list.thisNode)] {
        let names = ids.map { " \($0)" }.joined()
        lines.append("zonelist node=\(index) kind=\(kind) :\(names)")
      }
      lines.append(
        "node \(index) start=\(PFN(node.start)) spanned=\(node.spanned) present=\(node.present) kswapd_order=\(node.kswapdOrder) kswapd_highest_zoneidx=\(node.kswapdHighestZone) kswapd_failures=\(node.kswapdFailures)"
      )
    }
    var free: Int64 = 0
    for zone in state.zones {
      free += zone.freeExact + zone.pagesets.reduce(0) { $0 + Int64($1.count) }
      write(zone)
    }
    lines.append("totals free=\(free) held=\(held)")
    lines.append("endstate \(label)")
  }

  private mutating func write(_ zone: MachineState.Zone) {
    let reserves = zone.lowmemReserve.map(String.init).joined(separator: ",")
    lines.append(
      "zone \(zone.id) name=\(zone.id.kind) start=\(PFN(zone.start)) spanned=\(zone.spanned) present=\(zone.present) managed=\(zone.managed) min=\(zone.watermarks[0]) low=\(zone.watermarks[1]) high=\(zone.watermarks[2]) boost=\(zone.boost) highatomic=\(zone.highatomic) flags=\(zone.flags) contiguous=\(zone.contiguous) isolated=\(zone.isolated) pageset_high=\(zone.pagesetHigh) pageset_batch=\(zone.pagesetBatch) drift_mark=\(zone.driftMark) free=\(zone.free) free_exact=\(zone.freeExact) lowmem_reserve=\(reserves)"
    )
    writePageblocks(zone)
    for order in 0...Order.max {
      for type in 0..<5 {
        let blocks = zone.freeLists[order * 5 + type]
        guard !blocks.isEmpty else { continue }
        let names = blocks.map { " \(PFN($0))" }.joined()
        lines.append("fl \(zone.id) order=\(order) mt=\(type) n=\(blocks.count) :\(names)")
      }
    }
    for (cpu, pageset) in zone.pagesets.enumerated() { write(zone.id, cpu, pageset) }
    var line: [String] = []
    for run in zone.map ?? [] {
      line.append("\(PFN(run.start))+\(String(run.count, radix: 16)):\(run.frameClass.rawValue)")
      if line.count == 64 {
        lines.append("map \(zone.id) " + line.joined(separator: " "))
        line = []
      }
    }
    if !line.isEmpty { lines.append("map \(zone.id) " + line.joined(separator: " ")) }
  }

  private mutating func writePageblocks(_ zone: MachineState.Zone) {
    var runs: [String] = []
    var start = 0
    let first = zone.start & ~511
    for index in zone.pageblocks.indices {
      let isLast = index + 1 == zone.pageblocks.count
      guard isLast || zone.pageblocks[index + 1] != zone.pageblocks[index] else { continue }
      let type = zone.pageblocks[index] == 0xff ? "x" : String(zone.pageblocks[index])
      runs.append("\(PFN(first + UInt32(start) << 9))+\(index + 1 - start):\(type)")
      start = index + 1
    }
    lines.append("pb \(zone.id) " + runs.joined(separator: " "))
  }

  private mutating func write(_ id: ZoneID, _ cpu: Int, _ pageset: MachineState.Pageset) {
    lines.append(
      "pcp \(id) cpu=\(cpu) count=\(pageset.count) high=\(pageset.high) batch=\(pageset.batch) free_factor=\(pageset.freeFactor) expire=\(pageset.expire) stat_diff=\(pageset.statDiff) stat_threshold=\(pageset.statThreshold)"
    )
    for (slot, blocks) in pageset.lists.enumerated() where !blocks.isEmpty {
      let order = slot < 12 ? slot / 3 : 9
      let type = slot < 12 ? slot % 3 : slot - 12
      let names = blocks.map { block in
        let stored = block.type == UInt8(type) ? "" : "/\(block.type)"
        let count = block.refcount == 0 ? "" : "!\(block.refcount)"
        return " \(PFN(block.pfn))\(stored)\(count)"
      }.joined()
      lines.append(
        "pl \(id) cpu=\(cpu) pindex=\(slot) order=\(order) mt=\(type) n=\(blocks.count) :\(names)")
    }
  }
}
