internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

extension Machine {
  /// Walks all lists of all zones and says what does not fit together: nothing on a sound machine
  /// whose modelled kernel met no bug. Needs the CPUs at rest; costs time per listed block.
  ///
  /// Both sides are counted: lists against marks, `nr_free` and masks against lists, counters against
  /// lists, neighbours against merging, counts and states of listed frames against what is noted of their
  /// pageblocks.
  public func invariantViolations() -> [String] {
    var violations: [String] = []
    for index in 0..<records.zoneCount { checkZone(index, &violations) }
    return violations
  }

  private func checkZone(_ index: Int, _ violations: inout [String]) {
    let core = core(cpu: 0)
    let zone = records.zones + index
    let name = zoneIDs[index]
    var listed: Int64 = 0
    var seen: Set<UInt32> = []
    for order in UInt32(0)..<11 {
      var blocksOfOrder = 0
      for type in UInt8(0)..<5 {
        let blocks = core.blocks(on: core.freeList(zone, order: order, type: type))
        let isMarked = core.nonemptyOrders(zone, type: type) >> UInt16(order) & 1 == 1
        if isMarked != !blocks.isEmpty {
          violations.append("zone \(name): mask of order \(order) type \(type) is \(isMarked)")
        }
        blocksOfOrder += blocks.count
        if type != 4 { listed += Int64(blocks.count) << Int64(order) }
        for block in blocks {
          if !seen.insert(block).inserted {
            violations.append("zone \(name): block \(PFN(block)) is on two lists")
          }
          checkBlock(core, zone, block, order: order, &violations)
        }
      }
      let counted = Int(pm_zone_nr_free(zone)[Int(order)])
      if counted != blocksOfOrder {
        violations.append(
          "zone \(name): nr_free[\(order)] is \(counted), \(blocksOfOrder) blocks are listed")
      }
    }
    var pending: Int64 = 0
    for cpu in cpuNodes.indices { checkPageset(index, cpu, &pending, &seen, &violations) }
    let counter = zone.pointee.nr_free_pages + pending
    if counter != listed {
      violations.append("zone \(name): free counter \(counter), \(listed) pages are listed")
    }
  }

  private func checkBlock(
    _ core: Core, _ zone: UnsafeMutablePointer<pm_zone>, _ block: UInt32, order: UInt32,
    _ violations: inout [String]
  ) {
    if block & (1 << order - 1) != 0 {
      violations.append("block \(PFN(block)) is not aligned to order \(order)")
    }
    if core.freeBlockOrder(block) != order {
      violations.append("block \(PFN(block)) is listed at order \(order) but not marked so")
    }
    if !core.contains(zone, block) || !core.contains(zone, block + 1 << order - 1) {
      violations.append("block \(PFN(block)) leaves its zone")
    }
    if order >= 9, !core.isNotedOrPlain(block, order: order) {
      violations.append("block \(PFN(block)) has a frame out of the ordinary that was not noted")
    }
    guard order < 9, core.isBuddy(block ^ 1 << order, order: order) else { return }
    if core.contains(zone, block ^ 1 << order) {
      violations.append("block \(PFN(block)) of order \(order) and its buddy are both free")
    }
  }

  private func checkPageset(
    _ index: Int, _ cpu: Int, _ pending: inout Int64, _ seen: inout Set<UInt32>,
    _ violations: inout [String]
  ) {
    let core = core(cpu: cpu)
    let pageset = core.pagesets + index
    pending += Int64(pageset.pointee.stat_diff)
    var count: Int32 = 0
    for slot in UInt32(0)..<14 {
      let order = Core.order(ofPerCPUIndex: slot)
      let blocks = core.blocks(on: UInt32(bitPattern: pageset.pointee.list_base) + slot)
      count += Int32(blocks.count) << Int32(order)
      for block in blocks where !seen.insert(block).inserted {
        violations.append("zone \(zoneIDs[index]): block \(PFN(block)) is on two lists")
      }
    }
    if count != pageset.pointee.count {
      violations.append(
        "zone \(zoneIDs[index]) CPU \(cpu): count \(pageset.pointee.count), \(count) pages listed")
    }
    if abs(pageset.pointee.stat_diff) > pageset.pointee.stat_threshold {
      violations.append("zone \(zoneIDs[index]) CPU \(cpu): counter difference above threshold")
    }
  }
}
