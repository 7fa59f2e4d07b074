internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// Stress of the page allocator.
enum AllocStress {
  enum Operation: Int, CaseIterable {
    case allocation, compound, bulk, exact, split, failedAllocation, free, heldFree, pass, receive
    case drain
  }

  static func run(_ plan: StressPlan, control: StressControl) throws -> StressOutcome {
    let world = try AllocWorld(plan)
    let plan = plan.begun()
    let results = Guarded<[(index: Int, held: [AllocBlock], counts: [Int])]>([])
    let bodies = (0..<plan.options.threads).map { index in
      { @Sendable in
        var thread = AllocThread(world, plan, control, index)
        thread.run()
        let result = (index, thread.held, thread.worker.counts)
        results.withLock { $0.append(result) }
      }
    }
    guard StressCrew.run(plan, control, bodies) else { return StressOutcome() }
    let done = results.withLock { $0 }.sorted { $0.index < $1.index }
    var outcome = StressOutcome()
    for result in done { outcome.add(result.counts, Operation.allCases.map { "\($0)" }) }
    try StressRest.check(world.machine, freeBefore: world.freeBefore, plan, control) { cpu in
      // What went wrong while running has left blocks in a state that nobody can look at again.
      control.failures.isEmpty ? world.settle(done.map(\.held), on: &cpu) : []
    }
    return outcome
  }
}

/// A thread that allocates and frees.
private struct AllocThread {
  typealias Operation = AllocStress.Operation

  let world: AllocWorld
  let plan: StressPlan
  var worker: StressWorker
  var held: [AllocBlock] = []
  private var heldFrames = 0
  private var serial: UInt32
  private var bulk: [PFN] = .init(repeating: PFN(0), count: 64)

  init(_ world: AllocWorld, _ plan: StressPlan, _ control: StressControl, _ index: Int) {
    self.world = world
    self.plan = plan
    worker = StressWorker(
      plan, control, thread: index, operationKinds: Operation.allCases.count)
    serial = UInt32(index) << 24
    held.reserveCapacity(1 << 14)
  }

  mutating func run() {
    guard var cpu = StressRest.claim(world.machine, worker.thread, plan, worker) else { return }
    // Between filling memory and emptying it, so that blocks split and merge all the way.
    var isFilling = true
    while worker.next() {
      if heldFrames > world.share { isFilling = false }
      if heldFrames < world.share / 8 { isFilling = true }
      let choice = worker.random.next() & 63
      switch choice {
      case 0..<(isFilling ? 34 : 26): allocate(&cpu)
      case 34..<36 where isFilling: allocateBulk(&cpu)
      case 36 where isFilling: allocateExact(&cpu)
      case 37 where isFilling: allocateSplit(&cpu)
      case 60: pass()
      case 61: receive()
      case 62: freeHeld(&cpu)
      case 63 where worker.random.next() & 255 == 0:
        cpu.drainLocalPages()
        count(.drain)
      default: free(&cpu)
      }
    }
  }

  private mutating func count(_ operation: Operation) { worker.counts[operation.rawValue] += 1 }

  private mutating func keep(_ first: PFN, order: Int, _ form: AllocBlock.Form, frames: Int) {
    serial = serial &+ 1
    let block = AllocBlock(
      first: first, order: UInt8(order), form: form, frames: Int32(frames), serial: serial)
    if let text = world.take(block, thread: worker.thread) { return worker.fail(text) }
    held.append(block)
    heldFrames += frames
  }

  private mutating func randomGFP() -> GFP {
    switch worker.random.next() & 7 {
    case 0, 1: .kernel
    case 2, 3: .highUserMovable
    case 4: [.kernel, .reclaimable]
    case 5: .atomic
    case 6: .user
    default: worker.random.next() & 7 == 0 ? [.kernel, .dma32] : .highUser
    }
  }

  // MARK: taking

  private mutating func allocate(_ cpu: inout CPU) {
    // Most are single frames; every order comes, the high ones seldom.
    let order = min((worker.random.next() | 1 << 20).trailingZeroBitCount / 2, 10)
    var gfp = randomGFP()
    let isCompound = worker.random.next() & 1 == 0
    if isCompound { gfp.insert(.comp) }
    guard let first = try? cpu.allocatePages(order: order, gfp: gfp) else {
      return count(.failedAllocation)
    }
    count(isCompound ? .compound : .allocation)
    keep(first, order: order, isCompound && order > 0 ? .compound : .plain, frames: 1 << order)
  }

  private mutating func allocateBulk(_ cpu: inout CPU) {
    let wanted = 1 + worker.random.below(64)
    let got = bulk.withUnsafeMutableBufferPointer { slots in
      cpu.allocateBulk(into: UnsafeMutableBufferPointer(rebasing: slots[0..<wanted]), gfp: .kernel)
    }
    count(got == 0 ? .failedAllocation : .bulk)
    for index in 0..<got { keep(bulk[index], order: 0, .plain, frames: 1) }
  }

  private mutating func allocateExact(_ cpu: inout CPU) {
    let frames = 1 + worker.random.below(40)
    let order = frames == 1 ? 0 : Int.bitWidth - (frames - 1).leadingZeroBitCount
    guard let first = try? cpu.allocateExact(bytes: UInt64(frames) << 12, gfp: .kernel) else {
      return count(.failedAllocation)
    }
    count(.exact)
    keep(first, order: order, .exact, frames: frames)
  }

  private mutating func allocateSplit(_ cpu: inout CPU) {
    let order = 1 + worker.random.below(4)
    guard let first = try? cpu.allocatePages(order: order, gfp: .kernel) else {
      return count(.failedAllocation)
    }
    cpu.splitPage(first, order: order)
    count(.split)
    keep(first, order: order, .split, frames: 1 << order)
  }

  // MARK: giving back

  /// Takes a block out of those held, after a look at it.
  private mutating func release() -> AllocBlock? {
    guard !held.isEmpty else { return nil }
    held.swapAt(worker.random.below(held.count), held.count - 1)
    let block = held.removeLast()
    heldFrames -= block.count
    if let text = world.look(block, thread: worker.thread) {
      worker.fail(text)
      return nil
    }
    return block
  }

  private mutating func free(_ cpu: inout CPU) {
    guard let block = release() else { return }
    world.leave(block)
    block.free(on: &cpu)
    count(.free)
  }

  /// Frees a block while somebody has a reference to its first frame, who puts it afterwards.
  private mutating func freeHeld(_ cpu: inout CPU) {
    guard let block = release() else { return }
    world.leave(block)
    switch block.form {
    case .plain, .compound:
      cpu.getPage(block.first)
      cpu.freePages(block.first, order: Int(block.order))
      let seen = world.machine.frames.refcount(block.first)
      if seen != 1 {
        worker.fail("\(block) was freed under a reference and has a count of \(seen)")
      }
      cpu.putPage(block.first)
    case .exact, .split: block.free(on: &cpu)
    }
    count(.heldFree)
  }

  private mutating func pass() {
    guard let block = release() else { return }
    world.pass(block)
    count(.pass)
  }

  private mutating func receive() {
    guard let block = world.receive(thread: worker.thread) else { return }
    held.append(block)
    heldFrames += block.count
    count(.receive)
  }
}
