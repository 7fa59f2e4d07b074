/// Allocation: sections 2 to 4 and 6.11 to 6.12.
extension ReferenceModel {

  /// Allocation flags (2.5).
  struct AllocFlags: OptionSet {
    var rawValue: Int
    static let low = AllocFlags(rawValue: 1)
    static let high = AllocFlags(rawValue: 2)
    static let noWatermarks = AllocFlags(rawValue: 0x4)
    static let oom = AllocFlags(rawValue: 0x8)
    static let nonBlock = AllocFlags(rawValue: 0x10)
    static let minReserve = AllocFlags(rawValue: 0x20)
    static let cpuset = AllocFlags(rawValue: 0x40)
    static let noFragment = AllocFlags(rawValue: 0x100)
    static let highatomic = AllocFlags(rawValue: 0x200)
    static let kswapd = AllocFlags(rawValue: 0x800)
    static let reserves: AllocFlags = [.nonBlock, .minReserve, .highatomic, .oom]
    /// Which watermark: 0 MIN, 1 LOW, 2 HIGH.
    var watermarkIndex: Int { rawValue & 3 }
  }

  /// What stays the same during all walks of one request (2.4).
  struct Request {
    var gfp: UInt32
    var order: Int
    var migratetype: Int
    var highestZoneIndex: Int
    /// The zones that may be used, in order; the first one is the preferred zone.
    var zones: [Int]
  }

  static func highestZoneIndex(_ gfp: UInt32) -> Int {
    switch gfp & 0xf {
    case 0x0, 0x2, 0x8: return 2
    case 0x4, 0xc: return 1
    case 0xa: return 3
    // DMA, MOVABLE+DMA, and every senseless combination (2.3).
    default: return 0
    }
  }

  private func makeRequest(node: Int, gfp: UInt32, order: Int) -> Request {
    let highest = Self.highestZoneIndex(gfp)
    let list = gfp & GFP.thisnode != 0 ? nodes[node].thisnode : nodes[node].fallback
    return Request(
      gfp: gfp, order: order,
      migratetype: mobilityGroupingDisabled ? Migrate.unmovable : Int(gfp & 0x18) >> 3,
      highestZoneIndex: highest,
      zones: list.filter { zones[$0].kind <= highest })
  }

  private func isRejected(_ gfp: UInt32) -> Bool {
    gfp & GFP.movableBit != 0 && gfp & GFP.reclaimableBit != 0
  }

  // MARK: Entry points

  /// `node` nil stands for the node of the CPU.
  func allocPages(cpu: Int, node: Int? = nil, gfp callerGFP: UInt32, order: Int) -> UInt32? {
    lastWouldReclaim = false
    lastRejected = false
    if order > Self.maxOrder { return nil }
    let gfp = callerGFP & GFP.allowed
    if isRejected(gfp) {
      lastRejected = true
      return nil
    }
    let request = makeRequest(node: node ?? cpuNode[cpu], gfp: gfp, order: order)
    if let pfn = walkZones(cpu: cpu, request, flags: fastPathFlags(request)) { return pfn }
    return slowPath(cpu: cpu, request)
  }

  func folioAlloc(cpu: Int, node: Int? = nil, gfp: UInt32, order: Int) -> UInt32? {
    allocPages(cpu: cpu, node: node, gfp: gfp | GFP.comp, order: order)
  }

  /// `pre[i]` says that slot i was set before. Result: the return value, and per slot the page put
  /// there by this call (6.12).
  func allocPagesBulk(cpu: Int, gfp callerGFP: UInt32, n: Int, pre: [Bool] = []) -> (Int, [UInt32?])
  {
    lastWouldReclaim = false
    lastRejected = false
    var filled = [UInt32?](repeating: nil, count: max(n, 0))
    func isSet(_ i: Int) -> Bool { i < pre.count && pre[i] }

    var slot = 0
    while slot < n && isSet(slot) { slot += 1 }
    if n <= 0 || slot == n { return (slot, filled) }

    let gfp = callerGFP & GFP.allowed
    if isRejected(gfp) {
      lastRejected = true
      return (slot, filled)
    }

    func singlePage() -> (Int, [UInt32?]) {
      if let pfn = allocPages(cpu: cpu, gfp: callerGFP, order: 0) {
        filled[slot] = pfn
        slot += 1
      }
      return (slot, filled)
    }

    if n - slot == 1 { return singlePage() }

    let request = makeRequest(node: cpuNode[cpu], gfp: gfp, order: 0)
    guard let preferred = request.zones.first else { return singlePage() }
    let flags: AllocFlags = [.low]
    var chosen: Int?
    for zone in request.zones {
      if zones[zone].node != zones[preferred].node { break }
      // The full number is added to the mark, slots that were set before included; and the reserve
      // is the one of the preferred zone, not of the request.
      if quickWatermarkCheck(
        zone: zone, order: 0, mark: watermark(zone, .low) + n,
        highestZoneIndex: zones[preferred].kind, flags: flags, gfp: gfp)
      {
        chosen = zone
        break
      }
    }
    guard let zone = chosen else { return singlePage() }

    var attempted = false
    while slot < n {
      if isSet(slot) {
        slot += 1
        continue
      }
      guard
        let pfn = takeFromPerCPUList(
          cpu: cpu, zone: zone, order: 0, migratetype: request.migratetype, flags: flags)
      else {
        if !attempted { return singlePage() }
        break
      }
      attempted = true
      preparePage(pfn, order: 0, gfp: gfp, flags: flags)
      filled[slot] = pfn
      slot += 1
    }
    return (slot, filled)
  }

