import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// A host, a VM and everything that a random run has open.
final class GuestPropertyRun {
  struct Area {
    var hva: UInt64
    var pages: Int
    var kind: Kind
    /// Of drivers: what they map, and how the frames were allocated.
    var driver: RemapDriver?
    var object: TTMBufferObject?
    var blocks: [(first: PFN, order: Int)] = []
  }
  enum Kind: CaseIterable {
    case anonymous, huge, pool, tmpfs, tmpfsPrivate, disk, poolFile, remap, insertPFN, insertPage,
      ttm
  }
  struct Slot {
    var number: UInt32
    var gfn: UInt64
    var pages: Int
    var hva: UInt64
    var flags: MemslotFlags
  }
  enum Hold {
    case user(PFN, GUPFlags, Holder)
    case map(GuestPageMap)
  }

  let fixture: GuestFixture
  let pool: TTMPool
  var random: Stage2Random
  var areas: [Area] = []
  var files: [HostFile] = []
  var slots: [Slot] = []
  var holds: [Hold] = []
  var children: [HostProcess] = []
  var caches: [PFNCache] = []
  private var nextSlot: UInt32 = 0
  private let start: Int64
  private let poolStart: Int
  private(set) var performed: [String: Int] = [:]

  private var isBeforeFix: Bool { fixture.vm.era == .a0 }

  init(_ era: KernelModel.KVM, seed: UInt64) throws {
    random = Stage2Random(seed: seed)
    var behaviour: HostBehaviour = random.below(2) == 0 ? .linux61 : .linux618
    behaviour.transparentHugePages = random.below(2) == 0 ? .always : .madvise
    fixture = try GuestFixture(
      era, memory: .mib(48), behaviour: behaviour, hugePages: 2,
      configuration: VirtualMachine.Configuration(mmu: random.below(3) == 0 ? .shadow : .tdp))
    fixture.vm.checksAccesses = true
    pool = TTMPool(machine: fixture.machine, pageLimit: 64)
    start = fixture.machine.freePageCount
    poolStart = fixture.kernel.freeHugePageCount
    for _ in 0..<2 { caches.append(PFNCache(fixture.vm)) }
  }

  // MARK: operations

  /// One random operation; refusals of the kernel are part of the game.
  func step() throws {
    let operations: [(String, Int, (GuestPropertyRun) throws -> Void)] = [
      ("map", 6, { try $0.map() }), ("unmap", 3, { try $0.unmap() }),
      ("protect", 4, { try $0.protect() }), ("discard", 5, { try $0.discard() }),
      ("move", 1, { try $0.move() }), ("host access", 14, { try $0.hostAccess() }),
      ("guest access", 40, { try $0.guestAccess() }), ("fork", 2, { $0.fork() }),
      ("child", 6, { $0.childAccess() }), ("exit", 2, { $0.childExit() }),
      ("lookup", 6, { $0.lookup() }), ("release", 6, { $0.release() }),
      ("slot", 6, { try $0.setSlot() }), ("delete slot", 2, { try $0.deleteSlot() }),
      ("change slot", 2, { try $0.changeSlot() }), ("long map", 2, { try $0.longMap() }),
      ("cache", 3, { try $0.refresh() }), ("evict", 2, { $0.evict() }),
      ("age", 2, { $0.age() }), ("drain", 1, { $0.drain() }),
      ("dirty log", 2, { try $0.harvest() }),
    ]
    var choice = random.below(operations.reduce(0) { $0 + $1.1 })
    for (name, weight, body) in operations {
      if choice < weight {
        do { try body(self) } catch is KernelErrno {} catch is AllocationError {}
        performed[name, default: 0] += 1
        return
      }
      choice -= weight
    }
  }

  private func pickArea() -> Area? {
    areas.isEmpty ? nil : areas[random.below(areas.count)]
  }

  /// A random part of an area.
  private func pickRange(_ area: Area) -> Range<UInt64> {
    let first = random.below(area.pages)
    let count = 1 + random.below(min(area.pages - first, random.below(4) == 0 ? area.pages : 4))
    let low = area.hva + UInt64(first) << 12
    return low..<low + UInt64(count) << 12
  }

  private func pickAddress(_ area: Area) -> UInt64 {
    area.hva + UInt64(random.below(area.pages)) << 12 + UInt64(random.below(1024)) * 4
  }

