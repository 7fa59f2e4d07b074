public import Synchronization

// The way in for an interface that looks up whose memory it is in the same access.

/// Where bytes of one region of memory are, while the access that found them lasts.
@usableFromInline
package struct GuestPlace {
  /// The first byte.
  @usableFromInline package let address: UnsafeMutableRawPointer
  @usableFromInline let offset: UInt64
  @usableFromInline let dirty: UnsafeMutablePointer<UInt64>?

  @inlinable @inline(__always)
  init(
    address: UnsafeMutableRawPointer, offset: UInt64, dirty: UnsafeMutablePointer<UInt64>?
  ) {
    self.address = address
    self.offset = offset
    self.dirty = dirty
  }

  /// Marks the pages of `byteCount` bytes (1 or more) that were written, where that is recorded.
  @inlinable @inline(__always)
  package func markDirty(byteCount: UInt64) {
    if let dirty { GuestPlace.mark(dirty, offset: offset, byteCount: byteCount) }
  }

  @usableFromInline
  static func mark(
    _ dirty: UnsafeMutablePointer<UInt64>, offset: UInt64, byteCount: UInt64
  ) { DirtyPages.mark(dirty, offset: offset, byteCount: byteCount) }
}

extension GuestMemory {
  /// Where a range is, if it is memory of one region that can be accessed so now; nil: ask the method that is for
  /// it, outside of the access. `byteCount` is not 0.
  ///
  /// pre: between `pm_readers_enter` and `pm_readers_leave`, and the place is not used after.
  @inlinable @inline(__always)
  package func place(of start: UInt64, byteCount: UInt64, writing: Bool) -> GuestPlace? {
    let table = published.load(ordering: .acquiring)
    guard let entry = RegionTable.entry(of: table, at: start) else { return nil }
    let offset = start &- entry.pointee.start
    guard byteCount <= entry.pointee.byteCount &- offset,
      let base = writing ? entry.pointee.writeBase : entry.pointee.readBase
    else { return nil }
    return GuestPlace(
      address: base + Int(truncatingIfNeeded: offset), offset: offset, dirty: entry.pointee.dirty)
  }
}
