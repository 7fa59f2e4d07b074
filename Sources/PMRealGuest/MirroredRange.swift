import PMArena

/// A range of this process's addresses in which pages of an arena appear and vanish, as the memory
/// of an emulated host process would.
///
/// Every page starts as a mere address without memory. Its ``userspaceAddress`` is what a memory
/// region of a ``RealVM`` takes, and the real KVM's notifier then follows every change made here.
/// The end of the value gives the addresses back: before, no region may name them any more, or its
/// machine must be gone.
///
/// Changes may be made by any threads at the same time; the kernel does one after the other. Each
/// distinct neighbourhood of pages costs one of the process's mappings (by default 65530): beyond,
/// calls throw `ENOMEM`.
public struct MirroredRange: ~Copyable, @unchecked Sendable {
  // Sendable: nothing here changes after init, and the kernel's own lock of the process's mappings
  // orders the calls.

  /// What this process, and so a guest, may do with a page.
  public enum Protection: Sendable {
    /// Nothing.
    case none
    /// Read.
    case read
    /// Read and write.
    case readWrite
  }

  /// The size of a page in bytes.
  public static let pageSize = 4096
  private static let alignment = 2 << 20

  /// The first byte: a multiple of 2 MiB.
  public let base: UnsafeMutableRawPointer
  /// The size in bytes.
  public let byteCount: Int
  /// The size of the arena in bytes.
  public let arenaByteCount: UInt64
  private let mapping: KVMMapping
  private let file: KVMDescriptor

  /// Takes `byteCount` bytes of addresses, a multiple of 4096, to show pages of `arena` in.
  ///
  /// The arena must be made of a memory file. The range keeps that alive by a descriptor of its
  /// own. Throws ``RealGuestError/invalid(_:)`` for an impossible size or an arena without file.
  public init(byteCount: Int, of arena: borrowing Arena) throws(RealGuestError) {
    guard byteCount > 0, byteCount % Self.pageSize == 0, byteCount <= 1 << 46 else {
      throw .invalid("a mirrored range of \(byteCount) bytes")
    }
    guard let arenaFile = arena.fileDescriptor else {
      throw .invalid("an arena without a memory file cannot be mirrored")
    }
    let file = KVMDescriptor(owning: try KVM.duplicate(arenaFile))
    let mapping = KVMMapping(
      owning: try KVM.map(byteCount: byteCount + Self.alignment, isAccessible: false))
    let misalignment = Int(bitPattern: mapping.base) & (Self.alignment - 1)
    base = mapping.base + (misalignment == 0 ? 0 : Self.alignment - misalignment)
    self.byteCount = byteCount
    arenaByteCount = arena.byteCount
    self.mapping = mapping
    self.file = file
  }

  /// The number of pages.
  public var pageCount: Int { byteCount / Self.pageSize }

  /// The first byte as a number, as memory regions have it.
  public var userspaceAddress: UInt64 { UInt64(UInt(bitPattern: base)) }

  /// Shows `byteCount` bytes of the arena from `physicalAddress` in the pages from `page`, in place
  /// of what is there; the guest and this process may read them, and write if `isWritable`.
  ///
  /// `physicalAddress` and `byteCount` are multiples of 4096 (for an arena of huge pages: of their
  /// size, or the host says `EINVAL`). Throws ``RealGuestError/invalid(_:)`` for what lies outside
  /// of the range or the arena, and nothing changes; what the host refuses it may, if it lacks
  /// memory, have unmapped before.
  public func map(
    page: Int, physicalAddress: UInt64, byteCount count: Int, isWritable: Bool
  ) throws(RealGuestError) {
    guard count > 0, count % Self.pageSize == 0 else {
      throw .invalid("a mapping of \(count) bytes")
    }
    guard physicalAddress % UInt64(Self.pageSize) == 0, physicalAddress <= arenaByteCount,
      UInt64(count) <= arenaByteCount - physicalAddress
    else {
      throw .invalid(
        "\(count) bytes at 0x\(String(physicalAddress, radix: 16)) of the arena to map")
    }
    // The sum cannot overflow: the arena has at most 8 TiB.
    let memory = try part(page, count: count / Self.pageSize)
    try KVM.mapFile(
      file.rawValue, offset: physicalAddress, at: memory, byteCount: count, isWritable: isWritable)
  }

  /// Turns pages into mere addresses, as they were at first.
  public func unmap(pages: Range<Int>) throws(RealGuestError) {
    guard !pages.isEmpty else { return }
    let memory = try part(pages.lowerBound, count: pages.count)
    try KVM.reserve(at: memory, byteCount: pages.count * Self.pageSize)
  }

  /// Takes the pages' entries out of the process's page table, as reclaim does: the bytes stay the
  /// arena's, and come back at the next touch.
  public func zap(pages: Range<Int>) throws(RealGuestError) {
    guard !pages.isEmpty else { return }
    let memory = try part(pages.lowerBound, count: pages.count)
    try KVM.drop(memory, byteCount: pages.count * Self.pageSize)
  }

  /// Changes what may be done with pages.
  ///
  /// A page that shows nothing of the arena becomes private zeroed memory if it may be read.
  public func protect(
    pages: Range<Int>, _ protection: Protection
  ) throws(RealGuestError) {
    guard !pages.isEmpty else { return }
    let memory = try part(pages.lowerBound, count: pages.count)
    try KVM.protect(memory, byteCount: pages.count * Self.pageSize, protection)
  }

  private func part(_ page: Int, count: Int) throws(RealGuestError) -> UnsafeMutableRawPointer {
    guard page >= 0, page < pageCount, count <= pageCount - page else {
      throw .invalid("\(count) pages from page \(page) of a range of \(pageCount)")
    }
    return base + page * Self.pageSize
  }
}