  private func file(_ kind: HostFile.Kind, pages: Int) -> HostFile {
    let made = HostFile(kernel: fixture.kernel, kind: kind, byteCount: UInt64(pages) << 12)
    files.append(made)
    return made
  }

  private func map() throws {
    guard areas.count < 10 else { return }
    let kind = Kind.allCases[random.below(Kind.allCases.count)]
    var pages = 1 + random.below(24)
    var request = HostProcess.MapRequest(byteCount: 0)
    var area = Area(hva: 0, pages: pages, kind: kind)
    switch kind {
    case .anonymous: break
    case .huge:
      pages = 512
      request.extra = .hugePage
    case .pool:
      pages = 512
      request.extra = .hugetlb
    case .tmpfs, .tmpfsPrivate:
      request.backing = .file(file(.tmpfs, pages: pages))
      request.isShared = kind == .tmpfs
    case .disk:
      request.backing = .file(file(.disk, pages: pages))
      request.isShared = true
    case .poolFile:
      pages = 512
      request.backing = .file(file(.hugetlb, pages: 512))
      request.isShared = true
    case .remap, .insertPFN, .insertPage:
      area.blocks = try driverBlocks()
      let frames = area.blocks.flatMap { block in (0..<1 << block.order).map { block.first + $0 } }
      pages = frames.count
      let style: RemapDriver.Style =
        kind == .remap ? .remap : kind == .insertPFN ? .insertPFN : .insertPage
      let driver = RemapDriver(pages: frames, style: style)
      area.driver = driver
      request.backing = .driver(driver)
      request.isShared = true
    case .ttm:
      let object = TTMBufferObject(
        pool: pool, pageCount: pages, caching: random.pick([.cached, .writeCombined]))
      area.object = object
      request.backing = .driver(object)
      request.isShared = true
      // Before the fix a guest that touches a tail frees it.
      if isBeforeFix { return }
    }
    request.byteCount = UInt64(pages) << 12
    area.pages = pages
    do { area.hva = try fixture.process.map(request, on: &fixture.cpu) } catch {
      free(area)
      throw error
    }
    areas.append(area)
  }

  private func driverBlocks() throws -> [(first: PFN, order: Int)] {
    let order = random.below(3)
    let isCompound = random.below(3) == 0 && !isBeforeFix
    let first = try fixture.allocate(order: order, compound: isCompound && order > 0)
    guard random.below(3) == 0 || isBeforeFix, !(isCompound && order > 0) else {
      return [(first, order)]
    }
    fixture.cpu.splitPage(first, order: order)
    return (0..<1 << order).map { (first + $0, 0) }
  }

  /// Frees what an area's driver owns: nothing maps it any more.
  private func free(_ area: Area) {
    area.driver?.mappings.unmap(on: &fixture.cpu)
    area.object?.evict(on: &fixture.cpu)
    for block in area.blocks { fixture.cpu.freePages(block.first, order: block.order) }
  }

  private func unmap() throws {
    guard !areas.isEmpty else { return }
    let index = random.below(areas.count)
    let area = areas[index]
    if random.below(3) == 0 {
      return try fixture.process.unmap(pickRange(area), on: &fixture.cpu)
    }
    areas.remove(at: index)
    try? fixture.process.unmap(
      area.hva..<area.hva + UInt64(area.pages) << 12, on: &fixture.cpu)
    free(area)
  }

  private func protect() throws {
    guard let area = pickArea() else { return }
    let rights: VMAFlags = random.pick([.read, [.read, .write], [.read, .write], .write, []])
    try fixture.process.protect(pickRange(area), rights: rights, on: &fixture.cpu)
  }

  private func discard() throws {
    guard let area = pickArea() else { return }
    try fixture.process.discard(pickRange(area), on: &fixture.cpu)
  }

  private func move() throws {
    guard !areas.isEmpty else { return }
    let index = random.below(areas.count)
    let area = areas[index]
    areas[index].hva = try fixture.process.remap(
      area.hva..<area.hva + UInt64(area.pages) << 12, on: &fixture.cpu)
  }

  private func hostAccess() throws {
    guard let area = pickArea() else { return }
    let address = pickAddress(area)
    if random.below(2) == 0 {
      let value = UInt32(truncatingIfNeeded: random.next())
      try fixture.process.write32(address, value, on: &fixture.cpu)
      guard let seen = try? fixture.process.read32(address, on: &fixture.cpu) else { return }
      #expect(seen == value)
    } else {
      _ = try fixture.process.read32(address, on: &fixture.cpu)
    }
  }

