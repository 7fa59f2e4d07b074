import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// What else looks guest frames up: `gfn_to_pfn_cache`, `kvm_vcpu_map`, `gfn_to_page`; the tables of the
/// specification, section 6.
@Suite struct PFNConsumerTests {
  typealias Era = KernelModel.KVM

  /// The rows of both tables.
  enum Kind: String, CaseIterable {
    case g = "G"
    case rPlus = "R+"
    case r0 = "R0"
    case reserved = "RN, reserved"
    case noPage = "RN, no struct page"
    case readOnly = "R+, read-only entry"
  }

  private func setUp(
    _ kind: Kind, _ era: Era, flags: MemslotFlags = [],
    configuration: VirtualMachine.Configuration = .init()
  ) throws -> (fixture: GuestFixture, page: PFN, hva: UInt64) {
    let fixture = try GuestFixture(era, configuration: configuration)
    var page = kind == .noPage ? PFN(0x10_0000) : try fixture.allocate(order: 2)
    if kind == .r0 { page = page + 1 }
    if kind == .reserved { RemapDriver.reserve([page], in: fixture.machine) }
    let hva = try fixture.map(
      [page], kind == .g ? .insertPage : .remap,
      rights: kind == .readOnly ? .read : [.read, .write]
    ).hva
    try fixture.setSlot(5, pages: 1, hva: hva, flags: flags)
    return (fixture, page, hva)
  }

  private func count(_ fixture: GuestFixture, _ page: PFN) -> Int32 {
    fixture.machine.hasPage(page) ? fixture.machine.frames.refcount(page) : 0
  }

  // MARK: gfn_to_pfn_cache

