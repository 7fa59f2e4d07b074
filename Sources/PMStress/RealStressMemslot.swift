internal import Glibc
internal import PMGuestMap
internal import PMRealGuest
internal import PMUnits
internal import Synchronization

/// Stress of memslots: added, deleted, moved, with other flags, while real guests use them.
enum RealMemslotStress {
  static let places = 3
  static let slotCount = 32

  enum Operation: Int, CaseIterable {
    case add, delete, move, log, harvest, dummy, refusal, discard, migrate
  }

  static func run(
    _ plan: StressPlan, _ control: StressControl, _ mistake: RealStress.Mistake?
  ) throws -> StressOutcome {
    let world = try RealWorld(plan, mistake)
    let mutator = RealMemslotMutator(world, mistake)
    for region in 0..<world.shape.regionCount { try mutator.set(region, place: 1) }
    return try RealCrew(world, plan.begun(), control).run(
      operations: Operation.allCases.map { "\($0)" }, mutate: { try mutator.step(&$0) },
      finish: { mutator.finish() })
  }
}

/// Changes slots, one per region, and publishes what it does.
private final class RealMemslotMutator: @unchecked Sendable {
  // Sendable: one thread at a time uses it: the one that sets up, then the one that changes things, then,
  // after that has ended, the one that tidies up.

  private let world: RealWorld
  private let mistake: RealStress.Mistake?
  private var flags: [MemslotFlags]
  /// What a region without a slot had when its slot had gone: nobody may write there.
  private var left: [[UInt8]?]

  init(_ world: RealWorld, _ mistake: RealStress.Mistake?) {
    self.world = world
    self.mistake = mistake
    flags = .init(repeating: [], count: world.shape.regionCount)
    left = .init(repeating: nil, count: world.shape.regionCount)
  }

  private func slot(_ region: Int) -> UInt32 { RealWorld.firstSlot + UInt32(region) }

  func set(_ region: Int, place: Int) throws {
    let errno = world.setSlot(
      slot(region), regions: region..<region + 1, place: place, flags: flags[region])
    guard errno == 0 else {
      throw RealGuestError.host(operation: "slot \(slot(region)) in window \(place)", errno: errno)
    }
  }

  func step(_ worker: inout StressWorker) throws {
    let region = worker.random.below(world.shape.regionCount)
    world.busyRegion.store(region, ordering: .relaxed)
    let choice = worker.random.next() % 100
    if world.region(region).place == 0 {
      // A while without a slot, and then with one again.
      if choice < 50 { try add(region, &worker) }
      return
    }
    switch choice {
    case 0..<25: try delete(region, &worker)
    case 25..<50: try move(region, &worker)
    case 50..<62: try toggleLog(region, &worker)
    case 62..<70: try harvest(region, &worker)
    case 70..<78: try dummy(&worker)
    case 78..<84: refusals(region, &worker)
    case 84..<92: try migrate(region, &worker)
    default:
      try world.change(region) { state in
        try world.memory.discard(region: region)
        state.generation &+= 1
      }
      count(.discard, &worker)
    }
  }

  private func count(_ operation: RealMemslotStress.Operation, _ worker: inout StressWorker) {
    worker.counts[operation.rawValue] += 1
  }

  private func add(_ region: Int, _ worker: inout StressWorker) throws {
    if let text = change(of: region) { return worker.fail(text) }
    left[region] = nil
    let place = 1 + worker.random.below(RealMemslotStress.places)
    let isReadonly = worker.random.next() & 7 == 0
    flags[region] = worker.random.next() & 1 == 0 ? .logDirtyPages : []
    if isReadonly { flags[region] = .readonly }
    try world.change(region) { state in
      try set(region, place: place)
      state.place = place
      state.rights = isReadonly ? .readonlySlot : .write
    }
    count(.add, &worker)
  }

  private func delete(_ region: Int, _ worker: inout StressWorker) throws {
    try world.change(region) { state in
      if mistake != .keepsSlot {
        let errno = world.deleteSlot(slot(region))
        guard errno == 0 else {
          throw RealGuestError.host(operation: "deleting slot \(slot(region))", errno: errno)
        }
      }
      state.place = 0
    }
    left[region] = contents(region)
    count(.delete, &worker)
  }

