import PMPageAllocator
import PMUnits

/// Makes up operations, in phases: memory fills up with one mobility, is freed at random, and fills
/// up with another, so that it is nearly exhausted part of the time and pageblocks get mixed.
struct LockstepGenerator {
  /// What the generator holds.
  struct Block {
    enum Kind: Hashable {
      case plain
      case compound
      case exact(bytes: Int)
    }
    var pfn: UInt32
    var order: Int
    var kind: Kind
    /// References beyond the first.
    var extra: Int32 = 0
    /// Marked as on an LRU list.
    var isLRU = false
    /// References on pages other than the first: the block will be leaked.
    var hasTailReference = false

    var frames: Int {
      if case .exact(let bytes) = kind { return (bytes + 4095) / 4096 }
      return 1 << order
    }
  }

  /// A stretch of operations of one character.
  struct Phase {
    var left: Int
    /// Of a hundred operations, how many allocate; of the others, how many free.
    var allocates: Int
    var frees: Int
    /// The mobility bits of most requests.
    var mobility: GFP
    var largestOrder: Int
    var failures = 0
  }

  var rng: SplitMix64
  var blocks: [Block] = []
  /// Frames that nobody owns because the kernel leaks them.
  var leakedFrames = 0
  /// What was freed lately, for double frees.
  var freed: [(pfn: UInt32, order: Int)] = []
  /// What has to come next.
  var queue: [LockstepOperation] = []
  var phase = Phase(left: 0, allocates: 0, frees: 0, mobility: [], largestOrder: 0)
  let zones: [ReferenceModel.Zone]
  let nodeCount: Int
  let isHazardous: Bool
  private var isFilling = false

  init(model: ReferenceModel, isHazardous: Bool, rng: SplitMix64) {
    self.rng = rng
    self.isHazardous = isHazardous
    zones = model.zones
    nodeCount = model.nodes.count
  }

  var heldFrames: Int { blocks.reduce(0) { $0 + $1.frames } }

  // MARK: choosing

  mutating func next() -> LockstepOperation {
    if let operation = queue.popLast() { return operation }
    phase.left -= 1
    if phase.left <= 0 || phase.failures > 12 { startPhase() }
    if isHazardous, rng.oneIn(40), let operation = hazard() { return operation }
    let choice = rng.below(100)
    if choice < phase.allocates || blocks.isEmpty { return allocation() }
    if choice < phase.allocates + (100 - phase.allocates) * phase.frees / 100 { return free() }
    return other()
  }

  private mutating func startPhase() {
    isFilling.toggle()
    let kind = rng.below(10)
    phase = Phase(
      left: 50 + rng.below(isFilling ? 1500 : 900),
      allocates: isFilling ? (kind < 7 ? 85 : 60) : (kind < 5 ? 10 : 45), frees: 80,
      mobility: rng.pick([[], .movable, .reclaimable, [.movable, .highmem]]),
      largestOrder: rng.pick([0, 2, 3, 5, 10, 10]))
  }

  private mutating func gfp(order: Int) -> GFP {
    var gfp: GFP = rng.pick([
      .noWait, .noWait, .noWait, .atomic, .atomic, .kernel, GFP(rawValue: 0),
      GFP.noWait.union(.high), GFP.kernel.union(.high), GFP.atomic.union(.directReclaim),
    ])
    gfp.formUnion(
      rng.chance(85)
        ? phase.mobility : rng.pick([[], .movable, .reclaimable, [.movable, .highmem], .highmem]))
    if rng.oneIn(12) { gfp.formUnion(rng.pick([.dma, .dma32])) }
    if rng.oneIn(15) { gfp.formUnion(.noMemalloc) }
    if rng.oneIn(40) { gfp.formUnion(.memalloc) }
    if rng.oneIn(12) { gfp.formUnion(.thisNode) }
    if order > 0, rng.chance(35) { gfp.formUnion(.comp) }
    if rng.oneIn(500) { gfp.formUnion([.movable, .reclaimable]) }
    return gfp
  }

  private mutating func order() -> Int {
    switch rng.below(20) {
    case 0..<11: return min(rng.below(4), phase.largestOrder)
    case 11..<16: return 0
    case 16: return phase.largestOrder < 9 ? 1 : 9
    case 17 where rng.oneIn(20): return 11
    default: return rng.below(phase.largestOrder + 1)
    }
  }

