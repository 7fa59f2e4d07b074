/// A slow model of the page allocator of Linux 6.1, written from the behavioural specification
/// alone.
///
/// It is the oracle of a lockstep test, so every rule is spelled out with plain arrays and
/// searches, even where a search could be avoided. Numbers in parentheses are sections of the
/// specification.
///
/// Single-threaded. Lists are arrays whose element 0 is the end the allocator takes from.
final class ReferenceModel {

  // MARK: Types

  /// One zone of one node. Watermarks are raw; `boost` is added wherever a watermark is used (1.8).
  struct Zone {
    var node: Int
    /// 0 DMA, 1 DMA32, 2 Normal, 3 Movable.
    var kind: Int
    var start: UInt32
    var spanned: UInt32
    var present: [Range<UInt32>]
    var managed = 0
    var min = 0
    var low = 0
    var high = 0
    var boost = 0
    /// `nr_reserved_highatomic`, in pages.
    var highatomic = 0
    var boostedFlag = false
    /// Never set by the model; only the limit of a per-CPU list depends on it (6.5).
    var reclaimActive = false
    var lowmemReserve = [0, 0, 0, 0, 0]
    /// Global NR_FREE_PAGES, without the differences pending on the CPUs (1.6).
    var free = 0
    var nrIsolate = 0
    /// `lists[order][migratetype]`: first pages of free blocks, head to tail.
    var lists = [[[UInt32]]](repeating: [[UInt32]](repeating: [], count: 5), count: 11)

    func spans(_ pfn: UInt32) -> Bool {
      pfn >= start && UInt64(pfn) < UInt64(start) + UInt64(spanned)
    }
    func isPresent(_ pfn: UInt32) -> Bool { present.contains { $0.contains(pfn) } }
    var presentPages: Int { present.reduce(0) { $0 + $1.count } }
  }

  /// The per-CPU lists of one zone, and the CPU's pending difference of that zone's free counter.
  struct PageSet {
    var count = 0
    var high = 0
    var batch = 1
    var freeFactor = 0
    var statDiff = 0
    var statThreshold = 0
    /// 14 lists (1.9). The migratetype is the one cached with the page; it decides where a drain
    /// puts it.
    var lists = [[(pfn: UInt32, migratetype: Int)]](repeating: [], count: 14)
  }

  struct Node {
    /// Indices into `zones`.
    var fallback: [Int] = []
    var thisnode: [Int] = []
    var kswapdOrder = 0
    /// 5 stands for "none" (3.7).
    var kswapdHighestZoneIndex = 5
  }

  struct Page {
    var refcount: Int32 = 0
    /// The raw field: -1 means not mapped.
    var mapcount: Int32 = -1
    var flags: UInt32 = 0
    var headPFN: UInt32 = 0
    var mapping: UInt64 = 0
    var memcg: UInt64 = 0
    /// Meaningful while `isHead`; kept when a compound block is refused at free (8.1 step 8).
    var compoundOrder = 0
    var isTail = false
    /// Non-nil exactly on the first page of a free block (1.1).
    var buddyOrder: Int?
    var cachedMigratetype = 0
    /// On an LRU list or movable by a driver, as given by a snapshot; counted by a steal (5.7).
    var classL = false
    /// Allocated while watermarks were ignored (3.4).
    var pfmemalloc = false

    /// PG_head is an ordinary flag bit, so the flag tests of section 8 see it.
    var isHead: Bool {
      get { flags & Flag.head != 0 }
      set { if newValue { flags |= Flag.head } else { flags &= ~Flag.head } }
    }
  }

  /// How `__free_pages` treats a block whose count does not reach zero (11).
  enum FreePagesModel {
    /// Before e320d3012d25: the tail pieces are never freed.
    case headNeverChecked
    /// e320d3012d25 up to 462a8e08e0e6: PG_head is read after the decrement.
    case headSampledAfter
    /// From 462a8e08e0e6 on: PG_head is read before the decrement.
    case headSampledBefore
  }

  /// A `__free_pages` call stopped between its decrement and its second look at the page (11.2).
  struct FreeInFlight {
    var pfn: UInt32
    var order: Int
    var reachedZero: Bool
    /// nil if this variant of the function has not looked yet.
    var sampledHead: Bool?
  }

  /// State of a page fragment cache (6.13).
  struct FragCache {
    var base: UInt32?
    var offset = 0
    var size = 0
    var bias: Int32 = 0
    var pfmemalloc = false
  }

  enum Flag {
    static let lru: UInt32 = 1 << 4
    static let active: UInt32 = 1 << 5
    static let workingset: UInt32 = 1 << 6
    static let error: UInt32 = 1 << 8
    static let head: UInt32 = 1 << 16
    static let unevictable: UInt32 = 1 << 20
    static let mlocked: UInt32 = 1 << 21
    static let hwpoison: UInt32 = 1 << 23
    static let checkedAtFree: UInt32 = 0x3830_f231
    static let clearedAtFree: UInt32 = 0x3f7f_ffff
    static let checkedAtAlloc: UInt32 = 0x3fff_ffff
  }

