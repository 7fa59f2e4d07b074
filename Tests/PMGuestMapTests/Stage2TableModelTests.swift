import PMGuestMap
import PMUnits
import Testing

/// Random operations on a tree and on dictionaries, compared step by step.
private struct Stage2Pair {
  let table: Stage2Table
  var model: Stage2Model
  var random: Stage2Random
  var cursor = Stage2Cursor()
  /// Guest frames of a few places that share tables at all levels: low, across a 1 GiB border, at
  /// the top of the tree.
  let places: [UInt64]

  struct Dropped: Equatable {
    var gfn: UInt64
    var level: Int
    var spte: SPTE
  }

  init(levels: Int, seed: UInt64) throws {
    table = try Stage2Table(levels: levels)
    model = Stage2Model(levels: levels)
    random = Stage2Random(seed: seed)
    let top = table.frameLimit
    places = [0, 0x1000, 0x3fe00, 0x40000, 0x7f_fe00, top - 0x400, top - 0x40000]
  }

  mutating func gfn() -> UInt64 { random.pick(places) + UInt64(random.below(0x400)) }

  mutating func range() -> Range<UInt64> {
    let start = gfn()
    let count = random.pick([1, 3, 64, 512, 700, 0x800])
    return start..<min(start + UInt64(count), table.frameLimit)
  }

  mutating func attributes() -> SPTE.Attributes {
    let base = random.pick([SPTE.Attributes.readWrite, .writeProtected, .readOnly])
    guard random.below(4) == 0 else { return base }
    return base.subtracting(.dirty).union(.accessDirtyDisabled)
  }

  mutating func pfn(_ gfn: UInt64, level: Int) -> PFN {
    // Mostly the same page, so that permissions change in place too.
    let shift = random.below(8) == 0 ? 1 << 18 : 0
    let index = Int(gfn & 0xf_ffff) + shift
    return PFN(UInt32(index & ~(SPTE.frames(level: level) - 1)))
  }

  func frames(_ range: Range<UInt64>) -> Range<GFN> {
    GFN(range.lowerBound)..<GFN(range.upperBound)
  }

  func expectDropped(_ seen: [Dropped], _ expected: [(base: UInt64, leaf: Stage2Model.Leaf)]) {
    let wanted = expected.map { Dropped(gfn: $0.base, level: $0.leaf.level, spte: $0.leaf.spte) }
    #expect(seen == wanted)
  }

  mutating func step() -> String {
    switch random.below(20) {
    case 0...3: return install()
    case 4...6: return map()
    case 7: return mapRange()
    case 8...9: return unmap()
    case 10: return unmapRange()
    case 11: return random.below(20) == 0 ? zapAll() : zapInPieces()
    case 12: return replace()
    case 13: return split()
    case 14: return zapHuge()
    case 15...16: return protect()
    case 17: return fastFix()
    case 18: return age()
    default: return access()
    }
  }

  private mutating func install() -> String {
    let gfn = gfn()
    let level = random.pick([1, 1, 2, 2, 3])
    let new = SPTE.makeLeaf(pfn: pfn(gfn, level: level), level: level, attributes())
    let result = table.install(GFN(gfn), level: level, new)
    #expect(result == model.install(gfn, level: level, new))
    return "install \(gfn) level \(level): \(result)"
  }

  private mutating func map() -> String {
    let start = gfn()
    let attributes = attributes()
    for gfn in start..<min(start + UInt64(random.below(40)), table.frameLimit) {
      let pfn = pfn(gfn, level: 1)
      let result = table.map(GFN(gfn), pfn, attributes, &cursor)
      let new = SPTE.makeLeaf(pfn: pfn, level: 1, attributes)
      #expect(result == model.install(gfn, level: 1, new))
    }
    return "map from \(start)"
  }

  private mutating func mapRange() -> String {
    let range = range()
    let attributes = attributes()
    let first = pfn(range.lowerBound, level: 1)
    let done = table.mapRange(
      GFN(range.lowerBound), first, count: range.count, attributes,
      isExclusive: random.below(2) == 0)
    var expected = 0
    for (offset, gfn) in range.enumerated() {
      let new = SPTE.makeLeaf(pfn: first + offset, level: 1, attributes)
      let result = model.install(gfn, level: 1, new)
      guard result == .installed || result == .spurious else { break }
      expected += 1
    }
    #expect(done == expected)
    return "mapRange \(range): \(done)"
  }

  private mutating func unmap() -> String {
    let start = gfn()
    for gfn in start..<min(start + UInt64(random.below(20)), table.frameLimit) {
      let old = table.unmap(GFN(gfn), &cursor)
      let expected = model.find(gfn)
      #expect(old?.spte == expected?.leaf.spte && old?.level == expected?.leaf.level)
      if let expected { model.remove(expected.base) }
    }
    return "unmap from \(start)"
  }

