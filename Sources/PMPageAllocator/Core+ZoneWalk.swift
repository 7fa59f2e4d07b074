internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// Choosing a zone: watermarks, the walk over the zonelist, the slow path.
extension Core {
  /// What of a request stays the same through all its walks.
  struct Request {
    var order: UInt32
    var gfp: UInt32
    var type: UInt8
    /// The highest zone index the request may use.
    var highest: Int
    /// Node × 2 + thisnode.
    var zonelist: Int
  }

  @inline(__always)
  func zonelistStart(_ request: Request) -> Int {
    Int(zonelistBounds[request.zonelist * 8 + request.highest])
  }
  @inline(__always)
  func zonelistEnd(_ request: Request) -> Int { Int(zonelistBounds[request.zonelist * 8 + 7]) }

  // MARK: watermarks

  /// Mirrors `__zone_watermark_ok`, Linux 6.1.
  @inline(never)
  func watermarkAllows(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, mark: Int64, highest: Int, flags: UInt32,
    free: Int64
  ) -> Bool {
    var available = free - (1 << Int64(order) - 1)
    var least = mark
    if flags & AllocFlags.reserves == 0 {
      available -= pm_counter_load_relaxed(&zone.pointee.nr_reserved_highatomic)
    } else {
      if flags & AllocFlags.minReserve != 0 {
        least -= least / 2
        if flags & AllocFlags.nonBlock != 0 { least -= least / 4 }
      }
      if flags & AllocFlags.oom != 0 { least -= least / 2 }
    }
    if available <= least + pm_zone_lowmem_reserve(zone)[highest] { return false }
    if order == 0 { return true }
    var orders =
      nonemptyOrders(zone, type: 0) | nonemptyOrders(zone, type: 1) | nonemptyOrders(zone, type: 2)
    if flags & (AllocFlags.highatomic | AllocFlags.oom) != 0 {
      orders |= nonemptyOrders(zone, type: 3)
    }
    return orders >> UInt16(order) != 0
  }

  /// The test of a zone before anything is taken from it. `index` is the watermark index. Mirrors
  /// `zone_watermark_fast`.
  @inline(__always)
  func watermarkFast(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, mark: Int64, highest: Int, flags: UInt32,
    gfp: UInt32
  ) -> Bool {
    let free = max(pm_counter_load_relaxed(&zone.pointee.nr_free_pages), 0)
    if order == 0 {
      let unusable =
        flags & AllocFlags.reserves == 0
        ? pm_counter_load_relaxed(&zone.pointee.nr_reserved_highatomic) : 0
      if free - unusable > mark + pm_zone_lowmem_reserve(zone)[highest] { return true }
    }
    if watermarkAllows(
      zone, order: order, mark: mark, highest: highest, flags: flags, free: free)
    {
      return true
    }
    // Atomic single pages may go below a boost, which only fights fragmentation.
    if order == 0, gfp & GFP.atomicBit.rawValue != 0, flags & AllocFlags.watermarkMask == 0,
      pm_counter_load_relaxed(&zone.pointee.watermark_boost) != 0
    {
      return watermarkAllows(
        zone, order: order, mark: pm_zone_watermark(zone)[0], highest: highest, flags: flags,
        free: free)
    }
    return false
  }

  /// Whether a zone has so much that the test passes whatever the request: the counters that another CPU
  /// is writing are left alone then. False says nothing.
  @inline(__always)
  func hasPlenty(_ zone: UnsafeMutablePointer<pm_zone>, order: UInt32) -> Bool {
    guard pm_word_load_relaxed(&zone.pointee.roomy) != 0 else { return false }
    if order == 0 { return true }
    let orders =
      nonemptyOrders(zone, type: 0) | nonemptyOrders(zone, type: 1) | nonemptyOrders(zone, type: 2)
    return orders &>> UInt16(truncatingIfNeeded: order) != 0
  }

