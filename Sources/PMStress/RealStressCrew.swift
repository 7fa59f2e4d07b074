internal import Foundation
internal import PMRealGuest
internal import PMUnits
internal import Synchronization

/// The threads of a round with real guests: one per vCPU, and one that changes what they stand on.
final class RealCrew: @unchecked Sendable {
  // Sendable: `ended` is under a mutex; each career is used by one thread at a time, the next begins when
  // the one before has ended.

  private let world: RealWorld
  private let plan: StressPlan
  private let control: StressControl
  private let ended = Guarded<Result>(Result())

  private struct Result {
    var outcome = StressOutcome()
    var shadows: [Int: GuestShadow] = [:]
  }

  /// So many changes are made even if the guests are through before.
  private static let leastChanges = 8

  init(_ world: RealWorld, _ plan: StressPlan, _ control: StressControl) {
    self.world = world
    self.plan = plan
    self.control = control
  }

  private final class Career: @unchecked Sendable {
    // Sendable: one thread at a time, see above; `ended` hands everything back to the one that waits.
    var thread: RealVCPUThread
    var isOver = false
    let ended = DispatchSemaphore(value: 0)

    init(_ thread: RealVCPUThread) { self.thread = thread }

    func live() {
      isOver = thread.run() == .roundOver
      ended.signal()
    }
  }

  /// Runs the guests and `mutate` until the round's end, then looks at everything at rest: `finish`, every
  /// word, all poison, and that everything comes back.
  func run(
    operations names: [String], mutate: @escaping @Sendable (inout StressWorker) throws -> Void,
    finish: () throws -> [String] = { [] }
  ) throws -> StressOutcome {
    var bodies: [@Sendable () -> Void] = (0..<plan.options.vcpus).map { vcpu in
      { [self] in lead(vcpu) }
    }
    bodies.append { [self] in change(names, mutate) }
    guard StressCrew.run(plan, control, bodies) else { return StressOutcome() }
    let result = ended.withLock { $0 }
    func fail(_ text: String) {
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil, message: text))
    }
    for text in try finish() { fail(text) }
    // What was found first explains the rest.
    if control.failures.isEmpty {
      let shadows = (0..<plan.options.vcpus).compactMap { result.shadows[$0] }
      for text in world.findings(shadows) { fail(text) }
    }
    try world.end(plan, control)
    return result.outcome
  }

  /// A vCPU's life: where its thread is killed, the next one begins.
  private func lead(_ vcpu: Int) {
    let career = Career(RealVCPUThread(world, plan, control, vcpu: vcpu))
    while !career.isOver {
      let thread = Thread { career.live() }
      thread.stackSize = 1 << 21
      thread.start()
      career.ended.wait()
    }
    world.running.subtract(1, ordering: .acquiringAndReleasing)
    let done = career.thread
    ended.withLock {
      $0.outcome.add(
        done.worker.counts, RealVCPUThread.Operation.allCases.map { "\($0)" })
      $0.shadows[vcpu] = done.shadow
    }
  }

  /// The thread that changes things.
  private func change(
    _ names: [String], _ mutate: (inout StressWorker) throws -> Void
  ) {
    var worker = StressWorker(
      plan, control, thread: plan.options.vcpus, operationKinds: names.count, pause: 1,
      isLimited: false)
    do {
      while worker.next(),
        world.running.load(ordering: .acquiring) > 0 || worker.step < Self.leastChanges
      {
        try mutate(&worker)
        for text in world.memory.takeFindings() { worker.fail(text) }
        if let text = world.strangeWord(worker.random.below(world.shape.pageCount)) {
          worker.fail(text)
        }
        if worker.random.next() & 3 == 0 {
          try world.vm.kick(vcpu: worker.random.below(plan.options.vcpus))
        }
        letGuestsRun(&worker)
      }
    } catch {
      worker.fail("a change failed: \(error)")
    }
    let done = worker.counts
    ended.withLock { $0.outcome.add(done, names) }
  }

  /// Waits until the guests have come on a little, so that some of them reach what was changed.
  private func letGuestsRun(_ worker: inout StressWorker) {
    // Often changes come in a row.
    if worker.random.below(2) == 0 { return }
    let goal = world.accessCount &+ UInt64(worker.random.below(300))
    while world.accessCount < goal, world.running.load(ordering: .acquiring) > 0,
      !world.isRingFull.load(ordering: .relaxed), !control.shouldStop,
      ContinuousClock.now < plan.deadline
    { sched_yield() }
  }
}
