internal import Glibc
internal import PMRealGuest
internal import PMUnits
internal import Synchronization

/// A real vCPU's thread: scripts of random reads and writes of its own words, each compared with what must
/// be there.
///
/// Each access is three instructions of the guest: it reads the region's published state, makes the
/// access, and reads the state again. Where both are the same and settled, exactly this was true all the
/// time: an invalidation does not end before the processor has left the guest, and so not before an access
/// by the old translation is over.
struct RealVCPUThread {
  enum Operation: Int, CaseIterable {
    case read, write, unsettled, exitMMIO, exitFault, ringFull, kicked, killed
  }

  /// Why a thread's life ends.
  enum End { case roundOver, killed }

  private static let accessesPerScript = 128

  private struct Access {
    var page: Int
    var index: Int
    var place: Int
    var address: UInt64
    var write: UInt64?
    var step: Int
    var outcome: RealAccessOutcome?
  }

  let world: RealWorld
  let plan: StressPlan
  let control: StressControl
  var shadow: GuestShadow
  var worker: StressWorker
  private var script: [RealAccess] = []
  private var work: [Access] = []
  /// The first access of the script that has not been tried.
  private var next = 0
  private var isOver = false
  private let killEvery: Int
  private var stepsToLive: Int

  init(_ world: RealWorld, _ plan: StressPlan, _ control: StressControl, vcpu: Int) {
    self.world = world
    self.plan = plan
    self.control = control
    shadow = GuestShadow(pageCount: 0)
    shadow.words = .init(
      repeating: GuestShadow.Word(), count: world.shape.pageCount * world.shape.wordsPerPage)
    worker = StressWorker(plan, control, thread: vcpu, operationKinds: Operation.allCases.count)
    killEvery = plan.options.faults.killVCPUEvery
    stepsToLive = killEvery
  }

  private var vcpu: Int { worker.thread }

  /// Runs until the round ends or the thread is killed: then it leaves everything as it is, in the middle
  /// of a script, and another thread goes on with the same vCPU.
  mutating func run() -> End {
    if killEvery > 0 { stepsToLive = worker.step + 1 + worker.random.below(2 * killEvery) }
    do {
      while true {
        if next == script.count {
          guard build() else { return .roundOver }
        }
        // Where nobody else kicks, a thread that is due does so itself.
        if killEvery > 0, worker.step > stepsToLive + killEvery {
          try world.vm.kick(vcpu: vcpu)
        }
        if try !play() { return .killed }
      }
    } catch {
      worker.fail("the guest cannot go on: \(error)")
      return .roundOver
    }
  }

  // MARK: a script

  private mutating func build() -> Bool {
    script.removeAll(keepingCapacity: true)
    work.removeAll(keepingCapacity: true)
    next = 0
    while work.count < Self.accessesPerScript, !isOver {
      guard worker.next() else {
        isOver = true
        break
      }
      append()
    }
    return !work.isEmpty
  }

  private mutating func append() {
    let shape = world.shape
    // Half of the accesses go where changes are, few where nothing is: exits take their time.
    var region =
      worker.random.next() & 1 == 0
      ? world.busyRegion.load(ordering: .relaxed) : worker.random.below(shape.regionCount)
    if world.region(region).place == 0, worker.random.next() & 7 != 0 {
      region = worker.random.below(shape.regionCount)
    }
    let page = region * shape.regionPages + worker.random.below(shape.regionPages)
    let slot = worker.random.below(shape.wordsPerPage)
    let state = world.region(region)
    // Mostly where the region is, sometimes where it is not.
    let place =
      shape.places > 1 && (state.place == 0 || worker.random.next() & 7 == 0)
      ? 1 + worker.random.below(shape.places) : max(state.place, 1)
    let address =
      shape.guestAddress(page, place: place) + UInt64(shape.offset(slot, vcpu: vcpu))
    let write =
      worker.random.next() & 1 == 0
      ? RealShape.value(page: page, vcpu: vcpu, serial: worker.step + 1) : nil
    let table = RealAccess.read(world.tableAddress(region), .eight)
    script.append(table)
    script.append(write.map { .write($0, to: address, .eight) } ?? .read(address, .eight))
    script.append(table)
    work.append(
      Access(
        page: page, index: page * shape.wordsPerPage + slot, place: place, address: address,
        write: write, step: worker.step))
  }

