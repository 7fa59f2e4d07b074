internal import PMUnits

/// The ratio of two samples' medians with an interval by bootstrap: the samples are drawn again from
/// themselves, and the interval holds the middle part of the ratios that come of it.
struct MedianRatio: Hashable, Sendable {
  /// Median of the second over median of the first.
  var ratio: Double
  /// The interval's ends.
  var low: Double
  var high: Double

  /// How often samples are drawn: a hundred ratios lie beyond each end of a 95 % interval.
  static let draws = 4000

  /// The ratio of two samples; nil where one is empty or has a value that is not positive.
  ///
  /// Samples of equal size are drawn round by round, so that what the rounds of both share (caches that
  /// fill, a processor that warms up) cancels. The same seed gives the same interval.
  init?(
    _ first: [Double], _ second: [Double], confidence: Double, draws: Int = MedianRatio.draws,
    seed: UInt64
  ) {
    guard !first.isEmpty, !second.isEmpty, (first + second).allSatisfy({ $0 > 0 }) else {
      return nil
    }
    ratio = second.median / first.median
    var random = SplitMix64(seed: seed)
    var (a, b) = (MedianDraw(first), MedianDraw(second))
    var ratios: [Double] = []
    ratios.reserveCapacity(draws)
    for _ in 0..<draws {
      if first.count == second.count {
        for _ in first {
          let round = random.below(first.count)
          a.take(round)
          b.take(round)
        }
      } else {
        for _ in first { a.take(random.below(first.count)) }
        for _ in second { b.take(random.below(second.count)) }
      }
      ratios.append(b.finish() / a.finish())
    }
    ratios.sort()
    let beyond = Int(Double(draws) * (1 - confidence) / 2)
    low = ratios[beyond]
    high = ratios[draws - 1 - beyond]
  }
}

/// Draws of a sample's values, and their median, without sorting each time.
private struct MedianDraw {
  private let sorted: [Double]
  /// The place in the order by the place in the sample.
  private let places: [Int]
  private var counts: [Int]

  init(_ values: [Double]) {
    let order = values.indices.sorted { values[$0] < values[$1] }
    sorted = order.map { values[$0] }
    var places = Array(repeating: 0, count: values.count)
    for (place, index) in order.enumerated() { places[index] = place }
    self.places = places
    counts = places.map { _ in 0 }
  }

  mutating func take(_ index: Int) { counts[places[index]] += 1 }

  /// The median of as many draws as there are values; forgets them.
  mutating func finish() -> Double {
    let (lower, upper) = ((sorted.count - 1) / 2, sorted.count / 2)
    var seen = 0
    var first: Double?
    var median = 0.0
    for place in counts.indices {
      seen += counts[place]
      if first == nil, seen > lower { first = sorted[place] }
      if let first, seen > upper {
        median = (first + sorted[place]) / 2
        break
      }
    }
    for place in counts.indices { counts[place] = 0 }
    return median
  }
}
