internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// Taking from another migratetype, and the highatomic reserve. pre (all): the zone's lock is held.
extension Core {
  /// The types to steal from, in order, by the requested type.
  @inline(__always)
  private static func fallbacks(_ type: UInt8) -> (UInt8, UInt8) {
    switch type {
    case 0: (2, 1)
    case 1: (2, 0)
    default: (0, 1)
    }
  }

  /// The first fallback type with a block of exactly this order. Mirrors `find_suitable_fallback`.
  private func fallbackType(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, _ types: (UInt8, UInt8)
  ) -> UInt8? {
    let bit: UInt16 = 1 << UInt16(order)
    if nonemptyOrders(zone, type: types.0) & bit != 0 { return types.0 }
    if nonemptyOrders(zone, type: types.1) & bit != 0 { return types.1 }
    return nil
  }

  /// Moves free memory of another type to the requested type's lists; false where there is none.
  /// Mirrors `__rmqueue_fallback`, Linux 6.1.
  @inline(never)
  func steal(
    _ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8, flags: UInt32
  ) -> Bool {
    let types = Core.fallbacks(type)
    let lowest = order < 9 && flags & AllocFlags.noFragment != 0 ? 9 : order
    let all = nonemptyOrders(zone, type: types.0) | nonemptyOrders(zone, type: types.1)
    let candidates = all >> UInt16(lowest)
    guard candidates != 0 else { return false }
    var found = lowest + UInt32(15 - candidates.leadingZeroBitCount)
    let takesWhole = found >= 4 || type != 1 || isMobilityDisabled
    if !takesWhole, found > order {
      // A movable request that cannot claim a pageblock takes the smallest block instead, so that
      // large ones survive. All candidates are below order 4 then.
      found = order + UInt32((all >> UInt16(order)).trailingZeroBitCount)
    }
    guard let from = fallbackType(zone, order: found, types) else { return false }
    let candidate = next(freeList(zone, order: found, type: from))
    if Int32(bitPattern: candidate) < 0 {
      corruptedDelete(candidate)
      return false
    }
    stealBlock(
      zone, candidate, order: found, type: type, flags: flags, takesWhole: takesWhole)
    return true
  }

  /// Mirrors `steal_suitable_fallback`.
  private func stealBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, type: UInt8,
    flags: UInt32, takesWhole: Bool
  ) {
    let old = pageblockType(index)
    if old == 3 {
      moveBlock(zone, index, order: order, type: type)
      return
    }
    if order >= 9 {
      for block in 0..<(UInt32(1) << (order - 9)) {
        setPageblockType(index + block * 512, type)
      }
      moveBlock(zone, index, order: order, type: type)
      return
    }
    if boost(zone), flags & AllocFlags.kswapd != 0 {
      pm_word_store_relaxed(&zone.pointee.flags, zone.pointee.flags | 1)
    }
    guard takesWhole else {
      moveBlock(zone, index, order: order, type: type)
      return
    }
    let (free, movable) = movePageblock(zone, index, to: type)
    guard free > 0 else {
      moveBlock(zone, index, order: order, type: type)
      return
    }
    let alike = type == 1 ? movable : old == 1 ? 512 - (free + movable) : 0
    if free + alike >= 256 || isMobilityDisabled { setPageblockType(index, type) }
  }

  /// Raises the zone's watermarks for a while; false where boosting is off or the zone is small.
  /// Mirrors `boost_watermark`.
  private func boost(_ zone: UnsafeMutablePointer<pm_zone>) -> Bool {
    let factor = watermarkBoostFactor
    guard factor != 0, zone.pointee.managed_pages >= 2048 else { return false }
    let high = pm_zone_watermark(zone)[2]
    var cap = high / 10000 * factor + high % 10000 * factor / 10000
    guard cap != 0 else { return false }
    cap = max(cap, 512)
    let boosted = min(zone.pointee.watermark_boost + 512, cap)
    pm_counter_store_relaxed(&zone.pointee.watermark_boost, boosted)
    return true
  }

  /// Moves the free blocks of the pageblock that contains a page to the back of a type's lists, in
  /// PFN order; returns how many pages moved and how many pages in use are movable. Mirrors
  /// `move_freepages_block`.
  @discardableResult
  func movePageblock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, to type: UInt8
  ) -> (free: Int, movable: Int) {
    let zoneStart = zone.pointee.start
    let zoneEnd = zoneStart + zone.pointee.spanned
    let end = (index & ~511) + 512
    guard end <= zoneEnd else { return (0, 0) }
    var cursor = index & ~511
    if cursor < zoneStart { cursor = index }
    var free = 0
    var movable = 0
    while cursor < end {
      if let order = freeBlockOrder(cursor), contains(zone, cursor) {
        guard moveBlock(zone, cursor, order: order, type: type) else { break }
        free += 1 << Int(order)
        cursor += 1 << order
      } else {
        if isMovableInUse(cursor) { movable += 1 }
        cursor += 1
      }
    }
    return (free, movable)
  }

  private func isMovableInUse(_ index: UInt32) -> Bool {
    let state = state(index)
    if state & FrameState.detail != 0,
      details.takeUnretainedValue()[index].mapping & 3 == 2
    {
      return true
    }
    if state & FrameState.tail != 0 {
      // Read as a lookup does, without the owner's knowledge; a stale answer is the kernel's too.
      let head = pm_link_next_load_relaxed(link(index)) &+ index &+ 1024
      return Int(head) < frameLimit && self.state(head) & FrameState.lru != 0
    }
    return state & FrameState.lru != 0
  }

  /// Reserves the pageblock of a page that a highatomic request got. Takes the lock. Mirrors
  /// `reserve_highatomic_pageblock`.
  @inline(never)
  func reserveHighatomic(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32) {
    let limit = Int64(zone.pointee.managed_pages / 100 + 512)
    if pm_counter_load_relaxed(&zone.pointee.nr_reserved_highatomic) >= limit { return }
    lock(zone)
    defer { unlock(zone) }
    let reserved = zone.pointee.nr_reserved_highatomic
    guard reserved < limit, pageblockType(index) < 3 else { return }
    pm_counter_store_relaxed(&zone.pointee.nr_reserved_highatomic, reserved + 512)
    setPageblockType(index, 3)
    movePageblock(zone, index, to: 3)
  }
}
