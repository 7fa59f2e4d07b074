/// What must hold between two operations, whatever they were.
extension ReferenceModel {

  /// Pages on buddy lists and per-CPU lists of all zones.
  func freePageCount() -> Int {
    var total = 0
    for zone in zones.indices {
      for order in 0...Self.maxOrder {
        for list in zones[zone].lists[order] { total += list.count << order }
      }
      for cpu in pageSets.indices { total += pagesOnPerCPULists(cpu: cpu, zone: zone) }
    }
    return total
  }

  func pagesOnPerCPULists(cpu: Int, zone: Int) -> Int {
    var total = 0
    for index in 0..<14 {
      total += pageSets[cpu][zone].lists[index].count << Self.orderOfList(index)
    }
    return total
  }

  /// Empty if everything is consistent.
  func checkInvariants() -> [String] {
    var problems: [String] = []
    if let kernelBug { problems.append("kernel BUG: \(kernelBug)") }
    func hex(_ pfn: UInt32) -> String { String(pfn, radix: 16) }

    // Who owns each page; a second owner is a double free or a lost split.
    var owner = [String?](repeating: nil, count: pages.count)
    func claim(_ pfn: UInt32, order: Int, zone: Int, _ place: String) {
      if pfn % (1 << UInt32(order)) != 0 { problems.append("\(place): \(hex(pfn)) not aligned") }
      for p in pfn..<(pfn + (1 << UInt32(order))) {
        if Int(p) >= pages.count || !zones[zone].isPresent(p) {
          problems.append("\(place): \(hex(p)) is not a page of the zone")
          return
        }
        if let other = owner[Int(p)] {
          problems.append("\(hex(p)) is in \(place) and in \(other)")
        }
        owner[Int(p)] = place
      }
    }

    var listedNow: Set<UInt32> = []
    var buddyHeads: Set<UInt32> = []
    var typeOfList: [UInt32: Int] = [:]
    for z in zones.indices {
      var counted = 0
      for order in 0...Self.maxOrder {
        for type in 0..<5 {
          let place = "zone \(zones[z].node).\(zones[z].kind) order \(order) type \(type)"
          for pfn in zones[z].lists[order][type] {
            claim(pfn, order: order, zone: z, place)
            listedNow.insert(pfn)
            buddyHeads.insert(pfn)
            typeOfList[pfn] = type
            if pages[Int(pfn)].buddyOrder != order {
              problems.append("\(place): \(hex(pfn)) not marked with its order")
            }
            if type != Migrate.isolate { counted += 1 << order }
          }
        }
      }
      problems += checkCounters(zone: z, counted: counted)
      for cpu in pageSets.indices {
        let place = "cpu \(cpu) zone \(zones[z].node).\(zones[z].kind)"
        for index in 0..<14 {
          for entry in pageSets[cpu][z].lists[index] {
            claim(
              entry.pfn, order: Self.orderOfList(index), zone: z, "\(place) list \(index)")
            listedNow.insert(entry.pfn)
            if pages[Int(entry.pfn)].cachedMigratetype != entry.migratetype {
              problems.append("\(place): \(hex(entry.pfn)) cached type differs")
            }
          }
        }
      }
    }
    if listedNow != listed { problems.append("the set of listed pages is out of step") }
    for pfn in pages.indices where pages[pfn].buddyOrder != nil && !buddyHeads.contains(UInt32(pfn))
    {
      problems.append("\(hex(UInt32(pfn))) is marked as buddy but on no free list")
    }
    return problems + checkMerging(buddyHeads, typeOfList)
  }

  private func checkCounters(zone z: Int, counted: Int) -> [String] {
    var problems: [String] = []
    var exact = zones[z].free
    for cpu in pageSets.indices { exact += pageSets[cpu][z].statDiff }
    if exact != counted {
      problems.append(
        "zone \(zones[z].node).\(zones[z].kind): counter \(exact), lists \(counted)")
    }
    for cpu in pageSets.indices {
      let place = "cpu \(cpu) zone \(zones[z].node).\(zones[z].kind)"
      if abs(pageSets[cpu][z].statDiff) > pageSets[cpu][z].statThreshold {
        problems.append("\(place): pending difference above its threshold")
      }
      if pageSets[cpu][z].count != pagesOnPerCPULists(cpu: cpu, zone: z) {
        problems.append("\(place): count \(pageSets[cpu][z].count) is not the contents")
      }
    }
    return problems
  }

  private func checkMerging(_ buddyHeads: Set<UInt32>, _ typeOfList: [UInt32: Int]) -> [String] {
    var problems: [String] = []
    func hex(_ pfn: UInt32) -> String { String(pfn, radix: 16) }
    for pfn in buddyHeads.sorted() {
      guard let order = pages[Int(pfn)].buddyOrder, order < Self.maxOrder else { continue }
      let buddy = pfn ^ (1 << UInt32(order))
      if buddy < pfn || !buddyHeads.contains(buddy) || pages[Int(buddy)].buddyOrder != order {
        continue
      }
      if zoneIndex(of: pfn) != zoneIndex(of: buddy) { continue }
      // Whole pageblocks stay apart if a special type is involved (6.6 step 2b).
      let special = [
        pageblockType(pfn), pageblockType(buddy), typeOfList[pfn] ?? 0, typeOfList[buddy] ?? 0,
      ].contains { $0 >= 3 }
      if order >= Self.pageblockOrder && special { continue }
      problems.append("buddies \(hex(pfn)) and \(hex(buddy)) of order \(order) are not merged")
    }
    return problems
  }
}
