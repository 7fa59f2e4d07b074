import Foundation
import Testing

@testable import PMBench

@Suite struct RankTests {
  /// The probability by trying every way of splitting the values.
  private func tried(_ first: [Double], _ second: [Double]) -> Double {
    let all = first + second
    func rank(_ value: Double) -> Double {
      Double(all.count { $0 < value }) + Double(all.count { $0 == value } + 1) / 2
    }
    let ranks = all.map(rank)
    let mean = ranks.reduce(0, +) * Double(first.count) / Double(all.count)
    let seen = abs(ranks[..<first.count].reduce(0, +) - mean)
    var (extreme, ways) = (0, 0)
    for mask in 0..<(1 << all.count) where mask.nonzeroBitCount == first.count {
      let sum = ranks.indices.reduce(0) { mask >> $1 & 1 == 1 ? $0 + ranks[$1] : $0 }
      ways += 1
      if abs(sum - mean) >= seen - 1e-9 { extreme += 1 }
    }
    return Double(extreme) / Double(ways)
  }

  @Test func `Samples apart have the smallest probability`() {
    #expect(abs(RankTest.probability([1, 2, 3], [4, 5, 6]) - 0.1) < 1e-12)
    let apart = RankTest.probability((1...9).map(Double.init), (11...19).map(Double.init))
    #expect(abs(apart - 2.0 / 48_620) < 1e-12)
    #expect(abs(RankTest.smallest(9, 9) - 2.0 / 48_620) < 1e-12)
    #expect(RankTest.smallest(0, 9) == 1)
    #expect(RankTest.probability([], [1]) == 1)
    #expect(RankTest.probability([5, 5, 5], [5, 5, 5, 5]) == 1)
  }

  @Test func `Probabilities are those of all ways of splitting, ties and sizes as they come`() {
    var random = Draws(seed: 3)
    for _ in 0..<40 {
      let sizes = (1 + Int(random.uniform() * 6), 1 + Int(random.uniform() * 6))
      let first = (0..<sizes.0).map { _ in (random.uniform() * 6).rounded() }
      let second = (0..<sizes.1).map { _ in (random.uniform() * 8).rounded() }
      #expect(abs(RankTest.probability(first, second) - tried(first, second)) < 1e-12)
    }
  }

  @Test func `Many values go by the normal distribution, which is close to the exact`() {
    var random = Draws(seed: 4)
    for shift in [0.0, 0.3, 0.6] {
      let first = (0..<20).map { _ in random.normal() }
      let second = (0..<20).map { _ in random.normal() + shift }
      let exact = RankTest.probability(first, second)
      // One value more on a side, in the middle, and the other way of reckoning.
      let normal = RankTest.probability(first + [first.median], second)
      #expect(abs(exact - normal) < 0.06, "\(exact) \(normal)")
    }
    let apart = RankTest.probability(
      (0..<30).map(Double.init), (100..<130).map(Double.init))
    #expect(apart < 1e-9)
  }

  @Test func `Holm's correction`() {
    #expect(RankTest.holm([]) == [])
    let corrected = RankTest.holm([0.01, 0.04, 0.03, 0.005])
    for (value, expected) in zip(corrected, [0.03, 0.06, 0.06, 0.02]) {
      #expect(abs(value - expected) < 1e-12)
    }
    #expect(RankTest.holm([0.6, 0.9]) == [1, 1])
  }

  @Test func `The ratio of medians, its interval, and the same again for the same seed`() throws {
    var random = Draws(seed: 5)
    let first = random.rounds(9, around: 10, noise: 0.02)
    let second = random.rounds(9, around: 11, noise: 0.02)
    let interval = try #require(MedianRatio(first, second, confidence: 0.95, seed: 1))
    #expect(interval.ratio == second.median / first.median)
    #expect(interval.low < interval.ratio && interval.ratio < interval.high)
    #expect(interval.low > 1.02 && interval.high < 1.18)
    #expect(MedianRatio(first, second, confidence: 0.95, seed: 1) == interval)
    let wider = try #require(MedianRatio(first, second, confidence: 0.999, seed: 1))
    #expect(wider.low <= interval.low && wider.high >= interval.high)
    let constant = try #require(MedianRatio([2, 2, 2], [3, 3], confidence: 0.99, seed: 1))
    #expect(constant == MedianRatio([4], [6], confidence: 0.5, seed: 9))
    #expect(MedianRatio([0, 1], [1, 1], confidence: 0.95, seed: 1) == nil)
    #expect(MedianRatio([], [1], confidence: 0.95, seed: 1) == nil)
  }
}