  // MARK: the guest

  private func guestAccess() throws {
    guard !slots.isEmpty else { return }
    let slot = slots[random.below(slots.count)]
    let page = UInt64(random.below(slot.pages))
    let offset = UInt64(random.below(1024)) * 4
    let hva = slot.hva + page << 12 + offset
    let value = UInt64(UInt32(truncatingIfNeeded: random.next()))
    let isWrite = random.below(2) == 0
    let access =
      isWrite
      ? fixture.write(slot.gfn + page, value, offset: offset)
      : fixture.read(slot.gfn + page, offset: offset)
    switch access {
    case .done(let read):
      // The guest and its process see one memory.
      guard let host = try? fixture.process.read32(hva, on: &fixture.cpu) else { return }
      #expect(UInt64(host) == (isWrite ? value : read))
      performed["guest accesses compared", default: 0] += 1
    case .mmio: #expect(isWrite)
    case .failed(let errno, _): #expect(errno == .efault)
    case .interrupted, .dirtyRingFull: Issue.record("\(access)")
    }
  }

  private func setSlot() throws {
    guard slots.count < 8, let area = pickArea() else { return }
    let first = area.pages == 512 ? 0 : random.below(area.pages)
    let pages = area.pages - first
    let gfn = area.pages == 512 ? UInt64(random.below(6)) * 512 : UInt64(random.below(3072))
    var flags: MemslotFlags = random.below(3) == 0 ? .logDirtyPages : []
    if random.below(6) == 0 { flags.insert(.readonly) }
    let slot = Slot(
      number: nextSlot, gfn: gfn, pages: pages, hva: area.hva + UInt64(first) << 12, flags: flags)
    try set(slot)
    nextSlot += 1
    slots.append(slot)
  }

  private func set(_ slot: Slot, size: Int? = nil) throws(KernelErrno) {
    try fixture.vm.setUserMemoryRegion(
      MemoryRegion(
        slot: slot.number, flags: slot.flags.rawValue, guestPhysicalAddress: slot.gfn << 12,
        memorySize: UInt64(size ?? slot.pages) << 12, userspaceAddress: slot.hva), on: &fixture.cpu)
  }

  private func deleteSlot() throws {
    guard !slots.isEmpty else { return }
    try set(slots.remove(at: random.below(slots.count)), size: 0)
  }

  private func changeSlot() throws {
    guard !slots.isEmpty else { return }
    let index = random.below(slots.count)
    var slot = slots[index]
    if random.below(2) == 0 {
      slot.flags.formSymmetricDifference(.logDirtyPages)
    } else {
      slot.gfn = UInt64(random.below(3072))
    }
    try set(slot)
    slots[index] = slot
  }

  private func harvest() throws {
    guard let slot = slots.first(where: { $0.flags.contains(.logDirtyPages) }) else { return }
    var words = [UInt64](repeating: 0, count: (slot.pages + 63) / 64)
    try words.withUnsafeMutableBufferPointer {
      try fixture.vm.getDirtyLog(slot: slot.number, into: $0, on: &fixture.cpu)
    }
  }

  private func longMap() throws {
    guard holds.count < 8, !slots.isEmpty else { return }
    let slot = slots[random.below(slots.count)]
    let map = try GuestPageMap.map(
      GFN(slot.gfn + UInt64(random.below(slot.pages))), of: fixture.vm,
      writable: random.below(2) == 0, on: &fixture.cpu)
    holds.append(.map(map))
  }

  private func refresh() throws {
    guard !slots.isEmpty else { return }
    let slot = slots[random.below(slots.count)]
    let gfn = slot.gfn + UInt64(random.below(slot.pages))
    try caches[random.below(caches.count)].refresh(gpa: gfn << 12, on: &fixture.cpu)
  }

  // MARK: others

  private func fork() {
    guard children.count < 3 else { return }
    children.append(fixture.process.fork(on: &fixture.cpu))
  }

  private func childAccess() {
    guard !children.isEmpty, let area = pickArea() else { return }
    let child = children[random.below(children.count)]
    let address = pickAddress(area)
    if random.below(2) == 0 {
      try? child.write32(address, UInt32(truncatingIfNeeded: random.next()), on: &fixture.cpu)
    } else {
      _ = try? child.read32(address, on: &fixture.cpu)
    }
  }

  private func childExit() {
    guard !children.isEmpty else { return }
    children.remove(at: random.below(children.count)).exit(on: &fixture.cpu)
  }

