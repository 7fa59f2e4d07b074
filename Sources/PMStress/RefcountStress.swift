internal import PMFrames
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// Stress of reference counts.
enum RefcountStress {
  enum Operation: Int, CaseIterable {
    case lookup, lostLookup, put, get, hotGet, hotPut, pin, folioGet, folioPut, range, freeze
    case refusedFreeze, replace, failedAllocation
  }

  static func run(_ plan: StressPlan, control: StressControl) throws -> StressOutcome {
    let world = try RefcountWorld(plan)
    let plan = plan.begun()
    let results = Guarded<[(RefcountHoldings, [Int])]>([])
    let bodies = (0..<plan.options.threads).map { index in
      { @Sendable in
        let result = work(world, plan, control, index)
        results.withLock { $0.append(result) }
      }
    }
    guard StressCrew.run(plan, control, bodies) else { return StressOutcome() }
    let done = results.withLock { $0 }
    var outcome = StressOutcome()
    for (_, counts) in done { outcome.add(counts, Operation.allCases.map { "\($0)" }) }
    try StressRest.check(world.machine, freeBefore: world.freeBefore, plan, control) { cpu in
      world.settle(done.map(\.0), on: &cpu)
    }
    return outcome
  }

  private static func work(
    _ world: RefcountWorld, _ plan: StressPlan, _ control: StressControl, _ index: Int
  ) -> (RefcountHoldings, [Int]) {
    var worker = StressWorker(
      plan, control, thread: index, operationKinds: Operation.allCases.count)
    guard var cpu = StressRest.claim(world.machine, index, plan, worker) else {
      return (RefcountHoldings(), worker.counts)
    }
    var held = RefcountHoldings()
    held.looked.reserveCapacity(64)
    while worker.next() {
      switch worker.random.next() & 31 {
      case 0..<8: lookUp(world, &cpu, &held, &worker)
      case 8..<15: put(world, &cpu, &held, &worker)
      case 15..<18: getAgain(world, &cpu, &held, &worker)
      case 18..<22: hotGet(world, &held, &worker)
      case 22..<25: hotPut(world, &held, &worker)
      case 25: pin(world, &held, &worker)
      case 26, 27: folio(world, &cpu, &held, &worker)
      case 28: range(world, &held, &worker)
      case 29: freeze(world, &cpu, &held, &worker)
      default: replace(world, &cpu, &worker)
      }
    }
    return (held, worker.counts)
  }

  // MARK: pages that come and go

  /// Finds a page without a lock: takes a reference unless the count is 0, and keeps it if the slot still
  /// names the page.
  private static func lookUp(
    _ world: RefcountWorld, _ cpu: inout CPU, _ held: inout RefcountHoldings,
    _ worker: inout StressWorker
  ) {
    guard held.looked.count < 48 else { return }
    let slot = worker.random.below(RefcountWorld.slotCount)
    let pfn = PFN(world.slots.place(slot).pointee.load(ordering: .acquiring))
    guard cpu.getPageUnlessZero(pfn) else {
      worker.counts[Operation.lostLookup.rawValue] += 1
      return
    }
    if world.slots.place(slot).pointee.load(ordering: .acquiring) != pfn.rawValue {
      worker.counts[Operation.lostLookup.rawValue] += 1
      cpu.putPage(pfn)
      return
    }
    worker.counts[Operation.lookup.rawValue] += 1
    held.looked.append(UInt64(slot) << 32 | UInt64(pfn.rawValue))
    check(world, held.looked[held.looked.count - 1], worker)
  }

  /// A page that is held must have a count and the bytes of its slot.
  @inline(__always)
  private static func check(_ world: RefcountWorld, _ entry: UInt64, _ worker: StressWorker) {
    let pfn = PFN(UInt32(truncatingIfNeeded: entry))
    let count = world.machine.frames.refcount(pfn)
    if count < 1 || !world.isStamped(pfn, Int(entry >> 32)) {
      worker.fail(
        "frame \(pfn), held through slot \(entry >> 32), has a count of \(count) and "
          + (world.isStamped(pfn, Int(entry >> 32)) ? "its own bytes" : "other bytes"))
    }
  }

  private static func put(
    _ world: RefcountWorld, _ cpu: inout CPU, _ held: inout RefcountHoldings,
    _ worker: inout StressWorker
  ) {
    guard !held.looked.isEmpty else { return }
    let index = worker.random.below(held.looked.count)
    held.looked.swapAt(index, held.looked.count - 1)
    let entry = held.looked.removeLast()
    check(world, entry, worker)
    cpu.putPage(PFN(UInt32(truncatingIfNeeded: entry)))
    worker.counts[Operation.put.rawValue] += 1
  }

  private static func getAgain(
    _ world: RefcountWorld, _ cpu: inout CPU, _ held: inout RefcountHoldings,
    _ worker: inout StressWorker
  ) {
    guard !held.looked.isEmpty, held.looked.count < 48 else { return }
    let entry = held.looked[worker.random.below(held.looked.count)]
    cpu.getPage(PFN(UInt32(truncatingIfNeeded: entry)))
    held.looked.append(entry)
    check(world, entry, worker)
    worker.counts[Operation.get.rawValue] += 1
  }

