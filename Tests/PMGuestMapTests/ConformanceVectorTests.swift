import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// The conformance vectors of the specification, section 11: a driver's block of four frames, counts
/// {1,0,0,0}, remapped shared and writable, shown to the guest at frames 0 to 3.
@Suite struct ConformanceVectorTests {
  typealias Era = KernelModel.KVM

  /// The set-up of the section.
  struct Vector {
    let fixture: GuestFixture
    let block: PFN
    let driver: RemapDriver
    let hva: UInt64

    enum Shape { case plain, compound, split, reserved }

    init(
      _ era: Era, _ shape: Shape = .plain, rights: VMAFlags = [.read, .write],
      style: RemapDriver.Style = .remap, flags: MemslotFlags = []
    ) throws {
      fixture = try GuestFixture(era)
      block = try fixture.allocate(order: 2, compound: shape == .compound)
      let pages = (0..<4).map { [block] in block + $0 }
      if shape == .split { fixture.cpu.splitPage(block, order: 2) }
      if shape == .reserved { RemapDriver.reserve(pages, in: fixture.machine) }
      (driver, hva) = try fixture.map(pages, style, rights: rights)
      try fixture.setSlot(0, pages: 4, hva: hva, flags: flags)
    }

    /// The own counts of the four frames.
    var counts: [Int32] { fixture.refcounts(block, 4) }
    func marks(_ index: Int) -> Marks { fixture.marks(block + index) }
    func bit59(_ gfn: UInt64) -> Bool? { fixture.leaf(gfn)?.isRefcounted }
  }

  static let eras: [Era] = GuestFixture.eras

