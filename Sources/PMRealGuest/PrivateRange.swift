/// A range of this process's addresses in which private memory of its own appears and vanishes.
///
/// The counterpart of ``MirroredRange`` for memory that is no file: every page starts as a mere
/// address, gets new zeroed memory, loses it, and its pages can be moved to other addresses of the
/// range without a copy, so that one who still writes to them by an old translation is seen there.
/// ``userspaceAddress`` is what a memory region of a ``RealVM`` takes. The end of the value gives
/// everything back.
///
/// Changes may be made by any threads at the same time; the kernel does one after the other. Each
/// distinct neighbourhood of pages costs one of the process's mappings (by default 65530): beyond,
/// calls throw `ENOMEM`.
public struct PrivateRange: ~Copyable, @unchecked Sendable {
  // Sendable: nothing here changes after init, and the kernel's own lock of the process's mappings
  // orders the calls.

  /// What the memory is made of.
  public enum Pages: Sendable {
    /// Pages of 4 KiB only.
    case small
    /// Transparent huge pages wherever the kernel finds some.
    case transparentHuge
    /// Pages of 2 MiB from the host's pool.
    case huge2MiB
    /// Pages of 1 GiB from the host's pool.
    case huge1GiB

    /// The binary logarithm of the size for pages of the pool, else 0.
    var shift: Int32 {
      switch self {
      case .small, .transparentHuge: 0
      case .huge2MiB: 21
      case .huge1GiB: 30
      }
    }
  }

  /// The unit in which pages are counted, in bytes, whatever the memory is made of.
  public static let pageSize = 4096

  /// The first byte: a multiple of 2 MiB, for ``Pages/huge1GiB`` of 1 GiB.
  public let base: UnsafeMutableRawPointer
  /// The size in bytes.
  public let byteCount: Int
  /// What the memory is made of.
  public let pages: Pages
  private let mapping: KVMMapping

  /// Takes `byteCount` bytes of addresses, a multiple of 4096 and of the size of the pool's pages.
  ///
  /// Throws ``RealGuestError/invalid(_:)`` for an impossible size.
  public init(byteCount: Int, _ pages: Pages = .small) throws(RealGuestError) {
    let unit = pages.shift == 0 ? Self.pageSize : 1 << Int(pages.shift)
    guard byteCount > 0, byteCount % unit == 0, byteCount <= 1 << 46 else {
      throw .invalid("a range of private memory of \(byteCount) bytes")
    }
    let alignment = max(2 << 20, unit)
    let mapping = KVMMapping(
      owning: try KVM.map(byteCount: byteCount + alignment, isAccessible: false))
    let misalignment = Int(bitPattern: mapping.base) & (alignment - 1)
    base = mapping.base + (misalignment == 0 ? 0 : alignment - misalignment)
    self.byteCount = byteCount
    self.pages = pages
    self.mapping = mapping
  }

  /// The number of pages of 4 KiB.
  public var pageCount: Int { byteCount / Self.pageSize }

  /// The first byte as a number, as memory regions have it.
  public var userspaceAddress: UInt64 { UInt64(UInt(bitPattern: base)) }

  /// Puts new zeroed memory, readable and writable, in place of what is there.
  public func map(pages range: Range<Int>) throws(RealGuestError) {
    let (memory, count) = try part(range)
    guard count > 0 else { return }
    try KVM.mapPrivate(at: memory, byteCount: count, hugePageShift: pages.shift)
    if pages.shift == 0 {
      try KVM.advise(
        memory, byteCount: count, transparentHugePages: pages == .transparentHuge)
    }
  }

  /// Turns pages into mere addresses, as they were at first.
  public func unmap(pages range: Range<Int>) throws(RealGuestError) {
    let (memory, count) = try part(range)
    if count > 0 { try KVM.reserve(at: memory, byteCount: count) }
  }

  /// Gives the memory of pages back; they read as zero afterwards.
  public func discard(pages range: Range<Int>) throws(RealGuestError) {
    let (memory, count) = try part(range)
    if count > 0 { try KVM.drop(memory, byteCount: count) }
  }

  /// Changes what may be done with pages.
  public func protect(
    pages range: Range<Int>, _ protection: MirroredRange.Protection
  ) throws(RealGuestError) {
    let (memory, count) = try part(range)
    if count > 0 { try KVM.protect(memory, byteCount: count, protection) }
  }

  /// Moves the memory of pages to the pages from `target`, in place of what is there, with their
  /// rights. The old pages stay with these rights and without memory: zeroes.
  ///
  /// Throws ``RealGuestError/invalid(_:)`` where the two overlap; `EINVAL` from the host for pages of
  /// the pool and from a kernel before Linux 5.7.
  public func move(pages range: Range<Int>, to target: Int) throws(RealGuestError) {
    let (memory, count) = try part(range)
    guard count > 0 else { return }
    let (destination, _) = try part(target..<target + range.count)
    guard !range.overlaps(target..<target + range.count) else {
      throw .invalid("pages \(range) to be moved to page \(target)")
    }
    try KVM.movePages(from: memory, byteCount: count, to: destination)
  }

  private func part(
    _ range: Range<Int>
  ) throws(RealGuestError) -> (UnsafeMutableRawPointer, byteCount: Int) {
    guard range.lowerBound >= 0, range.upperBound <= pageCount else {
      throw .invalid("pages \(range) of a range of \(pageCount)")
    }
    return (base + range.lowerBound * Self.pageSize, range.count * Self.pageSize)
  }
}
