internal import PMFrames
public import PMPageAllocator
public import PMUnits

// References, all through one gate, so that the ledger misses none. A huge page of the pool goes back to
// the pool with its last reference; everything else to the allocator.
extension HostKernel {
  /// Adds a reference to the compound head; the caller knows that there is one already. Mirrors
  /// `get_page`.
  public func get(_ pfn: PFN, _ holder: @autoclosure () -> Holder, on cpu: inout CPU) {
    cpu.getPage(pfn)
    ledger?.get(frames.compoundHead(of: pfn), holder())
  }

  /// Adds a reference to the folio of a page unless its count is 0, and looks again whether the page
  /// still belongs to it. Mirrors `try_get_folio`.
  func tryGetFolio(
    _ pfn: PFN, count: Int32 = 1, _ holder: @autoclosure () -> Holder, on cpu: inout CPU
  ) -> Bool {
    let head = frames.compoundHead(of: pfn)
    guard frames.add(head, count, unless: 0) else { return false }
    ledger?.get(head, holder(), count: Int(count))
    guard frames.compoundHead(of: pfn) == head else {
      // The page left its folio meanwhile, and this may be the folio's last reference now.
      put(head, count: count, holder(), on: &cpu)
      return false
    }
    return true
  }

  /// Adds a reference to this very frame unless its count is 0. Mirrors `get_page_unless_zero`.
  package func getUnlessZero(_ pfn: PFN, _ holder: @autoclosure () -> Holder) -> Bool {
    guard frames.getPageUnlessZero(pfn) else { return false }
    ledger?.get(pfn, holder())
    return true
  }

  /// Adds a reference to the compound head whatever its count is: `get_page` without a look. What KVM did
  /// before 5.13.
  package func getUnchecked(_ pfn: PFN, _ holder: @autoclosure () -> Holder) {
    let head = frames.compoundHead(of: pfn)
    frames.increment(head)
    ledger?.get(head, holder())
  }

  /// Drops a reference to the compound head and frees the page with the last one. Mirrors `put_page`.
  public func put(_ pfn: PFN, _ holder: @autoclosure () -> Holder, on cpu: inout CPU) {
    let head = frames.compoundHead(of: pfn)
    ledger?.put(head, holder())
    if isHugePage(head) {
      putHugePage(head, count: 1)
    } else if machine.zone(of: head) == nil {
      // A hole that has a page: its count may change, but nothing is ever freed.
      frames.subtract(head, 1)
    } else {
      cpu.putPage(head)
    }
  }

  /// Drops `count` references at once. Mirrors `folio_put_refs`.
  func put(_ pfn: PFN, count: Int32, _ holder: @autoclosure () -> Holder, on cpu: inout CPU) {
    let head = frames.compoundHead(of: pfn)
    ledger?.put(head, holder(), count: Int(count))
    if isHugePage(head) {
      putHugePage(head, count: count)
    } else if machine.zone(of: head) == nil {
      frames.subtract(head, count)
    } else {
      cpu.putPage(head, count: count)
    }
  }

  /// Drops one reference to each page, as the end of an unmap does. Mirrors `release_pages`.
  func release(_ pages: [(pfn: PFN, holder: Holder)], on cpu: inout CPU) {
    if let ledger {
      for page in pages { ledger.put(frames.compoundHead(of: page.pfn), page.holder) }
    }
    var small: [PFN] = []
    small.reserveCapacity(pages.count)
    for page in pages {
      let head = frames.compoundHead(of: page.pfn)
      if isHugePage(head) {
        putHugePage(head, count: 1)
      } else if machine.zone(of: head) == nil {
        frames.subtract(head, 1)
      } else {
        small.append(head)
      }
    }
    cpu.releasePages(small)
  }

  // MARK: huge pages of the pool

  /// Whether a head is one of the pool's pages. Only compound pages of order 9 can be.
  @inline(__always)
  func isHugePage(_ head: PFN) -> Bool {
    guard frames.compoundOrder(head) == Order.pageblock else { return false }
    return poolLock.withLock { hugePages.contains(head) }
  }

  /// Adds a fresh huge page to the pool.
  func addHugePage(on cpu: inout CPU) throws(AllocationError) {
    let head = try cpu.allocatePages(order: Order.pageblock, gfp: [.highUserMovable, .comp])
    frames.setRefcount(head, 0)
    poolLock.withLock {
      hugePages.insert(head)
      freeHugePages.append(head)
    }
  }

  /// Takes the page that was freed last out of the pool; its count becomes 1. Mirrors
  /// `dequeue_huge_page`.
  func takeHugePage(_ holder: @autoclosure () -> Holder) -> PFN? {
    guard let head = poolLock.withLock({ freeHugePages.popLast() }) else { return nil }
    frames.setRefcount(head, 1)
    ledger?.get(head, holder())
    return head
  }

  private func putHugePage(_ head: PFN, count: Int32) {
    guard frames.subtractAndTest(head, count) else { return }
    machine.setMapping(0, of: head)
    poolLock.withLock { freeHugePages.append(head) }
  }

  /// Whether the compound page headed by `head` belongs to the pool of huge pages (`PageHuge`).
  public func isHugetlb(_ head: PFN) -> Bool { isHugePage(head) }

  /// Whether the compound page headed by `head` is the huge zero page.
  public func isHugeZeroPage(_ head: PFN) -> Bool { isHugeZero(head) }

  /// Free huge pages of the pool.
  public var freeHugePageCount: Int { poolLock.withLock { freeHugePages.count } }
}
