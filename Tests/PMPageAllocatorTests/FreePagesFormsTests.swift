import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The three historical forms of `__free_pages` (specification, section 11).
@Suite struct FreePagesFormsTests {
  private func machine(_ form: KernelModel.FreePages) throws -> Machine {
    try smallMachine(
      SmallZone(free: [FreeBlocks(6, .movable, 0x400)]), cpus: 2,
      model: KernelModel(freePages: form))
  }

  @Test(arguments: KernelModel.FreePages.allCases)
  func `A speculative reference leaks the tails in the first form only`(
    _ form: KernelModel.FreePages
  ) throws {
    let machine = try machine(form)
    var owner = try machine.claimCPU(0)
    var reader = try machine.claimCPU(1)
    let free = machine.freePageCount
    let block = try owner.allocatePages(order: 1, gfp: [.noWait, .movable])
    let isTaken = reader.getPageUnlessZero(block)
    #expect(isTaken)
    owner.freePages(block, order: 1)
    #expect(machine.frames.refcount(block) == 1)
    reader.putPage(block)
    #expect(machine.freePageCount == free - (form == .beforeTailFix ? 1 : 0))
    #expect(machine.findings.total == 0)
    owner.drainLocalPages()
    reader.drainLocalPages()
    #expect(machine.freeList(6, .movable) == (form == .beforeTailFix ? [] : [0x400]))
  }

  /// One CPU frees a compound block that another holds too, and the other puts it between the
  /// decrement and whatever the form does next.
  private func race(_ form: KernelModel.FreePages) throws -> Machine {
    let machine = try machine(form)
    let owner = CPUHolder(try machine.claimCPU(0))
    let reader = CPUHolder(try machine.claimCPU(1))
    let block = try owner.cpu.allocateFolio(order: 3, gfp: [.noWait, .movable])
    reader.cpu.getPage(block)
    var hasRun = false
    owner.cpu.betweenPutAndHeadRead = { pfn in
      hasRun = true
      reader.cpu.putPage(pfn)
    }
    owner.cpu.freePages(block, order: 3)
    #expect(hasRun == (form == .headReadAfterPut))
    if !hasRun { reader.cpu.putPage(block) }
    return machine
  }

  @Test func `The head mark read after the decrement frees the tails twice`() throws {
    let machine = try race(.headReadAfterPut)
    // The block is on one CPU's list, its pieces are on the other's.
    #expect(machine.cpuList(3 * 3 + 1, cpu: 1) == [0x400])
    #expect(machine.cpuList(3 * 2 + 1) == [0x404])
    #expect(machine.cpuList(3 + 1) == [0x402])
    #expect(machine.cpuList(1) == [0x401])
    #expect(machine.freePageCount == 64 + 7)
  }

  @Test(arguments: [KernelModel.FreePages.beforeTailFix, .headReadBeforePut])
  func `The other forms free a compound block once`(_ form: KernelModel.FreePages) throws {
    let machine = try race(form)
    #expect(machine.cpuList(3 * 3 + 1, cpu: 1) == [0x400])
    #expect(machine.freePageCount == 64)
  }

  @Test func `The double free is seen later as a bad page or a broken list`() throws {
    let machine = try race(.headReadAfterPut)
    var first = try machine.claimCPU(0)
    var second = try machine.claimCPU(1)
    second.drainLocalPages()
    first.drainLocalPages()
    for _ in 0..<80 { _ = try? first.allocatePages(gfp: [.noWait, .movable]) }
    #expect(machine.badPages.contains { $0.contains("nonzero") } || machine.metBUG)
  }

  @Test func `The forms have the names of the commits between which they stood`() {
    #expect(
      KernelModel.FreePages.allCases.map(\.rawValue) == [
        "before-e320d3012d25", "e320d3012d25..462a8e08e0e6", "from-462a8e08e0e6",
      ])
    #expect(KernelModel.linux61 == KernelModel(freePages: .headReadBeforePut))
  }
}
