/// Freeing and reference counts: sections 6, 7, 8.1 and 11.
extension ReferenceModel {

  // MARK: __free_pages

  func freePages(cpu: Int, pfn: UInt32, order: Int) {
    freePagesFinish(cpu: cpu, freePagesBegin(pfn: pfn, order: order))
  }

  /// First half of `freePages`, up to and including the decrement. A test can let another CPU act
  /// before it calls `freePagesFinish` (11.2).
  func freePagesBegin(pfn: UInt32, order: Int) -> FreeInFlight {
    let headBefore = pages[Int(pfn)].isHead
    pages[Int(pfn)].refcount &-= 1
    return FreeInFlight(
      pfn: pfn, order: order, reachedZero: pages[Int(pfn)].refcount == 0,
      sampledHead: freePagesModel == .headSampledBefore ? headBefore : nil)
  }

  func freePagesFinish(cpu: Int, _ call: FreeInFlight) {
    if call.reachedZero {
      freeBlock(cpu: cpu, pfn: call.pfn, order: call.order)
      return
    }
    if freePagesModel == .headNeverChecked { return }
    if call.sampledHead ?? pages[Int(call.pfn)].isHead { return }
    // The first page is left to whoever holds the extra reference (6.1 step 3).
    for k in (0..<call.order).reversed() {
      freeBlock(cpu: cpu, pfn: call.pfn + (1 << UInt32(k)), order: k)
    }
  }

  func freePagesExact(cpu: Int, pfn: UInt32, bytes: Int) {
    for i in 0..<UInt32((bytes + 4095) / 4096) { freePages(cpu: cpu, pfn: pfn + i, order: 0) }
  }

  // MARK: References

  func getPage(pfn: UInt32) { pages[Int(head(pfn))].refcount &+= 1 }

  func tryGetPage(pfn: UInt32) -> Bool {
    if pages[Int(head(pfn))].refcount <= 0 { return false }
    pages[Int(head(pfn))].refcount &+= 1
    return true
  }

  /// Acts on the very page, not on its head (7).
  func getPageUnlessZero(pfn: UInt32) -> Bool {
    if pages[Int(pfn)].refcount == 0 { return false }
    pages[Int(pfn)].refcount &+= 1
    return true
  }

  func pageRefFreeze(pfn: UInt32, count: Int32) -> Bool {
    if pages[Int(pfn)].refcount != count { return false }
    pages[Int(pfn)].refcount = 0
    return true
  }

  func pageRefUnfreeze(pfn: UInt32, count: Int32) { pages[Int(pfn)].refcount = count }

  func putPage(cpu: Int, pfn: UInt32) {
    let page = head(pfn)
    pages[Int(page)].refcount &-= 1
    if pages[Int(page)].refcount != 0 { return }
    forgetUser(page)
    if pages[Int(page)].isHead {
      freeBlock(cpu: cpu, pfn: page, order: orderOfPage(page))
    } else {
      freeToPerCPU(cpu: cpu, pfn: page, order: 0)
    }
  }

  /// The last put takes the page off the LRU and uncharges it (6.10).
  private func forgetUser(_ pfn: UInt32) {
    if pages[Int(pfn)].flags & Flag.lru != 0 {
      pages[Int(pfn)].flags &= ~(Flag.lru | Flag.active | Flag.unevictable)
    }
    pages[Int(pfn)].memcg = 0
  }

  /// The small pages end up in reverse array order (6.10).
  func releasePages(cpu: Int, _ array: [UInt32]) {
    var small: [UInt32] = []
    for entry in array {
      let page = head(entry)
      pages[Int(page)].refcount &-= 1
      if pages[Int(page)].refcount != 0 { continue }
      forgetUser(page)
      if pages[Int(page)].isHead {
        freeBlock(cpu: cpu, pfn: page, order: orderOfPage(page))
      } else {
        small.insert(page, at: 0)
      }
    }
    freeList(cpu: cpu, small)
  }

  /// All pages are prepared before the first one is put on a list (6.9).
  private func freeList(cpu: Int, _ list: [UInt32]) {
    var accepted: [(pfn: UInt32, zone: Int, migratetype: Int)] = []
    for pfn in list {
      if !prepareForFree(pfn, order: 0, checkFirst: false) { continue }
      guard let zone = zoneIndex(of: pfn) else {
        bug("free outside all zones")
        continue
      }
      let type = pageblockType(pfn)
      if type == Migrate.isolate {
        insertMerging(cpu: cpu, zone: zone, pfn: pfn, order: 0, migratetype: type, toTail: false)
      } else {
        accepted.append((pfn, zone, type))
      }
    }
    for page in accepted {
      commitToPerCPU(
        cpu: cpu, zone: page.zone, pfn: page.pfn, order: 0, migratetype: page.migratetype)
    }
  }

  // MARK: One block whose count is gone

  private func freeBlock(cpu: Int, pfn: UInt32, order: Int) {
    if Self.isPerCPUOrder(order) {
      freeToPerCPU(cpu: cpu, pfn: pfn, order: order)
    } else {
      freeDirect(cpu: cpu, pfn: pfn, order: order, toTail: false)
    }
  }