  private mutating func unmapRange() -> String {
    let range = range()
    let expected = model.leaves(in: range)
    if random.below(2) == 0 {
      #expect(table.unmapRange(frames(range)) == expected.count)
    } else {
      var seen: [Dropped] = []
      table.unmapRange(frames(range)) {
        seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
      }
      expectDropped(seen, expected)
    }
    for (base, _) in expected { model.remove(base) }
    return "unmapRange \(range)"
  }

  private mutating func zapInPieces() -> String {
    let range = range()
    let expected = model.leaves(in: range)
    var seen: [Dropped] = []
    var next = GFN(range.lowerBound)
    while next < GFN(range.upperBound) {
      next = table.zapRange(next..<GFN(range.upperBound), atMost: 1 + random.below(100)) {
        seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
      }
    }
    expectDropped(seen, expected)
    for (base, _) in expected { model.remove(base) }
    return "zapRange \(range)"
  }

  private mutating func zapAll() -> String {
    var seen: [Dropped] = []
    table.zapAll { seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2)) }
    expectDropped(seen, model.leaves(in: 0..<table.frameLimit))
    model.removeAll()
    table.reclaimDetachedTables()
    return "zapAll"
  }

  private mutating func replace() -> String {
    let gfn = gfn()
    let level = random.pick([2, 2, 2, 3])
    let new = SPTE.makeLeaf(pfn: pfn(gfn, level: level), level: level, attributes())
    var seen: [Dropped] = []
    let result = table.replaceTableByHuge(GFN(gfn), level: level, new) {
      seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
    }
    if model.hasTable(gfn, level - 1) {
      #expect(result == .installed)
      expectDropped(seen, model.removeTable(gfn, level - 1))
      #expect(model.install(gfn, level: level, new) == .installed)
    } else if let (_, leaf) = model.find(gfn), leaf.level == level {
      #expect(result == .occupiedByLeaf(level: level))
    } else {
      #expect(result == .lostRace)
    }
    if random.below(2) == 0 { table.reclaimDetachedTables() }
    return "replace \(gfn) level \(level): \(result)"
  }

  private mutating func split() -> String {
    let gfn = gfn()
    let found = model.find(gfn)
    // A 1 GiB leaf is split into 512 of 2 MiB, but these not all: the model would grow too large.
    let level = found.map { max(2, $0.leaf.level) } ?? 2
    let restoring = random.below(2) == 0
    let result = table.splitHuge(GFN(gfn), level: level, restoringExecute: restoring)
    if let found, found.leaf.level > 1 {
      #expect(result == .installed)
      model.split(found.base, level: level, restoringExecute: restoring)
    } else {
      #expect(result == .lostRace)
    }
    return "split \(gfn): \(result)"
  }

  private mutating func zapHuge() -> String {
    let gfn = gfn()
    let level = random.pick([2, 3])
    var flushed: [SPTE] = []
    let old = table.zapHugeForSmall(GFN(gfn), level: level) { flushed.append($0) }
    if let found = model.find(gfn), found.leaf.level == level {
      #expect(old == found.leaf.spte && flushed == [found.leaf.spte])
      model.putEmptyTable(found.base, level: level)
    } else {
      #expect(old == nil && flushed.isEmpty)
    }
    return "zapHuge \(gfn) level \(level)"
  }

  /// Changes leaves of the model and says which.
  private mutating func change(
    _ range: Range<UInt64>, minLevel: Int = 1, _ change: (SPTE) -> SPTE
  ) -> [(base: UInt64, leaf: Stage2Model.Leaf)] {
    let changed = model.leaves(in: range).filter {
      $0.leaf.level >= minLevel && change($0.leaf.spte) != $0.leaf.spte
    }
    for (base, leaf) in changed { model.set(base, change(leaf.spte)) }
    return changed
  }

  private static func withoutWrite(_ old: SPTE, alsoMMU: Bool = false) -> SPTE {
    var new = old
    new.isWritable = false
    if alsoMMU { new.isMMUWritable = false }
    return new
  }

  private static func clean(_ old: SPTE) -> SPTE {
    var new = old
    if old.needsWriteProtection { new.isWritable = false } else { new.hasDirtyBit = false }
    return new
  }

  private mutating func protect() -> String {
    let range = range()
    var seen: [Dropped] = []
    var expected: [(base: UInt64, leaf: Stage2Model.Leaf)] = []
    let result: Bool
    switch random.below(3) {
    case 0:
      let minLevel = random.pick([1, 1, 2, 3])
      let alsoMMU = random.below(4) == 0
      result = table.writeProtect(
        frames(range), minLevel: minLevel, clearingMMUWritable: alsoMMU
      ) { seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2)) }
      expected = change(range, minLevel: minLevel) {
        Stage2Pair.withoutWrite($0, alsoMMU: alsoMMU)
      }
    case 1:
      result = table.clearDirty(frames(range)) {
        seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
      }
      expected = change(range) { Stage2Pair.clean($0) }
    default:
      let first = range.lowerBound & ~63
      let mask = random.next() & random.next()
      let isProtecting = random.below(2) == 0
      result = table.reprotect(first: GFN(first), mask: mask, writeProtecting: isProtecting) {
        seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
      }
      for bit in 0..<64 where mask & (1 << UInt64(bit)) != 0 {
        let gfn = first + UInt64(bit)
        guard let found = model.find(gfn), found.leaf.level == 1 else { continue }
        expected += change(gfn..<gfn + 1) {
          isProtecting ? Stage2Pair.withoutWrite($0) : Stage2Pair.clean($0)
        }
      }
    }
    expectDropped(seen, expected)
    #expect(result == !expected.isEmpty)
    return "protect \(range)"
  }

  private mutating func fastFix() -> String {
    let gfn = gfn()
    let write = random.below(3) > 0
    let logsDirty = random.below(2) == 0
    let result = table.fastFix(GFN(gfn), write: write, logsDirty: logsDirty)
    var expected = FastFixResult.giveUp
    if let (base, leaf) = model.find(gfn) {
      var new = leaf.spte.restored
      if write, new.isMMUWritable, leaf.level == 1 || !logsDirty { new.isWritable = true }
      if write ? leaf.spte.isWritable : leaf.spte.isReadable {
        expected = .spurious
      } else if new != leaf.spte, write ? new.isWritable : new.isReadable {
        expected = .fixed(addedWrite: write)
        model.set(base, new)
      }
    }
    #expect(result == expected)
    return "fastFix \(gfn): \(result)"
  }

  private mutating func age() -> String {
    let range = range()
    let isYoung = table.testYoung(frames(range))
    var seen: [Dropped] = []
    let wasYoung = table.age(frames(range)) {
      seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
    }
    let expected = change(range) { $0.aged }
    expectDropped(seen, expected)
    #expect(isYoung == !expected.isEmpty && wasYoung == isYoung)
    return "age \(range)"
  }

  private mutating func access() -> String {
    let gfn = gfn()
    let write = random.below(2) == 0
    let result = table.accessWalk(GFN(gfn), write: write)
    guard let (base, leaf) = model.find(gfn), leaf.spte.isReadable, !write || leaf.spte.isWritable
    else {
      guard case .violation(let spte, _) = result else {
        Issue.record("access to \(gfn): \(result)")
        return "access"
      }
      #expect(spte == (model.find(gfn)?.leaf.spte ?? .empty))
      return "access \(gfn): violation"
    }
    var new = leaf.spte
    if new.hasAccessDirty {
      new.hasAccessedBit = true
      if write { new.hasDirtyBit = true }
    }
    model.set(base, new)
    #expect(result == .granted(new, level: leaf.level))
    return "access \(gfn)"
  }

  mutating func compare() {
    #expect(table.leafCounts == model.counts)
    #expect(table.tableCount == model.tables.count + 1)
    var seen: [Dropped] = []
    table.forEachLeaf(in: table.allFrames) {
      seen.append(Dropped(gfn: $0.rawValue, level: $1, spte: $2))
    }
    expectDropped(seen, model.leaves(in: 0..<table.frameLimit))
    for _ in 0..<32 {
      let gfn = gfn()
      let found = table.lookup(GFN(gfn))
      let expected = model.find(gfn)
      #expect(found?.spte == expected?.leaf.spte && found?.level == expected?.leaf.level)
    }
  }
}

@Suite("Stage-2 tables against a model")
struct Stage2TableModelTests {
  @Test("Random operations do what a dictionary says", arguments: [4, 5])
  func lockstep(levels: Int) throws {
    let steps = Stage2Random.steps(release: 40_000, debug: 4000)
    Stage2Random.announce("Stage2TableModelTests", steps: steps)
    var pair = try Stage2Pair(levels: levels, seed: Stage2Random.seed &+ UInt64(levels))
    for step in 0..<steps {
      let done = pair.step()
      if step % 64 == 63 { pair.compare() }
      guard pair.table.leafCounts == pair.model.counts else {
        pair.compare()
        Issue.record("step \(step) (\(done)): counts differ")
        return
      }
    }
    pair.compare()
    pair.table.zapAll()
    #expect(pair.table.leafCounts == .init() && pair.table.tableCount == 1)
  }
}
