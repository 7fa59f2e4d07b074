internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

// What happens between accesses.
extension LockstepWorld {
  mutating func change() throws(RealGuestError) {
    switch random.below(136) {
    case 0..<20: try mapSomething()
    case 20..<26: try perform(.unmap(randomPages(most: 8)))
    case 26..<40: try perform(.protect(randomPages(most: 16), randomRights()))
    case 40..<48: try perform(.discard(randomPages(most: 12)))
    case 48..<52: try perform(.revoke(driver: random.below(5), randomObjectPages()))
    case 52..<56:
      try perform(.writeFile(random.below(2), randomObjectPages(), UInt8(random.below(256))))
    case 56..<57:
      try perform(.truncate(random.below(2), pages: random.below(LockstepSide.objectPageCount)))
    case 57..<62:
      let value = random.oneIn(2) ? UInt32(truncatingIfNeeded: random.next()) : nil
      try perform(
        .touch(
          page: random.below(LockstepSide.pageCount), offset: random.below(1023) * 4, write: value))
    case 62..<70: try createSlot()
    case 70..<73: try deleteSlot()
    case 73..<76: try moveSlot()
    case 76..<84: try changeFlags()
    case 84..<86: try spoilRegion()
    case 86..<96: try getLog()
    case 96..<101: try clearLog()
    case 101..<117: try probe()
    case 117..<134: try refresh()
    default: try enableManualProtection(random.pick([0, 0, 0, 1, 1, 2, 3, 4]))
    }
  }

  /// Memory and two slots to begin with.
  mutating func prepare() throws(RealGuestError) {
    // Manual protection from the beginning, with all pages dirty at first or without, or none.
    try enableManualProtection(random.pick([0, 0, 0, 1, 3]))
    let all = 0..<LockstepSide.pageCount
    try perform(.map(all, .anonymous, rights: [.read, .write], offset: 0))
    for _ in 0..<2 { try createSlot() }
  }

  // MARK: memory

  /// Makes a change on both sides and compares their answers, which the real kernel has no part in.
  private mutating func perform(_ change: LockstepChange) throws(RealGuestError) {
    // The emulated process may copy what the real guest has still to write.
    try mirror.flush()
    report.mappingChanges += 1
    let (ours, theirs) = (
      software.call { side, cpu in try change.perform(on: side, &cpu) },
      beside.call { side, cpu in try change.perform(on: side, &cpu) }
    )
    if ours != theirs { differ("\(change): \(ours) and \(theirs)") }
    try mirror.sync(pages: 0..<LockstepSide.pageCount)
  }

  /// Replaces pages by others that only the process has touched: entries that KVM may map along with
  /// a neighbour, and translations that are gone.
  private mutating func refresh() throws(RealGuestError) {
    let pages = randomPages(most: 6)
    try perform(.discard(pages))
    for page in pages where !random.oneIn(4) {
      try perform(
        .touch(page: page, offset: random.below(1023) * 4, write: UInt32(truncatingIfNeeded: page)))
    }
  }

  private mutating func randomPages(most: Int) -> Range<Int> {
    let start = random.below(LockstepSide.pageCount)
    let count = random.oneIn(3) ? 1 : 1 + random.below(most)
    return start..<min(start + count, LockstepSide.pageCount)
  }

  private mutating func randomObjectPages() -> Range<Int> {
    let start = random.below(LockstepSide.objectPageCount)
    return start..<min(start + 1 + random.below(8), LockstepSide.objectPageCount)
  }

  private mutating func randomRights() -> VMAFlags {
    random.pick([[], .read, .read, .write] + Array(repeating: [.read, .write], count: 6))
  }

  private mutating func mapSomething() throws(RealGuestError) {
    let pages = randomPages(most: 32)
    let rights: VMAFlags = random.oneIn(3) ? randomRights() : [.read, .write]
    var backing: LockstepChange.Backing =
      switch random.below(8) {
      case 0..<3: .anonymous
      case 3..<5: .file(random.below(2), isShared: true)
      case 5: .file(random.below(2), isShared: false)
      default: .driver(random.below(5))
      }
    // A special page may not be in two slots, see `MirroredVM`.
    if case .driver = backing, pages.contains(where: { slots(showing: $0) > 1 }) {
      backing = .anonymous
    }
    let room = LockstepSide.objectPageCount - min(pages.count, LockstepSide.objectPageCount)
    try perform(.map(pages, backing, rights: rights, offset: random.below(room + 1)))
  }

  /// How many slots show a page of the range.
  private func slots(showing page: Int) -> Int {
    let address = LockstepChange.address(page)
    return beside.vm.memslots[0].slots.count { $0.gfn(ofHVA: address) != nil }
  }

