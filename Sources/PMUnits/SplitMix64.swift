/// A small generator of random numbers that are the same for the same seed, on every machine.
///
/// Not for secrets. Sebastiano Vigna's SplitMix64 (public domain): 2^64 numbers, each once.
package struct SplitMix64: RandomNumberGenerator, Sendable {
  @usableFromInline package var state: UInt64

  /// A generator that starts from `seed`.
  @inlinable
  package init(seed: UInt64) { state = seed }

  /// The next number.
  @inlinable @inline(__always)
  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }

  /// A number from 0 to below `bound`; pre: `bound` is positive and below 2^31. Slightly uneven, by less
  /// than 2^-32.
  @inlinable @inline(__always)
  package mutating func below(_ bound: Int) -> Int {
    Int(truncatingIfNeeded: ((next() >> 32) &* UInt64(bound)) >> 32)
  }
}