  @Test(arguments: Kind.allCases, GuestFixture.eras)
  func `A cache holds a page for the time of its refresh only`(_ kind: Kind, _ era: Era) throws {
    let (fixture, page, hva) = try setUp(kind, era)
    let before = count(fixture, page)
    var during: [Int32] = []
    fixture.recorder.onAccessed = { _ in during.append(fixture.count(page) - before) }
    let cache = PFNCache(fixture.vm)
    let isRefused = kind == .readOnly || (kind == .r0 && era != .c)
    if isRefused {
      #expect(throws: KernelErrno.efault) { try cache.refresh(gpa: 0x5000, on: &fixture.cpu) }
      #expect(cache.pfn == nil)
    } else {
      try cache.refresh(gpa: 0x5000, on: &fixture.cpu)
      #expect(cache.pfn == page)
      #expect(cache.check(byteCount: 4096) && !cache.check(byteCount: 4097))
    }
    let isCounted = kind == .g || (kind == .rPlus && era != .c)
    #expect(during == (isCounted ? [1] : []))
    #expect(count(fixture, page) == before)
    if fixture.machine.hasPage(page) { #expect(!fixture.marks(page).contains(.dirty)) }
    // The notifier makes it invalid; the next refresh looks again.
    guard !isRefused else { return }
    fixture.notify(hva)
    #expect(cache.pfn == nil && !cache.check(byteCount: 1))
    try cache.refresh(gpa: 0x5000, on: &fixture.cpu)
    #expect(cache.pfn == page && count(fixture, page) == before)
    #expect(fixture.ledger.unmatchedPuts == [])
  }

  @Test(arguments: GuestFixture.eras)
  func `A refresh starts again after an invalidation in its lookup`(_ era: Era) throws {
    let (fixture, page, hva) = try setUp(.g, era)
    let before = count(fixture, page)
    let cache = PFNCache(fixture.vm)
    var lookups = 0
    fixture.recorder.onStep = { text in
      guard text.hasPrefix("fast GUP: frame") else { return }
      lookups += 1
      guard lookups == 1 else { return }
      fixture.vm.invalidateRangeStart(hva..<hva + 4096, on: &fixture.other)
      fixture.vm.invalidateRangeEnd(hva..<hva + 4096, on: &fixture.other)
    }
    try cache.refresh(gpa: 0x5000, on: &fixture.cpu)
    #expect(lookups == 2 && cache.pfn == page)
    // A retry is a release like any other before 6.13, and a plain put from then on.
    #expect(fixture.recorder.accessed.count == (era == .c ? 1 : 2))
    #expect(count(fixture, page) == before)
  }

  @Test(arguments: GuestFixture.eras)
  func `A refresh waits for invalidations that hit no slot, too`(_ era: Era) throws {
    let (fixture, page, hva) = try setUp(.g, era)
    let elsewhere = hva + 0x100_0000..<hva + 0x100_1000
    let cache = PFNCache(fixture.vm)
    var lookups = 0
    fixture.recorder.onStep = { text in
      guard text.hasPrefix("fast GUP: frame") else { return }
      lookups += 1
      if lookups == 1 { fixture.vm.invalidateRangeStart(elsewhere, on: &fixture.other) }
      if lookups == 3 { fixture.vm.invalidateRangeEnd(elsewhere, on: &fixture.other) }
    }
    let sequence = fixture.vm.invalidationSequence
    try cache.refresh(gpa: 0x5000, on: &fixture.cpu)
    #expect(lookups == 3 && cache.pfn == page)
    #expect(fixture.vm.invalidationSequence == sequence)
  }

  @Test(arguments: GuestFixture.eras)
  func `A cache knows its slot, its generation and its own end`(_ era: Era) throws {
    let (fixture, page, hva) = try setUp(.g, era)
    let cache = PFNCache(fixture.vm)
    #expect(!cache.check(byteCount: 1))
    #expect(throws: KernelErrno.efault) { try cache.refresh(gpa: 0x9000, on: &fixture.cpu) }
    try cache.refresh(gpa: 0x5010, on: &fixture.cpu)
    #expect(cache.check(byteCount: 4080) && !cache.check(byteCount: 4081))
    // Another slot: the generation is another, the address is not, so nothing is looked up.
    try fixture.setSlot(9, pages: 1, hva: hva, flags: .readonly)
    #expect(!cache.check(byteCount: 1))
    fixture.recorder.clear()
    try cache.refresh(gpa: 0x5010, on: &fixture.cpu)
    #expect(cache.check(byteCount: 1) && cache.pfn == page)
    #expect(!fixture.recorder.steps.contains { $0.hasPrefix("fast GUP") })
    #expect(throws: KernelErrno.efault) { try cache.refresh(gpa: 0x9000, on: &fixture.cpu) }
    #expect(!cache.check(byteCount: 1))
    try cache.refresh(gpa: 0x5010, on: &fixture.cpu)
    // The slot goes.
    try fixture.vm.setUserMemoryRegion(
      MemoryRegion(slot: 0, guestPhysicalAddress: 0, memorySize: 0, userspaceAddress: 0),
      on: &fixture.cpu)
    #expect(!cache.check(byteCount: 1) && cache.pfn == nil)
    #expect(throws: KernelErrno.efault) { try cache.refresh(gpa: 0x5010, on: &fixture.cpu) }
    cache.deactivate()
    #expect(throws: KernelErrno.einval) { try cache.refresh(gpa: 0x5010, on: &fixture.cpu) }
    #expect(!cache.check(byteCount: 1))
  }

  // MARK: kvm_vcpu_map

  @Test(arguments: Kind.allCases, GuestFixture.eras)
  func `A long mapping counts in A and B, and pins in C`(_ kind: Kind, _ era: Era) throws {
    for isDirty in [false, true] {
      let (fixture, page, _) = try setUp(kind, era)
      let before = count(fixture, page)
      let isRefused =
        [.r0, .readOnly].contains(kind) || (era == .c && kind != .g)
      guard !isRefused else {
        #expect(throws: KernelErrno.einval) {
          try GuestPageMap.map(GFN(5), of: fixture.vm, on: &fixture.cpu)
        }
        #expect(count(fixture, page) == before)
        continue
      }
      let map = try GuestPageMap.map(GFN(5), of: fixture.vm, on: &fixture.cpu)
      #expect(map.pfn == page && map.gfn == GFN(5) && map.isWritable)
      let isCounted = kind == .g || kind == .rPlus
      #expect(count(fixture, page) - before == (!isCounted ? 0 : era == .c ? 1024 : 1))
      // The notifier does not reach it.
      fixture.notify(try #require(fixture.vm.memslots[0].slot(containing: GFN(5))).hva(of: GFN(5)))
      if fixture.machine.hasPage(page) { fixture.machine.removeFlags([.referenced], of: page) }
      map.unmap(dirty: isDirty, on: &fixture.cpu)
      #expect(count(fixture, page) == before)
      guard fixture.machine.hasPage(page) else { continue }
      let isMarkedDirty = isCounted && (isDirty || era == .c)
      #expect(
        fixture.marks(page) == (isMarkedDirty ? .both : isCounted ? .referenced : []))
      #expect(fixture.ledger.unmatchedPuts == [])
    }
  }

  @Test func `Unsafe mappings of remapped areas hold nothing in C`() throws {
    for kind in Kind.allCases where kind != .g {
      let (fixture, page, _) = try setUp(
        kind, .c, configuration: VirtualMachine.Configuration(allowsUnsafeMappings: true))
      let before = count(fixture, page)
      if kind == .readOnly {
        #expect(throws: KernelErrno.einval) {
          try GuestPageMap.map(GFN(5), of: fixture.vm, on: &fixture.cpu)
        }
      }
      let map = try GuestPageMap.map(
        GFN(5), of: fixture.vm, writable: kind != .readOnly, on: &fixture.cpu)
      #expect(map.pfn == page && count(fixture, page) == before)
      map.unmap(dirty: true, on: &fixture.cpu)
      #expect(count(fixture, page) == before)
      if fixture.machine.hasPage(page) { #expect(fixture.marks(page) == []) }
    }
  }

