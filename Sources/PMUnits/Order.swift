/// Block sizes: a block of order `n` is 2^n frames, naturally aligned.
///
/// Orders are plain `Int`s in every call, as in the kernel; this is the place of their limits.
/// Mirrors the limits of Linux 6.1 on x86-64 with 4 KiB pages.
public enum Order {
  /// The highest order of a block, inclusive (4 MiB). Linux 6.1 calls the next one `MAX_ORDER`.
  public static let max: Int = 10
  /// How many orders there are, 0 to ``max``.
  public static let count: Int = 11
  /// The order of a pageblock, the unit whose migratetype is tracked (2 MiB).
  public static let pageblock: Int = 9
  /// Frames in a pageblock.
  public static let pageblockFrames: Int = 512
  /// Frames in a block of the highest order.
  public static let maxBlockFrames: Int = 1024

  /// The lowest order whose blocks hold `bytes`, or nil where no order does. Mirrors `get_order`.
  public static func holding(bytes: UInt64) -> Int? {
    guard bytes > 0 else { return nil }
    let frames = (bytes - 1) >> 12
    let order = frames == 0 ? 0 : 64 - frames.leadingZeroBitCount
    return order <= max ? order : nil
  }
}
