import Foundation
import PMGuestMap
import PMUnits

/// A small generator whose whole state is its seed, so that a run can be replayed.
struct Stage2Random: RandomNumberGenerator {
  private var numbers: SplitMix64

  init(seed: UInt64) { numbers = SplitMix64(seed: seed) }

  mutating func next() -> UInt64 { numbers.next() }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }

  mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }

  /// `PHYSMEM_SEED`, or another one each time.
  static let seed: UInt64 =
    ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
    ?? UInt64.random(in: 1...999_999_999)

  /// `PHYSMEM_STEPS`, or as many as the build is fast enough for.
  static func steps(release: Int, debug: Int) -> Int {
    if let steps = ProcessInfo.processInfo.environment["PHYSMEM_STEPS"].flatMap({ Int($0) }) {
      return steps
    }
    #if DEBUG
      return debug
    #else
      return release
    #endif
  }

  static func announce(_ test: String, steps: Int) {
    print(
      "\(test): \(steps) steps; replay: env PHYSMEM_SEED=\(seed) PHYSMEM_STEPS=\(steps) "
        + "swift test --filter \(test)")
  }
}

/// Runs bodies on threads of their own, all of which are there before the first begins, and waits
/// for all. Foundation's threads and condition, which ThreadSanitizer knows.
func together(_ bodies: [@Sendable () -> Void]) {
  let condition = NSCondition()
  let missing = Counter(bodies.count)
  let left = Counter(bodies.count)
  for body in bodies {
    Thread {
      condition.lock()
      missing.value -= 1
      condition.broadcast()
      while missing.value > 0 { condition.wait() }
      condition.unlock()
      body()
      condition.lock()
      left.value -= 1
      condition.broadcast()
      condition.unlock()
    }.start()
  }
  condition.lock()
  while left.value > 0 { condition.wait() }
  condition.unlock()
}

/// A number under somebody's lock.
final class Counter: @unchecked Sendable {
  // Sendable: whoever shares it has a lock for it.
  var value: Int
  init(_ value: Int) { self.value = value }
}

/// A flag that threads poll.
final class Flag: @unchecked Sendable {
  // Sendable: `lock` covers the value.
  private let lock = NSLock()
  private var isRaised = false
  var value: Bool {
    lock.lock()
    defer { lock.unlock() }
    return isRaised
  }
  func raise() {
    lock.lock()
    isRaised = true
    lock.unlock()
  }
}

/// What a stage-2 tree should hold, as dictionaries.
struct Stage2Model {
  struct Leaf: Equatable {
    var level: Int
    var spte: SPTE
  }
  struct TableKey: Hashable {
    /// The level of the table's entries.
    var level: Int
    var base: UInt64
  }

  let levels: Int
  private(set) var leaves: [UInt64: Leaf] = [:]
  private(set) var tables: Set<TableKey> = []

  init(levels: Int) { self.levels = levels }

  static func base(_ gfn: UInt64, _ level: Int) -> UInt64 {
    gfn & ~UInt64(SPTE.frames(level: level) - 1)
  }

  func find(_ gfn: UInt64) -> (base: UInt64, leaf: Leaf)? {
    for level in 1...3 {
      let base = Stage2Model.base(gfn, level)
      if let leaf = leaves[base], leaf.level == level { return (base, leaf) }
    }
    return nil
  }

  private func tableKey(_ gfn: UInt64, _ level: Int) -> TableKey {
    TableKey(level: level, base: Stage2Model.base(gfn, level + 1))
  }

  func hasTable(_ gfn: UInt64, _ level: Int) -> Bool { tables.contains(tableKey(gfn, level)) }

  mutating func install(_ gfn: UInt64, level: Int, _ new: SPTE) -> Stage2InstallResult {
    let base = Stage2Model.base(gfn, level)
    if let (_, leaf) = find(gfn), leaf.level > level { return .occupiedByLeaf(level: leaf.level) }
    for above in level..<levels { tables.insert(tableKey(gfn, above)) }
    if level > 1, hasTable(gfn, level - 1) { return .occupiedByTable }
    if let old = leaves[base] {
      if old.spte == new { return .spurious }
      if old.spte.pfn != new.pfn {
        return .occupiedByLeaf(level: level)
      }
    }
    leaves[base] = Leaf(level: level, spte: new)
    return .installed
  }

  /// The leaves that intersect a range, in order.
  func leaves(in range: Range<UInt64>) -> [(base: UInt64, leaf: Leaf)] {
    guard !range.isEmpty else { return [] }
    var found: [(UInt64, Leaf)] = []
    if range.count < leaves.count {
      var gfn = range.lowerBound
      while gfn < range.upperBound {
        if let (base, leaf) = find(gfn) {
          found.append((base, leaf))
          gfn = base + UInt64(SPTE.frames(level: leaf.level))
        } else {
          gfn += 1
        }
      }
      return found
    }
    for (base, leaf) in leaves
    where base < range.upperBound
      && base + UInt64(SPTE.frames(level: leaf.level)) > range.lowerBound
    {
      found.append((base, leaf))
    }
    return found.sorted { $0.0 < $1.0 }
  }

  mutating func set(_ base: UInt64, _ spte: SPTE) { leaves[base]?.spte = spte }

  mutating func remove(_ base: UInt64) { leaves[base] = nil }

  mutating func removeAll() {
    leaves = [:]
    tables = []
  }

  /// Takes a table and all below it out; returns the dropped leaves in order.
  mutating func removeTable(_ gfn: UInt64, _ level: Int) -> [(base: UInt64, leaf: Leaf)] {
    let base = Stage2Model.base(gfn, level + 1)
    let range = base..<base + UInt64(SPTE.frames(level: level + 1))
    let dropped = leaves(in: range)
    for (base, _) in dropped { leaves[base] = nil }
    tables = tables.filter { $0.level > level || !range.contains($0.base) }
    return dropped
  }

  mutating func split(_ base: UInt64, level: Int, restoringExecute: Bool) {
    guard let old = leaves[base] else { return }
    leaves[base] = nil
    tables.insert(tableKey(base, level - 1))
    for index in 0..<512 {
      let child = old.spte.child(index, level: level, restoringExecute: restoringExecute)
      leaves[base + UInt64(index * SPTE.frames(level: level - 1))] = Leaf(
        level: level - 1, spte: child)
    }
  }

  mutating func putEmptyTable(_ base: UInt64, level: Int) {
    leaves[base] = nil
    tables.insert(tableKey(base, level - 1))
  }

  var counts: Stage2Table.LeafCounts {
    var counts = Stage2Table.LeafCounts()
    for leaf in leaves.values {
      switch leaf.level {
      case 1: counts.pages4K += 1
      case 2: counts.pages2M += 1
      default: counts.pages1G += 1
      }
    }
    return counts
  }
}
