import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// The VM's side of the notifier: counters, ranges, retries, ages. Specification 1.4.
@Suite struct InvalidationTests {
  typealias Era = KernelModel.KVM

  @Test(arguments: GuestFixture.eras)
  func `An invalidation that hits no slot changes no counter`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 4)
    try fixture.setSlot(0, pages: 2, hva: hva)
    let range = hva + 0x2000..<hva + 0x4000
    fixture.vm.invalidateRangeStart(range, on: &fixture.cpu)
    #expect(fixture.vm.invalidationsInProgressCount == 0)
    #expect(fixture.fault(0, isWrite: true) == .fixed)
    fixture.vm.invalidateRangeEnd(range, on: &fixture.cpu)
    #expect(fixture.vm.invalidationSequence == 0)
    // A border in the middle of a page takes the page.
    fixture.notify(hva + 0x1fff)
    #expect(fixture.vm.invalidationSequence == 1 && fixture.leaf(0) != nil)
  }

  @Test(arguments: GuestFixture.eras)
  func `Nested invalidations widen one range, and count by themselves`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let vm = fixture.vm
    let hva = try fixture.mapAnonymous(pages: 16)
    try fixture.setSlot(0, pages: 16, hva: hva)
    let (low, high) = (hva + 0x2000..<hva + 0x3000, hva + 0x8000..<hva + 0x9000)
    vm.invalidateRangeStart(low, on: &fixture.cpu)
    vm.invalidateRangeStart(high, on: &fixture.cpu)
    #expect(vm.invalidationsInProgressCount == 2)
    for gfn in UInt64(0)..<16 {
      #expect(fixture.fault(gfn, isWrite: true) == ((2...8).contains(gfn) ? .retry : .fixed))
    }
    vm.invalidateRangeEnd(low, on: &fixture.cpu)
    #expect(vm.invalidationsInProgressCount == 1 && vm.invalidationSequence == 1)
    // The range is not narrowed before the count is 0.
    #expect(fixture.fault(2, isWrite: true) == .retry)
    vm.invalidateRangeEnd(high, on: &fixture.cpu)
    #expect(fixture.fault(2, isWrite: true) == .fixed)
    vm.invalidateRangeStart(high, on: &fixture.cpu)
    #expect(fixture.fault(3, isWrite: true) == .fixed)
    vm.invalidateRangeEnd(high, on: &fixture.cpu)
    #expect(vm.invalidationSequence == 3)
  }

  @Test(arguments: GuestFixture.eras)
  func `The range is one of user addresses before 6_8 and of guest frames after`(_ era: Era) throws
  {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 2)
    let far = try fixture.mapAnonymous(pages: 1)
    try fixture.setSlot(0, pages: 1, hva: hva)
    try fixture.setSlot(0x10, pages: 1, hva: hva + 4096)
    try fixture.setSlot(8, pages: 1, hva: far)
    fixture.vm.invalidateRangeStart(hva..<hva + 8192, on: &fixture.cpu)
    #expect(fixture.vm.invalidationsInProgressCount == 1)
    #expect(fixture.fault(8, isWrite: true) == (era == .c ? .retry : .fixed))
    #expect(fixture.fault(0, isWrite: true) == .retry)
    fixture.vm.invalidateRangeEnd(hva..<hva + 8192, on: &fixture.cpu)
    #expect(fixture.fault(8, isWrite: true) != .retry)
  }

  @Test(arguments: GuestFixture.eras)
  func `A lookup that copies notifies itself and starts again, one that only allocates does not`(
    _ era: Era
  ) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 2)
    try fixture.setSlot(0, pages: 2, hva: hva)
    #expect(fixture.fault(0, isWrite: true) == .fixed)
    #expect(fixture.fault(1) == .fixed)
    #expect(fixture.fault(1, isWrite: true) == .retry)
    let page = try #require(fixture.process.frame(at: hva + 4096))
    // Slow GUP's mark, and KVM's own, which C leaves out: the page waits for its list, where the
    // second mark makes it active at once.
    #expect(fixture.machine.flags(of: page).contains(.active) == (era != .c))
    #expect(fixture.fault(1, isWrite: true) == .fixed)
    #expect(fixture.leaf(1)?.pfn == page)
    #expect(fixture.ledger.unmatchedPuts == [] && !fixture.ledger.holdsGuestFaults)
  }

  @Test(arguments: GuestFixture.eras)
  func `A completed invalidation anywhere in the VM makes a fault start again`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 16)
    try fixture.setSlot(0, pages: 16, hva: hva)
    fixture.recorder.onLock = { _, cpu in
      let other = hva + 0xf000..<hva + 0x1_0000
      fixture.vm.invalidateRangeStart(other, on: &cpu)
      fixture.vm.invalidateRangeEnd(other, on: &cpu)
    }
    #expect(fixture.fault(0, isWrite: true) == .retry)
    fixture.recorder.onLock = nil
    #expect(fixture.fault(0, isWrite: true) == .fixed)
  }

  @Test(arguments: GuestFixture.eras)
  func `An unmap between lookup and lock leaves no entry and no reference`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let block = try fixture.allocate(order: 2)
    let (driver, hva) = try fixture.map((0..<4).map { block + $0 }, .remap)
    try fixture.setSlot(0, pages: 4, hva: hva)
    var isFreed = false
    fixture.recorder.onLock = { _, cpu in
      guard !isFreed else { return }
      isFreed = true
      driver.mappings.unmap(on: &cpu)
      cpu.freePages(block, order: 2)
    }
    // F3: B marks a page that may be free by then, and is kept from it by the count.
    #expect(fixture.fault(0) == .retry)
    #expect(isFreed && fixture.leaf(0) == nil)
    for index in 0..<4 { #expect(fixture.machine.whereabouts(of: block + index) != .used) }
    let warnings = fixture.machine.findings.findings.count
    #expect(warnings == (era == .b ? 1 : 0))
    #expect(fixture.marks(block) == [])
    #expect(fixture.fault(0) == .failed(.efault))
    #expect(fixture.vm.verdict().holds)
  }

  @Test(arguments: GuestFixture.eras)
  func `F4 an owner that frees without an unmap is a use after free in every era`(
    _ era: Era
  ) throws {
    let fixture = try GuestFixture(era)
    let block = try fixture.allocate(order: 2)
    let (_, hva) = try fixture.map((0..<4).map { block + $0 }, .remap)
    try fixture.setSlot(0, pages: 4, hva: hva)
    fixture.vm.checksAccesses = true
    #expect(GuestFixture.isDone(fixture.read(0)))
    #expect(fixture.vm.verdict().holds)
    fixture.cpu.freePages(block, order: 2)
    #expect(GuestFixture.isDone(fixture.read(0)))
    let verdict = fixture.vm.verdict()
    #expect(verdict.accessesAfterFree == [.accessAfterFree(gfn: GFN(0), pfn: block)])
    // The late zap marks the free page in A; B's test of the count refuses.
    fixture.notify(hva)
    #expect(fixture.marks(block) == (era == .a ? .both : []))
    #expect(fixture.machine.findings.total == (era == .b ? 1 : 0))
  }

  @Test(arguments: GuestFixture.eras)
  func `A zap that is left out is a stale translation`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 1)
    try fixture.setSlot(0, pages: 1, hva: hva)
    fixture.write(0)
    let page = try #require(fixture.leaf(0)?.pfn)
    fixture.vm.omitsZaps = true
    try fixture.process.discard(hva..<hva + 4096, on: &fixture.cpu)
    #expect(
      fixture.vm.verdict().staleTranslations == [
        .staleTranslation(gfn: GFN(0), pfn: page, host: nil)
      ])
    #expect(!fixture.vm.verdict().noStaleTranslation && fixture.vm.verdict().countsIntact)
  }

  @Test(arguments: GuestFixture.eras)
  func `Ages are those of the guest's entries and of the host's`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 2)
    try fixture.setSlot(0, pages: 2, hva: hva)
    fixture.write(0)
    let page = try #require(fixture.leaf(0)?.pfn)
    let marks = fixture.marks(page)
    let range = hva..<hva + 4096
    #expect(fixture.vm.testYoung(hva, on: &fixture.cpu))
    #expect(fixture.process.clearYoung(range, on: &fixture.cpu))
    #expect(!fixture.vm.testYoung(hva, on: &fixture.cpu))
    #expect(fixture.leaf(0)?.hasAccessedBit == false && fixture.leaf(0)?.isDirty == true)
    // Ageing marks no page by itself.
    #expect(fixture.marks(page) == marks)
    #expect(!fixture.process.clearYoung(range, on: &fixture.cpu))
    #expect(fixture.process.entry(at: hva)?.entry.isYoung == false)
    fixture.vcpu.unbind()
    fixture.vcpu.bind()
    let fresh = try VCPU(fixture.vm, index: 1)
    _ = fresh.read(0, byteCount: 4, on: &fixture.cpu)
    #expect(fixture.vm.testYoung(hva, on: &fixture.cpu))
    // Guest accesses never make the host's own entry young.
    #expect(fixture.process.entry(at: hva)?.entry.isYoung == false)
  }

  @Test(arguments: GuestFixture.eras)
  func `The end of the process drops everything`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 4)
    try fixture.setSlot(0, pages: 4, hva: hva)
    for gfn in UInt64(0)..<4 { fixture.write(gfn) }
    #expect(fixture.vm.leafCounts.pages4K == 4)
    fixture.process.exit(on: &fixture.cpu)
    #expect(fixture.vm.leafCounts.pages4K == 0)
    #expect(GuestFixture.errno(fixture.read(0)) == .efault)
    fixture.vm.close(on: &fixture.cpu)
    #expect(fixture.ledger.unmatchedPuts == [])
    #expect(fixture.ledger.pages == [fixture.kernel.zeroPage])
  }
}
