import PMArena
import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// Copies of a machine's state, and machines made from a state.
@Suite struct SnapshotTests {
  /// A machine that random operations have mixed up, with a generator that knows what is held.
  private func mixed(
    seed: UInt64, steps: Int, _ layout: RefcountLayout
  ) throws -> (LockstepPair, LockstepGenerator) {
    var description = MachineDescription(memory: .mib(32), cpus: 2)
    description.parameters.minFreeKiB = 256
    description.refcountLayout = layout
    let pair = try LockstepPair(Machine(description))
    var generator = LockstepGenerator(
      model: pair.model, isHazardous: false, rng: SplitMix64(seed: seed))
    for step in 0..<steps {
      let operation = generator.next()
      generator.observe(operation, try pair.perform(operation, cpu: step % 2))
    }
    return (pair, generator)
  }

  @Test(arguments: RefcountLayout.allCases)
  func `A restored machine has the state it had and does the same again`(
    _ layout: RefcountLayout
  ) throws {
    let steps = RandomRun.steps(release: 20_000, debug: 2000)
    RandomRun.announce("SnapshotTests", steps: steps)
    let (pair, generator) = try mixed(seed: RandomRun.seed, steps: steps, layout)
    let machine = pair.machine
    let snapshot = machine.snapshot()
    #expect(snapshot.byteCount > (10 + layout.stride) * (32 << 8))
    let state = machine.state(withMaps: true)
    let counts = (0..<(32 << 8)).map { machine.frames.refcount(PFN(UInt32($0))) }

    func runOn() -> [LockstepResult] {
      var copy = generator
      return (0..<steps).map { step in
        let operation = copy.next()
        let result = operation.perform(
          on: &pair.cpus[step % 2].cpu, zoneIDs: machine.zoneIDs)
        copy.observe(operation, result)
        return result
      }
    }
    let first = runOn()
    let stateAfter = machine.state(withMaps: true)
    #expect(stateAfter != state)

    machine.restore(snapshot)
    #expect(machine.state(withMaps: true) == state)
    #expect((0..<(32 << 8)).map { machine.frames.refcount(PFN(UInt32($0))) } == counts)
    #expect(machine.invariantViolations() == [])
    #expect(runOn() == first)
    #expect(machine.state(withMaps: true) == stateAfter)
  }

  @Test func `Nobody claims a CPU while the CPUs are kept at rest, and none is in use then`() throws
  {
    let machine = try Machine(MachineDescription(memory: .mib(32), cpus: 2))
    let answer = try machine.withCPUsAtRest {
      #expect(throws: MachineError.self) { _ = try machine.claimCPU(1) }
      return 7
    }
    #expect(answer == 7)
    do {
      let cpu = try machine.claimCPU(1)
      #expect(throws: MachineError.self) { try machine.withCPUsAtRest { #expect(Bool(false)) } }
      #expect(cpu.index == 1)
    }
    #expect(try machine.withCPUsAtRest { true })
  }

  @Test(arguments: RefcountLayout.allCases)
  func `A fork has the machine's state and bytes, and each goes its own way`(
    _ layout: RefcountLayout
  ) throws {
    let steps = RandomRun.steps(release: 20_000, debug: 2000)
    RandomRun.announce("SnapshotTests.fork", steps: steps)
    let (pair, generator) = try mixed(seed: RandomRun.seed, steps: steps, layout)
    let machine = pair.machine
    let word = machine.arena.base + 0x20_0000
    word.storeBytes(of: 1, as: UInt64.self)
    let state = machine.state(withMaps: true)

    let fork = try machine.fork()
    #expect(fork.state(withMaps: true) == state)
    #expect(fork.invariantViolations() == [])
    for frame in UInt32(0)..<(32 << 8) {
      #expect(fork.frames.refcount(PFN(frame)) == machine.frames.refcount(PFN(frame)))
    }

    // The same operations come to the same on both, the fork's first.
    func run(_ perform: (LockstepOperation, Int) -> LockstepResult) -> [LockstepResult] {
      var copy = generator
      return (0..<steps).map { step in
        let operation = copy.next()
        let result = perform(operation, step % 2)
        copy.observe(operation, result)
        return result
      }
    }
    var cpu0 = try fork.claimCPU(0)
    var cpu1 = try fork.claimCPU(1)
    let forked = run { operation, cpu in
      cpu == 0
        ? operation.perform(on: &cpu0, zoneIDs: fork.zoneIDs)
        : operation.perform(on: &cpu1, zoneIDs: fork.zoneIDs)
    }
    let after = fork.state(withMaps: true)
    #expect(after != state)
    #expect(machine.state(withMaps: true) == state)
    let own = run { operation, cpu in
      operation.perform(on: &pair.cpus[cpu].cpu, zoneIDs: machine.zoneIDs)
    }
    #expect(own == forked)
    #expect(machine.state(withMaps: true) == after)

    let copied = fork.arena.base + 0x20_0000
    #expect(copied.load(as: UInt64.self) == 1)
    copied.storeBytes(of: 2, as: UInt64.self)
    #expect(word.load(as: UInt64.self) == 1)
  }

  @Test(arguments: RefcountLayout.allCases)
  func `A machine made from a state has that state and goes on alike, whatever its counts' layout`(
    _ layout: RefcountLayout
  ) throws {
    let steps = RandomRun.steps(release: 20_000, debug: 2000)
    RandomRun.announce("SnapshotTests", steps: steps)
    let (pair, _) = try mixed(seed: RandomRun.seed, steps: steps, layout)
    let state = pair.machine.state(withMaps: true)
    let other: RefcountLayout = layout == .packed ? .strided : .packed
    let copy = try Machine(state: state, refcountLayout: other)
    #expect(copy.frames.refcountLayout == other)
    #expect(copy.state(withMaps: true) == state)
    #expect(copy.invariantViolations() == [])
    var cpu = try copy.claimCPU(0)
    for order in [0, 1, 3, 5, 0, 9, 0, 2] {
      let gfp: GFP = order % 2 == 0 ? .noWait : [.atomic, .movable]
      let wanted = try? pair.cpus[0].cpu.allocatePages(order: order, gfp: gfp)
      let got = try? cpu.allocatePages(order: order, gfp: gfp)
      #expect(got == wanted)
    }
    #expect(copy.state(withMaps: false) == pair.machine.state(withMaps: false))
  }

  @Test func `A snapshot brings back flags and details`() throws {
    let machine = try smallMachine(SmallZone())
    machine.setFlags(of: PFN(0x400), [.dirty, .lru])
    machine.setDetails(of: PFN(0x401), mapcount: 2, mapping: 0x1001, memcg: 7)
    let snapshot = machine.snapshot()
    machine.setFlags(of: PFN(0x400), [])
    machine.setDetails(of: PFN(0x401))
    machine.setDetails(of: PFN(0x402), mapcount: 1)
    machine.restore(snapshot)
    #expect(machine.flags(of: PFN(0x400)) == [.dirty, .lru])
    #expect(machine.details(of: PFN(0x401)) == PageDetails(mapcount: 2, mapping: 0x1001, memcg: 7))
    #expect(machine.details(of: PFN(0x402)).isClean)
  }

  @Test func `A snapshot of another machine stops the process`() async {
    await #expect(processExitsWith: .failure) {
      let first = try Machine(MachineDescription(memory: .mib(8)))
      let second = try Machine(MachineDescription(memory: .mib(8)))
      second.restore(first.snapshot())
    }
  }
}
