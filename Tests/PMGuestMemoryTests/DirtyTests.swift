import PMUnits
import Physmem
import Synchronization
import Testing

@Suite struct DirtyTests {
  private func pages(_ harvest: borrowing DirtyHarvest) -> [UInt64] {
    var pages: [UInt64] = []
    harvest.forEachRun { run in
      pages += (run.start.rawValue >> 12)..<((run.end + 4095) >> 12)
    }
    return pages
  }

  @Test func `A harvest that is aborted or forgotten loses no page`() throws {
    var random = seededGenerator("DirtyTests")
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0x3000), byteCount: .mib(3)))
    try memory.add(.ram(at: GPA(0x10_0000_0000), byteCount: .mib(1), backing: .anonymous))
    try memory.startTrackingDirtyPages()
    #expect(throws: GuestMemoryError.alreadyTracking) { try memory.startTrackingDirtyPages() }
    var dirty = Set<UInt64>()
    for step in 0..<300 {
      for _ in 0..<random.below(20) {
        let isHigh = random.below(2) == 0
        let base: UInt64 = isHigh ? 0x10_0000_0000 : 0x3000
        let address = base + UInt64(random.below((isHigh ? 1 << 20 : 3 << 20) - 8))
        switch random.below(4) {
        case 0: try memory.store(random.next(), at: GPA(address))
        case 1: try memory.write([1, 2, 3, 4, 5, 6, 7, 8], at: GPA(address))
        case 2: _ = try memory.fetchAdd(UInt64(1), at: GPA(address & ~7))
        default: try memory.markDirty(GuestRange(start: GPA(address), byteCount: 8))
        }
        let first = address >> 12
        dirty.insert(first)
        let last = (address + 7) >> 12
        // The atomic access was of the aligned word.
        if last != first { try memory.store(UInt64(0), at: GPA(address)) }
        dirty.insert(last)
      }
      let harvest = try memory.beginHarvest()
      #expect(throws: GuestMemoryError.harvestOpen) { _ = try memory.beginHarvest() }
      #expect(throws: GuestMemoryError.harvestOpen) { try memory.stopTrackingDirtyPages() }
      #expect(throws: GuestMemoryError.harvestOpen) { try memory.removeRegion(at: GPA(0x3000)) }
      let found = pages(harvest)
      #expect(found == dirty.sorted(), "step \(step), PHYSMEM_SEED=\(runSeed)")
      #expect(harvest.pageCount == dirty.count)
      // Written while it is open: in the next one.
      let late = UInt64(3 + random.below(700))
      try memory.store(UInt8(1), at: GPA(late << 12))
      switch random.below(3) {
      case 0:
        harvest.commit()
        dirty = [late]
      case 1:
        harvest.abort()
        dirty.insert(late)
      default:
        // What a copy that throws does to it.
        _ = consume harvest
        dirty.insert(late)
      }
    }
    try memory.stopTrackingDirtyPages()
    #expect(throws: GuestMemoryError.notTracking) { _ = try memory.beginHarvest() }
    #expect(throws: GuestMemoryError.notTracking) {
      try memory.markDirty(GuestRange(start: GPA(0x3000), byteCount: 1))
    }
  }

  @Test func `What is given back is dirty, what is added later is recorded`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    try memory.startTrackingDirtyPages()
    try memory.add(.ram(at: GPA(1 << 20), byteCount: .mib(1)))
    try memory.add(.rom(at: GPA(2 << 20), byteCount: .mib(1)))
    try memory.inflateBalloon(GuestRange(start: GPA(0x4000), byteCount: 0x2000))
    try memory.store(UInt64(1), at: GPA((1 << 20) - 4))
    let harvest = try memory.beginHarvest()
    #expect(pages(harvest) == [4, 5, 255, 256])
    harvest.commit()
    #expect(try memory.removeRegion(at: GPA(1 << 20)).byteCount == 1 << 20)
    let empty = try memory.beginHarvest()
    #expect(empty.runs.isEmpty && empty.pageCount == 0)
    empty.commit()
  }

  @Test func `Pages that are written while they are harvested and copied arrive`() throws {
    // A live migration: copies by the record until it is empty, then the copy is the memory.
    let memory = GuestMemory()
    let byteCount = 1 << 20
    try memory.add(.ram(at: GPA(0), byteCount: ByteCount(UInt64(byteCount))))
    try memory.startTrackingDirtyPages()
    let copy = GuestMemory()
    try copy.add(.ram(at: GPA(0), byteCount: ByteCount(UInt64(byteCount))))
    let writersLeft = Atomic<Int>(3)
    let rounds = Atomic<Int>(0)
    let start = seededGenerator("DirtyTests.migration").state
    onThreads(4) { index in
      if index < 3 {
        var random = SplitMix64(seed: start &+ UInt64(index))
        for _ in 0..<60_000 {
          let place = GPA(UInt64(random.below(byteCount / 8)) * 8)
          #expect(throws: Never.self) { try memory.store(random.next(), at: place) }
        }
        writersLeft.subtract(1, ordering: .sequentiallyConsistent)
        return
      }
      func round() -> Bool {
        let wasLast = writersLeft.load(ordering: .sequentiallyConsistent) == 0
        do {
          let harvest = try memory.beginHarvest()
          // One copy in three fails half way.
          let fails = rounds.add(1, ordering: .relaxed).newValue % 3 == 0
          for (number, run) in harvest.runs.enumerated() {
            if fails, number > 3 { break }
            let bytes = try memory.bytes(at: run.start, count: Int(run.byteCount))
            try copy.write(bytes, at: run.start)
          }
          if fails { harvest.abort() } else { harvest.commit() }
          return wasLast && !fails
        } catch {
          Issue.record("\(error)")
          return true
        }
      }
      while !round() {}
    }
    #expect(rounds.load(ordering: .relaxed) > 1)
    let original = try memory.bytes(at: GPA(0), count: byteCount)
    #expect(try copy.bytes(at: GPA(0), count: byteCount) == original, "PHYSMEM_SEED=\(runSeed)")
  }
}
