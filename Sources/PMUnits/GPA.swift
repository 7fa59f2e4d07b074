/// A guest physical address: a byte of the memory that a guest sees.
///
/// `GPA - GPA` is a distance (`Int`), `GPA + distance` is a GPA; two GPAs cannot be added.
public struct GPA: Hashable, Comparable, Sendable, BitwiseCopyable {
  /// The address in bytes; a guest's memory ends below ``limit``.
  public var rawValue: UInt64

  /// Where every guest's address space ends: 2^52, the most that x86 can have.
  @inlinable @inline(__always)
  public static var limit: GPA { GPA(1 << 52) }

  /// Names the byte with this address.
  @inlinable @inline(__always)
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// The first byte of a guest frame.
  @inlinable @inline(__always)
  public init(_ gfn: GFN) { rawValue = gfn.rawValue << 12 }

  /// The guest frame that contains the byte.
  @inlinable @inline(__always)
  public var gfn: GFN { GFN(rawValue >> 12) }

  /// Whether the address is a multiple of `unit`, a power of two.
  @inlinable @inline(__always)
  public func isAligned(to unit: UInt64) -> Bool { rawValue & (unit &- 1) == 0 }

  /// Whether the left byte lies below the right one.
  @inlinable @inline(__always)
  public static func < (lhs: GPA, rhs: GPA) -> Bool { lhs.rawValue < rhs.rawValue }

  /// The distance in bytes.
  @inlinable @inline(__always)
  public static func - (lhs: GPA, rhs: GPA) -> Int {
    Int(bitPattern: UInt(lhs.rawValue &- rhs.rawValue))
  }

  /// The byte `distance` bytes above; traps where that is negative or no 64-bit address.
  @inlinable @inline(__always)
  public static func + (lhs: GPA, distance: Int) -> GPA {
    GPA(distance >= 0 ? lhs.rawValue + UInt64(distance) : lhs.rawValue - UInt64(distance.magnitude))
  }
}

extension GPA: CustomStringConvertible {
  /// As `0xfee00000`.
  public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// A run of guest physical memory.
public struct GuestRange: Hashable, Sendable, BitwiseCopyable {
  /// The first byte.
  public var start: GPA
  /// How many bytes; the run may reach beyond any address space, which whoever uses it finds out.
  public var byteCount: UInt64

  /// The run of `byteCount` bytes from `start`.
  @inlinable @inline(__always)
  public init(start: GPA, byteCount: UInt64) {
    self.start = start
    self.byteCount = byteCount
  }

  /// One more than the last address, or the highest 64-bit number where that is none.
  public var end: UInt64 {
    let (end, overflows) = start.rawValue.addingReportingOverflow(byteCount)
    return overflows ? .max : end
  }

  /// Whether the run has bytes, and ends within what a guest can address.
  @inlinable
  public var isAddressable: Bool {
    byteCount > 0 && start < .limit && byteCount <= GPA.limit.rawValue - start.rawValue
  }

  /// Whether the two have a byte in common.
  public func overlaps(_ other: GuestRange) -> Bool {
    byteCount > 0 && other.byteCount > 0 && start.rawValue < other.end && other.start.rawValue < end
  }

  /// Whether the byte is in the run.
  @inlinable @inline(__always)
  public func contains(_ address: GPA) -> Bool { address.rawValue &- start.rawValue < byteCount }
}

extension GuestRange: CustomStringConvertible {
  /// As `[0x1000, 0x3000) 8KiB`.
  public var description: String {
    "[\(start), 0x\(String(end, radix: 16))) \(ByteCount(byteCount))"
  }
}