  private func lookup() {
    guard holds.count < 8, let area = pickArea() else { return }
    let address = pickAddress(area)
    let take: GUPFlags = random.below(2) == 0 ? .pin : .get
    let flags = random.below(2) == 0 ? take.union([.write, .touch]) : take.union(.touch)
    let holder = Holder.userPages(process: fixture.process.id, address: address)
    if random.below(2) == 0 {
      if let page = fixture.process.getUserPageFast(address, flags, holder, on: &fixture.cpu) {
        holds.append(.user(page, take, holder))
      }
    } else if case .page(let page) = fixture.process.getUserPage(
      address, flags, holder, on: &fixture.cpu)
    {
      holds.append(.user(page, take, holder))
    }
  }

  private func release() {
    guard !holds.isEmpty else { return }
    end(holds.remove(at: random.below(holds.count)))
  }

  private func end(_ hold: Hold) {
    switch hold {
    case .user(let page, let take, let holder):
      fixture.process.release(page, take, holder, on: &fixture.cpu)
    case .map(let map): map.unmap(dirty: random.below(2) == 0, on: &fixture.cpu)
    }
  }

  private func evict() {
    guard let area = pickArea() else { return }
    area.driver?.mappings.unmap(on: &fixture.cpu)
    area.object?.evict(on: &fixture.cpu)
  }

  private func age() {
    guard let area = pickArea() else { return }
    _ = fixture.process.clearYoung(pickRange(area), on: &fixture.cpu)
  }

  private func drain() {
    fixture.kernel.drainLRUBatches(on: &fixture.cpu)
    fixture.cpu.drainLocalPages()
  }

  // MARK: looking

  /// What must hold at any time.
  func check(_ what: Comment) {
    let verdict = fixture.vm.verdict()
    #expect(verdict.holds, "\(what): \(verdict)")
    #expect(fixture.vm.invalidationsInProgressCount == 0, what)
    #expect(!fixture.ledger.holdsGuestFaults, what)
    #expect(fixture.machine.findings.findings == [], what)
    // The books and the counts say the same of every page that is in the books.
    for page in fixture.ledger.pages {
      let isBook = fixture.ledger.holders(of: page).allSatisfy { !$0.holder.isOwner }
      let count = fixture.machine.frames.refcount(page)
      let noted = Int32(fixture.ledger.count(of: page))
      if isBook, !isOfDriver(page) {
        #expect(count == noted, "\(what): frame \(page): \(fixture.ledger.holders(of: page))")
      }
    }
  }

  private func isOfDriver(_ page: PFN) -> Bool {
    areas.contains { area in
      area.blocks.contains { $0.first <= page && page < $0.first + 1 << $0.order }
    }
      || holds.contains {
        // A driver's page that outlives its driver.
        if case .map(let map) = $0 { map.pfn == page } else { false }
      }
  }

  /// Ends everything and compares with the beginning.
  func finish(_ what: Comment) {
    for hold in holds { end(hold) }
    holds = []
    for cache in caches { cache.deactivate() }
    fixture.vm.close(on: &fixture.cpu)
    #expect(fixture.vm.leafCounts == Stage2Table.LeafCounts(), what)
    for child in children { child.exit(on: &fixture.cpu) }
    fixture.process.exit(on: &fixture.cpu)
    for area in areas { free(area) }
    areas = []
    for file in files { file.discard(on: &fixture.cpu) }
    while pool.shrink(on: &fixture.cpu) > 0 {}
    drain()
    let hugeZero = fixture.ledger.pages.first { fixture.kernel.isHugeZeroPage($0) }
    let own = [fixture.kernel.zeroPage] + [hugeZero].compactMap { $0 }
    for page in fixture.ledger.pages where !own.contains(page) {
      Issue.record("\(what): frame \(page) is held by \(fixture.ledger.holders(of: page))")
    }
    #expect(fixture.ledger.unmatchedPuts == [], what)
    #expect(fixture.count(fixture.kernel.zeroPage) == 1, what)
    if let hugeZero { #expect(fixture.count(hugeZero) == 1, what) }
    #expect(fixture.machine.invariantViolations() == [], what)
    #expect(fixture.machine.findings.findings == [], what)
    #expect(fixture.machine.freePageCount == start - (hugeZero == nil ? 0 : 512), what)
    #expect(fixture.kernel.freeHugePageCount == poolStart, what)
  }
}
