import CPhysmemShim
import PMFrames
import PMUnits

@testable import PMPageAllocator

/// Where the machine and the model differ.
struct LockstepMismatch: Error, CustomStringConvertible {
  var description: String
}

/// A CPU that can stand in an array.
final class CPUHolder {
  var cpu: CPU
  init(_ cpu: consuming CPU) { self.cpu = cpu }
}

/// A machine and a model of it, kept in step.
final class LockstepPair {
  let machine: Machine
  let model: ReferenceModel
  /// All CPUs of the machine.
  let cpus: [CPUHolder]
  /// Set once the modelled kernel met a bug; nothing can be compared any more.
  private(set) var end: String?
  /// Whether operations may free what is free already, so that memory may have two owners.
  let isHazardous: Bool
  private var reportsSeen = 0
  private var owners: [UInt8] = []

  init(_ machine: Machine, isHazardous: Bool = false) throws {
    self.machine = machine
    self.isHazardous = isHazardous
    model = ReferenceModel(state: machine.state(withMaps: true))
    cpus = try machine.cpuNodes.indices.map { CPUHolder(try machine.claimCPU($0)) }
    if isHazardous { owners = [UInt8](repeating: 0, count: model.pages.count + 1024) }
  }

  /// Carries an operation out on both sides and compares what is cheap to compare.
  func perform(_ operation: LockstepOperation, cpu: Int) throws(LockstepMismatch) -> LockstepResult
  {
    let before = countBefore(operation)
    // The model goes first: it notices a broken list before the machine walks over it.
    let expected = operation.perform(on: model, cpu: cpu)
    let result = operation.perform(on: &cpus[cpu].cpu, zoneIDs: machine.zoneIDs)
    if let bug = model.kernelBug {
      end = "kernel BUG: \(bug)"
      return expected
    }
    if isHazardous, hasTwoOwners() {
      end = "memory with two owners"
      return expected
    }
    try require(
      result == expected, "the machine gives \(result), the model \(expected)")
    try compareFindings(countBefore: before)
    try compareCounters(cpu: cpu)
    try compareTouched(operation, result)
    return result
  }

  /// The count that the operation lowers, if it is one that lowers a single count.
  private func countBefore(_ operation: LockstepOperation) -> Int32? {
    switch operation {
    case .free(let pfn, _): model.pages[Int(pfn)].refcount
    case .put(let pfn): model.pages[Int(model.head(pfn))].refcount
    default: nil
    }
  }

  private func require(
    _ isTrue: Bool, _ text: @autoclosure () -> String
  ) throws(LockstepMismatch) {
    if !isTrue { throw LockstepMismatch(description: text()) }
  }

  // MARK: after every operation

  private func compareFindings(
    countBefore: Int32?
  ) throws(LockstepMismatch) {
    let expected = model.badPages[reportsSeen...].map { "\(PFN($0.pfn)) \($0.reason)" }
    reportsSeen = model.badPages.count
    var reports: [String] = []
    var hasUnderflow = false
    if machine.findings.total > 0 {
      for finding in machine.findings.findings {
        switch finding {
        case .badPage(let page): reports.append("\(page.pfn) \(page.reason)")
        case .refcountUnderflow: hasUnderflow = true
        case .listCorruption:
          throw LockstepMismatch(description: "only the machine met a bug: \(finding)")
        default: break
        }
      }
      machine.findings.removeAll()
    }
    try require(
      reports == expected, "bad pages of the machine \(reports), of the model \(expected)")
    if let countBefore {
      try require(
        hasUnderflow == (countBefore <= 0),
        "count \(countBefore) before; underflow: \(hasUnderflow)")
    }
  }

  /// The counters of all zones, and what the lists of the model add up to.
  private func compareCounters(cpu: Int) throws(LockstepMismatch) {
    let zones = model.zones
    let pagesets = model.pageSets[cpu]
    for index in zones.indices {
      let record = machine.records.zones + index
      let zone = zones[index]
      let isEqual =
        Int(record.pointee.nr_free_pages) == zone.free
        && Int(record.pointee.watermark_boost) == zone.boost
        && Int(record.pointee.nr_reserved_highatomic) == zone.highatomic
        && (record.pointee.flags & 1 == 1) == zone.boostedFlag
      try require(
        isEqual,
        """
        zone \(machine.zoneIDs[index]): free \(record.pointee.nr_free_pages), boost \
        \(record.pointee.watermark_boost), highatomic \(record.pointee.nr_reserved_highatomic), \
        flags \(record.pointee.flags); model: free \(zone.free), boost \(zone.boost), highatomic \
        \(zone.highatomic), boosted \(zone.boostedFlag)
        """)
      var listed = 0
      for order in 0..<11 {
        let lists = zone.lists[order]
        let blocks = lists[0].count + lists[1].count + lists[2].count + lists[3].count
        listed += blocks << order
        let counted = Int(pm_zone_nr_free(record)[order])
        try require(
          counted == blocks + lists[4].count,
          "zone \(machine.zoneIDs[index]): \(counted) blocks of order \(order), model \(blocks)")
      }
      var pending = 0
      for other in model.pageSets.indices { pending += model.pageSets[other][index].statDiff }
      try require(
        zone.free + pending == listed,
        "zone \(machine.zoneIDs[index]): counted \(zone.free + pending), listed \(listed)")
      try comparePageset(pagesets[index], cpu: cpu, zone: index)
    }
    for index in model.nodes.indices {
      let node = model.nodes[index]
      let record = machine.records.nodes[index]
      try require(
        Int(record.kswapd_order) == node.kswapdOrder
          && Int(record.kswapd_highest_zoneidx) == node.kswapdHighestZoneIndex,
        """
        node \(index): kswapd wanted for order \(record.kswapd_order), zone \
        \(record.kswapd_highest_zoneidx); model \(node.kswapdOrder), \(node.kswapdHighestZoneIndex)
        """)
    }
  }

