import Testing

@testable import PMBench

@Suite struct ComparisonTests {
  private func report(_ cases: [BenchmarkResult]) -> BenchmarkReport {
    BenchmarkReport(cases, machine: ReportFixture.machine)
  }

  /// Cases of fixed value without limits.
  private func times(
    _ random: inout Draws, _ count: Int, around value: Double, noise: Double, rounds: Int = 9,
    bar: BenchmarkCase.Bar = .atMost(1000)
  ) -> BenchmarkReport {
    report(
      (0..<count).map {
        ReportFixture.result(
          "case.\($0)", bar: bar, random.rounds(rounds, around: value, noise: noise))
      })
  }

  @Test func `Ten percent under two percent of noise are found, in both directions`() {
    var slower = 0
    var faster = 0
    for seed in 0..<60 as Range<UInt64> {
      var random = Draws(seed: seed)
      let before = times(&random, 1, around: 10, noise: 0.02)
      let after = times(&random, 1, around: 11, noise: 0.02)
      let forth = BenchmarkComparison(before, after)
      if forth.cases[0].verdict == .slower, forth.regressions.count == 1 { slower += 1 }
      let back = BenchmarkComparison(after, before)
      if back.cases[0].verdict == .faster, back.regressions.isEmpty { faster += 1 }
    }
    #expect(slower >= 58, "\(slower) of 60")
    #expect(faster >= 58, "\(faster) of 60")
  }

  @Test func `Ten percent are found among many cases, and only where they are`() {
    var found = 0
    for seed in 100..<112 as Range<UInt64> {
      var random = Draws(seed: seed)
      let before = times(&random, 30, around: 10, noise: 0.02)
      var after = times(&random, 30, around: 10, noise: 0.02)
      after.cases[7] = ReportFixture.result(
        "case.7", bar: .atMost(1000), random.rounds(9, around: 11.5, noise: 0.02))
      let regressions = BenchmarkComparison(before, after).regressions.map(\.name)
      #expect(Set(regressions).isSubset(of: ["case.7"]))
      found += regressions.count
    }
    #expect(found >= 11, "\(found) of 12")
  }

  @Test func `Equal distributions give no more false alarms than the level says`() {
    var alarms = 0
    var regressions = 0
    for seed in 1000..<1100 as Range<UInt64> {
      var random = Draws(seed: seed)
      let before = times(&random, 5, around: 10, noise: 0.03)
      let after = times(&random, 5, around: 10, noise: 0.03)
      let comparison = BenchmarkComparison(before, after)
      let verdicts = comparison.cases.map(\.verdict)
      if verdicts.contains(.faster) || verdicts.contains(.slower) { alarms += 1 }
      if !comparison.regressions.isEmpty { regressions += 1 }
    }
    // The level allows 5 % of 100; more than 12 come of that once in a thousand times.
    #expect(alarms <= 12, "\(alarms) of 100")
    #expect(regressions <= 3, "\(regressions) of 100")
  }

  @Test func `Quiet rounds of equal distributions are no change`() {
    var random = Draws(seed: 8)
    let before = times(&random, 20, around: 10, noise: 0.005)
    let after = times(&random, 20, around: 10, noise: 0.005)
    let comparison = BenchmarkComparison(before, after)
    #expect(comparison.cases.count { $0.verdict == .noChange } >= 19)
  }

  @Test func `A machine that drifts is no change where the limit drifts with it`() throws {
    var random = Draws(seed: 9)
    func side(_ speed: Double) -> BenchmarkReport {
      let limits = random.rounds(9, around: 4 * speed, noise: 0.15)
      let samples = limits.map { $0 * 2.5 * (1 + 0.004 * random.normal()) }
      return report([
        ReportFixture.result("with.limit", samples, limits),
        ReportFixture.result("without", bar: .atMost(1000), samples),
      ])
    }
    let comparison = BenchmarkComparison(side(1), side(2))
    #expect(comparison.cases[0].quantity == "ratio")
    #expect(comparison.cases[0].verdict == .noChange)
    #expect(comparison.cases[1].quantity == "ns")
    #expect(comparison.cases[1].verdict == .slower)
    #expect(comparison.regressions.map(\.name) == ["without"])
    let change = try #require(comparison.cases[1].changePercent)
    #expect((40...160).contains(change))
  }

  @Test func `A throughput that falls is slower, one that rises faster`() {
    var random = Draws(seed: 10)
    let before = times(&random, 1, around: 10, noise: 0.01, bar: .atLeast(3))
    let after = times(&random, 1, around: 8, noise: 0.01, bar: .atLeast(3))
    let fallen = BenchmarkComparison(before, after)
    #expect(fallen.cases[0].verdict == .slower)
    #expect(fallen.cases[0].largerIsBetter)
    #expect((fallen.cases[0].changePercent ?? 0) < -15)
    #expect(fallen.regressions.count == 1)
    #expect(BenchmarkComparison(after, before).cases[0].verdict == .faster)
  }

  @Test func `The threshold says what a change is`() {
    var random = Draws(seed: 11)
    let before = times(&random, 1, around: 10, noise: 0.003)
    let after = times(&random, 1, around: 10.3, noise: 0.003)
    let usual = BenchmarkComparison(before, after)
    #expect(usual.cases[0].verdict == .noChange)
    #expect((usual.cases[0].correctedProbability ?? 1) < 0.001)
    let strict = BenchmarkComparison(before, after, options: .init(thresholdPercent: 1))
    #expect(strict.cases[0].verdict == .slower)
    #expect(strict.regressions.count == 1)
    let back = BenchmarkComparison(after, before, options: .init(thresholdPercent: 1))
    #expect(back.cases[0].verdict == .faster)
    // An interval on both sides of the threshold: slower, and a regression only from the threshold on.
    let near = BenchmarkComparison(before, after, options: .init(thresholdPercent: 3.1))
    #expect(near.cases[0].verdict == .slower)
    #expect(near.regressions.isEmpty)
  }

