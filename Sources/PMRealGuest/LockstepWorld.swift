internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A lockstep run: both machines, the generator, and what was counted.
struct LockstepWorld {
  /// Where the tested part of the guest's address space begins, and its pages.
  static let guestStart: UInt64 = 0x4000_0000
  static let guestPageCount = 1024
  static let slotNumbers: [UInt32] = [1, 2, 3, 4, 5, 6]

  let options: RealLockstep.Options
  var report: RealLockstep.Report
  var random: LockstepRandom
  /// The software guest's machine.
  let software: LockstepSide
  /// The machine beside the real guest.
  let beside: LockstepSide
  let mirror: MirroredVM

  init(
    _ options: RealLockstep.Options, _ configuration: VirtualMachine.Configuration
  ) throws {
    self.options = options
    report = RealLockstep.Report(seed: options.seed)
    random = LockstepRandom(seed: options.seed)
    software = try LockstepSide(configuration)
    beside = try LockstepSide(configuration)
    mirror = try MirroredVM(
      beside.vm, base: LockstepSide.base, pageCount: LockstepSide.pageCount, on: &beside.cpu)
    // The slot that the mirror has for the real guest's own memory.
    let own = MemoryRegion(
      slot: 0, guestPhysicalAddress: 0, memorySize: mirror.real.privateByteCount,
      userspaceAddress: 0x10_0000)
    try software.vm.setUserMemoryRegion(own, on: &software.cpu)
  }

  mutating func run() throws(RealGuestError) {
    do throws(RealGuestError) {
      try makeSteps()
    } catch {
      // What the failure leaves unmade does not matter any more.
      try? close()
      throw error
    }
    try close()
    collect()
  }

  private mutating func makeSteps() throws(RealGuestError) {
    let mistakeStart = options.steps / 10
    try prepare()
    while report.steps < options.steps, report.mismatches == 0 {
      if report.steps >= mistakeStart { makeMistake() }
      if random.oneIn(32) { try change() } else { try access() }
      report.steps += 1
      if report.steps % 5000 == 0 { try checkpoint() }
      collect()
    }
    try mirror.flush()
    collect()
    if report.mismatches == 0 { try checkpoint() }
    collect()
    report.silentUpgrades = mirror.silentUpgradeCount
  }

  /// Ends the machines, which their processes would keep alive.
  private func close() throws(RealGuestError) {
    software.vm.close(on: &software.cpu)
    try mirror.close(on: &beside.cpu)
  }

  private func makeMistake() {
    switch options.mistake {
    case .mirror(let mistake): mirror.mistake = mistake
    case .staleSoftwareGuest: software.vm.omitsZaps = true
    case .skipsRealDirtyLog, nil: break
    }
  }

  /// Takes over what the mirror has found.
  mutating func collect() {
    guard let first = mirror.mismatches.first, report.mismatches == 0 else { return }
    report.firstMismatch = first
    report.mismatches = mirror.mismatches.count
  }

  mutating func differ(_ text: @autoclosure () -> String) {
    report.mismatches += 1
    if report.firstMismatch == nil { report.firstMismatch = text() }
  }

  // MARK: accesses

  private mutating func access() throws(RealGuestError) {
    try make(randomAccess())
  }

  mutating func make(_ access: RealAccess) throws(RealGuestError) {
    let gpa = access.guestPhysicalAddress
    let count = access.size.rawValue
    let outcome =
      access.isWrite
      ? software.vcpu.write(gpa, byteCount: count, value: access.value, on: &software.cpu)
      : software.vcpu.read(gpa, byteCount: count, on: &software.cpu)
    switch outcome {
    case .done: break
    case .mmio: report.deviceAccesses += 1
    default: report.failedAccesses += 1
    }
    report.accesses += 1
    try mirror.submit(access, expecting: outcome, on: &beside.cpu)
  }

  private mutating func randomAccess() -> RealAccess {
    let size = random.pick(RealAccessSize.allCases)
    var page = randomGuestPage()
    var offset: Int
    switch random.below(16) {
    // Across the border to the next page, where that can be mirrored.
    case 0 where size != .one && canCross(from: page):
      offset = 4096 - 1 - random.below(size.rawValue - 1)
    // Up to the border.
    case 1: offset = 4096 - size.rawValue
    // Few bytes, so that accesses meet.
    case 2...9: offset = random.below(8)
    default: offset = random.below(4096 - size.rawValue + 1)
    }
    if offset + size.rawValue > 4096, page == LockstepWorld.guestPageCount - 1 {
      page -= 1
      offset = 0
    }
    let isWrite = random.oneIn(2) || isUnreadable(page)
    return RealAccess(
      guestPhysicalAddress: LockstepWorld.guestStart + UInt64(page) << 12 + UInt64(offset),
      size: size, isWrite: isWrite, value: random.next())
  }

  /// Whether a page is one that the mirror shows readable although its area may only be written, and
  /// that is reached by a way which looks at the area: that of a read-only slot.
  private func isUnreadable(_ page: Int) -> Bool {
    let gfn = GFN(LockstepWorld.guestStart >> 12 + UInt64(page))
    guard let slot = beside.vm.memslots[0].slot(containing: gfn), slot.isReadonly,
      let flags = beside.process.areaInfo(at: slot.hva(of: gfn))?.flags
    else { return false }
    return flags.contains(.write) && !flags.contains(.read)
  }