  private mutating func allocation() -> LockstepOperation {
    let order = order()
    let gfp = gfp(order: order)
    switch rng.below(20) {
    case 0, 1: return .folio(order: order, gfp: gfp)
    case 2:
      let count = rng.pick([1, 2, 5, 20, 80, 150])
      let presetPercent = rng.pick([0, 0, 30, 90])
      return .bulk(preset: (0..<count).map { _ in rng.chance(presetPercent) }, gfp: gfp)
    case 3:
      let limit = min(phase.largestOrder, 6)
      return .exact(bytes: rng.below(4096 << limit) + rng.below(2), gfp: gfp)
    default:
      let node = rng.oneIn(6) ? rng.below(nodeCount) : nil
      return .allocate(order: order, gfp: gfp, node: node)
    }
  }

  private mutating func free() -> LockstepOperation {
    // Mostly anywhere, sometimes the youngest, so that both lists and buddies get used.
    let index = rng.chance(75) ? rng.below(blocks.count) : blocks.count - 1
    let block = blocks[index]
    switch block.kind {
    case .exact(let bytes): return .freeExact(block.pfn, bytes: bytes)
    case .compound where rng.chance(50):
      return .put(block.pfn + UInt32(rng.below(1 << block.order)))
    case .plain where block.order == 0 && rng.chance(40):
      return rng.chance(50) ? .put(block.pfn) : release()
    case .plain where block.order > 0 && rng.oneIn(300): return .put(block.pfn)
    case .compound where rng.chance(20): return release()
    default:
      if block.isLRU, block.order > 0 {
        // The kernel takes a page off its list before it frees a block.
        queue.append(.free(block.pfn, order: block.order))
        return .setFlags(block.pfn, [])
      }
      return .free(block.pfn, order: block.order)
    }
  }

  private mutating func release() -> LockstepOperation {
    var pfns: [UInt32] = []
    var taken: Set<UInt32> = []
    for _ in 0..<(1 + rng.below(20)) {
      let block = blocks[rng.below(blocks.count)]
      let isWhole = block.kind == .compound || (block.kind == .plain && block.order == 0)
      if isWhole, taken.insert(block.pfn).inserted {
        pfns.append(block.pfn + (block.kind == .compound ? UInt32(rng.below(1 << block.order)) : 0))
      }
    }
    return .release(pfns)
  }

  private mutating func other() -> LockstepOperation {
    let block = blocks[rng.below(blocks.count)]
    // A block with a referenced tail and a second owner would be leaked in part only.
    if block.hasTailReference { return allocation() }
    let tail = block.pfn + UInt32(rng.below(1 << block.order))
    switch rng.below(14) {
    case 0: return .drain(zone: rng.chance(50) ? nil : rng.below(zones.count))
    case 1: return .getUnlessZero(tail)
    case 2:
      let frame = anyFrame()
      if let index = index(of: frame), blocks[index].hasTailReference { return allocation() }
      return .getUnlessZero(frame)
    case 3: return .tryGet(block.kind == .compound ? tail : block.pfn)
    case 4:
      let expected = 1 + block.extra + (rng.oneIn(4) ? 1 : 0)
      if expected == 1 + block.extra { queue.append(.unfreeze(block.pfn, to: expected)) }
      return .freeze(block.pfn, expected: expected)
    case 5 where block.kind == .plain && block.order > 0 && block.extra == 0 && rng.oneIn(8):
      return .add(tail, 1)
    case 6 where block.kind == .plain && block.order > 0 && block.extra == 0:
      return .split(block.pfn, order: block.order)
    case 7, 8:
      return .setFlags(block.pfn, block.isLRU && rng.chance(50) ? [] : [.lru])
    case 9: return .setDetails(block.pfn, mapcount: -1, mapping: 2, memcg: 0)
    case 10 where block.kind == .compound && block.extra > 0:
      return .putMany(block.pfn, count: block.extra)
    default: return .get(block.kind == .compound ? tail : block.pfn)
    }
  }

  /// A frame of any zone.
  mutating func anyFrame() -> UInt32 {
    let zone = zones[rng.below(zones.count)]
    let run = zone.present[rng.below(zone.present.count)]
    return run.lowerBound + UInt32(rng.below(run.count))
  }
}
