import PMUnits
import SystemPackage

/// The physical memory of one machine: real bytes of the host, addressed from 0.
///
/// A physical address is an offset into the arena; for a shared backing it is also the offset into
/// the file that ``fileDescriptor`` names. New memory reads as zero. The value owns the mapping and
/// the file, and its end gives both back; whoever still has `base` or the borrowed descriptor then
/// must not use them any more.
///
/// All methods may be called from any threads at the same time. The arena orders nothing among
/// them: bytes that one thread writes while another reads them arrive in any order and mixture,
/// except that a word written by ``storeWord(_:at:)`` is never seen torn.
///
/// Huge pages from the pool of a bound node that another process takes between creation and first
/// touch end the process with SIGBUS at that touch; prefault first, and it is an error instead.
public struct Arena: ~Copyable, @unchecked Sendable {
  // @unchecked because of `base`: it never changes, and the mapping lives as long as this value.
  // What concurrent accesses to the memory behind it mean is said above.

  /// Physical address 0 in this process: a multiple of 2 MiB and of the backing's page size.
  public let base: UnsafeMutableRawPointer
  /// The size in bytes, at most 8 TiB.
  public let byteCount: UInt64
  /// What the memory is made of.
  public let backing: Backing
  let memory: HostMemory
  /// What a fork left behind, see ``fork()``.
  let divergence: Guarded<ArenaDivergence>

  /// The largest size: what the page frame numbers reach.
  public static let maxByteCount = ByteCount.tib(8)

  /// Makes the memory that `configuration` describes.
  ///
  /// Costs a few system calls whatever the size, unless memory files are to be reserved. Throws
  /// before it asks the host for anything if the size is impossible, a range lies outside or a node
  /// is not there; throws ``ArenaError/hugePagesShort(pageSize:free:needed:remedy:)`` if the pool
  /// is too small. Nothing is left behind after an error.
  public init(_ configuration: ArenaConfiguration) throws(ArenaError) {
    try configuration.check()
    let memory = try Arena.makeMemory(configuration)
    try ArenaError.wrapping { () throws(HostError) in
      try Arena.placeOnNodes(memory.mapping, configuration)
    }
    try configuration.checkNodePools()
    // After the nodes are set: it is here that the pages of a file are taken.
    if configuration.reserve && !configuration.backing.isHuge {
      try ArenaError.wrapping { () throws(HostError) in try memory.preallocate() }
    }
    base = memory.base
    byteCount = configuration.byteCount.rawValue
    backing = configuration.backing
    self.memory = memory
    divergence = Guarded(ArenaDivergence(isPrivate: !configuration.backing.isShared))
  }

  /// An arena around memory that is mapped already.
  init(memory: consuming HostMemory, divergence: ArenaDivergence) {
    base = memory.base
    byteCount = UInt64(memory.mapping.byteCount)
    backing = memory.backing
    self.memory = memory
    self.divergence = Guarded(divergence)
  }

  /// Maps a part of somebody else's file, shared: what is written is in the file.
  ///
  /// The descriptor is duplicated, and stays the caller's; physical address 0 is at `fileOffset`, a multiple
  /// of 4096 (of the page size for a file of huge pages, which counts as ``Backing/memfd`` here and whose
  /// parts cannot be discarded). Throws ``ArenaError/invalidSize(_:reason:)`` where the file is shorter. A
  /// file that its owner shrinks later ends the process with SIGBUS at the next touch.
  public init(
    file: Int32, fileOffset: UInt64, byteCount count: ByteCount
  ) throws(ArenaError) {
    guard count.rawValue > 0, count <= Arena.maxByteCount, count.rawValue & 4095 == 0 else {
      throw .invalidSize(
        count, reason: "it must be a multiple of 4KiB, up to \(Arena.maxByteCount)")
    }
    guard fileOffset & 4095 == 0 else {
      throw .unaligned(offset: fileOffset, byteCount: count.rawValue, unit: .kib(4))
    }
    let size = try ArenaError.wrapping { () throws(HostError) in try Host.fileSize(file) }
    guard fileOffset <= size.byteCount, count.rawValue <= size.byteCount - fileOffset else {
      throw .invalidSize(
        count, reason: "the file has \(size.byteCount) bytes, and it would begin at \(fileOffset)")
    }
    let memory = try ArenaError.wrapping { () throws(HostError) in
      try HostMemory.map(file: file, fileOffset: Int(fileOffset), byteCount: Int(count.rawValue))
    }
    self.init(memory: memory, divergence: ArenaDivergence(isPrivate: false))
  }

  private static func makeMemory(
    _ configuration: ArenaConfiguration
  ) throws(ArenaError) -> HostMemory {
    do {
      return try HostMemory.make(
        byteCount: Int(configuration.byteCount.rawValue), backing: configuration.backing,
        isReserved: configuration.reserve)
    } catch {
      throw configuration.explain(error)
    }
  }

  private static func placeOnNodes(
    _ mapping: borrowing OwnedMapping, _ configuration: ArenaConfiguration
  ) throws(HostError) {
    let interleaved = configuration.interleaveHostNodes
    if !interleaved.isEmpty {
      try Host.interleave(mapping.base, byteCount: mapping.byteCount, nodes: interleaved)
    }
    for range in configuration.nodeRanges {
      guard let node = range.hostNode else { continue }
      try Host.bind(
        mapping.base + Int(range.startOffset), byteCount: Int(range.byteCount.rawValue), node: node)
    }
  }

  /// The memory file, or nil for private backings and from a ``fork()`` on.
  ///
  /// Borrowed: it is closed with the arena, and must not be closed by anybody else. Its size is
  /// sealed.
  public var fileDescriptor: Int32? { isPrivate ? nil : memory.file }

  /// Where in ``fileDescriptor`` physical address 0 is: not 0 only for an arena in somebody else's file.
  public var fileOffset: UInt64 { UInt64(memory.fileOffset) }

  /// Whether what is written here is seen in this process only: private backings, and all arenas from a
  /// ``fork()`` on.
  public var isPrivate: Bool { divergence.withLock { $0.isPrivate } }

  /// The bytes that the host has given to the arena so far: of a memory file those of the whole file, of
  /// private memory those of this process's own, which takes time in proportion to the size.
  public func residentByteCount() throws(ArenaError) -> UInt64 {
    try ArenaError.wrapping { () throws(HostError) in
      if let file = fileDescriptor { return try Host.fileSize(file).allocated }
      let own = try Host.pages(base, byteCount: Int(byteCount), own: true)
      return UInt64(own.reduce(0) { $0 + $1.nonzeroBitCount }) << 12
    }
  }

  /// A new descriptor of the memory file, or nil for private backings.
  ///
  /// The caller closes it. The file, and with it the memory, lives as long as any descriptor or
  /// mapping of it.
  public func duplicateFileDescriptor() throws(ArenaError) -> Int32? {
    guard let file = fileDescriptor else { return nil }
    return try ArenaError.wrapping { () throws(HostError) in try Host.duplicate(file) }
  }

  /// Throws unless the range lies in the arena.
  @inlinable
  func check(offset: UInt64, byteCount count: UInt64) throws(ArenaError) {
    guard offset <= byteCount && count <= byteCount - offset else {
      throw .outOfRange(offset: offset, byteCount: count, arenaByteCount: byteCount)
    }
  }
}