  @Test(arguments: GuestFixture.eras)
  func `A large folio takes one reference, and one pin in C`(_ era: Era) throws {
    let fixture = try GuestFixture(era, behaviour: HostBehaviour(transparentHugePages: .always))
    let hva = try fixture.mapAnonymous(pages: 512)
    try fixture.process.write32(hva, 1, on: &fixture.cpu)
    let head = try #require(fixture.process.frame(at: hva))
    try fixture.setSlot(0, pages: 512, hva: hva)
    let map = try GuestPageMap.map(GFN(3), of: fixture.vm, on: &fixture.cpu)
    #expect(map.pfn == head + 3)
    #expect(fixture.count(head) == 2)
    #expect(fixture.machine.details(of: head).pincount == (era == .c ? 1 : 0))
    map.unmap(dirty: false, on: &fixture.cpu)
    #expect(fixture.count(head) == 1 && fixture.machine.details(of: head).pincount == 0)
  }

  @Test(arguments: GuestFixture.eras)
  func `The lookup is for writing, except in C where nobody asked for it`(_ era: Era) throws {
    let fixture = try GuestFixture(era)
    let zero = fixture.kernel.zeroPage
    let hva = try fixture.mapAnonymous(pages: 2)
    try fixture.setSlot(0, pages: 2, hva: hva)
    let map = try GuestPageMap.map(GFN(0), of: fixture.vm, writable: false, on: &fixture.cpu)
    if era == .c {
      #expect(map.pfn == zero && !map.isWritable && fixture.count(zero) == 1)
    } else {
      #expect(map.pfn != zero && map.isWritable)
    }
    map.unmap(dirty: false, on: &fixture.cpu)
    #expect(fixture.count(zero) == 1)
    #expect(!fixture.marks(map.pfn).contains(.dirty))
    try fixture.setSlot(8, pages: 1, hva: hva, flags: .readonly)
    #expect(throws: KernelErrno.einval) {
      try GuestPageMap.map(GFN(8), of: fixture.vm, on: &fixture.cpu)
    }
    #expect(throws: KernelErrno.einval) {
      try GuestPageMap.map(GFN(99), of: fixture.vm, on: &fixture.cpu)
    }
    if era == .c {
      let readOnly = try GuestPageMap.map(
        GFN(8), of: fixture.vm, writable: false, on: &fixture.cpu)
      readOnly.unmap(dirty: true, on: &fixture.cpu)
    }
    #expect(fixture.ledger.unmatchedPuts == [])
  }

  @Test(arguments: GuestFixture.eras)
  func `The end of a mapping marks the guest frame dirty in its slot`(_ era: Era) throws {
    for isDirty in [false, true] {
      let (fixture, _, _) = try setUp(.g, era, flags: .logDirtyPages)
      let map = try GuestPageMap.map(GFN(5), of: fixture.vm, on: &fixture.cpu)
      map.unmap(dirty: isDirty, on: &fixture.cpu)
      var words: [UInt64] = [0]
      try words.withUnsafeMutableBufferPointer {
        try fixture.vm.getDirtyLog(slot: 0, into: $0, on: &fixture.cpu)
      }
      #expect(words == [isDirty || era == .c ? 1 : 0])
    }
  }

  @Test(arguments: [Era.a, .b])
  func `F7 a block freed under a long mapping of its head keeps the head until the end`(
    _ era: Era
  ) throws {
    let (fixture, page, _) = try setUp(.rPlus, era)
    let map = try GuestPageMap.map(GFN(5), of: fixture.vm, on: &fixture.cpu)
    fixture.watchFrees()
    fixture.cpu.freePages(page, order: 2)
    #expect(
      fixture.frees == [
        FreeEvent(pfn: page + 2, order: 1, refcount: 0),
        FreeEvent(pfn: page + 1, order: 0, refcount: 0),
      ])
    #expect(fixture.machine.whereabouts(of: page) == .used)
    map.unmap(dirty: true, on: &fixture.cpu)
    #expect(fixture.frees.last == FreeEvent(pfn: page, order: 0, refcount: 0))
    #expect(fixture.machine.whereabouts(of: page) != .used)
  }

  // MARK: gfn_to_page

  @Test(arguments: Kind.allCases, GuestFixture.eras)
  func `gfn_to_page gives pages that are counted, with their reference`(
    _ kind: Kind, _ era: Era
  ) throws {
    let (fixture, page, _) = try setUp(kind, era)
    let before = count(fixture, page)
    let holder = Holder.pin("test")
    let found = fixture.vm.page(of: GFN(5), holder: holder, on: &fixture.cpu)
    let isCounted = kind == .g || (kind == .rPlus && era != .c)
    #expect(found == (isCounted ? page : nil))
    #expect(count(fixture, page) - before == (isCounted ? 1 : 0))
    if let found { fixture.kernel.put(found, holder, on: &fixture.cpu) }
    #expect(count(fixture, page) == before && fixture.ledger.unmatchedPuts == [])
  }
}
