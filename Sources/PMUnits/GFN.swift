/// A guest frame number: the index of a 4 KiB frame of guest physical memory.
///
/// `GFN - GFN` is a distance (`Int`), `GFN + distance` is a GFN; two GFNs cannot be added.
public struct GFN: Hashable, Comparable, Sendable, BitwiseCopyable {
  /// The frame's index, counted in 4 KiB frames from guest physical address 0; below 2^52.
  public var rawValue: UInt64

  /// Names the guest frame with this index.
  @inlinable @inline(__always)
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// The frame that contains a guest physical address.
  @inlinable @inline(__always)
  public init(guestPhysicalAddress address: UInt64) { rawValue = address >> 12 }

  /// The guest physical address of the frame's first byte.
  @inlinable @inline(__always)
  public var guestPhysicalAddress: UInt64 { rawValue << 12 }

  /// Whether the left frame lies below the right one.
  @inlinable @inline(__always)
  public static func < (lhs: GFN, rhs: GFN) -> Bool { lhs.rawValue < rhs.rawValue }

  /// The distance in frames.
  @inlinable @inline(__always)
  public static func - (lhs: GFN, rhs: GFN) -> Int {
    Int(bitPattern: UInt(lhs.rawValue &- rhs.rawValue))
  }

  /// The frame `distance` frames above; traps where that is negative or no 64-bit index.
  @inlinable @inline(__always)
  public static func + (lhs: GFN, distance: Int) -> GFN {
    GFN(distance >= 0 ? lhs.rawValue + UInt64(distance) : lhs.rawValue - distance.magnitude64)
  }
}

extension Int {
  /// The absolute value as 64 bits.
  @usableFromInline @inline(__always)
  var magnitude64: UInt64 { UInt64(magnitude) }
}

extension GFN: CustomStringConvertible {
  /// Lower-case hexadecimal without a prefix, as kernel traces print frames.
  public var description: String { String(rawValue, radix: 16) }
}