  enum GFP {
    static let movableBit: UInt32 = 0x8
    static let reclaimableBit: UInt32 = 0x10
    static let highmem: UInt32 = 0x2
    static let high: UInt32 = 0x20
    static let atomic: UInt32 = 0x200
    static let directReclaim: UInt32 = 0x400
    static let kswapdReclaim: UInt32 = 0x800
    static let nowarn: UInt32 = 0x2000
    static let noretry: UInt32 = 0x1_0000
    static let memalloc: UInt32 = 0x2_0000
    static let comp: UInt32 = 0x4_0000
    static let nomemalloc: UInt32 = 0x8_0000
    static let thisnode: UInt32 = 0x20_0000
    static let allowed: UInt32 = 0x7ff_ffff
  }

  enum Migrate {
    static let unmovable = 0
    static let movable = 1
    static let reclaimable = 2
    static let highatomic = 3
    static let isolate = 4
  }

  static let maxOrder = 10
  static let pageblockOrder = 9
  static let pageblockPages: UInt32 = 512

  // MARK: State

  var zones: [Zone] = []
  var nodes: [Node] = []
  var cpuNode: [Int] = []
  /// `pageSets[cpu][zone index]`.
  var pageSets: [[PageSet]] = []
  /// Indexed by PFN.
  var pages: [Page]
  /// Keyed by PFN / 512. A missing key means there is no memory section.
  var pageblocks: [UInt32: Int] = [:]

  var freePagesModel = FreePagesModel.headSampledBefore
  var watermarkBoostFactor = 15000
  var mobilityGroupingDisabled = false

  /// How far a free factor grows (6.5). Only the check of the lockstep itself changes it.
  var freeFactorCap = 5
  /// Whether a block whose next merge waits for one neighbour is used last (6.6). Only the check of
  /// the lockstep itself changes it.
  var hasTailRule = true

  /// The last allocation gave up only because direct reclaim is outside the model.
  var lastWouldReclaim = false
  /// The last allocation asked for MOVABLE and RECLAIMABLE together (2.2).
  var lastRejected = false
  /// Every "bad page" report in order, without the kernel's rate limit (8.4).
  var badPages: [(pfn: UInt32, reason: String)] = []
  /// Set once lists can no longer be trusted (a block inserted twice, or unlinked where it is not).
  /// The kernel would stop with BUG or corrupt its links (8.5); nothing after that can be compared.
  var kernelBug: String?

  /// First pages of everything that is on some list; exists only to notice a second insertion.
  var listed: Set<UInt32> = []

  // MARK: Building a state

  init(endPFN: UInt32, zones: [Zone], nodes: [Node], cpuNode: [Int]) {
    self.pages = [Page](repeating: Page(), count: Int(endPFN))
    self.zones = zones
    self.nodes = nodes
    self.cpuNode = cpuNode
    self.pageSets = [[PageSet]](
      repeating: [PageSet](repeating: PageSet(), count: zones.count), count: cpuNode.count)
  }

  /// Puts a block at the tail of a free list without merging and without touching the counter.
  func placeFreeBlock(zone: Int, order: Int, migratetype: Int, pfn: UInt32) {
    noteListed(pfn)
    pages[Int(pfn)].buddyOrder = order
    zones[zone].lists[order][migratetype].append(pfn)
  }

  /// Puts a block at the tail of a per-CPU list and counts it.
  func placePerCPU(
    cpu: Int, zone: Int, index: Int, pfn: UInt32, migratetype: Int, refcount: Int32 = 0
  ) {
    noteListed(pfn)
    pages[Int(pfn)].refcount = refcount
    pages[Int(pfn)].cachedMigratetype = migratetype
    pageSets[cpu][zone].lists[index].append((pfn, migratetype))
    pageSets[cpu][zone].count += 1 << Self.orderOfList(index)
  }

  // MARK: Small helpers

  /// Only these orders use the per-CPU lists (4.1).
  static func isPerCPUOrder(_ order: Int) -> Bool { order <= 3 || order == pageblockOrder }

  /// Unmovable and reclaimable blocks of order 9 share list 12 (1.9).
  static func listIndex(migratetype: Int, order: Int) -> Int {
    if order <= 3 { return 3 * order + migratetype }
    return migratetype == Migrate.movable ? 13 : 12
  }

  static func orderOfList(_ index: Int) -> Int { index <= 11 ? index / 3 : pageblockOrder }

  func zoneIndex(of pfn: UInt32) -> Int? { zones.firstIndex { $0.spans(pfn) && $0.isPresent(pfn) } }

  /// The first page of the compound block the page is in, else the page itself (1.3).
  func head(_ pfn: UInt32) -> UInt32 {
    pages[Int(pfn)].isTail ? pages[Int(pfn)].headPFN : pfn
  }

  func orderOfPage(_ pfn: UInt32) -> Int {
    pages[Int(pfn)].isHead ? pages[Int(pfn)].compoundOrder : 0
  }

