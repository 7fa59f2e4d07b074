internal import CPhysmemShim
internal import PMFrames
public import PMUnits

extension CPU {
  // MARK: bulk

  /// Fills the nil slots of an array with single frames and returns the index of the first slot that
  /// was not reached or not filled: the array's count where all are filled. Mirrors
  /// `alloc_pages_bulk_array`, Linux 6.1: it stays on one node, asks for the LOW watermark plus the
  /// array's size and may return early; one missing frame is an ordinary allocation.
  public mutating func allocateBulk(_ slots: inout [PFN?], gfp: GFP = .kernel) -> Int {
    withUnsafeTemporaryAllocation(of: UInt32.self, capacity: slots.count) { raw in
      for (index, slot) in slots.enumerated() {
        raw[index] = slot?.rawValue ?? Core.none
      }
      let filled = allocateBulk(raw: UnsafeMutableBufferPointer(rebasing: raw[...]), gfp: gfp)
      for index in slots.indices where slots[index] == nil && raw[index] != Core.none {
        slots[index] = PFN(raw[index])
      }
      return filled
    }
  }

  /// The same into memory of the caller, all of whose slots are empty; the first `result` slots are
  /// set afterwards.
  public mutating func allocateBulk(
    into slots: UnsafeMutableBufferPointer<PFN>, gfp: GFP = .kernel
  ) -> Int {
    slots.withMemoryRebound(to: UInt32.self) { raw in
      raw.update(repeating: Core.none)
      return allocateBulk(raw: raw, gfp: gfp)
    }
  }

  /// What marks an empty slot for `allocateBulk(raw:gfp:)`.
  package static let emptySlot: UInt32 = Core.none

  /// The same on bare PFNs, where slots that are not `emptySlot` are set already.
  package mutating func allocateBulk(raw slots: UnsafeMutableBufferPointer<UInt32>, gfp: GFP) -> Int
  {
    let wanted = slots.count
    var position = 0
    while position < wanted, slots[position] != Core.none { position += 1 }
    guard position < wanted else { return position }
    let flags = gfp.rawValue & GFP.allowedMask
    let type = UInt8((flags >> 3) & 3)
    guard type != 3 else { return position }
    let request = Core.Request(
      order: 0, gfp: flags, type: core.isMobilityDisabled ? 0 : type,
      highest: GFP(rawValue: flags).highestZoneIndex,
      zonelist: node * 2 + Int((flags >> 21) & 1))
    let start = core.zonelistStart(request)
    guard start != core.zonelistEnd(request) else { return position }
    if wanted - position > 1 {
      if shouldFail(order: 0, gfp: flags) || fillBulk(request, slots, &position) {
        return position
      }
    }
    if shouldFail(order: 0, gfp: flags) { return position }
    let index = core.allocate(request)
    if index != Core.none {
      slots[position] = index
      position += 1
    }
    return position
  }

  /// Takes frames from the first zone of the node that has enough; false where not even one came.
  private func fillBulk(
    _ request: Core.Request, _ slots: UnsafeMutableBufferPointer<UInt32>, _ position: inout Int
  ) -> Bool {
    let start = core.zonelistStart(request)
    let preferred = core.zones + Int(core.zonelistEntries[start])
    let highest = Int(preferred.pointee.kind)
    let flags = AllocFlags.watermarkLow
    var chosen: UnsafeMutablePointer<pm_zone>?
    for entry in start..<core.zonelistEnd(request) {
      let zone = core.zones + Int(core.zonelistEntries[entry])
      if Int(zone.pointee.kind) > request.highest { continue }
      if zone.pointee.node != preferred.pointee.node { break }
      let mark = core.effectiveWatermark(zone, flags) + Int64(slots.count)
      if core.watermarkFast(
        zone, order: 0, mark: mark, highest: highest, flags: flags, gfp: request.gfp)
      {
        chosen = zone
        break
      }
    }
    guard let zone = chosen else { return false }
    let pageset = core.pagesets + Int(zone.pointee.index)
    var gotAny = false
    while position < slots.count {
      if slots[position] != Core.none {
        position += 1
        continue
      }
      let index = core.popPerCPU(zone, pageset, order: 0, type: request.type, flags: flags)
      guard index != Core.none else { return gotAny }
      core.prepareNew(index, order: 0, gfp: request.gfp)
      slots[position] = index
      position += 1
      gotAny = true
    }
    return true
  }

  // MARK: exact sizes

  /// Allocates just enough single frames for `bytes`, contiguous; the surplus of the block goes back
  /// at once. Each frame has a count of 1. `.comp` and `.highmem` are ignored with a warning. Mirrors
  /// `alloc_pages_exact`, Linux 6.1.
  @discardableResult
  public mutating func allocateExact(
    bytes: UInt64, gfp: GFP = .kernel
  ) throws(AllocationError) -> PFN {
    var flags = gfp
    if !flags.isDisjoint(with: [.comp, .highmem]) {
      machine.findings.warnOnce("alloc_pages_exact with __GFP_COMP or __GFP_HIGHMEM")
      flags.subtract([.comp, .highmem])
    }
    guard let order = Order.holding(bytes: bytes) else { throw .invalidSize(bytes) }
    let first = try allocatePages(order: order, gfp: flags).rawValue
    let used = UInt32((bytes + 4095) >> 12)
    core.markUnusual(first, order: UInt32(order))
    for offset in stride(from: used - 1, to: 0, by: -1) {
      pm_refcount_store_relaxed(core.counts[first + offset], 1)
    }
    let zone = zone(of: first)
    let end = UInt32(1) << UInt32(order)
    if used < end { core.freeSurplus(zone, first + used..<first + end) }
    return PFN(first)
  }

  /// Frees what ``allocateExact(bytes:gfp:)`` gave for the same size, frame by frame. Mirrors
  /// `free_pages_exact`.
  public mutating func freeExact(_ pfn: PFN, bytes: UInt64) {
    for offset in 0..<Int((bytes + 4095) >> 12) { freePages(pfn + offset, order: 0) }
  }

  /// Gives every frame of a non-compound block a count of its own, so that each is freed alone.
  /// Mirrors `split_page`.
  public mutating func splitPage(_ pfn: PFN, order: Int) {
    _ = checkedZone(of: pfn.rawValue, order: order)
    core.markUnusual(pfn.rawValue, order: UInt32(order))
    for offset in 1..<max(1, 1 << order) {
      pm_refcount_store_relaxed(core.counts[pfn + offset], 1)
    }
  }

  // MARK: draining

  /// Gives everything on this CPU's lists back to the buddy lists, in all zones from the lowest up.
  /// Mirrors `drain_local_pages(NULL)`.
  public mutating func drainLocalPages() {
    for index in 0..<core.zoneCount where core.zones[index].present_pages > 0 {
      core.drainAll(core.zones + index)
    }
  }

  /// The same for one zone; nothing where the machine has no such zone. Mirrors `drain_local_pages`.
  public mutating func drainLocalPages(zone: ZoneID) {
    guard let index = machine.zoneIndex(zone) else { return }
    core.drainAll(core.zones + index)
  }
}
