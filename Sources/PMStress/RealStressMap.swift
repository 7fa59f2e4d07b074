internal import PMGuestMap
internal import PMRealGuest
internal import PMUnits
internal import Synchronization

/// Stress of mappings: this process's memory changes in every way while real guests use it.
enum RealMapStress {
  enum Operation: Int, CaseIterable {
    case discard, zap, protect, unmap, map, migrate, log, harvest, refused
  }

  static func run(
    _ plan: StressPlan, _ control: StressControl, _ mistake: RealStress.Mistake?
  ) throws -> StressOutcome {
    let world = try RealWorld(plan, mistake)
    let mutator = RealMapMutator(world)
    try mutator.setSlot(logs: plan.seed & 2 != 0)
    return try RealCrew(world, plan.begun(), control).run(
      operations: Operation.allCases.map { "\($0)" }, mutate: { try mutator.step(&$0) })
  }
}

/// Changes this process's memory, a region at a time, and publishes what it does.
private final class RealMapMutator: @unchecked Sendable {
  // Sendable: one thread at a time uses it: first the one that sets up, then the one that changes things.

  private let world: RealWorld
  private var isMapped: [Bool]
  private var logs = false

  init(_ world: RealWorld) {
    self.world = world
    isMapped = .init(repeating: true, count: world.shape.regionCount)
  }

  func setSlot(logs: Bool) throws {
    let errno = world.setSlot(
      RealWorld.firstSlot, regions: 0..<world.shape.regionCount, place: 1,
      flags: logs ? .logDirtyPages : [])
    guard errno == 0 else {
      throw RealGuestError.host(operation: "the slot, logging \(logs)", errno: errno)
    }
    self.logs = logs
  }

  func step(_ worker: inout StressWorker) throws {
    let region = worker.random.below(world.shape.regionCount)
    world.busyRegion.store(region, ordering: .relaxed)
    let choice = worker.random.next() % 100
    if !isMapped[region] {
      return try world.change(region) { try map(region, &$0, &worker) }
    }
    switch choice {
    case 0..<20: try discard(region, &worker)
    case 20..<30: try zap(region, &worker)
    case 30..<50: try protect(region, &worker)
    case 50..<67: try unmap(region, &worker)
    case 67..<92: try migrate(region, &worker)
    case 92..<96 where logs: try harvest(&worker)
    default:
      try setSlot(logs: !logs)
      count(.log, &worker)
    }
  }

  private func count(_ operation: RealMapStress.Operation, _ worker: inout StressWorker) {
    worker.counts[operation.rawValue] += 1
  }

  private func discard(_ region: Int, _ worker: inout StressWorker) throws {
    try world.change(region) { state in
      try world.memory.discard(region: region)
      state.generation &+= 1
    }
    count(.discard, &worker)
  }

  /// What reclaim does to a page of a file: guests must not notice, so nothing is published.
  private func zap(_ region: Int, _ worker: inout StressWorker) throws {
    guard world.memory.canZap else { return }
    try world.memory.zap(region: region)
    count(.zap, &worker)
  }

  private func protect(_ region: Int, _ worker: inout StressWorker) throws {
    let rights: [(GuestRegion.Rights, MirroredRange.Protection)] = [
      (.none, .none), (.read, .read), (.write, .readWrite), (.write, .readWrite),
    ]
    let (published, protection) = rights[worker.random.below(4)]
    try world.change(region) { state in
      try world.memory.protect(region: region, protection)
      state.rights = published
    }
    count(.protect, &worker)
  }

  private func unmap(_ region: Int, _ worker: inout StressWorker) throws {
    let mapsAgain = worker.random.next() & 1 == 0
    try world.change(region) { state in
      try world.memory.takeAway(region: region)
      state.generation &+= 1
      state.rights = .none
      isMapped[region] = false
      if mapsAgain { try map(region, &state, &worker) }
    }
    count(.unmap, &worker)
  }

  private func map(
    _ region: Int, _ state: inout GuestRegion, _ worker: inout StressWorker
  ) throws {
    guard try world.memory.map(region: region) else { return count(.refused, &worker) }
    state.rights = .write
    isMapped[region] = true
    count(.map, &worker)
  }

  private func migrate(_ region: Int, _ worker: inout StressWorker) throws {
    let chunks = world.shape.chunks(ofRegion: region)
    let chunk = chunks.lowerBound + worker.random.below(chunks.count)
    guard world.region(region).rights == .write else { return }
    let isMoved = try withChange(region) { try world.memory.migrate(chunk: chunk) }
    count(isMoved ? .migrate : .refused, &worker)
  }

  /// A change after which all is as it was.
  private func withChange(_ region: Int, _ body: () throws -> Bool) throws -> Bool {
    var result = false
    try world.change(region) { _ in result = try body() }
    return result
  }

  private func harvest(_ worker: inout StressWorker) throws {
    let found = world.vm.dirtyLog(
      slot: RealWorld.firstSlot, pageCount: world.shape.pageCount)
    guard found.errno == 0 else {
      throw RealGuestError.host(operation: "the dirty log", errno: found.errno)
    }
    count(.harvest, &worker)
  }
}
