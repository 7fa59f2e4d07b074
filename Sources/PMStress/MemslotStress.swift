internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Stress of memslots: added, deleted, moved, with other flags, while guests use them.
enum MemslotStress {
  static let places = 3
  static let slotCount = 32

  enum Operation: Int, CaseIterable {
    case add, delete, move, log, harvest, dummy, refusal, discard
  }

  static func run(_ plan: StressPlan, control: StressControl) throws -> StressOutcome {
    let world = try GuestWorld(plan, regionLimit: slotCount)
    let mutator = MemslotMutator(world)
    do {
      var cpu = try world.machine.claimCPU(world.mutatorCPU)
      try mutator.setAll(on: &cpu)
    }
    let crew = GuestCrew(world, plan.begun(), control, places: places)
    return try crew.run(
      operations: Operation.allCases.map { "\($0)" },
      mutate: { worker, cpu in mutator.step(&worker, &cpu) })
  }
}

/// Changes slots, one per region, and publishes what it does.
private final class MemslotMutator: @unchecked Sendable {
  // Sendable: one thread at a time uses it: first the one that sets up, then the one that changes things.

  private let world: GuestWorld
  private var flags: [MemslotFlags]
  private var log: [UInt64]

  init(_ world: GuestWorld) {
    self.world = world
    flags = .init(repeating: [], count: world.regionCount)
    log = .init(repeating: 0, count: (world.regionPages + 63) / 64)
  }

  func setAll(on cpu: inout CPU) throws(KernelErrno) {
    for region in 0..<world.regionCount { try set(region, place: 1, on: &cpu) }
  }

  private func set(_ region: Int, place: Int, on cpu: inout CPU) throws(KernelErrno) {
    try world.vm.setUserMemoryRegion(
      world.slot(
        UInt32(region), regions: region..<(region + 1), place: place, flags: flags[region]),
      on: &cpu)
  }

  func step(_ worker: inout StressWorker, _ cpu: inout CPU) {
    let region = worker.random.below(world.regionCount)
    let choice = worker.random.next() % 100
    do throws(KernelErrno) {
      if world.region(region).place == 0 { return try add(region, &worker, &cpu) }
      switch choice {
      case 0..<25: try delete(region, &worker, &cpu)
      case 25..<50: try move(region, &worker, &cpu)
      case 50..<65: try toggleLog(region, &worker, &cpu)
      case 65..<75: try harvest(region, &worker, &cpu)
      case 75..<85: try dummy(&worker, &cpu)
      case 85..<92: refusals(region, &worker, &cpu)
      default:
        try world.change(region) { state throws(KernelErrno) in
          try world.process.discard(world.addresses(region), on: &cpu)
          if !world.keepsContents { state.generation &+= 1 }
        }
        count(.discard, &worker)
      }
    } catch {
      worker.fail("slot \(region), choice \(choice): the call failed with \(error)")
    }
  }

  private func count(_ operation: MemslotStress.Operation, _ worker: inout StressWorker) {
    worker.counts[operation.rawValue] += 1
  }

  private func add(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    let place = 1 + worker.random.below(MemslotStress.places)
    let isReadonly = worker.random.next() & 7 == 0
    flags[region] = worker.random.next() & 1 == 0 ? .logDirtyPages : []
    if isReadonly { flags[region] = .readonly }
    try world.change(region) { state throws(KernelErrno) in
      try set(region, place: place, on: &cpu)
      state.place = place
      state.rights = isReadonly ? .readonlySlot : .write
    }
    count(.add, &worker)
  }

  private func delete(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    try world.change(region) { state throws(KernelErrno) in
      try world.vm.setUserMemoryRegion(
        MemoryRegion(
          slot: UInt32(region), flags: 0, guestPhysicalAddress: 0, memorySize: 0,
          userspaceAddress: 0), on: &cpu)
      state.place = 0
    }
    count(.delete, &worker)
  }

  private func move(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    let old = world.region(region).place
    let place = 1 + (old + worker.random.below(MemslotStress.places - 1)) % MemslotStress.places
    try world.change(region) { state throws(KernelErrno) in
      try set(region, place: place, on: &cpu)
      state.place = place
    }
    count(.move, &worker)
  }

  private func toggleLog(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    guard !flags[region].contains(.readonly) else { return }
    flags[region].formSymmetricDifference(.logDirtyPages)
    try set(region, place: world.region(region).place, on: &cpu)
    count(.log, &worker)
  }

  private func harvest(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    guard flags[region].contains(.logDirtyPages) else { return }
    var failure: KernelErrno?
    log.withUnsafeMutableBufferPointer { words in
      do throws(KernelErrno) {
        try world.vm.getDirtyLog(slot: UInt32(region), into: words, on: &cpu)
      } catch { failure = error }
    }
    if let failure { throw failure }
    count(.harvest, &worker)
  }

  /// A slot that no guest uses, beside the others: what `memslot_modification_stress_test` does.
  private func dummy(_ worker: inout StressWorker, _ cpu: inout CPU) throws(KernelErrno) {
    for size in [UInt64(world.regionPages) << 12, 0] {
      try world.vm.setUserMemoryRegion(
        MemoryRegion(
          slot: UInt32(world.regionCount + 1), flags: 0,
          guestPhysicalAddress: GuestWorld.windowStart - UInt64(world.regionPages) << 12,
          memorySize: size, userspaceAddress: world.base), on: &cpu)
    }
    count(.dummy, &worker)
  }

  /// Calls that must fail and change nothing.
  private func refusals(_ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU) {
    let place = world.region(region).place
    var overlapping = world.slot(
      UInt32(world.regionCount + 2), regions: region..<(region + 1), place: place, flags: [])
    overlapping.userspaceAddress = world.base
    expect(.eexist, overlapping, &worker, &cpu)
    var other = world.slot(
      UInt32(region), regions: region..<(region + 1), place: place, flags: flags[region])
    other.memorySize += 4096
    expect(.einval, other, &worker, &cpu)
    count(.refusal, &worker)
  }

  private func expect(
    _ errno: KernelErrno, _ region: MemoryRegion, _ worker: inout StressWorker,
    _ cpu: inout CPU
  ) {
    do throws(KernelErrno) {
      try world.vm.setUserMemoryRegion(region, on: &cpu)
      worker.fail("\(region) was taken: expected \(errno)")
    } catch {
      if error != errno { worker.fail("\(region): expected \(errno), got \(error)") }
    }
  }
}
