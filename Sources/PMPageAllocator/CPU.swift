internal import CPhysmemShim
internal import PMFrames
public import PMUnits

/// One CPU of a machine: the only way to allocate and to free.
///
/// A CPU owns per-CPU lists of every zone and touches them without a lock, so one thread at a time
/// may use it. The type holds that: it cannot be copied, its operations are mutating, and a machine
/// hands each CPU out once until it is given back (by going out of scope). Move it to another thread
/// freely. Several CPUs share the zones under a lock per zone.
///
/// Operations stop the process with a message on misuse that no kernel run could contain: a PFN
/// outside every zone, an order outside 0...10 in a free, a block that is not aligned to its order.
/// What a kernel run could contain, such as a double free, is done as the kernel does it and
/// reported in the machine's ``Machine/findings``.
public struct CPU: ~Copyable, @unchecked Sendable {
  // Sendable: the pointers lead to per-CPU state that only the holder of this value touches, and to
  // shared state that is atomic or under a zone's lock. The machine is kept alive by the reference.

  /// The machine this CPU belongs to.
  public let machine: Machine
  /// The CPU's number in its machine, from 0.
  public let index: Int
  /// The NUMA node of the CPU.
  public let node: Int
  let core: Core
  let freePagesForm: KernelModel.FreePages
  /// Called between the decrement and the reading of the head mark in the form of `__free_pages`
  /// that has the race there; nil otherwise and by default. An explorer or a test runs the other
  /// side of the race in it.
  public var betweenPutAndHeadRead: ((PFN) -> Void)?
  /// Called at every free of a block, before its pages are tested, with its first page, order and
  /// count; nil by default. Mirrors the trace event `mm_page_free`.
  public var pageFreeEvent: ((PFN, _ order: Int, _ refcount: Int32) -> Void)?
  /// Which of this CPU's allocations fail although there is memory; nil, the default: none. Setting it
  /// starts the budget, the calls and the random numbers anew.
  ///
  /// It is asked where the kernel asks: by every allocation that chooses its page, and by a bulk
  /// allocation once for the bulk. ``allocateContiguous(_:count:)`` takes pages that its caller chose
  /// and never fails so, nor does a request with `.noFail`. A failure is the error that the same
  /// request would give where memory is short; ``injectedFailureCount`` tells them apart.
  public var failPageAlloc: AllocationFaults? {
    didSet {
      faultState = AllocationFaultState(failPageAlloc, seed: failPageAllocSeed)
      route = .none(core)
    }
  }
  /// Where the random numbers of ``failPageAlloc`` start: the same seed, faults and requests give the
  /// same failures. Setting it starts everything anew.
  public var failPageAllocSeed: UInt64 = 0 {
    didSet { faultState = AllocationFaultState(failPageAlloc, seed: failPageAllocSeed) }
  }
  /// How many allocations ``failPageAlloc`` made fail since the CPU was claimed.
  public internal(set) var injectedFailureCount: Int = 0
  var faultState = AllocationFaultState(nil, seed: 0)
  var route: AllocationRoute
  /// Where the frame that was freed last lies, most likely also the next.
  var home: FreeRoute

  init(machine: Machine, index: Int, node: Int, core: Core) {
    self.machine = machine
    self.index = index
    self.node = node
    self.core = core
    freePagesForm = machine.model.freePages
    route = .none(core)
    home = FreeRoute(core, core.segments)
  }

  deinit { machine.giveBack(cpu: index) }

  // MARK: allocating

  /// Allocates 2^order frames on the CPU's node, or on another where that has none. The first frame
  /// has a count of 1, the others 0; with `.comp` the block becomes a compound page. Contents are as
  /// they were, unless `.zero` is given. Mirrors `alloc_pages`, Linux 6.1, default memory policy.
  @discardableResult
  public mutating func allocatePages(
    order: Int = 0, gfp: GFP = .kernel
  ) throws(AllocationError) -> PFN {
    if order == 0 {
      let index = allocateSingle(gfp: gfp.rawValue)
      if index != Core.none { return PFN(index) }
    } else if order >= 4, order != 9 {
      return try allocateBuddy(order: order, gfp: gfp)
    }
    return try allocatePages(order: order, gfp: gfp, node: node)
  }

