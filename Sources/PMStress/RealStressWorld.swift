internal import PMGuestMap
internal import PMRealGuest
internal import Synchronization

/// A real machine on memory of this process, and what its guests and the thread that changes the memory
/// tell each other.
final class RealWorld: @unchecked Sendable {
  // Sendable: constant after init, except what is atomic and the machine, which is taken away when all
  // threads have ended; the machine may be used from any thread, the memory by one at a time.

  static let tableSlot: UInt32 = 1
  /// The first slot that shows guest memory.
  static let firstSlot: UInt32 = 2

  let shape: RealShape
  let memory: any RealMemory
  private(set) var machine: RealVM?
  /// The published state of each region; the guest reads it too.
  private let table: PrivateRange
  /// How many accesses each vCPU has done: every eighth word, so that each has a line of its own.
  let accesses: SharedWords<UInt64>
  /// vCPUs that have work left.
  let running: Atomic<Int>
  /// The region that is changed now or next: guests go there more often than elsewhere.
  let busyRegion = Atomic(0)
  /// Whether a vCPU cannot go on before the dirty rings are emptied.
  let isRingFull = Atomic(false)

  init(_ plan: StressPlan, _ mistake: RealStress.Mistake?, ringByteCount: Int = 0) throws {
    shape = RealShape(plan)
    memory =
      plan.options.backing.isShared
      ? try RealFileMemory(shape, plan, mistake) : try RealPrivateMemory(shape, plan, mistake)
    let tablePages = (shape.regionCount * 8 + 4095) / 4096
    table = try PrivateRange(byteCount: tablePages * 4096)
    try table.map(pages: 0..<tablePages)
    machine = try RealVM(
      RealVM.Configuration(
        reachGiB: shape.reachGiB, dirtyRingByteCount: ringByteCount, vcpuCount: shape.vcpus))
    accesses = SharedWords(count: shape.vcpus * 8, repeating: 0)
    running = Atomic(shape.vcpus)
    for region in 0..<shape.regionCount {
      place(region).pointee.store(
        GuestRegion(rights: .write, place: 1).rawValue, ordering: .relaxed)
    }
    let errno = vm.setMemoryRegion(
      slot: RealWorld.tableSlot, flags: 0, guestPhysicalAddress: RealShape.tableStart,
      memorySize: UInt64(tablePages) << 12, userspaceAddress: table.userspaceAddress)
    guard errno == 0 else {
      throw RealGuestError.host(operation: "the slot of the region table", errno: errno)
    }
  }

  deinit { accesses.deallocate() }

  /// The machine. Until ``end()``.
  var vm: RealVM {
    guard let machine else { fatalError("the machine of a round after its end") }
    return machine
  }

  /// Accesses of all vCPUs so far.
  var accessCount: UInt64 {
    (0..<shape.vcpus).reduce(0) { $0 &+ accesses.place($1 * 8).pointee.load(ordering: .relaxed) }
  }

  // MARK: regions

  private func place(_ region: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
    precondition(region >= 0 && region < shape.regionCount)
    // SAFETY: aligned and mapped as long as this object lives; never accessed as another type here.
    return table.base.assumingMemoryBound(to: Atomic<UInt64>.self) + region
  }

  /// Where the guest finds a region's published state.
  func tableAddress(_ region: Int) -> UInt64 { RealShape.tableStart + UInt64(region * 8) }

  /// The state of a region as it is published now.
  func region(_ index: Int) -> GuestRegion {
    GuestRegion(rawValue: place(index).pointee.load(ordering: .sequentiallyConsistent))
  }

  /// Publishes what one thread changes about a region, before and after.
  func change(_ region: Int, _ body: (inout GuestRegion) throws -> Void) rethrows {
    let word = place(region)
    var state = GuestRegion(rawValue: word.pointee.load(ordering: .relaxed)).changing
    word.pointee.store(state.rawValue, ordering: .sequentiallyConsistent)
    defer { word.pointee.store(state.settled.rawValue, ordering: .sequentiallyConsistent) }
    try body(&state)
  }

  // MARK: slots

  /// Sets a slot over whole regions; returns the kernel's error number, or 0.
  func setSlot(_ id: UInt32, regions: Range<Int>, place: Int, flags: MemslotFlags) -> Int32 {
    let first = regions.lowerBound * shape.regionPages
    return vm.setMemoryRegion(
      slot: id, flags: flags.rawValue,
      guestPhysicalAddress: shape.guestAddress(first, place: place),
      memorySize: UInt64(regions.count * shape.regionPages) << 12,
      userspaceAddress: memory.userspaceAddress + UInt64(first) << 12)
  }

  func deleteSlot(_ id: UInt32) -> Int32 {
    vm.setMemoryRegion(
      slot: id, flags: 0, guestPhysicalAddress: 0, memorySize: 0, userspaceAddress: 0)
  }

  // MARK: looking

