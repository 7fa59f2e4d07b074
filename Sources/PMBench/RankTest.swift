internal import Foundation

/// The rank test of Mann and Whitney: whether values of two samples come from one distribution.
///
/// It asks only which value of two is larger, so that a few wild rounds cannot decide.
enum RankTest {
  /// The probability that samples of one distribution differ in their ranks as much as these or more, both
  /// directions counted; 1 where a sample is empty. Ties share the mean of their ranks.
  ///
  /// Exact up to 40 values in all, over all ways of splitting them; beyond that by the normal
  /// distribution with the correction for ties and for steps.
  static func probability(_ first: [Double], _ second: [Double]) -> Double {
    guard !first.isEmpty, !second.isEmpty else { return 1 }
    let ranks = doubledRanks(first + second)
    let sum = ranks[..<first.count].reduce(0, +)
    return ranks.count <= 40
      ? exact(ranks, first.count, sum) : normal(ranks, first.count, sum)
  }

  /// The smallest probability that samples of these sizes can give: all of one below all of the other.
  static func smallest(_ first: Int, _ second: Int) -> Double {
    guard first > 0, second > 0 else { return 1 }
    let total = Double(first + second)
    let ways = lgamma(total + 1) - lgamma(Double(first) + 1) - lgamma(Double(second) + 1)
    return min(1, 2 * exp(-ways))
  }

  /// Twice the ranks from 1, so that means of ties are whole numbers.
  private static func doubledRanks(_ values: [Double]) -> [Int] {
    let order = values.indices.sorted { values[$0] < values[$1] }
    var ranks = Array(repeating: 0, count: values.count)
    var start = 0
    while start < order.count {
      var end = start + 1
      while end < order.count, values[order[end]] == values[order[start]] { end += 1 }
      // Ranks start+1 … end; twice their mean is the sum of the first and the last.
      for place in start..<end { ranks[order[place]] = start + 1 + end }
      start = end
    }
    return ranks
  }

  private static func exact(_ ranks: [Int], _ size: Int, _ sum: Int) -> Double {
    let total = ranks.reduce(0, +)
    // ways[k][s]: in how many ways k of the ranks so far add up to s.
    var ways = Array(repeating: Array(repeating: 0.0, count: total + 1), count: size + 1)
    ways[0][0] = 1
    for (seen, rank) in ranks.enumerated() {
      for taken in stride(from: min(seen + 1, size), through: 1, by: -1) {
        for reached in stride(from: total, through: rank, by: -1) {
          ways[taken][reached] += ways[taken - 1][reached - rank]
        }
      }
    }
    // Sums as far from the mean as this one or farther; whole numbers, scaled by the number of values.
    let mean = total * size
    let distance = abs(sum * ranks.count - mean)
    var extreme = 0.0
    var all = 0.0
    for (reached, count) in ways[size].enumerated() where count > 0 {
      all += count
      if abs(reached * ranks.count - mean) >= distance { extreme += count }
    }
    return extreme / all
  }

  private static func normal(_ ranks: [Int], _ size: Int, _ sum: Int) -> Double {
    let (first, count) = (Double(size), Double(ranks.count))
    let mean = first * (count + 1) / 2
    var ties: [Int: Double] = [:]
    for rank in ranks { ties[rank, default: 0] += 1 }
    let tied = ties.values.reduce(0) { $0 + ($1 * $1 * $1 - $1) }
    let variance =
      first * (count - first) / 12 * ((count + 1) - tied / (count * (count - 1)))
    guard variance > 0 else { return 1 }
    let distance = max(0, abs(Double(sum) / 2 - mean) - 0.5)
    return erfc(distance / (2 * variance).squareRoot())
  }

  /// Probabilities corrected for being so many (Holm): the smallest times their number, the next times one
  /// less, and none smaller than one before it. Each may be compared with the same level, and one false
  /// alarm among all of them stays as seldom as that level says.
  static func holm(_ probabilities: [Double]) -> [Double] {
    let order = probabilities.indices.sorted { probabilities[$0] < probabilities[$1] }
    var corrected = probabilities
    var largest = 0.0
    for (place, index) in order.enumerated() {
      largest = max(largest, min(1, probabilities[index] * Double(order.count - place)))
      corrected[index] = largest
    }
    return corrected
  }
}
