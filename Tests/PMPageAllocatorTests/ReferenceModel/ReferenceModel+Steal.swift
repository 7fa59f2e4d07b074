/// Taking blocks from the free lists, and stealing: section 5.
extension ReferenceModel {

  // MARK: Buddy removal

  func removeBlock(zone: Int, order: Int, migratetype: Int, flags: AllocFlags) -> UInt32? {
    if let pfn = removeSmallest(zone: zone, order: order, migratetype: migratetype) { return pfn }
    if !fallback(zone: zone, order: order, migratetype: migratetype, flags: flags) { return nil }
    // The candidate itself is now on the right lists, so one more look is enough (5.2).
    let pfn = removeSmallest(zone: zone, order: order, migratetype: migratetype)
    if pfn == nil { bug("a steal without result") }
    return pfn
  }

  func removeSmallest(zone: Int, order: Int, migratetype: Int) -> UInt32? {
    for o in order...Self.maxOrder {
      guard let pfn = zones[zone].lists[o][migratetype].first else { continue }
      deleteFromFreeList(zone: zone, pfn: pfn, order: o)
      var size = o
      while size > order {
        size -= 1
        addToFreeList(
          zone: zone, pfn: pfn + (1 << UInt32(size)), order: size, migratetype: migratetype,
          toTail: false)
      }
      // The list's type, not the pageblock's (5.1).
      pages[Int(pfn)].cachedMigratetype = migratetype
      return pfn
    }
    return nil
  }

  // MARK: Fallback and stealing

  private static let fallbackTypes = [
    [Migrate.reclaimable, Migrate.movable],
    [Migrate.reclaimable, Migrate.unmovable],
    [Migrate.unmovable, Migrate.movable],
  ]

  private func canSteal(blockOrder: Int, for type: Int) -> Bool {
    blockOrder >= 4 || type == Migrate.unmovable || type == Migrate.reclaimable
      || mobilityGroupingDisabled
  }

  private func fallbackType(zone: Int, order: Int, for type: Int) -> Int? {
    Self.fallbackTypes[type].first { !zones[zone].lists[order][$0].isEmpty }
  }

  /// True if something was moved to the lists of `migratetype` (5.4).
  private func fallback(zone: Int, order: Int, migratetype: Int, flags: AllocFlags) -> Bool {
    let lowest =
      order < Self.pageblockOrder && flags.contains(.noFragment) ? Self.pageblockOrder : order
    guard
      let largest = (lowest...Self.maxOrder).reversed().first(where: {
        fallbackType(zone: zone, order: $0, for: migratetype) != nil
      })
    else { return false }

    var chosen = largest
    if !canSteal(blockOrder: largest, for: migratetype) && migratetype == Migrate.movable
      && largest > order
    {
      // The pageblock stays mixed anyway, so the smallest block does the least harm.
      chosen = (order...largest).first {
        fallbackType(zone: zone, order: $0, for: migratetype) != nil
      }!
    }
    let from = fallbackType(zone: zone, order: chosen, for: migratetype)!
    steal(
      zone: zone, pfn: zones[zone].lists[chosen][from][0], blockOrder: chosen,
      migratetype: migratetype, flags: flags)
    return true
  }

  private func steal(zone: Int, pfn: UInt32, blockOrder: Int, migratetype: Int, flags: AllocFlags) {
    let old = pageblockType(pfn)

    func moveOnlyBlock() {
      moveToFreeList(zone: zone, pfn: pfn, order: blockOrder, migratetype: migratetype)
    }

    if old == Migrate.highatomic {
      moveOnlyBlock()
      return
    }
    if blockOrder >= Self.pageblockOrder {
      for i in 0..<(UInt32(1) << UInt32(blockOrder - Self.pageblockOrder)) {
        setPageblockType(pfn + i * Self.pageblockPages, migratetype)
      }
      moveOnlyBlock()
      return
    }
    if boostWatermark(zone: zone) && flags.contains(.kswapd) { zones[zone].boostedFlag = true }
    if !canSteal(blockOrder: blockOrder, for: migratetype) {
      moveOnlyBlock()
      return
    }
    let moved = moveFreePagesOfPageblock(zone: zone, containing: pfn, to: migratetype)
    if moved.free == 0 {
      moveOnlyBlock()
      return
    }
    let alike: Int
    if migratetype == Migrate.movable {
      alike = moved.movable
    } else if old == Migrate.movable {
      alike = Int(Self.pageblockPages) - (moved.free + moved.movable)
    } else {
      alike = 0
    }
    if moved.free + alike >= 256 || mobilityGroupingDisabled { setPageblockType(pfn, migratetype) }
  }

  private func boostWatermark(zone: Int) -> Bool {
    if watermarkBoostFactor == 0 || 4 * Int(Self.pageblockPages) > zones[zone].managed {
      return false
    }
    let high = zones[zone].high
    var cap = (high / 10000) * watermarkBoostFactor + (high % 10000) * watermarkBoostFactor / 10000
    if cap == 0 { return false }
    cap = max(cap, Int(Self.pageblockPages))
    zones[zone].boost = min(zones[zone].boost + Int(Self.pageblockPages), cap)
    return true
  }

  /// Moves every free block that begins in the pageblock, whatever list it is on (5.7).
  private func moveFreePagesOfPageblock(
    zone: Int, containing pfn: UInt32, to migratetype: Int
  ) -> (free: Int, movable: Int) {
    let first = pfn / Self.pageblockPages * Self.pageblockPages
    let last = first + Self.pageblockPages - 1
    if !zones[zone].spans(last) { return (0, 0) }
    var free = 0
    var movable = 0
    var p = zones[zone].spans(first) ? first : pfn
    while p <= last {
      if !zones[zone].isPresent(p) {
        p += 1
        continue
      }
      if let order = pages[Int(p)].buddyOrder {
        moveToFreeList(zone: zone, pfn: p, order: order, migratetype: migratetype)
        free += 1 << order
        p += 1 << UInt32(order)
        continue
      }
      let onLRU = pages[Int(head(p))].flags & Flag.lru != 0
      if pages[Int(p)].classL || onLRU || pages[Int(p)].mapping & 3 == 2 { movable += 1 }
      p += 1
    }
    return (free, movable)
  }

  func reserveHighatomic(zone: Int, pfn: UInt32) {
    if zones[zone].highatomic >= zones[zone].managed / 100 + 512 { return }
    if pageblockType(pfn) >= 3 { return }
    zones[zone].highatomic += Int(Self.pageblockPages)
    setPageblockType(pfn, Migrate.highatomic)
    _ = moveFreePagesOfPageblock(zone: zone, containing: pfn, to: Migrate.highatomic)
  }
}