  /// A word of a page as the host sees it, or nil where it may not look.
  func word(_ page: Int, offset: Int) -> UInt64? {
    memory.bytes(ofPage: page).map { $0.load(fromByteOffset: offset, as: UInt64.self) }
  }

  /// What is wrong with the words of a page: each is 0 or of its vCPU and page. While guests write, too.
  func strangeWord(_ page: Int) -> String? {
    for vcpu in 0..<shape.vcpus {
      for slot in 0..<shape.wordsPerPage {
        guard let value = word(page, offset: shape.offset(slot, vcpu: vcpu)) else { return nil }
        if value == 0 || value & ~0xffff_ffff == RealShape.tag(page: page, vcpu: vcpu) { continue }
        return "page \(page): the host reads 0x\(String(value, radix: 16)) where only vCPU \(vcpu) "
          + "writes"
      }
    }
    return nil
  }

  // MARK: the end

  /// Compares every word with what its vCPU wrote last, as the host and as the guest sees it. At rest.
  func findings(_ shadows: [GuestShadow]) -> [String] {
    do {
      for (vcpu, shadow) in shadows.enumerated() {
        try vm.clearStop(vcpu: vcpu)
        for region in 0..<shape.regionCount {
          let state = self.region(region)
          let pages = shape.pages(ofRegion: region)
          if let text = hostFinding(vcpu, shadow, pages, state) { return [text] }
          guard state.place > 0, state.rights != .none else { continue }
          if let text = try guestFinding(vcpu, shadow, pages, state) { return [text] }
        }
      }
    } catch { return ["the guest cannot read at the end: \(error)"] }
    return []
  }

  private func hostFinding(
    _ vcpu: Int, _ shadow: GuestShadow, _ pages: Range<Int>, _ state: GuestRegion
  ) -> String? {
    for page in pages {
      for slot in 0..<shape.wordsPerPage {
        let word = shadow.words[page * shape.wordsPerPage + slot]
        guard let seen = self.word(page, offset: shape.offset(slot, vcpu: vcpu)) else { continue }
        if !word.allows(seen, generation: state.generation) {
          return RealWorld.text("host", page, vcpu, seen, word, state)
        }
      }
    }
    return nil
  }

  private func guestFinding(
    _ vcpu: Int, _ shadow: GuestShadow, _ pages: Range<Int>, _ state: GuestRegion
  ) throws -> String? {
    var script: [RealAccess] = []
    for page in pages {
      let start = shape.guestAddress(page, place: state.place)
      for slot in 0..<shape.wordsPerPage {
        script.append(.read(start + UInt64(shape.offset(slot, vcpu: vcpu)), .eight))
      }
    }
    if let stop = try perform(&script, vcpu) {
      return "page \(pages.lowerBound + stop.index / shape.wordsPerPage): a read at the end gave "
        + "\(stop.outcome); the region is \(state.text)"
    }
    for (index, access) in script.enumerated() {
      let page = pages.lowerBound + index / shape.wordsPerPage
      let word = shadow.words[page * shape.wordsPerPage + index % shape.wordsPerPage]
      if !word.allows(access.value, generation: state.generation) {
        return RealWorld.text("guest", page, vcpu, access.value, word, state)
      }
    }
    return nil
  }

  /// Lets the guest do a whole script, and returns the first access that did not finish.
  private func perform(
    _ script: inout [RealAccess], _ vcpu: Int
  ) throws -> RealScriptReport.Stop? {
    var next = 0
    while next < script.count {
      let report = try vm.perform(script: &script, in: next..<script.count, on: vcpu)
      for stop in report.stops where stop.outcome != .dirtyRingFull { return stop }
      next = report.endIndex
      // KVM maps what is read writable where it may, and takes it for dirty then.
      guard next < script.count, let stop = report.stops.last else { continue }
      if vm.harvestDirtyRing(vcpu: vcpu).isEmpty || vm.resetDirtyRings().errno != 0 { return stop }
    }
    return nil
  }

  private static func text(
    _ side: String, _ page: Int, _ vcpu: Int, _ seen: UInt64, _ word: GuestShadow.Word,
    _ state: GuestRegion
  ) -> String {
    "page \(page), a word of vCPU \(vcpu): the \(side) reads 0x\(String(seen, radix: 16)) at the end, "
      + "expected \(word.text); the region is \(state.text)"
  }

  /// Ends the machine and gives the memory back. At rest.
  func end(_ plan: StressPlan, _ control: StressControl) throws {
    machine = nil
    try memory.settle(plan, control)
  }
}

extension GuestRegion {
  /// The state in words.
  var text: String {
    "in window \(place) with rights '\(rights)', generation \(generation)"
  }
}

extension GuestShadow.Word {
  /// What is expected, in words.
  var text: String {
    "0x\(String(value, radix: 16))\(isUncertain ? " or 0" : "") of generation \(generation)"
  }
}
