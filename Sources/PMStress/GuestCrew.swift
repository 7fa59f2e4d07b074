internal import Foundation
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// The threads of a round with software guests: one per vCPU, and one that changes what they stand on.
final class GuestCrew: @unchecked Sendable {
  // Sendable: `seats` and `counts` are under locks; each career is used by one thread at a time, the next begins when
  // the one before has ended.

  private let world: GuestWorld
  private let plan: StressPlan
  private let control: StressControl
  private let places: Int
  private let seats = Guarded<[Seat]>([])
  private let counts = Guarded<StressOutcome>(StressOutcome())

  init(_ world: GuestWorld, _ plan: StressPlan, _ control: StressControl, places: Int) {
    self.world = world
    self.plan = plan
    self.control = control
    self.places = places
  }

  /// A vCPU, and whether its thread was killed.
  struct Seat {
    var vcpu: VCPU
    var isDead = false
  }

  /// Every vCPU that runs or whose ring may still hold something: also one of a killed thread, until
  /// ``forget(_:)``.
  var vcpus: [Seat] { seats.withLock { $0 } }

  /// Drops a dead vCPU whose ring is empty.
  func forget(_ vcpu: VCPU) { seats.withLock { $0.removeAll { $0.vcpu === vcpu } } }

  /// A vCPU takes its place, and that of the one whose thread was killed. Without a ring nothing of the
  /// dead one is needed any more.
  private func seat(_ vcpu: VCPU, after dead: VCPU?) {
    seats.withLock { seats in
      if let dead, let index = seats.firstIndex(where: { $0.vcpu === dead }) {
        if dead.ring == nil { seats.remove(at: index) } else { seats[index].isDead = true }
      }
      seats.append(Seat(vcpu: vcpu))
    }
  }

  private final class Career: @unchecked Sendable {
    // Sendable: one thread at a time, see above; `ended` hands everything back to the one that waits.
    var thread: GuestThread
    var vcpu: VCPU?
    var isOver = false
    let ended = DispatchSemaphore(value: 0)

    init(_ thread: GuestThread) { self.thread = thread }

    func live() {
      if let vcpu { isOver = thread.run(vcpu) }
      ended.signal()
    }
  }

  /// Runs the guests and `mutate` until the round's end, then looks at everything at rest: first
  /// `finish`, on the CPU of the one that changes things, then what every world has to come to.
  func run(
    operations names: [String],
    mutate: @escaping @Sendable (inout StressWorker, inout CPU) -> Void,
    finish: (inout CPU) -> [String] = { _ in [] }
  ) throws -> StressOutcome {
    let delay = plan.options.faults.notifierDelay
    let slow = delay > 0 ? SlowNotifier(microseconds: delay, seed: plan.seed) : nil
    if let slow { world.process.register(slow) }
    var bodies: [@Sendable () -> Void] = (0..<plan.options.vcpus).map { index in
      { [self] in lead(index) }
    }
    bodies.append { [self] in
      var worker = StressWorker(
        plan, control, thread: plan.options.vcpus, operationKinds: names.count, pause: 1,
        isLimited: false)
      guard var cpu = StressRest.claim(world.machine, world.mutatorCPU, plan, worker) else {
        return
      }
      while worker.next(), world.running.load(ordering: .acquiring) > 0 {
        mutate(&worker, &cpu)
        letGuestsRun(&worker)
      }
      world.kernel.drainLRUBatches(on: &cpu)
      let done = worker.counts
      counts.withLock { $0.add(done, names) }
    }
    guard StressCrew.run(plan, control, bodies) else { return StressOutcome() }
    if let slow { world.process.unregister(slow) }
    try StressRest.check(world.machine, freeBefore: world.freeBefore, plan, control) { cpu in
      let found = finish(&cpu)
      return found + world.settle(on: &cpu) + world.settleLedger()
    }
    return counts.withLock { $0 }
  }

  /// Waits until the guests have come on a little: a thread that takes a lock again as soon as it has given
  /// it back would keep everybody else from it.
  private func letGuestsRun(_ worker: inout StressWorker) {
    // Now and then changes come in a row.
    if worker.random.below(4) == 0 { return }
    let goal = world.accessCount &+ UInt64(worker.random.below(200))
    while world.accessCount < goal, world.running.load(ordering: .acquiring) > 0,
      !control.shouldStop, ContinuousClock.now < plan.deadline
    { sched_yield() }
  }

  /// A vCPU's life: where its thread is killed, the next one begins.
  private func lead(_ index: Int) {
    let career = Career(GuestThread(world, plan, control, thread: index, places: places))
    while !career.isOver {
      do {
        let vcpu = try VCPU(world.vm, index: index)
        seat(vcpu, after: career.vcpu)
        career.vcpu = vcpu
      } catch {
        career.thread.worker.fail("no vCPU: \(error)")
        break
      }
      let thread = Thread { career.live() }
      thread.stackSize = 1 << 21
      thread.start()
      career.ended.wait()
    }
    world.running.subtract(1, ordering: .acquiringAndReleasing)
    let done = career.thread.worker.counts
    counts.withLock { $0.add(done, GuestThread.Operation.allCases.map { "\($0)" }) }
  }
}

/// A notifier that takes its time between an invalidation's start and its end: what other listeners of
/// the kernel do to KVM.
private final class SlowNotifier: MMUNotifier, Sendable {
  private let limit: Int
  private let calls: Atomic<UInt64>

  init(microseconds: Int, seed: UInt64) {
    limit = microseconds
    calls = Atomic(seed)
  }

  func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU) {
    // A different time for each call, from none to the limit; most are short.
    let call = calls.wrappingAdd(0x9e37_79b9_7f4a_7c15, ordering: .relaxed).newValue >> 33
    let time = Double(call % UInt64(limit + 1)) * (call & 0x700 == 0 ? 1 : 0.05)
    let end = ContinuousClock.now.advanced(by: .nanoseconds(Int64(time * 1000)))
    while ContinuousClock.now < end {}
  }
  func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU) {}
  func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool { false }
  func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool { false }
  func release(on cpu: inout CPU) {}
}