  /// The same with a preferred node. Mirrors `__alloc_pages(gfp, order, nid, NULL)`.
  @discardableResult @inline(never)
  public mutating func allocatePages(
    order: Int = 0, gfp: GFP = .kernel, node: Int
  ) throws(AllocationError) -> PFN {
    guard node >= 0, node < machine.nodeCount else { throw .noZone }
    let index = allocate(order: order, gfp: gfp.rawValue, node: node)
    if index == Core.none { throw failure(order: order, gfp: gfp, node: node) }
    return PFN(index)
  }

  /// Allocates a folio: ``allocatePages(order:gfp:)`` with `.comp`. Mirrors `folio_alloc`.
  @discardableResult
  public mutating func allocateFolio(
    order: Int, gfp: GFP = .kernel
  ) throws(AllocationError) -> PFN {
    try allocatePages(order: order, gfp: gfp.union(.comp))
  }

  /// The engine's entry; `Core.none` where no page was found or the request is not valid.
  @inline(__always)
  mutating func allocate(order: Int, gfp: UInt32, node: Int) -> UInt32 {
    let flags = gfp & GFP.allowedMask
    let type = (flags >> 3) & 3
    guard UInt(bitPattern: order) <= 10, type != 3 else { return Core.none }
    if shouldFail(order: UInt32(truncatingIfNeeded: order), gfp: flags) { return Core.none }
    let request = Core.Request(
      order: UInt32(truncatingIfNeeded: order), gfp: flags,
      type: core.isMobilityDisabled ? 0 : UInt8(truncatingIfNeeded: type),
      highest: GFP(rawValue: flags).highestZoneIndex,
      zonelist: node &* 2 &+ Int((flags >> 21) & 1))
    guard core.zonelistStart(request) != core.zonelistEnd(request) else { return Core.none }
    if gfp != route.gfp, node == self.node { noteRoute(request, gfp: gfp) }
    return core.allocate(request)
  }

  /// Why there was no page. Only called where there was none.
  @inline(never)
  func failure(order: Int, gfp: GFP, node: Int) -> AllocationError {
    guard UInt(bitPattern: order) <= 10 else {
      if !gfp.contains(.noWarn) { machine.findings.warnOnce("order above 10 requested") }
      return .invalidOrder(order)
    }
    guard gfp.migratetype != nil else { return .invalidMigratetype }
    let zonelist = node * 2 + (gfp.contains(.thisNode) ? 1 : 0)
    let bounds = core.zonelistBounds + zonelist * 8
    if bounds[gfp.highestZoneIndex] == bounds[7] { return .noZone }
    return gfp.contains(.directReclaim) ? .wouldReclaim : .outOfMemory
  }

  // MARK: freeing

  /// Drops a reference to a block's first frame and frees the block if it was the last. If it was
  /// not and the block is no compound page, the rest of the block is freed piece by piece, the upper
  /// half first; the first frame is left to whoever still holds it. Mirrors `__free_pages`, in the
  /// form that the machine's ``KernelModel`` says.
  ///
  /// The order is trusted, as in the kernel. A count that was 0 already becomes -1, which counts as
  /// "not the last": a finding, and the pieces are freed again.
  @inline(__always)
  public mutating func freePages(_ pfn: PFN, order: Int) {
    let index = pfn.rawValue
    if order == 0, index &- home.start < home.count {
      pm_prefetch_write(core.link(index))
      let isHead = core.state(index) & FrameState.head != 0
      if pm_refcount_dec_and_test_seq_cst(core.counts[index]) {
        freeSingle(index)
      } else {
        freePieces(home.zone, index, order: 0, wasHead: isHead)
      }
      return
    }
    freeBlock(index, order: order)
  }