  private func contents(_ region: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(world.shape.regionPages << 12)
    for page in world.shape.pages(ofRegion: region) {
      guard let start = world.memory.bytes(ofPage: page) else { continue }
      bytes.append(contentsOf: UnsafeRawBufferPointer(start: start, count: 4096))
    }
    return bytes
  }

  /// What was written to a region after its slot had gone.
  private func change(of region: Int) -> String? {
    guard let before = left[region] else { return nil }
    let now = contents(region)
    guard now != before else { return nil }
    let index = zip(before, now).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? 0
    return "property 3: slot \(slot(region)) was deleted, and byte \(index) of its memory changed "
      + "afterwards"
  }

  private func move(_ region: Int, _ worker: inout StressWorker) throws {
    let old = world.region(region).place
    let place =
      1 + (old + worker.random.below(RealMemslotStress.places - 1)) % RealMemslotStress.places
    try world.change(region) { state in
      try set(region, place: place)
      state.place = place
    }
    count(.move, &worker)
  }

  private func toggleLog(_ region: Int, _ worker: inout StressWorker) throws {
    guard !flags[region].contains(.readonly) else { return }
    flags[region].formSymmetricDifference(.logDirtyPages)
    try set(region, place: world.region(region).place)
    count(.log, &worker)
  }

  private func harvest(_ region: Int, _ worker: inout StressWorker) throws {
    guard flags[region].contains(.logDirtyPages) else { return }
    let found = world.vm.dirtyLog(slot: slot(region), pageCount: world.shape.regionPages)
    guard found.errno == 0 else {
      throw RealGuestError.host(operation: "the log of slot \(slot(region))", errno: found.errno)
    }
    count(.harvest, &worker)
  }

  private func migrate(_ region: Int, _ worker: inout StressWorker) throws {
    let chunks = world.shape.chunks(ofRegion: region)
    try world.change(region) { _ in
      guard try world.memory.migrate(chunk: chunks.lowerBound + worker.random.below(chunks.count))
      else { return }
      count(.migrate, &worker)
    }
  }

  /// A slot that no guest uses, beside the others: what `memslot_modification_stress_test` does.
  private func dummy(_ worker: inout StressWorker) throws {
    let slot = RealWorld.firstSlot + UInt32(world.shape.regionCount)
    for size in [UInt64(16) << 12, 0] {
      let errno = world.vm.setMemoryRegion(
        slot: slot, flags: 0, guestPhysicalAddress: RealShape.windowStart - UInt64(16) << 12,
        memorySize: size, userspaceAddress: world.memory.userspaceAddress)
      guard errno == 0 else {
        throw RealGuestError.host(operation: "slot \(slot) of \(size) bytes", errno: errno)
      }
    }
    count(.dummy, &worker)
  }

  /// Calls that must fail and change nothing.
  private func refusals(_ region: Int, _ worker: inout StressWorker) {
    let place = world.region(region).place
    let other = RealWorld.firstSlot + UInt32(world.shape.regionCount) + 1
    let overlap = world.setSlot(other, regions: region..<region + 1, place: place, flags: [])
    if overlap != EEXIST {
      worker.fail("a slot over slot \(slot(region)): error \(overlap), expected EEXIST")
    }
    let first = region * world.shape.regionPages
    let size = world.vm.setMemoryRegion(
      slot: slot(region), flags: flags[region].rawValue,
      guestPhysicalAddress: world.shape.guestAddress(first, place: place),
      memorySize: UInt64(world.shape.regionPages + 1) << 12,
      userspaceAddress: world.memory.userspaceAddress + UInt64(first) << 12)
    if size != EINVAL {
      worker.fail("slot \(slot(region)) with another size: error \(size), expected EINVAL")
    }
    count(.refusal, &worker)
  }

  /// What is wrong with regions that have no slot at the end.
  func finish() -> [String] { left.indices.compactMap { change(of: $0) } }
}
