/// A size in bytes, written and read with the units people use.
public struct ByteCount: Hashable, Comparable, Sendable, BitwiseCopyable {
  /// The number of bytes.
  public var rawValue: UInt64

  /// A size of `rawValue` bytes.
  @inlinable
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// `count` × 1024 bytes.
  @inlinable
  public static func kib(_ count: UInt64) -> ByteCount { ByteCount(count << 10) }
  /// `count` × 1024² bytes.
  @inlinable
  public static func mib(_ count: UInt64) -> ByteCount { ByteCount(count << 20) }
  /// `count` × 1024³ bytes.
  @inlinable
  public static func gib(_ count: UInt64) -> ByteCount { ByteCount(count << 30) }
  /// `count` × 1024⁴ bytes.
  @inlinable
  public static func tib(_ count: UInt64) -> ByteCount { ByteCount(count << 40) }

  /// Whole 4 KiB frames in this size.
  @inlinable
  public var frames: UInt64 { rawValue >> 12 }

  /// Whether the left size is smaller.
  @inlinable
  public static func < (lhs: ByteCount, rhs: ByteCount) -> Bool { lhs.rawValue < rhs.rawValue }

  /// Parses `512M`, `4GiB`, `65536`: digits and an optional K, M, G, T or P with an optional `iB` or
  /// `B`, all in powers of 1024, as the kernel's command line reads sizes (`memparse`). Nil for
  /// anything else and for what does not fit 64 bits.
  public init?(_ text: some StringProtocol) {
    var digits = Substring(text)
    var shift: UInt64 = 0
    for suffix in ["iB", "B", "b"] where digits.hasSuffix(suffix) {
      digits = digits.dropLast(suffix.count)
      break
    }
    if let last = digits.last, let index = "KMGTP".firstIndex(of: Character(last.uppercased())) {
      shift = UInt64("KMGTP".distance(from: "KMGTP".startIndex, to: index) + 1) * 10
      digits = digits.dropLast()
    }
    guard let value = UInt64(digits), value <= UInt64.max >> shift else { return nil }
    self.rawValue = value << shift
  }
}

extension ByteCount: CustomStringConvertible {
  /// The largest unit that divides the size evenly, as `512MiB`.
  public var description: String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
    where rawValue != 0 && rawValue & ((1 << UInt64(shift)) - 1) == 0 {
      return "\(rawValue >> UInt64(shift))\(unit)"
    }
    return "\(rawValue)B"
  }
}
