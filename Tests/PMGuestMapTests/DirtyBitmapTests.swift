import Foundation
import PMUnits
import Synchronization
import Testing

@testable import PMGuestMap

@Suite struct DirtyBitmapTests {
  private func words(_ bitmap: DirtyBitmap) -> [UInt64] {
    var words = [UInt64](repeating: 7, count: bitmap.wordCount)
    words.withUnsafeMutableBufferPointer { bitmap.copy(to: $0) }
    return words
  }

  @Test(arguments: [1, 4, 63, 64, 65, 200, 512, 513, 1024, 262144])
  func `A log has a bit per page, rounded up to words, and begins clean or all dirty`(
    _ pages: Int
  ) throws {
    let clean = try DirtyBitmap(pageCount: pages)
    #expect(clean.wordCount == (pages + 63) / 64)
    #expect(clean.dirtyCount == 0)
    let dirty = try DirtyBitmap(pageCount: pages, allDirty: true)
    #expect(dirty.dirtyCount == pages)
    #expect(dirty.contains(pages - 1))
    // Bits beyond the last page stay clear.
    let last = words(dirty)[dirty.wordCount - 1]
    #expect(last.nonzeroBitCount == (pages - 1) % 64 + 1)
    #expect(last == dirty.validBits(ofWord: dirty.wordCount - 1))
  }

  @Test func `Marks, harvests and clears agree with a set of pages`() throws {
    var random = MemslotRandom("DirtyBitmapTests")
    for _ in 0..<60 {
      let pages = 1 + random.below(3000)
      let bitmap = try DirtyBitmap(pageCount: pages, allDirty: random.oneIn(4))
      var model = Set((0..<pages).filter(bitmap.contains))
      for _ in 0..<200 {
        switch random.below(6) {
        case 0, 1:
          let page = random.below(pages)
          #expect(bitmap.mark(page) == model.insert(page).inserted)
        case 2:
          let start = random.below(pages)
          let range = start..<min(pages, start + random.below(200))
          bitmap.mark(range)
          model.formUnion(range)
        case 3:
          let word = random.below(bitmap.wordCount)
          let bits = random.next()
          let named = Set((0..<64).filter { bits >> UInt64($0) & 1 != 0 }.map { word * 64 + $0 })
          let cleared = bitmap.clear(word: word, bits)
          #expect(pageSet(cleared, word) == model.intersection(named))
          model.subtract(named)
        case 4:
          let page = random.below(pages)
          #expect(bitmap.clear(page: page) == (model.remove(page) != nil))
        default:
          guard random.oneIn(8) else { continue }
          var buffer = [UInt64](repeating: .max, count: bitmap.wordCount + 1)
          var reported = Set<Int>()
          let found = buffer.withUnsafeMutableBufferPointer { buffer in
            bitmap.harvest(into: buffer) { reported.formUnion(pageSet($1, $0)) }
          }
          #expect(reported == model)
          #expect(found == Set(model.map { $0 / 64 }).count)
          #expect(buffer.last == .max)
          #expect(
            buffer.dropLast().enumerated().reduce(into: Set()) {
              $0.formUnion(pageSet($1.element, $1.offset))
            } == model)
          model = []
        }
      }
      #expect(bitmap.dirtyCount == model.count)
      #expect((0..<pages).allSatisfy { bitmap.contains($0) == model.contains($0) })
      var walked = Set<Int>()
      bitmap.forEachDirtyWord { walked.formUnion(pageSet($1, $0)) }
      #expect(walked == model)
    }
  }

  private func pageSet(_ bits: UInt64, _ word: Int) -> Set<Int> {
    Set((0..<64).filter { bits >> UInt64($0) & 1 != 0 }.map { word * 64 + $0 })
  }

  @Test func `No mark of several threads is lost or found twice while others harvest and clear`()
    throws
  {
    let pages = 4096
    let bitmap = try DirtyBitmap(pageCount: pages)
    let newlyMarked = Atomic<Int>(0)
    let takenOut = Atomic<Int>(0)
    let markers = Atomic<Int>(3)
    onMemslotThreads(5) { thread in
      if thread < 3 {
        var page = thread * 17
        for _ in 0..<40_000 {
          page = (page * 5 + 1) % pages
          if bitmap.mark(page) { newlyMarked.add(1, ordering: .relaxed) }
        }
        markers.subtract(1, ordering: .acquiringAndReleasing)
        return
      }
      while markers.load(ordering: .acquiring) > 0 {
        var found = 0
        if thread == 3 {
          bitmap.harvest { found += $1.nonzeroBitCount }
        } else {
          for word in 0..<bitmap.wordCount {
            found += bitmap.clear(word: word, 0x5555_5555_5555_5555).nonzeroBitCount
          }
        }
        takenOut.add(found, ordering: .relaxed)
      }
    }
    var left = 0
    bitmap.harvest { left += $1.nonzeroBitCount }
    #expect(takenOut.load(ordering: .relaxed) + left == newlyMarked.load(ordering: .relaxed))
    #expect(newlyMarked.load(ordering: .relaxed) >= pages)
  }

  @Test func `What a page held when it was marked can be read by who takes the mark`() throws {
    // One page, whose contents only grow: after a harvest that found the mark the reader must see
    // at least the value of the last mark before it.
    let bitmap = try DirtyBitmap(pageCount: 1)
    let page = Atomic<Int>(0)
    let last = 50_000
    let seen = Atomic<Int>(0)
    onMemslotThreads(2) { thread in
      if thread == 0 {
        for value in 1...last {
          page.store(value, ordering: .relaxed)
          bitmap.mark(0)
        }
      } else {
        while seen.load(ordering: .relaxed) < last {
          if bitmap.harvest() > 0 { seen.store(page.load(ordering: .relaxed), ordering: .relaxed) }
        }
      }
    }
    #expect(seen.load(ordering: .relaxed) == last)
  }

  @Test func `A harvest of a clean slot of 1 GiB is quick`() throws {
    let bitmap = try DirtyBitmap(pageCount: 262144)
    var buffer = [UInt64](repeating: 0, count: bitmap.wordCount)
    var best = Duration.seconds(1)
    for _ in 0..<200 {
      let start = ContinuousClock.now
      buffer.withUnsafeMutableBufferPointer { _ = bitmap.harvest(into: $0) }
      best = min(best, ContinuousClock.now - start)
    }
    print("harvest of 4096 clean words: \(best)")
    #if !DEBUG
      #expect(best <= .microseconds(10))
    #endif
  }
}