  /// Puts another page in a slot's place.
  private static func replace(
    _ world: RefcountWorld, _ cpu: inout CPU, _ worker: inout StressWorker
  ) {
    let slot = worker.random.below(RefcountWorld.slotCount)
    guard let page = try? cpu.allocatePages(gfp: .highUser) else {
      worker.counts[Operation.failedAllocation.rawValue] += 1
      return
    }
    guard tryLock(world, slot) else { return cpu.putPage(page) }
    world.stamp(page, slot)
    let old = world.slots.place(slot).pointee.exchange(
      page.rawValue, ordering: .acquiringAndReleasing)
    unlock(world, slot)
    cpu.putPage(PFN(old))
    worker.counts[Operation.replace.rawValue] += 1
  }

  /// Freezes the count of a page that nobody but this thread and the slot holds, then either thaws it or
  /// puts another page in its place, as migration does.
  private static func freeze(
    _ world: RefcountWorld, _ cpu: inout CPU, _ held: inout RefcountHoldings,
    _ worker: inout StressWorker
  ) {
    guard let entry = held.looked.last else { return }
    let slot = Int(entry >> 32)
    let pfn = PFN(UInt32(truncatingIfNeeded: entry))
    guard tryLock(world, slot) else { return }
    defer { unlock(world, slot) }
    let mine = held.looked.reduce(0) { $0 + ($1 == entry ? 1 : 0) }
    guard world.slots.place(slot).pointee.load(ordering: .acquiring) == pfn.rawValue,
      cpu.freeze(pfn, expected: Int32(mine + 1))
    else {
      worker.counts[Operation.refusedFreeze.rawValue] += 1
      return
    }
    worker.counts[Operation.freeze.rawValue] += 1
    let seen = world.machine.frames.refcount(pfn)
    if seen != 0 || cpu.getPageUnlessZero(pfn) {
      worker.fail("frame \(pfn) is frozen, and its count is \(seen) or could be raised")
    }
    guard worker.random.next() & 1 == 0, let page = try? cpu.allocatePages(gfp: .highUser) else {
      return cpu.unfreeze(pfn, to: Int32(mine + 1))
    }
    world.stamp(page, slot)
    world.slots.place(slot).pointee.store(page.rawValue, ordering: .releasing)
    cpu.unfreeze(pfn, to: Int32(mine))
  }

  private static func tryLock(_ world: RefcountWorld, _ slot: Int) -> Bool {
    world.locks.place(slot).pointee.compareExchange(
      expected: 0, desired: 1, ordering: .acquiring
    ).exchanged
  }

  private static func unlock(_ world: RefcountWorld, _ slot: Int) {
    world.locks.place(slot).pointee.store(0, ordering: .releasing)
  }

  // MARK: pages that stay

  private static func hotGet(
    _ world: RefcountWorld, _ held: inout RefcountHoldings, _ worker: inout StressWorker
  ) {
    let index = worker.random.below(RefcountWorld.hotCount)
    if !world.machine.frames.increment(world.hot + index) {
      worker.fail("the count of frame \(world.hot + index) wrapped")
    }
    held.hot[index] += 1
    worker.counts[Operation.hotGet.rawValue] += 1
  }

  private static func hotPut(
    _ world: RefcountWorld, _ held: inout RefcountHoldings, _ worker: inout StressWorker
  ) {
    let index = worker.random.below(RefcountWorld.hotCount)
    guard held.hot[index] > 0 else { return }
    // More are taken than given back; in great numbers they go at once.
    let count = held.hot[index] > 4096 ? 4096 : 1
    held.hot[index] -= count
    if world.machine.frames.subtractAndTest(world.hot + index, Int32(count)) {
      worker.fail("the count of frame \(world.hot + index) fell to 0 under its owner's reference")
    }
    worker.counts[Operation.hotPut.rawValue] += 1
  }

  private static func pin(
    _ world: RefcountWorld, _ held: inout RefcountHoldings, _ worker: inout StressWorker
  ) {
    let index = worker.random.below(RefcountWorld.hotCount)
    let pfn = world.hot + index
    world.machine.frames.pin(pfn)
    if !world.machine.frames.mayBePinned(pfn) { worker.fail("frame \(pfn) does not look pinned") }
    if world.machine.frames.unpinAndTest(pfn) {
      worker.fail("an unpin of frame \(pfn) took the last reference")
    }
    worker.counts[Operation.pin.rawValue] += 1
  }

  private static func folio(
    _ world: RefcountWorld, _ cpu: inout CPU, _ held: inout RefcountHoldings,
    _ worker: inout StressWorker
  ) {
    let tail = world.folio + worker.random.below(8)
    if held.folio == 0 || worker.random.next() & 1 == 0 {
      cpu.getPage(tail)
      held.folio += 1
      worker.counts[Operation.folioGet.rawValue] += 1
    } else {
      held.folio -= 1
      cpu.putPage(tail)
      worker.counts[Operation.folioPut.rawValue] += 1
    }
  }

  private static func range(
    _ world: RefcountWorld, _ held: inout RefcountHoldings, _ worker: inout StressWorker
  ) {
    let first = worker.random.below(RefcountWorld.hotCount)
    let count = 1 + worker.random.below(RefcountWorld.hotCount - first)
    world.machine.frames.increment(from: world.hot + first, count: count)
    for index in first..<(first + count) { held.hot[index] += 1 }
    worker.counts[Operation.range.rawValue] += 1
  }
}