  /// Lets the guest do the script, and judges; false where the thread was killed.
  private mutating func play() throws -> Bool {
    while next < script.count {
      let report = try world.vm.perform(script: &script, in: next..<script.count, on: vcpu)
      next = report.endIndex
      for stop in report.stops {
        switch stop.outcome {
        case .interrupted:
          count(.kicked)
          try world.vm.clearStop(vcpu: vcpu)
          guard killEvery > 0, worker.step >= stepsToLive, next < script.count else { continue }
          count(.killed)
          // What is done is judged by who goes on: it looks at the script from its beginning.
          return false
        case .dirtyRingFull:
          count(.ringFull)
          world.isRingFull.store(true, ordering: .relaxed)
          if control.shouldStop || ContinuousClock.now > plan.deadline {
            // Nobody will empty it any more.
            isOver = true
            giveUp()
            return true
          }
          sched_yield()
        default: note(stop)
        }
      }
    }
    judge(upTo: work.count)
    world.accesses.place(vcpu * 8).pointee.store(UInt64(worker.step), ordering: .relaxed)
    return true
  }

  /// Judges what was done of the script and leaves the rest.
  private mutating func giveUp() {
    // An access after which the state could not be read any more: it may have changed.
    if next % 3 == 2 { script[next].value = ~script[next - 2].value }
    judge(upTo: (next + 1) / 3)
    next = script.count
  }

  private mutating func note(_ stop: RealScriptReport.Stop) {
    guard stop.index % 3 == 1 else {
      return fail(work[stop.index / 3], "the region table gave \(stop.outcome)")
    }
    work[stop.index / 3].outcome = stop.outcome
  }

  private mutating func count(_ operation: Operation) { worker.counts[operation.rawValue] += 1 }

  // MARK: judging

  private mutating func judge(upTo count: Int) {
    for index in 0..<count {
      let before = GuestRegion(rawValue: script[3 * index].value)
      let after = GuestRegion(rawValue: script[3 * index + 2].value)
      let settled = before == after && !before.isBusy ? before : nil
      if settled == nil { self.count(.unsettled) }
      judge(work[index], seen: script[3 * index + 1].value, settled)
    }
  }

  private mutating func judge(_ access: Access, seen: UInt64, _ settled: GuestRegion?) {
    switch access.outcome {
    case nil:
      if let settled, !allows(access, settled) {
        return fail(access, "succeeded", settled)
      }
      if access.write != nil { noteWrite(access, settled) } else { check(seen, access, settled) }
    case .mmio(let address, let byteCount, let isWrite):
      count(.exitMMIO)
      let isOurs =
        address == access.address && byteCount == 8 && isWrite == (access.write != nil)
      if !isOurs { return fail(access, "exited (MMIO) at another address", settled) }
      if let settled, !expectsMMIO(access, settled) {
        return fail(access, "exited (MMIO)", settled)
      }
    case .failed(EFAULT, _):
      count(.exitFault)
      if let settled, expectsMMIO(access, settled) || allows(access, settled) {
        return fail(access, "failed with EFAULT", settled)
      }
    case .some(let outcome): fail(access, "gave \(outcome)", settled)
    }
  }

  private func expectsMMIO(_ access: Access, _ state: GuestRegion) -> Bool {
    state.expectsMMIO(at: access.place, isWrite: access.write != nil)
  }

  private func allows(_ access: Access, _ state: GuestRegion) -> Bool {
    state.allows(at: access.place, isWrite: access.write != nil)
  }

  private mutating func noteWrite(_ access: Access, _ settled: GuestRegion?) {
    count(.write)
    shadow.words[access.index] = GuestShadow.Word(
      value: access.write ?? 0, generation: settled?.generation ?? 0,
      isUncertain: settled == nil)
  }

  private mutating func check(_ seen: UInt64, _ access: Access, _ settled: GuestRegion?) {
    count(.read)
    let word = shadow.words[access.index]
    guard word.allows(seen, generation: settled?.generation) else {
      return fail(
        access, "saw 0x\(String(seen, radix: 16)), expected \(word.text)", settled)
    }
    if let settled {
      shadow.words[access.index] = GuestShadow.Word(
        value: seen, generation: settled.generation, isUncertain: false)
    } else if seen == 0 {
      // What is gone does not come back.
      shadow.words[access.index].value = 0
    }
  }

  private func fail(_ access: Access, _ what: String, _ settled: GuestRegion? = nil) {
    let message =
      "page \(access.page), window \(access.place): a \(access.write == nil ? "read" : "write") "
      + "\(what); the region is \(settled?.text ?? "changing")"
    control.fail(
      StressFailure(
        kind: plan.kind, seed: plan.seed, thread: vcpu, step: access.step, message: message))
  }
}