  /// Whether a page of the range is a driver's.
  private func isDrivers(_ page: Int) -> Bool {
    guard let flags = beside.process.areaInfo(at: LockstepChange.address(page))?.flags else {
      return false
    }
    return !flags.isDisjoint(with: [.io, .pfnmap, .mixedmap])
  }

  // MARK: slots

  /// Makes a call about a slot on all machines.
  @discardableResult
  private mutating func set(
    _ region: MemoryRegion, _ form: RealRegionForm
  ) throws(RealGuestError) -> Bool {
    report.slotCalls += 1
    let ours = software.call { side, cpu in
      switch form {
      case .automatic, .first: try side.vm.setUserMemoryRegion(region, on: &cpu)
      case .second:
        try side.vm.setUserMemoryRegion2(MemoryRegion2(region, guestMemfd: -1), on: &cpu)
      }
    }
    let answer = try mirror.setMemoryRegion(region, form: form, on: &beside.cpu)
    if answer.emulated != ours || !answer.isEqual {
      differ("\(region): the software guest's machine \(ours), \(answer)")
    }
    return answer.real == 0
  }

  private var ownSlots: [Memslot] { beside.vm.memslots[0].slots.filter { $0.id != 0 } }

  private mutating func randomForm() -> RealRegionForm { random.oneIn(4) ? .second : .first }

  private mutating func randomGuestAddress() -> UInt64 {
    LockstepWorld.guestStart
      + UInt64(random.below(LockstepWorld.guestPageCount - 96)) << 12
  }

  private mutating func createSlot() throws(RealGuestError) {
    let count = 1 + random.below(random.oneIn(3) ? 90 : 24)
    let first = random.below(LockstepSide.pageCount - count)
    let pages = first..<first + count
    guard !pages.contains(where: { isDrivers($0) && slots(showing: $0) > 0 }) else { return }
    var address = randomGuestAddress()
    // Often right behind another slot, so that groups of eight pages have two.
    let others = ownSlots
    if !others.isEmpty, random.oneIn(2) {
      address = others[random.below(others.count)].endGFN.guestPhysicalAddress
    }
    guard address < LockstepWorld.guestStart + UInt64(LockstepWorld.guestPageCount - 96) << 12
    else { return }
    let flags: UInt32 = random.pick([0, 0, 0, 1, 1, 2, 3])
    try set(
      MemoryRegion(
        slot: random.pick(LockstepWorld.slotNumbers), flags: flags, guestPhysicalAddress: address,
        memorySize: UInt64(count) << 12, userspaceAddress: LockstepChange.address(first)),
      randomForm())
  }

  private func region(_ slot: Memslot) -> MemoryRegion {
    MemoryRegion(
      slot: slot.slotNumber, flags: slot.flags.rawValue,
      guestPhysicalAddress: slot.baseGFN.guestPhysicalAddress,
      memorySize: UInt64(slot.pageCount) << 12, userspaceAddress: slot.userspaceAddress)
  }

  private mutating func deleteSlot() throws(RealGuestError) {
    var change = MemoryRegion(
      slot: random.pick(LockstepWorld.slotNumbers), guestPhysicalAddress: 0, memorySize: 0,
      userspaceAddress: LockstepSide.base)
    let slots = ownSlots
    if !slots.isEmpty { change.slot = slots[random.below(slots.count)].slotNumber }
    try set(change, randomForm())
  }

  private mutating func moveSlot() throws(RealGuestError) {
    let slots = ownSlots
    guard !slots.isEmpty else { return }
    var change = region(slots[random.below(slots.count)])
    change.guestPhysicalAddress = randomGuestAddress()
    if random.oneIn(3) { change.flags ^= 1 }
    try set(change, randomForm())
  }

  private mutating func changeFlags() throws(RealGuestError) {
    let slots = ownSlots
    guard !slots.isEmpty else { return }
    var change = region(slots[random.below(slots.count)])
    change.flags ^= 1
    try set(change, randomForm())
  }

  /// A call that may be refused.
  private mutating func spoilRegion() throws(RealGuestError) {
    let slots = ownSlots
    guard !slots.isEmpty else { return }
    var change = region(slots[random.below(slots.count)])
    switch random.below(12) {
    case 0: change.flags |= 8
    case 1: change.memorySize -= 1
    case 2: change.guestPhysicalAddress += 0x800
    case 3: change.userspaceAddress += 1
    case 4: change.slot |= 0x1_0000
    case 5: change.slot = 32764
    case 6: change.flags ^= 2
    // Found out late, when the slot has been taken out already.
    case 7...9: change.guestPhysicalAddress = 1 << 52
    case 10: change.guestPhysicalAddress = 0
    default:
      change.memorySize = change.memorySize > 4096 ? change.memorySize - 4096 : 4096
    }
    // What would reach beyond the mirrored range is not tried: the call might succeed.
    guard change.userspaceAddress + change.memorySize <= LockstepChange.address(192) else { return }
    try set(change, randomForm())
  }

