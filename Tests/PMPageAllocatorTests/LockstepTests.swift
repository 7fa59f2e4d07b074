import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The machine against a slow model that an independent hand wrote from the specification alone.
@Suite struct LockstepTests {
  /// Runs of a random machine, each with a seed of its own.
  struct Campaign {
    var test: String
    var steps: Int
    var isHazardous = false
    /// What to do to the model before a run; for the check that differences are noticed.
    var spoil: (ReferenceModel) -> Void = { _ in }

    var done = 0
    var runs = 0
    var ends: [String: Int] = [:]
    var failures = 0

    mutating func run() throws {
      var seeds = SplitMix64(seed: RandomRun.seed)
      while done < steps {
        runs += 1
        try runMachine(seed: seeds.next())
      }
    }

    private mutating func runMachine(seed: UInt64) throws {
      var rng = SplitMix64(seed: seed)
      let length = min(steps - done, isHazardous ? 3000 : 5000 + rng.below(15000))
      var description =
        isHazardous ? LockstepShapes.tiny(&rng) : LockstepShapes.random(&rng)
      description.refcountLayout = runs % 2 == 0 ? .strided : .packed
      let pair = try LockstepPair(
        LockstepShapes.machine(
          description, &rng, hasLongLists: isHazardous && rng.chance(60)),
        isHazardous: isHazardous)
      spoil(pair.model)
      try pair.compareStates()
      var generator = LockstepGenerator(
        model: pair.model, isHazardous: isHazardous, rng: SplitMix64(seed: rng.next()))
      let frames = pair.machine.freePageCount
      var history: [(LockstepOperation, cpu: Int)] = []
      for step in 1...length {
        done += 1
        let operation = generator.next()
        if pair.isOutOfContract(operation) { continue }
        let cpu = rng.below(pair.cpus.count)
        history.append((operation, cpu))
        do throws(LockstepMismatch) {
          let result = try pair.perform(operation, cpu: cpu)
          if let end = pair.end {
            ends[end.prefix { $0 != ":" } == "kernel BUG" ? "kernel BUG" : end, default: 0] += 1
            return
          }
          generator.observe(operation, result)
          if case .noPage = result { failures += 1 }
          if step % RandomRun.comparisonInterval == 0 || step == length {
            try pair.compareStates()
            try compareConservation(pair, generator, frames)
          }
          if step == length { try pair.comparePages() }
        } catch {
          let last = history.suffix(4).map { "\($0) on CPU \($1)" }
          throw LockstepMismatch(
            description: """
              run \(runs), step \(step): \(error)
              last operations: \(last.joined(separator: "; "))
              machine: \(description)
              replay: \(RandomRun.replay(test, steps: steps))
              """)
        }
      }
    }

    /// What is free, what is held and what was leaked on purpose makes the whole machine.
    private func compareConservation(
      _ pair: LockstepPair, _ generator: LockstepGenerator, _ frames: Int64
    ) throws(LockstepMismatch) {
      // After a misuse nobody can say who owns what.
      if isHazardous { return }
      let isolated = pair.machine.zoneIDs.indices.reduce(0) { sum, zone in
        sum
          + pair.model.zones[zone].lists.enumerated().reduce(0) {
            $0 + $1.element[4].count << $1.offset
          }
      }
      let free = Int(pair.machine.freePageCount) + isolated
      let total = free + generator.heldFrames + generator.leakedFrames
      guard total == Int(frames) + initiallyIsolated(pair) else {
        throw LockstepMismatch(
          description: """
            \(free) free + \(generator.heldFrames) held + \(generator.leakedFrames) leaked: \
            expected \(Int(frames) + initiallyIsolated(pair))
            """)
      }
    }

    private func initiallyIsolated(_ pair: LockstepPair) -> Int {
      pair.model.zones.reduce(0) { $0 + $1.nrIsolate * 512 }
    }

    var summary: String {
      "\(test): \(done) operations in \(runs) runs, \(failures) without a page, ended early: \(ends)"
    }
  }

  @Test func `The machine and the model stay equal over random operations`() throws {
    var campaign = Campaign(
      test: "LockstepTests", steps: RandomRun.steps(release: 1_000_000, debug: 30_000))
    RandomRun.announce(campaign.test, steps: campaign.steps)
    try campaign.run()
    print(campaign.summary)
    // Nothing in this mix is a misuse, so no run may end early.
    #expect(campaign.ends == [:])
  }

  @Test func `The machine and the model stay equal over misuse until the kernel's BUG`() throws {
    var campaign = Campaign(
      test: "LockstepTests", steps: RandomRun.steps(release: 400_000, debug: 10_000),
      isHazardous: true)
    RandomRun.announce(campaign.test, steps: campaign.steps)
    try campaign.run()
    print(campaign.summary)
  }

  /// One rule of the model changed, by name.
  static let spoiled: [(name: String, spoil: @Sendable (ReferenceModel) -> Void)] = [
    ("the free factor grows to 6", { $0.freeFactorCap = 6 }),
    ("no block is used last because its next merge is near", { $0.hasTailRule = false }),
    ("tails are never freed", { $0.freePagesModel = .headNeverChecked }),
    ("a steal boosts no watermark", { $0.watermarkBoostFactor = 0 }),
    ("grouping by mobility is the other way round", { $0.mobilityGroupingDisabled.toggle() }),
    ("MIN is one page higher", { $0.zones[0].min += 1 }),
    (
      "a CPU's list of the last zone is one page shorter",
      {
        $0.pageSets[0][$0.zones.count - 1].high -= 1
      }
    ),
    (
      "the reserve of the lowest zone is one page less",
      {
        for kind in 1..<4 { $0.zones[0].lowmemReserve[kind] -= 1 }
      }
    ),
  ]

  /// A check that cannot fail proves nothing: each changed rule has to be noticed.
  @Test(arguments: 0..<spoiled.count)
  func `A changed rule in the model is noticed`(_ index: Int) throws {
    var campaign = Campaign(test: "LockstepTests", steps: 1_000_000)
    campaign.spoil = LockstepTests.spoiled[index].spoil
    #expect(throws: LockstepMismatch.self, "\(LockstepTests.spoiled[index].name)") {
      try campaign.run()
    }
    print("noticed after \(campaign.done) operations: \(LockstepTests.spoiled[index].name)")
  }
}
