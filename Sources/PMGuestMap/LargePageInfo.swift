public import PMUnits
internal import Synchronization

/// Which 2 MiB and 1 GiB regions of a slot may not be mapped by one entry.
///
/// Per region a counter of reasons, as `kvm_lpage_info.disallow_lpage`, Linux 6.1: alignment gives at
/// most one, at the slot's first and last region or at all; each guest frame of the region that is
/// shadowed or tracked gives one more. Only what cannot be computed is stored, so that the size of
/// the slot costs nothing. Counters may be read and changed from any thread.
public final class LargePageInfo: Sendable {
  /// The levels that have counters: 2 for 2 MiB, 3 for 1 GiB.
  public static let levels: ClosedRange<Int> = 2...3

  /// What alignment says about one level.
  private struct Level: Sendable {
    var firstRegion: UInt64
    var lastRegion: UInt64
    var isFirstCut: Bool
    var isLastCut: Bool
    /// Guest and user addresses disagree modulo the region's size.
    var isSkewed: Bool
  }

  private let level2: Level
  private let level3: Level
  private let counts = Guarded<[Region: Int]>([:])
  /// The number of entries of `counts`, so that most lookups take no lock.
  private let countedRegions = Atomic<Int>(0)

  private struct Region: Hashable {
    var level: Int
    var index: UInt64
  }

  /// The counters of a new or moved slot.
  ///
  /// - Parameters:
  ///   - baseGFN: the slot's first guest frame.
  ///   - pageCount: its pages, 1 or more.
  ///   - userspaceAddress: where its memory is, in bytes.
  public init(baseGFN: GFN, pageCount: Int, userspaceAddress: UInt64) {
    precondition(pageCount > 0, "a slot of \(pageCount) pages")
    func level(_ level: Int) -> Level {
      let shift = LargePageInfo.shift(level)
      let mask = (1 << shift) - 1 as UInt64
      let (base, end) = (baseGFN.rawValue, baseGFN.rawValue + UInt64(pageCount))
      return Level(
        firstRegion: base >> shift, lastRegion: (end - 1) >> shift, isFirstCut: base & mask != 0,
        isLastCut: end & mask != 0, isSkewed: (base ^ (userspaceAddress >> 12)) & mask != 0)
    }
    level2 = level(2)
    level3 = level(3)
  }

  /// Frames of a region, as a power of two.
  private static func shift(_ level: Int) -> UInt64 { UInt64(9 * (level - 1)) }

  private func alignment(_ level: Int) -> Level {
    precondition(LargePageInfo.levels.contains(level), "level \(level) has no counters")
    return level == 2 ? level2 : level3
  }

  private func region(_ gfn: GFN, _ level: Int) -> Region {
    Region(level: level, index: gfn.rawValue >> LargePageInfo.shift(level))
  }

  /// The counter of the region of `level` (2 or 3) that contains `gfn`, a frame of the slot.
  public func disallowCount(_ gfn: GFN, level: Int) -> Int {
    let alignment = alignment(level)
    let region = region(gfn, level)
    let isCut =
      region.index == alignment.firstRegion && alignment.isFirstCut
      || region.index == alignment.lastRegion && alignment.isLastCut
    var count = isCut || alignment.isSkewed ? 1 : 0
    if countedRegions.load(ordering: .acquiring) > 0 {
      count += counts.withLock { $0[region] ?? 0 }
    }
    return count
  }

  /// The highest level, `limit` at most, that `gfn` (a frame of the slot) may be mapped at: 1 where
  /// neither 2 MiB nor 1 GiB are allowed. Levels above 3 count as 3.
  public func maximumLevel(_ gfn: GFN, limit: Int) -> Int {
    var level = min(limit, LargePageInfo.levels.upperBound)
    while level > 1, disallowCount(gfn, level: level) != 0 { level -= 1 }
    return max(level, 1)
  }

  /// Counts a reason against both regions of `gfn`: it starts (+1) or stops (-1) to be shadowed or
  /// tracked. A stop without a start is a mistake of the caller and traps.
  public func adjust(_ gfn: GFN, by delta: Int) {
    for level in LargePageInfo.levels { adjust(gfn, level: level, by: delta) }
  }

  /// The same for one level, 2 or 3. Mirrors `update_gfn_disallow_lpage_count`.
  public func adjust(_ gfn: GFN, level: Int, by delta: Int) {
    precondition(LargePageInfo.levels.contains(level), "level \(level) has no counters")
    let region = region(gfn, level)
    counts.withLock { counts in
      let count = (counts[region] ?? 0) + delta
      precondition(count >= 0, "a region's counter fell below zero")
      counts[region] = count == 0 ? nil : count
      countedRegions.store(counts.count, ordering: .releasing)
    }
  }
}
