internal import Glibc
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// What a vCPU remembers of the words that are its own: the value and the generation of the memory in
/// which it was written.
struct GuestShadow: Sendable {
  /// Words that each vCPU has in a page.
  static let wordsPerPage = 4

  struct Word: Sendable {
    /// The value that was written last.
    var value: UInt64 = 0
    /// The generation of the region at that time.
    var generation: UInt32 = 0
    /// Whether the region changed meanwhile: then nothing (0) may stand there as well.
    var isUncertain = false

    /// Whether a word may have a value, seen in an access during which the region had `generation`.
    func allows(_ seen: UInt64, generation now: UInt32?) -> Bool {
      if isUncertain || now == nil { return seen == value || seen == 0 }
      return seen == (now == generation ? value : 0)
    }
  }

  var words: [Word]

  init(pageCount: Int) {
    words = .init(repeating: Word(), count: pageCount * GuestShadow.wordsPerPage)
  }
}

/// A vCPU's thread: random loads and stores of its own words, each compared with what must be there.
struct GuestThread {
  enum Operation: Int, CaseIterable {
    case read, write, exitMMIO, exitFault, failedAllocation, ringFull, killed
  }

  let world: GuestWorld
  let plan: StressPlan
  let places: Int
  let vcpus: Int
  var shadow: GuestShadow
  var worker: StressWorker
  private let killEvery: Int
  private let mayFail: Bool

  init(
    _ world: GuestWorld, _ plan: StressPlan, _ control: StressControl, thread: Int, places: Int
  ) {
    self.world = world
    self.plan = plan
    self.places = places
    vcpus = plan.options.vcpus
    shadow = GuestShadow(pageCount: world.pageCount)
    worker = StressWorker(
      plan, control, thread: thread, operationKinds: Operation.allCases.count)
    killEvery = plan.options.faults.killVCPUEvery
    mayFail = plan.options.faults.failPageAlloc != nil
  }

  /// Runs until the round ends (true) or the thread is killed (false): then it leaves everything as it
  /// is, and another thread with a new vCPU goes on with the same words.
  mutating func run(_ vcpu: VCPU) -> Bool {
    guard var cpu = StressRest.claim(world.machine, worker.thread, plan, worker) else {
      return true
    }
    vcpu.bind()
    let progress = world.accesses.place(worker.thread * 8)
    while worker.next() {
      access(vcpu, &cpu)
      progress.pointee.store(UInt64(worker.step), ordering: .relaxed)
      if killEvery > 0, worker.random.below(killEvery) == 0 {
        worker.counts[Operation.killed.rawValue] += 1
        return false
      }
    }
    vcpu.unbind()
    world.kernel.drainLRUBatches(on: &cpu)
    return true
  }

  /// One access, and what it must give.
  private mutating func access(_ vcpu: VCPU, _ cpu: inout CPU) {
    let page = worker.random.below(world.pageCount)
    let region = page / world.regionPages
    let slot = worker.random.below(GuestShadow.wordsPerPage)
    let before = world.region(region)
    // Mostly where the region is, sometimes where it is not.
    let place =
      places > 1 && (before.place == 0 || worker.random.next() & 7 == 0)
      ? 1 + worker.random.below(places) : max(before.place, 1)
    let address =
      world.guestAddress(page, place: place) + UInt64((slot * vcpus + worker.thread) * 8)
    let index = page * GuestShadow.wordsPerPage + slot
    let write =
      worker.random.next() & 1 == 0 ? UInt64(page) << 40 | serial(worker.step, worker.thread) : nil
    let result = perform(vcpu, address, write, &cpu)
    let after = world.region(region)
    // The word that stood before and after, unchanged: exactly this was true all the time.
    let settled = before == after && !before.isBusy ? before : nil
    judge(result, Access(index: index, page: page, place: place, write: write), settled)
  }

  /// A number that no other write of the round has.
  private func serial(_ step: Int, _ thread: Int) -> UInt64 {
    UInt64(thread) << 32 | UInt64(UInt32(truncatingIfNeeded: step &+ 1))
  }

  private func perform(
    _ vcpu: VCPU, _ address: UInt64, _ write: UInt64?, _ cpu: inout CPU
  ) -> GuestAccess {
    if let write {
      if vcpu.store(write, at: address) { return .done(0) }
      return vcpu.write(address, byteCount: 8, value: write, on: &cpu)
    }
    if let value = vcpu.loadUInt64(at: address) { return .done(value) }
    return vcpu.read(address, byteCount: 8, on: &cpu)
  }

  private struct Access {
    var index: Int
    var page: Int
    var place: Int
    var write: UInt64?
  }

  private mutating func judge(_ result: GuestAccess, _ access: Access, _ settled: GuestRegion?) {
    switch result {
    case .done(let seen):
      if let settled, !allows(access, settled) {
        return fail(access, "succeeded", settled)
      }
      if access.write != nil { noteWrite(access, settled) } else { check(seen, access, settled) }
    case .mmio:
      worker.counts[Operation.exitMMIO.rawValue] += 1
      if let settled, !expectsMMIO(access, settled) {
        return fail(access, "exited (MMIO)", settled)
      }
    case .failed(let errno, _):
      worker.counts[Operation.exitFault.rawValue] += 1
      if mayFail, errno == .enomem || settled?.rights != GuestRegion.Rights.none {
        // An allocation failed on purpose; nothing was written.
        worker.counts[Operation.failedAllocation.rawValue] += 1
        return
      }
      if let settled, expectsMMIO(access, settled) || allows(access, settled) {
        return fail(access, "failed with \(errno)", settled)
      }
    case .dirtyRingFull:
      worker.counts[Operation.ringFull.rawValue] += 1
      sched_yield()
    case .interrupted: fail(access, "was interrupted", settled)
    }
  }

  private func expectsMMIO(_ access: Access, _ state: GuestRegion) -> Bool {
    state.expectsMMIO(at: access.place, isWrite: access.write != nil)
  }

  private func allows(_ access: Access, _ state: GuestRegion) -> Bool {
    state.allows(at: access.place, isWrite: access.write != nil)
  }

  private mutating func noteWrite(_ access: Access, _ settled: GuestRegion?) {
    worker.counts[Operation.write.rawValue] += 1
    let value = access.write ?? 0
    shadow.words[access.index] = .init(
      value: value, generation: settled?.generation ?? 0,
      isUncertain: settled == nil)
  }

  private mutating func check(_ seen: UInt64, _ access: Access, _ settled: GuestRegion?) {
    worker.counts[Operation.read.rawValue] += 1
    let word = shadow.words[access.index]
    guard word.allows(seen, generation: settled?.generation) else {
      return worker.fail(
        "page \(access.page), window \(access.place): read \(Self.hex(seen)), expected "
          + "\(Self.hex(word.value))\(word.isUncertain ? " or 0" : "") of generation "
          + "\(word.generation); the region is \(Self.text(settled))")
    }
    if let settled {
      shadow.words[access.index] = .init(
        value: seen, generation: settled.generation, isUncertain: false)
    } else if word.isUncertain, seen == 0 {
      // What is gone does not come back.
      shadow.words[access.index].value = 0
    }
  }

  private func fail(_ access: Access, _ what: String, _ settled: GuestRegion?) {
    worker.fail(
      "page \(access.page), window \(access.place): a \(access.write == nil ? "read" : "write") "
        + "\(what); the region is \(Self.text(settled))")
  }

  private static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  private static func text(_ state: GuestRegion?) -> String {
    guard let state else { return "changing" }
    return "in window \(state.place) with rights '\(state.rights)', generation \(state.generation)"
  }
}
