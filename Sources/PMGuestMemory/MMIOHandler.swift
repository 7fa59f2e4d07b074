/// A device: what answers accesses to a region of kind ``RegionKind/mmio``.
///
/// Called in the thread of the access, by several at once if they access at once, with no lock held: a handler
/// may access guest memory, other devices and the regions themselves. It may still be called by threads that
/// began before its region was removed.
public protocol MMIOHandler: AnyObject, Sendable {
  /// Answers a read of `byteCount` bytes (1, 2, 4 or 8) at `offset` in the region, a multiple of `byteCount`;
  /// the lowest bytes of the result count.
  func read(offset: UInt64, byteCount: Int) throws(MMIORefusal) -> UInt64

  /// Takes a write of the lowest `byteCount` bytes (1, 2, 4 or 8) of `value`.
  func write(offset: UInt64, byteCount: Int, value: UInt64) throws(MMIORefusal)
}

/// A device's refusal of an access.
public struct MMIORefusal: Error, Hashable, Sendable {
  /// Why, as a positive error number of Linux.
  public var errno: Int32

  /// A refusal for a reason.
  public init(errno: Int32) { self.errno = errno }
}
