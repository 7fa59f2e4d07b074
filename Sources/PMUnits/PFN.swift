/// A page frame number: the index of a 4 KiB frame of physical memory.
///
/// `PFN - PFN` is a distance (`Int`), `PFN + distance` is a PFN; two PFNs cannot be added. The
/// physical address of the frame is `pfn * 4096`, which is also its offset in the machine's arena.
/// The raw value is at most ``max``; 32 bits keep the per-frame tables at 14 bytes.
public struct PFN: Hashable, Comparable, Sendable, BitwiseCopyable {
  /// The frame's index, counted in 4 KiB frames from physical address 0.
  public var rawValue: UInt32

  /// Names the frame with this index.
  @inlinable
  public init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// The highest frame a machine can hold: 8 TiB of physical address space.
  public static let max: PFN = PFN(0x7fff_ffff)

  /// The physical address of the frame's first byte.
  @inlinable
  public var physicalAddress: UInt64 { UInt64(rawValue) << 12 }

  /// The frame that contains a physical address, or nil above ``max``.
  @inlinable
  public init?(physicalAddress: UInt64) {
    guard physicalAddress >> 12 <= 0x7fff_ffff else { return nil }
    self.rawValue = UInt32(physicalAddress >> 12)
  }

  /// Whether the left frame lies below the right one.
  @inlinable
  public static func < (lhs: PFN, rhs: PFN) -> Bool { lhs.rawValue < rhs.rawValue }

  /// The distance in frames.
  @inlinable
  public static func - (lhs: PFN, rhs: PFN) -> Int { Int(lhs.rawValue) - Int(rhs.rawValue) }

  /// The frame `distance` frames above; traps where that is no 32-bit index.
  @inlinable
  public static func + (lhs: PFN, distance: Int) -> PFN {
    PFN(UInt32(Int(lhs.rawValue) + distance))
  }

  /// The frame `distance` frames below; traps where that is no 32-bit index.
  @inlinable
  public static func - (lhs: PFN, distance: Int) -> PFN {
    PFN(UInt32(Int(lhs.rawValue) - distance))
  }
}

extension PFN: CustomStringConvertible {
  /// Lower-case hexadecimal without a prefix, as kernel traces print frames.
  public var description: String { String(rawValue, radix: 16) }
}
