import Foundation
import PMGuestMap
import PMUnits
import Testing

@Suite("Stage-2 tables and threads", .serialized)
struct Stage2TableThreadTests {
  private static func results(_ count: Int) -> [NSMutableArray] {
    (0..<count).map { _ in NSMutableArray() }
  }

  @Test("Of two threads that map the same frames exactly one wins each, and the counts are exact")
  func racingInstalls() throws {
    for round in 0..<Stage2Random.steps(release: 200, debug: 20) {
      let table = try Stage2Table()
      let frames = 1500
      let winners = (0..<2).map { _ in Counter(0) }
      together(
        (0..<2).map { thread in
          let winner = winners[thread]
          return { @Sendable in
            var cursor = Stage2Cursor()
            var random = Stage2Random(seed: UInt64(round))
            for index in 0..<frames {
              // Both in the same order, with jumps, so that they meet in tables too.
              let gfn = UInt64(index) + UInt64(random.below(3)) << 27
              let pfn = PFN(UInt32(2 * index + thread))
              if table.map(GFN(gfn), pfn, .readWrite, &cursor) == .installed { winner.value += 1 }
            }
          }
        })
      var leaves = 0
      table.forEachLeaf(in: table.allFrames) { _, _, _ in leaves += 1 }
      #expect(winners[0].value + winners[1].value == leaves)
      #expect(table.leafCounts == .init(pages4K: leaves))
      table.zapAll()
      #expect(table.leafCounts == .init() && table.tableCount == 1)
    }
  }

  @Test("Installs, huge installs over tables and splits at once lose no leaf of the counts")
  func racingHuge() throws {
    let table = try Stage2Table()
    let rounds = Stage2Random.steps(release: 5000, debug: 300)
    let huge = SPTE.makeLeaf(pfn: PFN(0x400), level: 2, .readWrite)
    let done = Flag()
    var cursor = Stage2Cursor()
    #expect(table.map(GFN(0), PFN(0), .readWrite, &cursor) == .installed)
    together([
      {
        var cursor = Stage2Cursor()
        var index = 0
        while !done.value {
          for _ in 0..<64 {
            index += 1
            _ = table.map(GFN(UInt64(index & 511)), PFN(UInt32(index)), .readWrite, &cursor)
          }
        }
      },
      {
        for _ in 0..<rounds {
          let replaced = table.replaceTableByHuge(GFN(0), level: 2, huge) { _, _, _ in }
          let split = table.splitHuge(GFN(0), level: 2)
          let again = table.replaceTableByHuge(GFN(0), level: 2, huge) { _, _, _ in }
          let old = table.zapHugeForSmall(GFN(0), level: 2) { _ in }
          // Only this thread changes the entry above.
          let results = [replaced, split, again]
          #expect(results == [.installed, .installed, .installed] && old == huge)
        }
        done.raise()
      },
    ])
    var counts = Stage2Table.LeafCounts()
    table.forEachLeaf(in: table.allFrames) { _, level, _ in
      if level == 1 { counts.pages4K += 1 } else { counts.pages2M += 1 }
    }
    #expect(table.leafCounts == counts)
    table.reclaimDetachedTables()
  }

  @Test("A walker during zaps sees each frame's own page or nothing, while tables are recycled")
  func walkerDuringZaps() throws {
    let table = try Stage2Table()
    let gate = FlushGate()
    let done = Flag()
    let rounds = Stage2Random.steps(release: 1500, debug: 100)
    let wrong = Counter(0)
    together([
      {
        let cache = TranslationCache(gate: gate)
        cache.bind()
        var random = Stage2Random(seed: 3)
        while !done.value {
          for _ in 0..<64 {
            let gfn = UInt64(random.below(2048))
            cache.enter()
            if let (spte, level) = table.lookup(GFN(gfn)) {
              let offset = UInt32(gfn) & UInt32(SPTE.frames(level: level) - 1)
              if spte.pfn.rawValue + offset != UInt32(gfn) + 0x800 { wrong.value += 1 }
            }
            _ = table.fastFix(GFN(gfn), write: true)
            cache.leave()
          }
          sched_yield()
        }
      },
      {
        for round in 0..<rounds {
          _ = table.mapRange(GFN(0), PFN(0x800), count: 2048, .writeProtected)
          if round & 1 == 0 {
            let huge = SPTE.makeLeaf(pfn: PFN(0xa00), level: 2, .writeProtected)
            _ = table.replaceTableByHuge(GFN(0x200), level: 2, huge) { _, _, _ in }
            table.writeProtect(GFN(0)..<GFN(2048))
          }
          if round % 3 == 0 { table.unmapRange(GFN(300)..<GFN(1800)) }
          table.zapAll()
          let mark = table.detachedMark
          gate.requestFlush()
          table.reclaimDetachedTables(upTo: mark)
        }
        done.raise()
      },
    ])
    #expect(wrong.value == 0)
    #expect(table.leafCounts == .init() && table.tableCount == 1 && table.detachedTableCount == 0)
  }

  @Test("Of an unmap and a fast page fault at once, whatever was fixed before is in the old entry")
  func unmapAgainstFastFix() throws {
    let table = try Stage2Table()
    let rounds = Stage2Random.steps(release: 400_000, debug: 20_000)
    let fixed = Counter(0)
    let done = Flag()
    let dropped = Counter(0)
    together([
      {
        while !done.value {
          for _ in 0..<16 where table.fastFix(GFN(1), write: true) == .fixed(addedWrite: true) {
            fixed.value += 1
          }
          sched_yield()
        }
      },
      {
        var cursor = Stage2Cursor()
        for _ in 0..<rounds {
          _ = table.map(GFN(1), PFN(1), .writeProtected, &cursor)
          if table.unmap(GFN(1), &cursor)?.spte.isWritable == true { dropped.value += 1 }
        }
        done.raise()
      },
    ])
    #expect(fixed.value == dropped.value)
    #expect(table.leafCounts == .init())
  }
}