  func allocPagesExact(cpu: Int, gfp: UInt32, bytes: Int) -> UInt32? {
    lastWouldReclaim = false
    lastRejected = false
    guard bytes > 0 else { return nil }
    var order = 0
    while order <= Self.maxOrder && (1 << order) * 4096 < bytes { order += 1 }
    guard
      let pfn = allocPages(cpu: cpu, gfp: gfp & ~(GFP.comp | GFP.highmem), order: order)
    else { return nil }
    let used = UInt32((bytes + 4095) / 4096)
    for p in (pfn..<(pfn + used)).dropFirst() { pages[Int(p)].refcount = 1 }
    // The surplus never sees a per-CPU list (6.11).
    for p in (pfn + used)..<(pfn + (1 << UInt32(order))) {
      freeDirect(cpu: cpu, pfn: p, order: 0, toTail: true)
    }
    return pfn
  }

  func splitPage(pfn: UInt32, order: Int) {
    for p in (pfn..<(pfn + (1 << UInt32(order)))).dropFirst() { pages[Int(p)].refcount = 1 }
  }

  // MARK: Flags

  private func fastPathFlags(_ request: Request) -> AllocFlags {
    var flags: AllocFlags = [.low]
    if request.gfp & GFP.kswapdReclaim != 0 { flags.insert(.kswapd) }
    if let preferred = request.zones.first, zones[preferred].kind == 2 {
      let node = zones[preferred].node
      let hasDMA32 = zones.contains { $0.node == node && $0.kind == 1 && $0.presentPages > 0 }
      // With a single node the question about DMA32 is not asked (2.6).
      if nodes.count == 1 || hasDMA32 { flags.insert(.noFragment) }
    }
    return flags
  }

  private func slowPathFlags(gfp: UInt32, order: Int) -> AllocFlags {
    var flags: AllocFlags = [.cpuset]
    if gfp & GFP.high != 0 { flags.insert(.minReserve) }
    if gfp & GFP.kswapdReclaim != 0 { flags.insert(.kswapd) }
    if gfp & GFP.directReclaim == 0 {
      if gfp & GFP.nomemalloc == 0 {
        flags.insert(.nonBlock)
        if order > 0 && flags.contains(.minReserve) { flags.insert(.highatomic) }
      }
      if flags.contains(.minReserve) { flags.remove(.cpuset) }
    }
    return flags
  }

  // MARK: Slow path

  private func slowPath(cpu: Int, _ original: Request) -> UInt32? {
    var request = original
    if request.gfp & GFP.atomic != 0 && request.gfp & GFP.directReclaim != 0 {
      request.gfp &= ~GFP.atomic
    }
    var flags = slowPathFlags(gfp: request.gfp, order: request.order)
    if request.zones.isEmpty { return nil }

    if flags.contains(.kswapd) { wakeAllKswapds(request) }
    if let pfn = walkZones(cpu: cpu, request, flags: flags) { return pfn }

    if flags.contains(.kswapd) { wakeAllKswapds(request) }
    if request.gfp & GFP.nomemalloc == 0 && request.gfp & GFP.memalloc != 0 {
      flags = flags.contains(.kswapd) ? [.noWatermarks, .kswapd] : [.noWatermarks]
    }
    // Seldom finds anything new, but halves free factors once more (3.5 step 7).
    if let pfn = walkZones(cpu: cpu, request, flags: flags) { return pfn }

    if request.gfp & GFP.directReclaim != 0 { lastWouldReclaim = true }
    return nil
  }

  func wakeKswapd(node: Int, order: Int, highestZoneIndex: Int) {
    if nodes[node].kswapdHighestZoneIndex == 5
      || nodes[node].kswapdHighestZoneIndex < highestZoneIndex
    {
      nodes[node].kswapdHighestZoneIndex = highestZoneIndex
    }
    if nodes[node].kswapdOrder < order { nodes[node].kswapdOrder = order }
  }

  private func wakeAllKswapds(_ request: Request) {
    var last: Int?
    for zone in request.zones where zones[zone].managed > 0 {
      if zones[zone].node != last {
        wakeKswapd(
          node: zones[zone].node, order: request.order,
          highestZoneIndex: request.highestZoneIndex)
      }
      last = zones[zone].node
    }
  }

  // MARK: Zone walk