  /// A page of the guest: of a slot, at the border of one, of those used lately, or any.
  private mutating func randomGuestPage() -> Int {
    let slots = beside.vm.memslots[0].slots.filter { $0.id != 0 }
    let first = Int(LockstepWorld.guestStart >> 12)
    guard !slots.isEmpty, !random.oneIn(24) else {
      return random.below(LockstepWorld.guestPageCount)
    }
    let slot = slots[random.below(slots.count)]
    let start = Int(slot.baseGFN.rawValue) - first
    var page: Int
    switch random.below(16) {
    case 0: page = start - 1
    case 1: page = start
    case 2: page = start + slot.pageCount - 1
    case 3: page = start + slot.pageCount
    case 4...9: page = start + random.below(min(slot.pageCount, 12))
    default: page = start + random.below(slot.pageCount)
    }
    page = min(max(0, page), LockstepWorld.guestPageCount - 1)
    return page
  }

  /// Whether an access from a page to the next may be made: not with pages of drivers, not where the
  /// process itself may not read, see ``MirroredVM``, and not where the second page is still to come.
  private func canCross(from page: Int) -> Bool {
    guard page + 1 < LockstepWorld.guestPageCount else { return false }
    for page in [page, page + 1] {
      let gfn = GFN(LockstepWorld.guestStart >> 12 + UInt64(page))
      guard let slot = beside.vm.memslots[0].slot(containing: gfn),
        let flags = beside.process.areaInfo(at: slot.hva(of: gfn))?.flags
      else { continue }
      let isPlain = flags.isDisjoint(with: [.io, .pfnmap, .mixedmap])
      guard isPlain, flags.contains(.read) || !flags.contains(.write) else { return false }
    }
    return isSettled(page + 1)
  }

  /// Whether an access to a page changes no entry of the process. The mirror resolves both pages of a
  /// crossing access before the real guest makes it; the real kernel would resolve the second after it has
  /// mapped the first, with its neighbours as they are then.
  private func isSettled(_ page: Int) -> Bool {
    let gfn = GFN(LockstepWorld.guestStart >> 12 + UInt64(page))
    guard let slot = beside.vm.memslots[0].slot(containing: gfn),
      beside.process.areaInfo(at: slot.hva(of: gfn)) != nil
    else { return true }
    guard let entry = beside.process.entry(at: slot.hva(of: gfn))?.entry else { return false }
    return entry.isWritable && !entry.isProtnone
  }

  // MARK: checkpoints

  /// Compares both emulated machines: entries, translations, bytes.
  mutating func checkpoint() throws(RealGuestError) {
    try mirror.flush()
    report.checkpoints += 1
    for page in 0..<LockstepSide.pageCount {
      let address = LockstepChange.address(page)
      let (ours, theirs) = (
        software.process.entry(at: address)?.entry, beside.process.entry(at: address)?.entry
      )
      guard ours == theirs else {
        return differ(
          "page \(page): the software guest's process has \(ours?.description ?? "nothing"), the "
            + "other \(theirs?.description ?? "nothing")")
      }
      if let pfn = ours?.pfn { compareBytes(pfn, "page \(page)") }
    }
    for (index, file) in software.files.enumerated() {
      for page in 0..<LockstepSide.objectPageCount {
        let pfn = file.cached(UInt64(page))
        guard pfn == beside.files[index].cached(UInt64(page)) else {
          return differ("file \(index), page \(page): cached in different frames")
        }
        if let pfn { compareBytes(pfn, "file \(index), page \(page)") }
      }
    }
    for page in 0..<LockstepWorld.guestPageCount {
      let gfn = GFN(LockstepWorld.guestStart >> 12 + UInt64(page))
      compareTranslations(gfn)
    }
  }

  private mutating func compareBytes(_ pfn: PFN, _ what: String) {
    let (ours, theirs) = (software.bytes(pfn), beside.bytes(pfn))
    guard !ours.elementsEqual(theirs) else { return }
    let offset = ours.indices.first { ours[$0] != theirs[$0] } ?? 0
    differ(
      "\(what), frame \(pfn), offset \(offset): the software guest's memory has \(ours[offset]), "
        + "the real guest's \(theirs[offset])")
  }

  /// Frame, level and rights; the accessed and dirty bits are the software guest's own.
  private mutating func compareTranslations(_ gfn: GFN) {
    let (ours, theirs) = (software.vm.translation(gfn), beside.vm.translation(gfn))
    let isEqual =
      ours?.spte.pfn == theirs?.spte.pfn && ours?.level == theirs?.level
      && ours?.spte.isWritable == theirs?.spte.isWritable
    if !isEqual {
      differ(
        "gfn \(gfn): the software guest's machine has \(ours.map { "\($0.spte)" } ?? "nothing"), the "
          + "other \(theirs.map { "\($0.spte)" } ?? "nothing")")
    }
  }
}