  private func comparePageset(
    _ expected: ReferenceModel.PageSet, cpu: Int, zone: Int
  ) throws(LockstepMismatch) {
    let record = machine.records.pagesets[cpu * machine.zoneIDs.count + zone]
    try require(
      Int(record.count) == expected.count && Int(record.free_factor) == expected.freeFactor
        && Int(record.stat_diff) == expected.statDiff,
      """
      zone \(machine.zoneIDs[zone]) CPU \(cpu): count \(record.count), free factor \
      \(record.free_factor), pending \(record.stat_diff); model \(expected.count), \
      \(expected.freeFactor), \(expected.statDiff)
      """)
  }

  private func compareTouched(
    _ operation: LockstepOperation, _ result: LockstepResult
  ) throws(LockstepMismatch) {
    if case .page(let pfn) = result {
      for frame in pfn..<min(pfn + 3, UInt32(model.pages.count)) { try comparePage(frame) }
    }
    if case .bulk(_, let slots) = result {
      for case let pfn? in slots { try comparePage(pfn) }
    }
    if case .release(let pfns) = operation {
      for pfn in pfns { try comparePage(pfn) }
    }
    if let (pfn, order) = operation.target {
      try comparePage(pfn)
      for bit in 0..<order { try comparePage(pfn + 1 << UInt32(bit)) }
      let head = model.head(pfn)
      if head != pfn { try comparePage(head) }
    }
  }

  /// Count, compound marks and flags of one frame.
  func comparePage(_ pfn: UInt32) throws(LockstepMismatch) {
    let page = model.pages[Int(pfn)]
    let count = machine.frames.refcount(PFN(pfn))
    try require(
      count == page.refcount, "count of \(PFN(pfn)) is \(count), model \(page.refcount)")
    let isHead = machine.frames.isCompoundHead(PFN(pfn))
    let isTail = machine.frames.isCompoundTail(PFN(pfn))
    try require(
      isHead == page.isHead && isTail == page.isTail,
      "\(PFN(pfn)) is head \(isHead), tail \(isTail); model \(page.isHead), \(page.isTail)")
    if isTail {
      let head = machine.frames.compoundHead(of: PFN(pfn)).rawValue
      try require(
        head == page.headPFN, "head of \(PFN(pfn)) is \(PFN(head)), model \(PFN(page.headPFN))")
    }
    let flags = machine.flags(of: PFN(pfn))
    try require(
      flags.rawValue == page.flags,
      "flags of \(PFN(pfn)) are \(flags), model \(String(page.flags, radix: 16))")
  }

  /// Whether an operation is beyond what the machine promises: flags and details may be set by the
  /// owner of a page only, and after a misuse the generator may be wrong about who that is.
  func isOutOfContract(_ operation: LockstepOperation) -> Bool {
    switch operation {
    case .setFlags(let pfn, _), .setDetails(let pfn, _, _, _):
      isHazardous && owners[Int(pfn)] != 0
    default: false
    }
  }

  /// Whether a page is on two lists, counting blocks with all their pages.
  private func hasTwoOwners() -> Bool {
    owners.withUnsafeMutableBufferPointer { owners in
      owners.update(repeating: 0)
      func claim(_ pfn: UInt32, _ order: Int) -> Bool {
        for frame in Int(pfn)..<(Int(pfn) + 1 << order) {
          if owners[frame] != 0 { return false }
          owners[frame] = 1
        }
        return true
      }
      for zone in model.zones {
        for (order, lists) in zone.lists.enumerated() {
          for list in lists { for pfn in list where !claim(pfn, order) { return true } }
        }
      }
      for cpu in model.pageSets {
        for pageset in cpu {
          for (index, list) in pageset.lists.enumerated() {
            let order = ReferenceModel.orderOfList(index)
            for entry in list where !claim(entry.pfn, order) { return true }
          }
        }
      }
      return false
    }
  }
}