  func freeDirect(cpu: Int, pfn: UInt32, order: Int, toTail: Bool) {
    if !prepareForFree(pfn, order: order, checkFirst: true) { return }
    guard let zone = zoneIndex(of: pfn) else {
      bug("free outside all zones")
      return
    }
    insertMerging(
      cpu: cpu, zone: zone, pfn: pfn, order: order, migratetype: pageblockType(pfn), toTail: toTail)
  }

  private func freeToPerCPU(cpu: Int, pfn: UInt32, order: Int) {
    if !prepareForFree(pfn, order: order, checkFirst: false) { return }
    guard let zone = zoneIndex(of: pfn) else {
      bug("free outside all zones")
      return
    }
    let type = pageblockType(pfn)
    if type == Migrate.isolate {
      insertMerging(cpu: cpu, zone: zone, pfn: pfn, order: order, migratetype: type, toTail: false)
      return
    }
    commitToPerCPU(cpu: cpu, zone: zone, pfn: pfn, order: order, migratetype: type)
  }

  /// False: the whole block belongs to nobody from now on (8.1).
  private func prepareForFree(_ pfn: UInt32, order: Int, checkFirst: Bool) -> Bool {
    pages[Int(pfn)].flags &= ~Flag.mlocked
    if pages[Int(pfn)].flags & Flag.hwpoison != 0 && order == 0 { return false }

    var bad = 0
    if order > 0 {
      let compound = pages[Int(pfn)].isHead || pages[Int(pfn)].isTail
      if compound { pages[Int(pfn) + 1].flags &= ~(Flag.workingset | Flag.error) }
      for tail in (pfn..<(pfn + (1 << UInt32(order)))).dropFirst() {
        guard Int(tail) < pages.count else {
          bug("free beyond memory")
          return false
        }
        if compound {
          pages[Int(tail)].mapping = 0
          pages[Int(tail)].isTail = false
        }
        if let reason = badReason(tail, atFree: true) {
          report(tail, reason)
          bad += 1
        } else {
          pages[Int(tail)].flags &= ~Flag.clearedAtFree
        }
      }
    }
    if pages[Int(pfn)].mapping & 3 != 0 { pages[Int(pfn)].mapping = 0 }
    if checkFirst, let reason = badReason(pfn, atFree: true) {
      report(pfn, reason)
      bad += 1
    }
    if bad > 0 { return false }
    pages[Int(pfn)].flags &= ~Flag.clearedAtFree
    return true
  }

  // MARK: Per-CPU lists

  private func commitToPerCPU(cpu: Int, zone: Int, pfn: UInt32, order: Int, migratetype: Int) {
    // A highatomic page goes to the movable list but remembers its type (6.4 step 3).
    let listType = migratetype == Migrate.highatomic ? Migrate.movable : migratetype
    let index = Self.listIndex(migratetype: listType, order: order)
    addToPerCPUList(
      cpu: cpu, zone: zone, index: index, pfn: pfn, migratetype: migratetype, toTail: false)
    pageSets[cpu][zone].count += 1 << order

    let count = pageSets[cpu][zone].count
    let high = pageSets[cpu][zone].high
    let batch = pageSets[cpu][zone].batch
    let factor = pageSets[cpu][zone].freeFactor
    let freeHigh = factor != 0 && order >= 1 && order <= 3

    let limit: Int
    if high == 0 || freeHigh {
      limit = 0
    } else if zones[zone].reclaimActive {
      limit = min(4 * batch, high)
    } else {
      limit = high
    }
    if count < limit { return }

    let amount: Int
    if freeHigh {
      amount = count
    } else if limit < batch {
      amount = 1
    } else {
      // The factor before the increment counts (6.5 step 5).
      let scaled = batch << factor
      if scaled < limit - batch && factor < freeFactorCap { pageSets[cpu][zone].freeFactor += 1 }
      amount = min(max(scaled, batch), limit - batch)
    }
    drain(cpu: cpu, zone: zone, amount: amount, firstList: index)
  }

  /// Empties one list completely before it looks at the next one (6.7).
  private func drain(cpu: Int, zone: Int, amount: Int, firstList: Int) {
    var left = min(pageSets[cpu][zone].count, amount)
    var index = firstList
    var emptyInARow = 0
    while left > 0 && emptyInARow < 14 {
      if pageSets[cpu][zone].lists[index].isEmpty {
        emptyInARow += 1
        index = (index + 1) % 14
        continue
      }
      emptyInARow = 0
      let order = Self.orderOfList(index)
      let oldest = pageSets[cpu][zone].lists[index].removeLast()
      listed.remove(oldest.pfn)
      left -= 1 << order
      pageSets[cpu][zone].count -= 1 << order
      if let reason = badReason(oldest.pfn, atFree: true) {
        report(oldest.pfn, reason)
        continue
      }
      // Outside isolation the cached type is trusted, however old it is.
      let type = zones[zone].nrIsolate > 0 ? pageblockType(oldest.pfn) : oldest.migratetype
      insertMerging(
        cpu: cpu, zone: zone, pfn: oldest.pfn, order: order, migratetype: type, toTail: false)
    }
  }

