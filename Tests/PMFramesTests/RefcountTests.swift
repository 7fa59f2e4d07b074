import Foundation
import PMArena
import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@Suite("Reference counts")
struct RefcountTests {
  private let pfn = PFN(0x1800)

  private func machine(_ layout: RefcountLayout) throws -> Machine {
    var description = MachineDescription(memory: .mib(32))
    description.refcountLayout = layout
    return try Machine(description)
  }

  @Test(
    "Each operation leaves the count that the kernel's leaves", arguments: RefcountLayout.allCases)
  func counts(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    frames.setRefcount(pfn, 1)
    #expect(frames.refcount(pfn) == 1)
    #expect(frames.increment(pfn))
    frames.decrement(pfn)
    #expect(frames.add(pfn, 5))
    frames.subtract(pfn, 2)
    #expect(frames.refcount(pfn) == 4)
    #expect(frames.incrementReturn(pfn) == 5)
    #expect(frames.decrementReturn(pfn) == 4)
    #expect(frames.subtractReturn(pfn, 3) == 1)
    #expect(frames.getPage(pfn))
    #expect(frames.tryGetPage(pfn))
    #expect(!frames.subtractAndTest(pfn, 2))
    #expect(frames.putAndTest(pfn))
    #expect(frames.refcount(pfn) == 0)
  }

  @Test("Conditional operations refuse without a change", arguments: RefcountLayout.allCases)
  func conditional(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    frames.setRefcount(pfn, 0)
    #expect(!frames.getPageUnlessZero(pfn))
    #expect(!frames.tryGetPage(pfn))
    #expect(!frames.add(pfn, 3, unless: 0))
    #expect(frames.refcount(pfn) == 0)
    #expect(frames.add(pfn, 3, unless: 7))
    #expect(!frames.add(pfn, 1, unless: 3))
    #expect(!frames.freeze(pfn, expected: 2))
    #expect(frames.freeze(pfn, expected: 3))
    #expect(!frames.getPageUnlessZero(pfn), "a frozen page refuses speculative references")
    frames.unfreeze(pfn, to: 3)
    #expect(frames.refcount(pfn) == 3)
  }

  @Test(
    "A count wraps as two's complement, and the operation tells", arguments: RefcountLayout.allCases
  )
  func wrapping(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    frames.setRefcount(pfn, .max)
    #expect(!frames.increment(pfn))
    #expect(frames.refcount(pfn) == .min)
    frames.setRefcount(pfn, .max - 1)
    #expect(!frames.add(pfn, 2))
    frames.setRefcount(pfn, .max)
    #expect(!frames.increment(from: pfn, count: 1))
    frames.setRefcount(pfn, 0)
    #expect(frames.decrementReturn(pfn) == -1)
    #expect(!frames.putAndTest(pfn), "-2 is not zero")
  }

  @Test("A pin is 1024 references", arguments: RefcountLayout.allCases)
  func pins(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    frames.setRefcount(pfn, 1)
    #expect(!frames.mayBePinned(pfn))
    #expect(frames.pin(pfn))
    #expect(frames.refcount(pfn) == 1025)
    #expect(frames.mayBePinned(pfn))
    #expect(!frames.unpinAndTest(pfn))
    #expect(frames.refcount(pfn) == 1)
  }

  @Test("Ranges and lists take one reference each", arguments: RefcountLayout.allCases)
  func batches(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    let list = (0..<100).map { PFN(0x1800 + UInt32($0) * 7) }
    for pfn in list { frames.setRefcount(pfn, 1) }
    frames.setRefcount(list[40], 0)
    list.withUnsafeBufferPointer { buffer in
      var refused: [PFN] = []
      #expect(frames.getPagesUnlessZero(buffer) { refused.append($0) } == 99)
      #expect(refused == [list[40]])
      #expect(frames.increment(buffer))
    }
    #expect(list.map(frames.refcount) == list.indices.map { $0 == 40 ? 1 : 3 })
    #expect(frames.increment(from: PFN(0x1000), count: 512))
    #expect((0..<512).allSatisfy { frames.refcount(PFN(0x1000 + $0)) == 1 })
  }

  @Test("Two threads lose no reference", arguments: RefcountLayout.allCases)
  func threads(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    frames.setRefcount(pfn, 1)
    let table = frames
    let page = pfn
    DispatchQueue.concurrentPerform(iterations: 2) { _ in
      for _ in 0..<20_000 {
        table.increment(page)
        if !table.getPageUnlessZero(page) { table.setRefcount(page, -1000) }
        _ = table.putAndTest(page)
      }
    }
    #expect(frames.refcount(pfn) == 40_001)
  }