  // MARK: dirty logs

  /// Makes a slot tell which translations it has: once writes are logged, what was there is
  /// protected, so that reading it is no fault; what was not there is mapped by the read, writable
  /// where the host lets it, and so becomes dirty. The log is then the list of what was missing.
  private mutating func probe() throws(RealGuestError) {
    let slots = ownSlots.filter { !$0.isReadonly }
    guard !slots.isEmpty else { return }
    let slot = slots[random.below(slots.count)]
    var change = region(slot)
    if slot.logsDirtyPages {
      try getLog(slot.slotNumber)
    } else {
      change.flags |= 1
      try set(change, .first)
    }
    for page in 0..<slot.pageCount where report.mismatches == 0 {
      let offset = UInt64(page) << 12 + UInt64(random.below(4089))
      try make(.read(change.guestPhysicalAddress + offset, .eight))
    }
    try getLog(slot.slotNumber)
    guard random.oneIn(2) else { return }
    change.flags &= ~1
    try set(change, .first)
  }

  /// A slot that is there, as a rule one that logs.
  private mutating func randomSlotNumber() -> UInt32 {
    let slots = ownSlots
    let logging = slots.filter(\.logsDirtyPages)
    if random.oneIn(24) { return 32764 }
    if random.oneIn(6) { return random.pick(LockstepWorld.slotNumbers) }
    let some = logging.isEmpty ? slots : logging
    return some.isEmpty ? 1 : some[random.below(some.count)].slotNumber
  }

  private mutating func getLog(_ number: UInt32? = nil) throws(RealGuestError) {
    let number = number ?? randomSlotNumber()
    let count = beside.vm.memslots[0].slot(id: UInt16(number))?.pageCount ?? 1
    report.slotCalls += 1
    var errno: Int32 = 0
    let ours = MirroredVM.dirtyLog(
      of: software.vm, slot: number, wordCount: (count + 63) / 64, &errno, on: &software.cpu)
    if options.mistake == .skipsRealDirtyLog, random.oneIn(2) {
      try mirror.flush()
      _ = MirroredVM.dirtyLog(
        of: beside.vm, slot: number, wordCount: 1, &errno, on: &beside.cpu)
      return
    }
    let answer = try mirror.dirtyLog(slot: number, pageCount: count, on: &beside.cpu)
    if answer.emulated != errno || answer.emulatedLog != ours || !answer.isEqual {
      let isOurs = answer.emulatedLog == ours
      differ(
        "dirty log of slot \(number): \(answer)"
          + (isOurs ? "" : "; the software guest's machine has another log"))
    }
    guard errno == 0 else { return }
    report.dirtyLogs += 1
    report.dirtyPages += ours.reduce(0) { $0 + $1.nonzeroBitCount }
  }

  private mutating func clearLog() throws(RealGuestError) {
    let number = randomSlotNumber()
    let count = beside.vm.memslots[0].slot(id: UInt16(number))?.pageCount ?? 1
    var range = DirtyLogRange(slot: number, firstPage: 0, pageCount: UInt32(count))
    if count > 64, random.oneIn(2) {
      range.firstPage = 64
      range.pageCount = UInt32(count - 64)
    }
    switch random.below(12) {
    case 0: range.firstPage = 1
    case 1: range.pageCount = UInt32(count) + 1
    case 2: range.pageCount = 63
    default: break
    }
    let bits = (0..<range.wordCount).map { _ in
      random.oneIn(3) ? random.next() & random.next() : .max
    }
    report.slotCalls += 1
    let ours = software.call { side, cpu in
      try side.vm.clearDirtyLog(range, bits: bits, on: &cpu)
    }
    let answer = try mirror.clearDirtyLog(range, bits: bits, on: &beside.cpu)
    if answer.emulated != ours || !answer.isEqual { differ("\(range): \(ours), \(answer)") }
  }

  mutating func enableManualProtection(_ argument: UInt64) throws(RealGuestError) {
    report.slotCalls += 1
    let ours = software.call { side, _ in
      try side.vm.enableManualDirtyLogProtect(argument)
    }
    let answer = try mirror.enableManualDirtyLogProtect(argument)
    if answer.emulated != ours || !answer.isEqual {
      differ("manual protection \(argument): \(ours), \(answer)")
    }
  }
}