  /// `zone` nil: all zones (6.8).
  func drainLocalPages(cpu: Int, zone: Int? = nil) {
    let ascending = zones.indices.sorted {
      (zones[$0].node, zones[$0].kind) < (zones[$1].node, zones[$1].kind)
    }
    for z in ascending where zone == nil || zone == z {
      while pageSets[cpu][z].count > 0 {
        let before = pageSets[cpu][z].count
        drain(
          cpu: cpu, zone: z, amount: min(before, pageSets[cpu][z].batch * 32), firstList: 0)
        if pageSets[cpu][z].count == before {
          bug("per-CPU count without pages")
          return
        }
      }
    }
  }

  // MARK: Buddy insert

  private func isFreeBlock(_ pfn: UInt32, order: Int, zone: Int) -> Bool {
    Int(pfn) < pages.count && pages[Int(pfn)].buddyOrder == order && zoneIndex(of: pfn) == zone
  }

  private func insertMerging(
    cpu: Int, zone: Int, pfn first: UInt32, order firstOrder: Int, migratetype: Int, toTail: Bool
  ) {
    var pfn = first
    var order = firstOrder
    if migratetype != Migrate.isolate { addToFreeCounter(cpu: cpu, zone: zone, 1 << order) }

    while order < Self.maxOrder {
      let buddy = pfn ^ (1 << UInt32(order))
      if !isFreeBlock(buddy, order: order, zone: zone) { break }
      if order >= Self.pageblockOrder {
        let buddyType = pageblockType(buddy)
        if buddyType != migratetype && (migratetype >= 3 || buddyType >= 3) { break }
      }
      deleteFromFreeList(zone: zone, pfn: buddy, order: order)
      pfn = min(pfn, buddy)
      order += 1
    }

    var back = toTail
    if !back && hasTailRule && order <= 8 {
      // If the next merge only waits for one neighbour, the block should be used last (6.6 step 4).
      let combined = pfn & ~(UInt32(1) << UInt32(order))
      let other = combined ^ (1 << UInt32(order + 1))
      back = isFreeBlock(other, order: order + 1, zone: zone)
    }
    addToFreeList(zone: zone, pfn: pfn, order: order, migratetype: migratetype, toTail: back)
  }

  // MARK: Page fragments

  /// Result: physical address of the fragment (6.13). `alignMask` is ANDed to the offset.
  func fragAlloc(
    cpu: Int, cache: inout FragCache, bytes: Int, gfp: UInt32, alignMask: Int = -1
  ) -> UInt64? {
    while true {
      if cache.base == nil && !fragRefill(cpu: cpu, cache: &cache, gfp: gfp) { return nil }
      let page = cache.base!
      var offset = cache.offset - bytes
      if offset < 0 {
        pages[Int(page)].refcount &-= cache.bias
        if pages[Int(page)].refcount != 0 {
          // Fragments still in use keep the page alive; the cache forgets it.
          cache.base = nil
          continue
        }
        if cache.pfmemalloc {
          freeBlock(cpu: cpu, pfn: page, order: orderOfPage(page))
          cache.base = nil
          continue
        }
        pages[Int(page)].refcount = 32769
        cache.bias = 32769
        offset = cache.size - bytes
        if offset < 0 { return nil }
      }
      cache.bias -= 1
      cache.offset = offset & alignMask
      return UInt64(page) * 4096 + UInt64(cache.offset)
    }
  }

  private func fragRefill(cpu: Int, cache: inout FragCache, gfp: UInt32) -> Bool {
    let bigGFP = gfp | GFP.comp | GFP.nowarn | GFP.noretry | GFP.nomemalloc
    cache.base = allocPages(cpu: cpu, gfp: bigGFP, order: 3)
    cache.size = 32768
    if cache.base == nil {
      cache.base = allocPages(cpu: cpu, gfp: gfp, order: 0)
      cache.size = 4096
    }
    guard let page = cache.base else { return false }
    pages[Int(page)].refcount &+= 32768
    cache.bias = 32769
    cache.offset = cache.size
    cache.pfmemalloc = pages[Int(page)].pfmemalloc
    return true
  }

  func fragFree(cpu: Int, address: UInt64) {
    fragDrain(cpu: cpu, pfn: head(UInt32(address / 4096)), count: 1)
  }

  /// Gives back `count` references at once.
  func fragDrain(cpu: Int, pfn: UInt32, count: Int32) {
    pages[Int(pfn)].refcount &-= count
    if pages[Int(pfn)].refcount == 0 { freeBlock(cpu: cpu, pfn: pfn, order: orderOfPage(pfn)) }
  }

  /// Ends the use of a cache: its unused references go back, fragments in use keep the page.
  func fragDrain(cpu: Int, cache: inout FragCache) {
    guard let page = cache.base else { return }
    fragDrain(cpu: cpu, pfn: page, count: cache.bias)
    cache.base = nil
  }
}
