internal import PMUnits

/// Tells which of many disjoint ranges an address is in, in time that does not grow with their number where they are
/// spread evenly or in a few clusters.
///
/// The span from the first start to the last is cut into equal buckets, each of which tells the last range that begins
/// at or before it, and how many begin inside. A bucket with many (a cluster: devices below 4 GiB, say, in a span of
/// terabytes) has buckets of its own. What is left is found by bisection.
@usableFromInline
struct RegionIndex {
  /// A span and its buckets.
  @usableFromInline
  struct Level {
    /// The start of the first range that begins here.
    @usableFromInline let base: UInt64
    /// The binary logarithm of a bucket's size.
    @usableFromInline let shift: UInt64
    @usableFromInline let bucketCount: UInt64
    /// The range for what lies below, and above, this span.
    @usableFromInline let below: UInt32
    @usableFromInline let above: UInt32
    /// For each bucket the last range that begins at or before its first byte, in the lower 16 bits; in the upper ones
    /// how many begin behind that byte, or `finer` and the number of a level.
    @usableFromInline let buckets: UnsafeMutablePointer<UInt32>
  }

  @inlinable @inline(__always)
  static var finer: UInt32 { 0x8000 }
  /// From how many ranges in a bucket on it has buckets of its own.
  private static let crowd = 4

  @usableFromInline let starts: UnsafeMutablePointer<UInt64>
  @usableFromInline let levels: UnsafeMutablePointer<Level>
  private let levelCount: Int

  /// The index of the only range that may contain an address.
  @inlinable @inline(__always)
  func candidate(at address: UInt64) -> Int {
    var level = levels
    while true {
      // What lies below the base wraps around to beyond the last bucket.
      let bucket = (address &- level.pointee.base) &>> level.pointee.shift
      guard bucket < level.pointee.bucketCount else {
        return Int(address < level.pointee.base ? level.pointee.below : level.pointee.above)
      }
      let found = level.pointee.buckets[Int(truncatingIfNeeded: bucket)]
      let more = found &>> 16
      if more >= RegionIndex.finer {
        level = levels + Int(more & 0x7fff)
        continue
      }
      var low = Int(found & 0xffff)
      var high = low &+ Int(more)
      while low < high {
        let middle = (low &+ high &+ 1) &>> 1
        if starts[middle] <= address { low = middle } else { high = middle &- 1 }
      }
      return low
    }
  }

  /// An index over ranges. pre: they are sorted and disjoint, start at multiples of 8, and are at most 32767.
  init(_ ranges: [GuestRange]) {
    starts = .allocate(capacity: max(ranges.count, 1))
    for (index, range) in ranges.enumerated() {
      (starts + index).initialize(to: range.start.rawValue)
    }
    var made: [Level] = []
    // Levels that are to be made: which ranges begin in them.
    var wanted: [Range<Int>] = [0..<ranges.count]
    while made.count < wanted.count {
      made.append(RegionIndex.level(of: wanted[made.count], starts: starts, wanted: &wanted))
    }
    levels = .allocate(capacity: made.count)
    levels.initialize(from: made, count: made.count)
    levelCount = made.count
  }

  func deallocate() {
    for index in 0..<levelCount { levels[index].buckets.deallocate() }
    levels.deallocate()
    starts.deallocate()
  }

  private static func level(
    of indices: Range<Int>, starts: UnsafeMutablePointer<UInt64>, wanted: inout [Range<Int>]
  ) -> Level {
    let base = indices.isEmpty ? 0 : starts[indices.lowerBound]
    // The last range ends somewhere: what lies above its start is in the last bucket or `above`.
    let span = indices.isEmpty ? 0 : starts[indices.upperBound - 1] - base + 1
    var shift: UInt64 = 3
    while span >> shift > UInt64(indices.count) * 2 { shift += 1 }
    let count = Int((span + (1 << shift) - 1) >> shift)
    let buckets = UnsafeMutablePointer<UInt32>.allocate(capacity: max(count, 1))
    var low = indices.lowerBound
    for bucket in 0..<count {
      let first = base + UInt64(bucket) << shift
      while low + 1 < indices.upperBound, starts[low + 1] <= first { low += 1 }
      var high = low
      while high + 1 < indices.upperBound, starts[high + 1] < first + 1 << shift { high += 1 }
      var more = UInt32(high - low)
      // A finer level is one only if it divides: all in one bucket of 8 bytes cannot be.
      if high - low > crowd, wanted.count < 0x7fff {
        more = finer | UInt32(wanted.count)
        wanted.append(low + 1..<high + 1)
      }
      (buckets + bucket).initialize(to: UInt32(low) | more << 16)
    }
    return Level(
      base: base, shift: shift, bucketCount: UInt64(count),
      below: UInt32(max(indices.lowerBound, 1) - 1),
      above: UInt32(max(indices.upperBound, 1) - 1), buckets: buckets)
  }
}