  @inline(__always)
  func effectiveWatermark(_ zone: UnsafeMutablePointer<pm_zone>, _ flags: UInt32) -> Int64 {
    pm_zone_watermark(zone)[Int(flags & AllocFlags.watermarkMask)]
      &+ pm_counter_load_relaxed(&zone.pointee.watermark_boost)
  }

  // MARK: one zone

  /// A block of a zone, per-CPU lists first. Mirrors `rmqueue`.
  @inline(__always)
  func take(
    from zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8, flags: UInt32
  ) -> UInt32 {
    var index = Core.none
    if Core.isPerCPUOrder(order) {
      index = allocatePerCPU(
        zone, pagesets + Int(zone.pointee.index), order: order, type: type, flags: flags)
    }
    if index == Core.none {
      index = allocateFromBuddy(zone, order: order, type: type, flags: flags)
    }
    if pm_word_load_relaxed(&zone.pointee.flags) & 1 != 0 { consumeBoostedBit(zone) }
    return index
  }

  @inline(never)
  func consumeBoostedBit(_ zone: UnsafeMutablePointer<pm_zone>) {
    lock(zone)
    pm_word_store_relaxed(&zone.pointee.flags, zone.pointee.flags & ~1)
    unlock(zone)
    wakeKswapd(node: Int(zone.pointee.node), order: 0, highest: Int(zone.pointee.kind))
  }

  /// Remembers what kswapd of a node is wanted for; kswapd itself never runs. Mirrors the effect of
  /// `wakeup_kswapd` on the node's fields.
  func wakeKswapd(node: Int, order: UInt32, highest: Int) {
    let target = nodes + node
    let index = pm_word_load_relaxed(&target.pointee.kswapd_highest_zoneidx)
    if index == 5 || index < UInt32(highest) {
      pm_word_store_relaxed(&target.pointee.kswapd_highest_zoneidx, UInt32(highest))
    }
    if pm_word_load_relaxed(&target.pointee.kswapd_order) < order {
      pm_word_store_relaxed(&target.pointee.kswapd_order, order)
    }
  }

  // MARK: the walk

  /// Whether the first pass rather takes from another zone than mixes pageblocks. Mirrors
  /// `alloc_flags_nofragment`.
  @inline(__always)
  private func avoidsFragmentation(_ preferred: UnsafeMutablePointer<pm_zone>) -> Bool {
    guard preferred.pointee.kind == 2 else { return false }
    return !isMultiNode || hasDMA32(node: preferred.pointee.node)
  }

  @inline(never)
  private func hasDMA32(node: UInt16) -> Bool {
    for index in 0..<zoneCount {
      let zone = zones + index
      if zone.pointee.node == node, zone.pointee.kind == 1, zone.pointee.present_pages > 0 {
        return true
      }
    }
    return false
  }

  /// Mirrors `get_page_from_freelist`.
  @inline(__always)
  func walk(_ request: Request, flags initialFlags: UInt32) -> UInt32 {
    var flags = initialFlags
    let start = zonelistStart(request)
    let end = zonelistEnd(request)
    let preferredNode = zones[Int(zonelistEntries[start])].node
    while true {
      var restart = false
      var entry = start
      while entry < end {
        let zone = zones + Int(zonelistEntries[entry])
        entry += 1
        if Int(zone.pointee.kind) > request.highest { continue }
        if flags & AllocFlags.noFragment != 0, isMultiNode, zone.pointee.node != preferredNode {
          restart = true
          break
        }
        if !hasPlenty(zone, order: request.order),
          !watermarkFast(
            zone, order: request.order, mark: effectiveWatermark(zone, flags),
            highest: request.highest, flags: flags, gfp: request.gfp),
          flags & AllocFlags.noWatermarks == 0
        {
          continue
        }
        let index = take(from: zone, order: request.order, type: request.type, flags: flags)
        if index != Core.none {
          prepareNew(index, order: request.order, gfp: request.gfp)
          if flags & AllocFlags.highatomic != 0 { reserveHighatomic(zone, index) }
          return index
        }
        // The kernel stopped in this zone.
        if log.takeUnretainedValue().isHalted { return Core.none }
      }
      guard restart || flags & AllocFlags.noFragment != 0 else { return Core.none }
      flags &= ~AllocFlags.noFragment
    }
  }