  @Test(arguments: eras) func `V1 a read of the head is counted, noted or neither`(_ era: Era)
    throws
  {
    let vector = try Vector(era)
    #expect(GuestFixture.isDone(vector.fixture.read(0)))
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.marks(0) == (era == .c ? [] : .referenced))
    #expect(vector.bit59(0) == (era == .b))
    let leaf = try #require(vector.fixture.leaf(0))
    #expect(leaf.pfn == vector.block && leaf.isWritable && leaf.isHostWritable)
    #expect(vector.fixture.level(0) == 1)
    #expect(vector.marks(1) == [])
  }

  @Test(arguments: eras) func `V2 a write to a tail is refused by A only`(_ era: Era) throws {
    let vector = try Vector(era)
    let access = vector.fixture.write(1)
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.marks(1) == [])
    if era == .a {
      #expect(access == .failed(.efault, exitReasonIsSet: false))
      #expect(vector.fixture.leaf(1) == nil)
    } else {
      #expect(GuestFixture.isDone(access))
      #expect(vector.bit59(1) == false)
      #expect(vector.fixture.leaf(1)?.isWritable == true)
    }
  }

  @Test(arguments: eras) func `V3 the zap of a page that was only read marks it dirty in A and B`(
    _ era: Era
  ) throws {
    let vector = try Vector(era)
    vector.fixture.read(0)
    vector.fixture.recorder.clear()
    vector.fixture.notify(vector.hva, pages: 4)
    #expect(vector.fixture.leaf(0) == nil)
    #expect(vector.counts == [1, 0, 0, 0])
    // The page is on no LRU list: the second access mark takes "referenced" away again.
    #expect(vector.marks(0) == (era == .c ? [] : .dirty))
    #expect(vector.fixture.recorder.accessed == (era == .c ? [] : [vector.block]))
    #expect(vector.fixture.recorder.setDirty == (era == .c ? [] : [vector.block]))
  }

  @Test(arguments: eras) func `V4 unmap and free of the owner is one free of order 2`(
    _ era: Era
  ) throws {
    let vector = try Vector(era)
    vector.fixture.read(0)
    vector.fixture.write(1)
    vector.driver.mappings.unmap(on: &vector.fixture.cpu)
    #expect(vector.fixture.leaf(0) == nil && vector.fixture.leaf(1) == nil)
    vector.fixture.watchFrees()
    vector.fixture.cpu.freePages(vector.block, order: 2)
    #expect(
      vector.fixture.frees == [FreeEvent(pfn: vector.block, order: 2, refcount: 0)])
    #expect(vector.fixture.machine.findings.total == 0)
    #expect(vector.counts == [0, 0, 0, 0])
  }

  @Test(arguments: eras) func `V5 a free in the fault's window leaves the head to KVM's put`(
    _ era: Era
  ) throws {
    let vector = try Vector(era)
    let (fixture, block) = (vector.fixture, vector.block)
    fixture.watchFrees()
    var isDone = false
    let free = {
      guard !isDone else { return }
      isDone = true
      fixture.other.freePages(block, order: 2)
    }
    switch era {
    case .a0, .a: fixture.recorder.onRelease = { _, _ in free() }
    case .b:
      // Between the get and the put under the lock of the page table.
      fixture.recorder.onStep = { text in if text.contains("raised to 2") { free() } }
    case .c: fixture.recorder.onLock = { _, _ in free() }
    }
    #expect(GuestFixture.isDone(fixture.read(0)))
    try #require(isDone)
    let tails = [
      FreeEvent(pfn: block + 2, order: 1, refcount: 0),
      FreeEvent(pfn: block + 1, order: 0, refcount: 0),
    ]
    let head = FreeEvent(pfn: block, order: 0, refcount: 0)
    #expect(
      fixture.frees
        == (era == .c ? [FreeEvent(pfn: block, order: 2, refcount: 0)] : tails + [head]))
    #expect(vector.counts == [0, 0, 0, 0])
    for index in 0..<4 { #expect(fixture.machine.whereabouts(of: block + index) != .used) }
  }

  @Test(arguments: eras) func `V6 a compound tail is refused by A although its page lives`(
    _ era: Era
  ) throws {
    let vector = try Vector(era, .compound)
    let access = vector.fixture.write(1)
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.marks(0) == [])
    if era == .a {
      #expect(GuestFixture.errno(access) == .efault)
      #expect(vector.fixture.leaf(1) == nil)
    } else {
      #expect(GuestFixture.isDone(access))
      #expect(vector.bit59(1) == false)
    }
    vector.fixture.notify(vector.hva, pages: 4)
    #expect(vector.marks(0) == [])
  }

  @Test(arguments: eras) func `V7 a page of a split block is counted like any other`(
    _ era: Era
  ) throws {
    let vector = try Vector(era, .split)
    var during: [Int32] = []
    vector.fixture.recorder.onStep = { text in
      if text.hasPrefix("entry of gfn") { during = vector.counts }
    }
    #expect(GuestFixture.isDone(vector.fixture.write(1)))
    #expect(during == (era == .a ? [1, 2, 1, 1] : [1, 1, 1, 1]))
    #expect(vector.counts == [1, 1, 1, 1])
    #expect(vector.marks(1) == (era == .c ? [] : .referenced))
    #expect(vector.bit59(1) == (era == .b))
  }

  @Test(arguments: eras) func `V8 reserved frames are neither counted nor marked`(
    _ era: Era
  ) throws {
    let vector = try Vector(era, .reserved)
    var during: [Int32] = []
    vector.fixture.recorder.onStep = { text in
      if text.hasPrefix("entry of gfn") { during = vector.counts }
    }
    #expect(GuestFixture.isDone(vector.fixture.write(1)))
    #expect(during == [1, 0, 0, 0] && vector.counts == during)
    #expect(vector.bit59(1) == false)
    vector.fixture.notify(vector.hva, pages: 4)
    #expect(vector.marks(1) == [])
  }

  @Test(arguments: eras, [false, true])
  func `V9 and V10 a huge page gets a huge entry, unless the slot logs`(
    _ era: Era, _ logs: Bool
  ) throws {
    let fixture = try GuestFixture(era, behaviour: HostBehaviour(transparentHugePages: .always))
    let hva = try fixture.mapAnonymous(pages: 512)
    try fixture.process.write32(hva, 1, on: &fixture.cpu)
    let head = try #require(fixture.process.frame(at: hva))
    #expect(fixture.process.entry(at: hva)?.level == 2)
    let slot = try fixture.setSlot(512, pages: 512, hva: hva, flags: logs ? .logDirtyPages : [])
    let before = fixture.count(head)
    var during: Int32 = 0
    fixture.recorder.onStep = { text in
      if text.hasPrefix("entry of gfn") { during = fixture.count(head) }
    }
    #expect(GuestFixture.isDone(fixture.read(512 + 7)))
    #expect(during - before == (era == .b ? 0 : 1))
    #expect(fixture.count(head) == before)
    #expect(fixture.level(512 + 7) == (logs ? 1 : 2))
    #expect(fixture.leaf(512 + 7)?.isWritable == true)
    #expect(fixture.leaf(512 + 7)?.isRefcounted == (era == .b && logs))
    // Fast GUP has set "referenced", and KVM's own mark makes the folio active.
    #expect(fixture.machine.flags(of: head).contains(.active))
    #expect(fixture.marks(head).contains(.dirty) == (era == .c))
    guard logs else { return }
    var words = [UInt64](repeating: 0, count: 8)
    try words.withUnsafeMutableBufferPointer {
      try fixture.vm.getDirtyLog(slot: slot, into: $0, on: &fixture.cpu)
    }
    #expect(words == [1 << 7, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test(arguments: eras) func `V11 and V12 a read gets the zero page, a write then a new page`(
    _ era: Era
  ) throws {
    let fixture = try GuestFixture(era)
    let zero = fixture.kernel.zeroPage
    let hva = try fixture.mapAnonymous(pages: 1)
    try fixture.setSlot(0, pages: 1, hva: hva)
    let before = fixture.count(zero)
    var during: Int32 = 0
    fixture.recorder.onStep = { text in
      if text.hasPrefix("entry of gfn") { during = fixture.count(zero) }
    }
    #expect(fixture.read(0) == .done(0))
    #expect(during - before == (era == .b ? 0 : 1))
    #expect(fixture.count(zero) == before)
    #expect(fixture.leaf(0)?.pfn == zero)
    #expect(fixture.leaf(0)?.isWritable == false && fixture.leaf(0)?.isHostWritable == false)
    #expect(fixture.marks(zero).contains(.dirty) == false)
    // The host's copy runs between start and end, which takes the entry away.
    let sequence = fixture.vm.invalidationSequence
    fixture.recorder.clear()
    #expect(GuestFixture.isDone(fixture.write(0, 0x1234)))
    #expect(fixture.vm.invalidationSequence == sequence + 1)
    #expect(fixture.recorder.steps.contains { $0.hasPrefix("notifier:") })
    let page = try #require(fixture.process.frame(at: hva))
    #expect(page != zero)
    #expect(fixture.leaf(0)?.pfn == page && fixture.leaf(0)?.isWritable == true)
    #expect(fixture.count(zero) == before)
    #expect(fixture.read(0) == .done(0x1234))
    #expect(fixture.machine.findings.total == 0)
  }

  @Test(arguments: eras, [false, true])
  func `V13 an invalidation between lookup and lock makes the fault start again`(
    _ era: Era, _ isComplete: Bool
  ) throws {
    let vector = try Vector(era)
    let (fixture, range) = (vector.fixture, vector.hva..<(vector.hva + 0x4000))
    var counts: [Int32] = []
    fixture.recorder.onLock = { _, cpu in
      counts = vector.counts
      fixture.vm.invalidateRangeStart(range, on: &cpu)
      if isComplete { fixture.vm.invalidateRangeEnd(range, on: &cpu) }
    }
    #expect(fixture.fault(0) == .retry)
    #expect(counts == [era == .a ? 2 : 1, 0, 0, 0])
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(fixture.leaf(0) == nil)
    #expect(vector.marks(0) == (era == .c ? [] : .referenced))
    fixture.recorder.onLock = nil
    if !isComplete {
      // Still inside: every fault on the range starts again.
      #expect(fixture.fault(1) == (era == .a ? .failed(.efault) : .retry))
      #expect(fixture.fault(0) == .retry)
      fixture.vm.invalidateRangeEnd(range, on: &fixture.cpu)
    }
    #expect(fixture.fault(0) == .fixed)
    #expect(vector.counts == [1, 0, 0, 0])
  }

  @Test(arguments: eras) func `V14 a long mapping counts the head and never a tail`(
    _ era: Era
  ) throws {
    let vector = try Vector(era)
    let (vm, fixture) = (vector.fixture.vm, vector.fixture)
    #expect(throws: KernelErrno.einval) {
      try GuestPageMap.map(GFN(1), of: vm, on: &fixture.cpu)
    }
    guard era != .c else {
      #expect(throws: KernelErrno.einval) {
        try GuestPageMap.map(GFN(0), of: vm, on: &fixture.cpu)
      }
      return #expect(vector.counts == [1, 0, 0, 0])
    }
    let map = try GuestPageMap.map(GFN(0), of: vm, on: &fixture.cpu)
    #expect(map.pfn == vector.block)
    #expect(vector.counts == [2, 0, 0, 0])
    map.unmap(dirty: true, on: &fixture.cpu)
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.marks(0) == .both)
  }

  @Test(arguments: eras) func `V15 a pfn cache takes a tail in C only`(_ era: Era) throws {
    let vector = try Vector(era)
    let cache = PFNCache(vector.fixture.vm)
    if era == .c {
      try cache.refresh(gpa: 0x1000, on: &vector.fixture.cpu)
      #expect(cache.pfn == vector.block + 1)
      #expect(cache.check(byteCount: 4096))
    } else {
      #expect(throws: KernelErrno.efault) {
        try cache.refresh(gpa: 0x1000, on: &vector.fixture.cpu)
      }
      #expect(!cache.check(byteCount: 1))
    }
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.marks(1) == [])
  }

  @Test(arguments: eras) func `V16 a write over a read-only entry is an exit`(_ era: Era) throws {
    let vector = try Vector(era, rights: .read)
    #expect(vector.fixture.write(0) == .mmio(gpa: 0, byteCount: 4, isWrite: true))
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.fixture.leaf(0) == nil)
    #expect(vector.marks(0) == [])
  }

  @Test(arguments: eras) func `V17 a write without any entry is EFAULT`(_ era: Era) throws {
    let vector = try Vector(era, rights: .read)
    vector.driver.mappings.unmap(on: &vector.fixture.cpu)
    #expect(vector.fixture.write(0) == .failed(.efault, exitReasonIsSet: era == .c))
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.fixture.leaf(0) == nil)
  }

  @Test(arguments: eras) func `V18 a write to a read-only slot is an exit`(_ era: Era) throws {
    let vector = try Vector(era, flags: .readonly)
    #expect(vector.fixture.write(0) == .mmio(gpa: 0, byteCount: 4, isWrite: true))
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(vector.fixture.leaf(0) == nil)
    #expect(GuestFixture.isDone(vector.fixture.read(0)))
    #expect(vector.fixture.leaf(0)?.isHostWritable == false)
  }

  @Test func `V19 before the fix a guest's write frees a tail under its owner`() throws {
    let vector = try Vector(.a0)
    let (fixture, tail) = (vector.fixture, vector.block + 1)
    fixture.watchFrees()
    var during: [Int32] = []
    fixture.recorder.onStep = { text in
      if text.hasPrefix("entry of gfn") { during = vector.counts }
    }
    #expect(GuestFixture.isDone(fixture.write(1)))
    #expect(during == [1, 1, 0, 0])
    #expect(vector.counts == [1, 0, 0, 0])
    #expect(fixture.frees == [FreeEvent(pfn: tail, order: 0, refcount: 0)])
    #expect(fixture.machine.whereabouts(of: tail) == .perCPU(cpu: 0, head: tail, order: 0))
    #expect(fixture.leaf(1)?.pfn == tail)
    // The guest goes on in a frame that belongs to nobody.
    fixture.vm.checksAccesses = true
    fixture.notify(vector.hva, pages: 4)
    #expect(GuestFixture.isDone(fixture.write(1)))
    #expect(!fixture.vm.verdict().noAccessAfterFree)
  }

  @Test(arguments: eras) func `V20 one unmap drops both of two aliases and counts once`(
    _ era: Era
  ) throws {
    let vector = try Vector(era)
    let fixture = vector.fixture
    try fixture.setSlot(0x100, pages: 4, hva: vector.hva)
    #expect(GuestFixture.isDone(fixture.read(0)))
    #expect(GuestFixture.isDone(fixture.read(0x100)))
    #expect(fixture.leaf(0)?.pfn == fixture.leaf(0x100)?.pfn)
    let watcher = WatchingNotifier()
    var inProgress: [Int] = []
    watcher.onStart = { _ in inProgress.append(fixture.vm.invalidationsInProgressCount) }
    fixture.process.register(watcher)
    let sequence = fixture.vm.invalidationSequence
    vector.driver.mappings.unmap(on: &fixture.cpu)
    #expect(fixture.leaf(0) == nil && fixture.leaf(0x100) == nil)
    #expect(inProgress == [1])
    #expect(fixture.vm.invalidationsInProgressCount == 0)
    #expect(fixture.vm.invalidationSequence == sequence + 1)
    #expect(vector.counts == [1, 0, 0, 0])
  }
}