  /// The same for a block, or for a frame elsewhere than the last one.
  @inline(never)
  mutating func freeAnyBlock(_ index: UInt32, order: Int) {
    let zone = checkedZone(of: index, order: order)
    let width = UInt32(truncatingIfNeeded: order)
    // The link is written after the locked decrement, which waits for earlier stores: fetched now,
    // its cache miss overlaps with that of the count.
    pm_prefetch_write(core.link(index))
    let isHead = core.state(index) & FrameState.head != 0
    if pm_refcount_dec_and_test_seq_cst(core.counts[index]) {
      noteFree(index, order: width)
      core.free(zone, index, order: width)
    } else {
      freePieces(zone, index, order: width, wasHead: isHead)
    }
  }

  /// Frees listed blocks of one order, one after another, as ``freePages(_:order:)`` does. Faster than
  /// single calls where the blocks are cold, because their lines are fetched ahead.
  public mutating func freePages(_ pfns: UnsafeBufferPointer<PFN>, order: Int) {
    let ahead = Int(Core.fetchDistance)
    let limit = UInt32(truncatingIfNeeded: core.frameLimit)
    for index in pfns.indices {
      if index + ahead < pfns.count {
        let coming = pfns[index + ahead].rawValue
        if coming < limit { core.fetchFrame(coming) }
      }
      freePages(pfns[index], order: order)
    }
  }

  @inline(never)
  mutating func freePieces(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, wasHead: Bool
  ) {
    reportUnderflow(index)
    var isHead = wasHead
    switch freePagesForm {
    case .beforeTailFix: return
    case .headReadAfterPut:
      betweenPutAndHeadRead?(PFN(index))
      isHead = core.state(index) & FrameState.head != 0
    case .headReadBeforePut: break
    }
    guard !isHead else { return }
    var piece = order
    while piece > 0 {
      piece -= 1
      if pm_planted(PM_PLANTED_SPLIT_LOSES_HALF), piece == order - 1 { continue }
      noteFree(index + 1 << piece, order: piece)
      core.free(zone, index + 1 << piece, order: piece)
    }
  }

  /// The trace event of a free.
  @inline(__always)
  func noteFree(_ index: UInt32, order: UInt32) {
    if let pageFreeEvent {
      pageFreeEvent(PFN(index), Int(order), pm_refcount_load_relaxed(core.counts[index]))
    }
  }

  func reportUnderflow(_ index: UInt32) {
    let count = pm_refcount_load_relaxed(core.counts[index])
    if count < 0 {
      core.markUnusual(index)
      machine.findings.append(.refcountUnderflow(pfn: PFN(index), count: count))
    }
  }

  // MARK: zones

  /// The zone of a frame; stops the process where no zone has it.
  @inline(__always)
  mutating func zone(of index: UInt32) -> UnsafeMutablePointer<pm_zone> {
    if index &- home.start >= home.count { goHome(to: index) }
    return home.zone
  }

  @inline(never)
  private mutating func goHome(to index: UInt32) {
    guard let segment = core.segment(containing: index) else {
      fatalError("PFN \(PFN(index)) is in no zone of the machine")
    }
    home = FreeRoute(core, segment)
  }

  /// The same for a block, with its order and alignment checked.
  @inline(__always)
  mutating func checkedZone(of index: UInt32, order: Int) -> UnsafeMutablePointer<pm_zone> {
    let mask = (UInt32(1) << UInt32(truncatingIfNeeded: order)) &- 1
    if UInt(bitPattern: order) > 10 || index & mask != 0 {
      CPU.misuse(index, order: order)
    }
    return zone(of: index)
  }

  @inline(never)
  private static func misuse(_ index: UInt32, order: Int) -> Never {
    if order < 0 || order > Order.max { fatalError("order \(order): expected 0 to \(Order.max)") }
    fatalError("PFN \(PFN(index)) is not aligned to order \(order)")
  }
}

extension Core {
  /// Frees a block whose last reference is gone. Mirrors `free_the_page`.
  @inline(__always)
  func free(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32) {
    if Core.isPerCPUOrder(order) {
      freePerCPU(zone, index, order: order)
    } else {
      freeToBuddy(zone, index, order: order)
    }
  }
}
