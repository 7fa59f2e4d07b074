import Foundation
import PMArena
import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@Suite("Reference counts")
struct RefcountTests {
  private let frames: FrameTable
  private let machine: Machine
  private let pfn = PFN(0x1800)

  init() throws {
    machine = try Machine(MachineDescription(memory: .mib(32)))
    frames = machine.frames
  }

  @Test("Each operation leaves the count that the kernel's leaves")
  func counts() {
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

  @Test("Conditional operations refuse without a change")
  func conditional() {
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

  @Test("A count wraps as two's complement, and the operation tells")
  func wrapping() {
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

  @Test("A pin is 1024 references")
  func pins() {
    frames.setRefcount(pfn, 1)
    #expect(!frames.mayBePinned(pfn))
    #expect(frames.pin(pfn))
    #expect(frames.refcount(pfn) == 1025)
    #expect(frames.mayBePinned(pfn))
    #expect(!frames.unpinAndTest(pfn))
    #expect(frames.refcount(pfn) == 1)
  }

  @Test("Ranges and lists take one reference each")
  func batches() {
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

  @Test("Two threads lose no reference")
  func threads() {
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

  @Test("A reference raised from zero is found when a large block is freed")
  func raisedTail() throws {
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

  @Test("A PFN outside the table stops the process")
  func outside() async {
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(32)))
      machine.frames.increment(PFN(0x2000))
    }
  }
}