  @Test(
    "A reference raised from zero is found when a large block is freed",
    arguments: RefcountLayout.allCases)
  func raisedTail(_ layout: RefcountLayout) throws {
    let machine = try machine(layout)
    var cpu = try machine.claimCPU(0)
    for order in [9, 10] {
      let block = try cpu.allocatePages(order: order, gfp: [.kernel, .noWarn])
      machine.frames.increment(block + 300)
      cpu.freePages(block, order: order)
      let finding = try #require(machine.findings.findings.last)
      guard case .badPage(let page) = finding else {
        Issue.record("\(finding) is no bad page")
        return
      }
      #expect(page.pfn == block + 300)
      #expect(page.reason == "nonzero _refcount")
      #expect(machine.whereabouts(of: block) == .used, "the block is leaked as a whole")
    }
  }

  @Test("Counts stand as far apart as the layout says", arguments: RefcountLayout.allCases)
  func stride(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    #expect(frames.refcountLayout == layout)
    let first = UnsafeRawPointer(frames.countWord(PFN(0)))
    let last = UnsafeRawPointer(frames.countWord(PFN(0x1fff)))
    #expect(Int(bitPattern: first) & 63 == 0, "line by line")
    #expect(last - first == 0x1fff * layout.stride)
    #expect(layout.stride == (layout == .packed ? 4 : 64))
    // The table takes so much more or less, and no more is resident for it.
    let packed = try machine(.packed).frames.byteCount
    #expect(frames.byteCount - packed == 0x2000 * (layout.stride - 4))
  }

  @Test(
    "Nothing that is done to a count is seen at its neighbours", arguments: RefcountLayout.allCases)
  func neighbours(_ layout: RefcountLayout) throws {
    let frames = try machine(layout).frames
    let all = (0..<64).map { PFN(0x1400 + UInt32($0)) }
    for (index, pfn) in all.enumerated() { frames.setRefcount(pfn, Int32(100 + index)) }
    let middle = all[31]
    let operations: [() -> Void] = [
      { frames.setRefcount(middle, 7) }, { frames.increment(middle) }, { frames.decrement(middle) },
      { frames.add(middle, 5) }, { frames.subtract(middle, 4) },
      { _ = frames.incrementReturn(middle) }, { _ = frames.decrementReturn(middle) },
      { _ = frames.putAndTest(middle) }, { _ = frames.add(middle, 9, unless: 0) },
      { _ = frames.getPageUnlessZero(middle) }, { _ = frames.getPage(middle) },
      { _ = frames.tryGetPage(middle) }, { frames.pin(middle) },
      { _ = frames.unpinAndTest(middle) }, { frames.increment(from: middle, count: 1) },
      { _ = frames.freeze(middle, expected: frames.refcount(middle)) },
      { frames.unfreeze(middle, to: 40) },
    ]
    for (number, operation) in operations.enumerated() {
      let before = frames.refcount(middle)
      operation()
      #expect(frames.refcount(middle) != before, "operation \(number)")
      for (index, pfn) in all.enumerated() where pfn != middle {
        #expect(frames.refcount(pfn) == Int32(100 + index), "operation \(number), frame \(pfn)")
      }
    }
  }

  @Test("A count that the allocator does not expect is noted", arguments: RefcountLayout.allCases)
  func notes(_ layout: RefcountLayout) throws {
    let operations: [(FrameTable, PFN) -> Void] = [
      { $0.setRefcount($1, 1) }, { $0.increment($1) }, { _ = $0.putAndTest($1) },
      { $0.decrement($1) }, { _ = $0.decrementReturn($1) }, { $0.unfreeze($1, to: 1) },
      { frames, pfn in _ = [pfn].withUnsafeBufferPointer { frames.increment($0) } },
    ]
    for (number, operation) in operations.enumerated() {
      let frames = try machine(layout).frames
      let mark = { frames.marks[Int(self.pfn.rawValue >> 9)] & PageblockMarks.unusual }
      #expect(mark() == 0, "the pageblock is new")
      operation(frames, pfn)
      #expect(mark() != 0, "operation \(number)")
    }
  }

  @Test("A PFN outside the table stops the process")
  func outside() async {
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(32)))
      machine.frames.increment(PFN(0x2000))
    }
    await #expect(processExitsWith: .failure) {
      var description = MachineDescription(memory: .mib(32))
      description.refcountLayout = .strided
      try Machine(description).frames.increment(PFN(0x2000))
    }
    // The last of a list, which is asked for long before its turn.
    await #expect(processExitsWith: .failure) {
      let frames = try Machine(MachineDescription(memory: .mib(32))).frames
      let list = [PFN](repeating: PFN(0x1800), count: 40) + [PFN(0x2000)]
      _ = list.withUnsafeBufferPointer { frames.increment($0) }
    }
  }
}