  @Test func `Wide rounds, few rounds and no rounds: nobody can tell, and it says why`() throws {
    var random = Draws(seed: 12)
    let wide = BenchmarkComparison(
      times(&random, 1, around: 10, noise: 0.2), times(&random, 1, around: 10, noise: 0.2))
    #expect(wide.cases[0].verdict == .cannotTell)
    #expect(wide.cases[0].reason == "the rounds are spread too widely: more of them may tell")
    let few = BenchmarkComparison(
      times(&random, 2, around: 10, noise: 0.01, rounds: 3),
      times(&random, 2, around: 20, noise: 0.01, rounds: 3))
    #expect(few.cases[0].verdict == .cannotTell)
    #expect(
      few.cases[0].reason == "3 and 3 rounds are too few to find a change among 2 cases")
    let full = ReportFixture.full
    let missing = BenchmarkComparison(full, full).cases[4]
    #expect(missing.verdict == .cannotTell)
    #expect(missing.reason == "did not run before: no \"trace\", none\nat all")
    var old = full
    old.cases[0].samples = []
    old.cases[0].limitSamples = []
    let without = BenchmarkComparison(old, full).cases[0]
    #expect(without.reason == "the report from before has no samples of the rounds")
    #expect(!without.isRegression)
  }

  @Test func `Zeros, constants and cases of other units`() {
    func compare(_ before: [Double], _ after: [Double], unit: String = "B")
      -> BenchmarkComparison.Case
    {
      BenchmarkComparison(
        report([ReportFixture.result("a", unit: "B", bar: .atMost(9), before)]),
        report([ReportFixture.result("a", unit: unit, bar: .atMost(9), after)])
      ).cases[0]
    }
    #expect(compare([0, 0, 0], [0, 0]).verdict == .noChange)
    #expect(compare([8.5, 8.5], [8.5, 8.5, 8.5]).verdict == .noChange)
    let zero = compare([0, 0, 0, 0, 0], [4, 4, 4, 4, 4])
    #expect(zero.reason == "a round's value is not above 0, so that there is no ratio")
    let grown = compare(Array(repeating: 8.0, count: 9), Array(repeating: 9.0, count: 9))
    #expect(grown.verdict == .slower && grown.isRegression)
    #expect(grown.changePercent == 12.5)
    #expect(compare([1], [1], unit: "ns").reason == "units differ: B before, ns after")
  }

  @Test func `Cases of one side and other machines are said`() {
    var (before, after) = (ReportFixture.full, ReportFixture.full)
    before.cases.remove(at: 0)
    after.cases.remove(at: 1)
    after.machine.model = "other"
    after.machine.cpus = 8
    let comparison = BenchmarkComparison(before, after)
    #expect(comparison.onlyBefore == ["free.random.o0"])
    #expect(comparison.onlyAfter == ["alloc.pair.o0"])
    #expect(comparison.cases.map(\.name) == Array(after.cases.map(\.name).dropFirst()))
    #expect(
      comparison.machineDifferences == [
        "processor: Model <A> & \"B\" before, other after", "processors: 4 before, 8 after",
      ])
    #expect(BenchmarkComparison(before, before).machineDifferences.isEmpty)
  }

  @Test func `The same reports and seed give the same comparison`() {
    var random = Draws(seed: 13)
    let before = times(&random, 3, around: 10, noise: 0.03)
    let after = times(&random, 3, around: 10.4, noise: 0.03)
    #expect(BenchmarkComparison(before, after) == BenchmarkComparison(before, after))
  }

  @Test func `Of several reports a side, a change is what every pair says`() throws {
    var random = Draws(seed: 14)
    // Each run is off as a whole: by chance, and "moved" by twenty percent in all of the runs after.
    func run(_ offset: Double, moved: Double) -> BenchmarkReport {
      report([
        ReportFixture.result(
          "moved", bar: .atMost(1000), random.rounds(9, around: moved * offset, noise: 0.005)),
        ReportFixture.result(
          "off", bar: .atMost(1000), random.rounds(9, around: 10 * offset, noise: 0.005)),
        ReportFixture.result(
          "near", bar: .atMost(1000),
          random.rounds(9, around: 5 * (1 + (offset - 1) / 4), noise: 0.004)),
      ])
    }
    let before = [run(1, moved: 10), run(1.07, moved: 10)]
    let after = [run(1.08, moved: 12), run(0.99, moved: 12)]
    // One pair alone takes what is off for a change.
    let alone = BenchmarkComparison(before[0], after[0])
    #expect(alone.regressions.map(\.name) == ["moved", "off"])
    let comparison = BenchmarkComparison(before: before, after: after)
    #expect(comparison.cases.map(\.name) == ["moved", "off", "near"])
    #expect(comparison.cases.map(\.verdict) == [.slower, .cannotTell, .noChange])
    #expect(comparison.regressions.map(\.name) == ["moved"])
    #expect(comparison.cases[1].reason == "the reports of one side differ as the sides do")
    // The pair that differs least: 12 × 0.99 after over 10 × 1.07 before.
    let change = try #require(comparison.cases[0].changePercent)
    #expect((9.5...12.5).contains(change))
    let strict = BenchmarkComparison(
      before: before, after: after, options: .init(thresholdPercent: 15))
    #expect(strict.cases[0].verdict == .cannotTell)
    #expect(strict.regressions.isEmpty)
  }
}
