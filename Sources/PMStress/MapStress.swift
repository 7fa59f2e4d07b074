internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// Stress of mappings: the process's memory changes in every way while guests use it.
enum MapStress {
  enum Operation: Int, CaseIterable {
    case discard, protect, unmap, map, age, fork, migrate, log, pin, unpin, refused
  }

  static func run(_ plan: StressPlan, control: StressControl) throws -> StressOutcome {
    let world = try GuestWorld(plan)
    let mutator = MapMutator(world, plan)
    do {
      var cpu = try world.machine.claimCPU(world.mutatorCPU)
      try mutator.setSlot(logs: plan.seed & 2 != 0, on: &cpu)
    }
    let crew = GuestCrew(world, plan.begun(), control, places: 1)
    return try crew.run(
      operations: Operation.allCases.map { "\($0)" },
      mutate: { worker, cpu in mutator.step(&worker, &cpu) },
      finish: { cpu in
        mutator.unpinAll(on: &cpu)
        return []
      })
  }
}

/// Changes the process's memory, a region at a time, and publishes what it does.
private final class MapMutator: @unchecked Sendable {
  // Sendable: one thread at a time uses it: first the one that sets up, then the one that changes things,
  // then, after that has ended, the one that tidies up.

  private let world: GuestWorld
  private let backing: StressBacking
  private var isMapped: [Bool]
  private var logs = false
  private var pins: [(pfn: PFN, address: UInt64)] = []

  init(_ world: GuestWorld, _ plan: StressPlan) {
    self.world = world
    backing = plan.options.backing
    isMapped = .init(repeating: true, count: world.regionCount)
  }

  func setSlot(logs: Bool, on cpu: inout CPU) throws(KernelErrno) {
    try world.vm.setUserMemoryRegion(
      world.slot(
        1, regions: 0..<world.regionCount, place: 1, flags: logs ? .logDirtyPages : []),
      on: &cpu)
    self.logs = logs
  }

  func step(_ worker: inout StressWorker, _ cpu: inout CPU) {
    let region = worker.random.below(world.regionCount)
    let choice = worker.random.next() % 100
    do throws(KernelErrno) {
      if !isMapped[region] { return try map(region, &worker, &cpu) }
      switch choice {
      case 0..<25: try discard(region, &worker, &cpu)
      case 25..<45: try protect(region, &worker, &cpu)
      case 45..<60: try unmap(region, &worker, &cpu)
      case 60..<68: age(region, &worker, &cpu)
      case 68..<72: fork(region, &worker, &cpu)
      case 72..<88: migrate(region, &worker, &cpu)
      case 88..<92:
        try setSlot(logs: !logs, on: &cpu)
        count(.log, &worker)
      case 92..<97: pin(region, &worker, &cpu)
      default: unpin(&worker, &cpu)
      }
    } catch {
      worker.fail("region \(region), choice \(choice): the process's call failed with \(error)")
    }
  }

  private func count(_ operation: MapStress.Operation, _ worker: inout StressWorker) {
    worker.counts[operation.rawValue] += 1
  }

  // MARK: what takes contents away

  private func discard(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    try world.change(region) { state throws(KernelErrno) in
      try world.process.discard(world.addresses(region), on: &cpu)
      if !world.keepsContents { state.generation &+= 1 }
    }
    count(.discard, &worker)
  }

  private func unmap(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    let mapsAgain = worker.random.next() & 1 == 0
    try world.change(region) { state throws(KernelErrno) in
      try world.process.unmap(world.addresses(region), on: &cpu)
      if !world.keepsContents { state.generation &+= 1 }
      state.rights = .none
      isMapped[region] = false
      if mapsAgain { try mapMemory(region, &state, &cpu) }
    }
    count(.unmap, &worker)
  }

  private func map(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    try world.change(region) { state throws(KernelErrno) in
      try mapMemory(region, &state, &cpu)
    }
    count(.map, &worker)
  }

  private func mapMemory(
    _ region: Int, _ state: inout GuestRegion, _ cpu: inout CPU
  ) throws(KernelErrno) {
    let addresses = world.addresses(region)
    try world.process.map(
      GuestWorld.request(
        UInt64(world.regionPages) << 12, backing, world.file, address: addresses.lowerBound,
        pageOffset: UInt64(region * world.regionPages)), on: &cpu)
    state.rights = .write
    isMapped[region] = true
  }

  // MARK: what changes rights

  private func protect(
    _ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU
  ) throws(KernelErrno) {
    let rights: [(GuestRegion.Rights, VMAFlags)] = [
      (.none, []), (.read, .read), (.write, [.read, .write]), (.write, [.read, .write]),
    ]
    let (published, flags) = rights[worker.random.below(4)]
    try world.change(region) { state throws(KernelErrno) in
      try world.process.protect(world.addresses(region), rights: flags, on: &cpu)
      state.rights = published
    }
    count(.protect, &worker)
  }

  // MARK: what guests must not notice

  private func age(_ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU) {
    _ = world.process.clearYoung(world.addresses(region), on: &cpu)
    count(.age, &worker)
  }

  /// A child that writes to its copies and goes.
  private func fork(_ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU) {
    // Pages of the pool are not copied while there are none left; files are the guest's own memory.
    guard !backing.isHuge else { return }
    let child = world.process.fork(on: &cpu)
    let addresses = world.addresses(region)
    for _ in 0..<8 {
      let address = addresses.lowerBound + UInt64(worker.random.below(world.regionPages)) << 12
      if world.keepsContents {
        _ = try? child.read32(address, on: &cpu)
      } else {
        try? child.write32(address, 0xdead_beef, on: &cpu)
      }
    }
    child.exit(on: &cpu)
    count(.fork, &worker)
  }

  private func migrate(_ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU) {
    let result = world.process.migrate(world.addresses(region), on: &cpu)
    worker.counts[MapStress.Operation.migrate.rawValue] += result.moved
    worker.counts[MapStress.Operation.refused.rawValue] += result.busy
  }

  // MARK: pins

  private func pin(_ region: Int, _ worker: inout StressWorker, _ cpu: inout CPU) {
    guard pins.count < 8, !backing.isHuge else { return }
    let address =
      world.addresses(region).lowerBound + UInt64(worker.random.below(world.regionPages)) << 12
    let found = world.process.getUserPage(
      address, [.pin, .write], .pin("stress"), on: &cpu)
    guard case .page(let pfn) = found else { return }
    pins.append((pfn, address))
    // Pins of a large folio are counted apart.
    let frames = world.machine.frames
    if frames.compoundOrder(frames.compoundHead(of: pfn)) == 0, !frames.mayBePinned(pfn) {
      worker.fail("frame \(pfn) is pinned and does not look so")
    }
    count(.pin, &worker)
  }

  private func unpin(_ worker: inout StressWorker, _ cpu: inout CPU) {
    guard let last = pins.popLast() else { return }
    world.process.release(last.pfn, .pin, .pin("stress"), on: &cpu)
    count(.unpin, &worker)
  }

  func unpinAll(on cpu: inout CPU) {
    while let last = pins.popLast() {
      world.process.release(last.pfn, .pin, .pin("stress"), on: &cpu)
    }
  }
}