  func pageblockType(_ pfn: UInt32) -> Int {
    pageblocks[pfn / Self.pageblockPages] ?? Migrate.unmovable
  }

  func setPageblockType(_ pfn: UInt32, _ type: Int) {
    pageblocks[pfn / Self.pageblockPages] =
      mobilityGroupingDisabled && type < 3 ? Migrate.unmovable : type
  }

  func bug(_ text: String) { if kernelBug == nil { kernelBug = text } }

  private func noteListed(_ pfn: UInt32) {
    if !listed.insert(pfn).inserted { bug("list_add of listed page \(String(pfn, radix: 16))") }
  }

  // MARK: Counter and list primitives

  /// A change reaches the global counter only when the CPU's pending difference exceeds the
  /// threshold (1.6).
  func addToFreeCounter(cpu: Int, zone: Int, _ delta: Int) {
    let x = delta + pageSets[cpu][zone].statDiff
    if abs(x) > pageSets[cpu][zone].statThreshold {
      zones[zone].free += x
      pageSets[cpu][zone].statDiff = 0
    } else {
      pageSets[cpu][zone].statDiff = x
    }
  }

  func addToFreeList(zone: Int, pfn: UInt32, order: Int, migratetype: Int, toTail: Bool) {
    noteListed(pfn)
    pages[Int(pfn)].buddyOrder = order
    // The list links share a word with the tail mark (1.1).
    pages[Int(pfn)].isTail = false
    if toTail {
      zones[zone].lists[order][migratetype].append(pfn)
    } else {
      zones[zone].lists[order][migratetype].insert(pfn, at: 0)
    }
  }

  private func unlink(zone: Int, pfn: UInt32, order: Int) {
    for migratetype in 0..<5 {
      if let i = zones[zone].lists[order][migratetype].firstIndex(of: pfn) {
        zones[zone].lists[order][migratetype].remove(at: i)
        listed.remove(pfn)
        return
      }
    }
    bug("list_del of unlisted block \(String(pfn, radix: 16)) order \(order)")
  }

  /// A block may sit on a list of another type than its pageblock, hence the search (5.5, 6.6).
  func deleteFromFreeList(zone: Int, pfn: UInt32, order: Int) {
    unlink(zone: zone, pfn: pfn, order: order)
    pages[Int(pfn)].buddyOrder = nil
  }

  /// Always to the back, even if it already is on that list (1.7).
  func moveToFreeList(zone: Int, pfn: UInt32, order: Int, migratetype: Int) {
    unlink(zone: zone, pfn: pfn, order: order)
    addToFreeList(zone: zone, pfn: pfn, order: order, migratetype: migratetype, toTail: true)
  }

  func addToPerCPUList(
    cpu: Int, zone: Int, index: Int, pfn: UInt32, migratetype: Int, toTail: Bool
  ) {
    noteListed(pfn)
    pages[Int(pfn)].isTail = false
    pages[Int(pfn)].cachedMigratetype = migratetype
    if toTail {
      pageSets[cpu][zone].lists[index].append((pfn, migratetype))
    } else {
      pageSets[cpu][zone].lists[index].insert((pfn, migratetype), at: 0)
    }
  }

  // MARK: The page test

  /// nil if the page looks free. Otherwise the reason of the last failing test (8.2).
  func badReason(_ pfn: UInt32, atFree: Bool) -> String? {
    let page = pages[Int(pfn)]
    var reason: String?
    // The buddy mark lives in the mapcount word.
    if page.mapcount != -1 || page.buddyOrder != nil { reason = "nonzero mapcount" }
    if page.mapping != 0 { reason = "non-NULL mapping" }
    if page.refcount != 0 { reason = "nonzero _refcount" }
    if page.flags & (atFree ? Flag.checkedAtFree : Flag.checkedAtAlloc) != 0 {
      reason =
        atFree
        ? "PAGE_FLAGS_CHECK_AT_FREE flag(s) set" : "PAGE_FLAGS_CHECK_AT_PREP flag(s) set"
    }
    if page.memcg != 0 { reason = "page still charged to cgroup" }
    return reason
  }

  func report(_ pfn: UInt32, _ reason: String) {
    badPages.append((pfn, reason))
    resetMapcount(pfn)
  }

  /// Also erases a buddy mark, which shares the word (8.4).
  func resetMapcount(_ pfn: UInt32) {
    pages[Int(pfn)].mapcount = -1
    pages[Int(pfn)].buddyOrder = nil
  }

  /// Test of a block leaving the buddy lists: every page, stopping at the first bad one (8.3).
  func isBlockGoodForAllocation(_ pfn: UInt32, order: Int) -> Bool {
    for p in pfn..<(pfn + (1 << UInt32(order))) {
      guard let reason = badReason(p, atFree: false) else { continue }
      if pages[Int(p)].flags & Flag.hwpoison != 0 {
        resetMapcount(p)
      } else {
        report(p, reason)
      }
      return false
    }
    return true
  }
}
