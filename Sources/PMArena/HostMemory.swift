import PMUnits
import SystemPackage

/// A mapping of one backing together with the file behind it, if there is one.
///
/// Knows what each operation is on either kind. Ranges are checked by the caller, the arena.
struct HostMemory: ~Copyable {
  let backing: Backing
  let descriptor: OwnedDescriptor?
  let mapping: OwnedMapping
  /// Where in the file the mapping begins.
  var fileOffset = 0

  var base: UnsafeMutableRawPointer { mapping.base }

  /// The borrowed descriptor of the file.
  var file: Int32? {
    switch descriptor {
    case .some(let descriptor): descriptor.rawValue
    case .none: nil
    }
  }

  static func make(
    byteCount: Int, backing: Backing, isReserved: Bool
  ) throws(HostError) -> HostMemory {
    var request = Host.MapRequest(
      byteCount: byteCount, isShared: backing.isShared, isReserved: isReserved || backing.isHuge)
    guard backing.isShared else {
      request.hugePageShift = backing.hugePageShift
      let mapping = try map(request, backing)
      return HostMemory(backing: backing, descriptor: nil, mapping: mapping)
    }
    let descriptor = try OwnedDescriptor.memoryFile(
      of: byteCount, hugePageShift: backing.hugePageShift)
    request.fileDescriptor = descriptor.rawValue
    let mapping = try map(request, backing)
    return HostMemory(backing: backing, descriptor: descriptor, mapping: mapping)
  }

  /// Maps a part of somebody else's file.
  static func map(
    file: Int32, fileOffset: Int, byteCount: Int
  ) throws(HostError) -> HostMemory {
    let descriptor = try OwnedDescriptor(duplicating: file)
    var request = Host.MapRequest(
      byteCount: byteCount, fileDescriptor: descriptor.rawValue, isShared: true, isReserved: true)
    request.fileOffset = fileOffset
    let mapping = try map(request, .memfd)
    return HostMemory(
      backing: .memfd, descriptor: descriptor, mapping: mapping, fileOffset: fileOffset)
  }

  static func map(
    _ request: Host.MapRequest, _ backing: Backing
  ) throws(HostError) -> OwnedMapping {
    // Pages from the pool lie at multiples of their size by themselves.
    if backing.isHuge { return try OwnedMapping(request) }
    // Host and physical addresses agree in their lower 21 bits, so that 2 MiB of the one can be one
    // page of the other.
    let mapping = try OwnedMapping(request, alignedTo: 2 << 20)
    try adviseTHP(mapping, backing: backing)
    return mapping
  }

  private static func adviseTHP(
    _ mapping: borrowing OwnedMapping, backing: Backing
  ) throws(HostError) {
    switch backing {
    case .anonymousTHP:
      try Host.advise(mapping.base, byteCount: mapping.byteCount, .hugePages)
    case .anonymous:
      do {
        try Host.advise(mapping.base, byteCount: mapping.byteCount, .smallPages)
      } catch {
        // A kernel without transparent huge pages, which is what was asked for.
        guard error.errno == .invalidArgument else { throw error }
      }
    case .memfd, .shmem, .anonymousHugeTLB2MiB, .anonymousHugeTLB1GiB, .sharedHugeTLB:
      break
    }
  }

  /// Gives a file all its pages.
  func preallocate() throws(HostError) {
    guard let file else { return }
    // Beyond what it has the kernel does not refuse; it kills processes, this one or others.
    let size = ByteCount(UInt64(mapping.byteCount))
    if let available = try Host.availableMemory(), available < size {
      throw HostError(
        operation: "reserving \(size) with \(available) available", errno: .noMemory)
    }
    // In pieces, because the kernel begins a piece anew after each signal.
    let pieceByteCount = 64 << 20
    for offset in stride(from: 0, to: mapping.byteCount, by: pieceByteCount) {
      let rest = mapping.byteCount - offset
      try Host.preallocate(file, offset: offset, byteCount: min(rest, pieceByteCount))
    }
  }

  /// Makes the pages of a range present.
  func prefault(offset: Int, byteCount: Int, threads: Int) throws(HostError) {
    try Host.prefault(
      base + offset, byteCount: byteCount, pageSize: Int(backing.pageSize.rawValue),
      threads: threads)
  }

  /// Gives the pages of a range back to the host.
  func discard(offset: Int, byteCount: Int) throws(HostError) {
    if let file {
      try Host.punchHole(file, offset: fileOffset + offset, byteCount: byteCount)
    } else {
      try Host.advise(base + offset, byteCount: byteCount, .drop)
    }
  }
}