  /// The flags of a request's first pass.
  @inline(__always)
  func firstFlags(_ request: Request) -> UInt32 {
    let preferred = zones + Int(zonelistEntries[zonelistStart(request)])
    let flags = AllocFlags.watermarkLow | (request.gfp & AllocFlags.kswapd)
    return avoidsFragmentation(preferred) ? flags | AllocFlags.noFragment : flags
  }

  /// A block for a request on a node; `Core.none` where there is none. pre: order 0 to 10, a valid
  /// migratetype, a non-empty zonelist. Mirrors `__alloc_pages`.
  @inline(__always)
  func allocate(_ request: Request) -> UInt32 {
    let index = walk(request, flags: firstFlags(request))
    if index != Core.none { return index }
    return allocateSlow(request)
  }

  /// Mirrors the part of `__alloc_pages_slowpath` that does not reclaim.
  @inline(never)
  func allocateSlow(_ original: Request) -> UInt32 {
    var request = original
    let reclaims = request.gfp & GFP.directReclaim.rawValue != 0
    if reclaims, request.gfp & GFP.atomicBit.rawValue != 0 {
      log.takeUnretainedValue().warnOnce("__GFP_ATOMIC with __GFP_DIRECT_RECLAIM")
      request.gfp &= ~GFP.atomicBit.rawValue
    }
    var flags = AllocFlags.watermarkMin | AllocFlags.cpuset
    flags |= request.gfp & (AllocFlags.minReserve | AllocFlags.kswapd)
    if !reclaims {
      if request.gfp & GFP.noMemalloc.rawValue == 0 {
        flags |= AllocFlags.nonBlock
        if request.order > 0, flags & AllocFlags.minReserve != 0 { flags |= AllocFlags.highatomic }
      }
      if flags & AllocFlags.minReserve != 0 { flags &= ~AllocFlags.cpuset }
    }
    if flags & AllocFlags.kswapd != 0 { wakeAllKswapds(request) }
    let index = slowWalk(request, flags)
    if index != Core.none { return index }
    if flags & AllocFlags.kswapd != 0 { wakeAllKswapds(request) }
    let ignoresWatermarks =
      request.gfp & GFP.noMemalloc.rawValue == 0 && request.gfp & GFP.memalloc.rawValue != 0
    if ignoresWatermarks { flags = AllocFlags.noWatermarks | (flags & AllocFlags.kswapd) }
    // Without an override this second walk finds nothing either, but it ages the free factor of
    // every zone it tries, as the kernel's does.
    let last = slowWalk(request, flags)
    if last != Core.none, ignoresWatermarks { pfmemalloc.pointee = 1 }
    return last
  }

  /// One copy of the walk for all slow paths.
  @inline(never)
  private func slowWalk(_ request: Request, _ flags: UInt32) -> UInt32 {
    walk(request, flags: flags)
  }

  /// Mirrors `wake_all_kswapds`: once per consecutive run of zones of a node.
  private func wakeAllKswapds(_ request: Request) {
    var last = -1
    for entry in zonelistStart(request)..<zonelistEnd(request) {
      let zone = zones + Int(zonelistEntries[entry])
      guard Int(zone.pointee.kind) <= request.highest, zone.pointee.managed_pages > 0 else {
        continue
      }
      if Int(zone.pointee.node) != last {
        wakeKswapd(node: Int(zone.pointee.node), order: request.order, highest: request.highest)
      }
      last = Int(zone.pointee.node)
    }
  }
}