  private func walkZones(cpu: Int, _ request: Request, flags firstFlags: AllocFlags) -> UInt32? {
    guard let preferred = request.zones.first else { return nil }
    var flags = firstFlags
    while true {
      let avoidPass = flags.contains(.noFragment)
      for zone in request.zones {
        // A remote node is worse than mixing mobilities at home (3.3 c).
        if avoidPass && nodes.count > 1 && zones[zone].node != zones[preferred].node { break }

        if !quickWatermarkCheck(
          zone: zone, order: request.order, mark: watermark(zone, flags),
          highestZoneIndex: request.highestZoneIndex, flags: flags, gfp: request.gfp)
          && !flags.contains(.noWatermarks)
        {
          continue
        }
        if let pfn = takeFromZone(
          cpu: cpu, zone: zone, order: request.order, migratetype: request.migratetype,
          flags: flags)
        {
          preparePage(pfn, order: request.order, gfp: request.gfp, flags: flags)
          if flags.contains(.highatomic) { reserveHighatomic(zone: zone, pfn: pfn) }
          return pfn
        }
      }
      if !avoidPass { return nil }
      flags.remove(.noFragment)
    }
  }

  private func preparePage(_ pfn: UInt32, order: Int, gfp: UInt32, flags: AllocFlags) {
    pages[Int(pfn)].refcount = 1
    pages[Int(pfn)].isTail = false
    pages[Int(pfn)].pfmemalloc = flags.contains(.noWatermarks)
    if order > 0 && gfp & GFP.comp != 0 {
      pages[Int(pfn)].isHead = true
      pages[Int(pfn)].compoundOrder = order
      for tail in (pfn..<(pfn + (1 << UInt32(order)))).dropFirst() {
        pages[Int(tail)].isTail = true
        pages[Int(tail)].headPFN = pfn
        pages[Int(tail)].mapping = 0xdead_0000_0000_0400
      }
      // The pin count and the number of pages overlay the first tail's mapping word (1.1).
      pages[Int(pfn) + 1].mapping = UInt64(1 << order) << 32
    }
  }

  // MARK: Taking from one zone

  private func takeFromZone(
    cpu: Int, zone: Int, order: Int, migratetype: Int, flags: AllocFlags
  ) -> UInt32? {
    var pfn: UInt32?
    if Self.isPerCPUOrder(order) {
      // Halved by every attempt, also by one that fails (4.2).
      pageSets[cpu][zone].freeFactor >>= 1
      pfn = takeFromPerCPUList(
        cpu: cpu, zone: zone, order: order, migratetype: migratetype, flags: flags)
    }
    if pfn == nil {
      pfn = takeFromBuddy(
        cpu: cpu, zone: zone, order: order, migratetype: migratetype, flags: flags)
    }
    if zones[zone].boostedFlag {
      zones[zone].boostedFlag = false
      wakeKswapd(node: zones[zone].node, order: 0, highestZoneIndex: zones[zone].kind)
    }
    return pfn
  }

  /// Without the halving, which the bulk allocator does not do (6.12 step 5).
  private func takeFromPerCPUList(
    cpu: Int, zone: Int, order: Int, migratetype: Int, flags: AllocFlags
  ) -> UInt32? {
    let index = Self.listIndex(migratetype: migratetype, order: order)
    if pageSets[cpu][zone].lists[index].isEmpty {
      refill(
        cpu: cpu, zone: zone, index: index, order: order, migratetype: migratetype, flags: flags)
    }
    if pageSets[cpu][zone].lists[index].isEmpty { return nil }
    let pfn = pageSets[cpu][zone].lists[index].removeFirst().pfn
    listed.remove(pfn)
    pageSets[cpu][zone].count -= 1 << order
    return pfn
  }

  private func refill(
    cpu: Int, zone: Int, index: Int, order: Int, migratetype: Int, flags: AllocFlags
  ) {
    let batch = pageSets[cpu][zone].batch
    let wanted = batch > 1 ? max(batch >> order, 2) : batch
    var removed = 0
    for _ in 0..<wanted {
      guard let pfn = removeBlock(zone: zone, order: order, migratetype: migratetype, flags: flags)
      else { break }
      removed += 1
      if isBlockGoodForAllocation(pfn, order: order) {
        addToPerCPUList(
          cpu: cpu, zone: zone, index: index, pfn: pfn,
          migratetype: pages[Int(pfn)].cachedMigratetype, toTail: true)
        pageSets[cpu][zone].count += 1 << order
      }
    }
    // One change for the whole refill, bad blocks included (1.6).
    addToFreeCounter(cpu: cpu, zone: zone, -(removed << order))
  }

  private func takeFromBuddy(
    cpu: Int, zone: Int, order: Int, migratetype: Int, flags: AllocFlags
  ) -> UInt32? {
    while true {
      var pfn: UInt32?
      if flags.contains(.highatomic) {
        pfn = removeSmallest(zone: zone, order: order, migratetype: Migrate.highatomic)
      }
      if pfn == nil {
        pfn = removeBlock(zone: zone, order: order, migratetype: migratetype, flags: flags)
      }
      if pfn == nil && !flags.isDisjoint(with: [.oom, .nonBlock]) {
        pfn = removeSmallest(zone: zone, order: order, migratetype: Migrate.highatomic)
      }
      guard let found = pfn else { return nil }
      addToFreeCounter(cpu: cpu, zone: zone, -(1 << order))
      if isBlockGoodForAllocation(found, order: order) { return found }
    }
  }
}
