import SystemPackage

/// The one owner of a mapping, which its end unmaps.
///
/// The owned range may be longer than what was asked for, at either end: `base` and `byteCount`
/// name what is of use.
struct OwnedMapping: ~Copyable {
  let base: UnsafeMutableRawPointer
  let byteCount: Int
  private let ownedBase: UnsafeMutableRawPointer
  private let ownedByteCount: Int

  /// Maps what `request` says, where the kernel likes.
  init(_ request: Host.MapRequest) throws(HostError) {
    base = try Host.map(request)
    byteCount = request.byteCount
    ownedBase = base
    ownedByteCount = byteCount + request.slack
  }

  /// Maps what `request` says at a multiple of `alignment`, which is a power of two and larger than
  /// a page.
  ///
  /// Addresses for both are taken first and the memory is put among them, so that one unmapping
  /// ends it all and nothing has to be trimmed.
  init(_ request: Host.MapRequest, alignedTo alignment: Int) throws(HostError) {
    let range = try OwnedMapping(.addresses(request.byteCount, alignedTo: alignment))
    let misalignment = Int(bitPattern: range.base) & (alignment - 1)
    let aligned = range.base + (misalignment == 0 ? 0 : alignment - misalignment)
    try Host.map(request, at: aligned)
    base = aligned
    byteCount = request.byteCount
    (ownedBase, ownedByteCount) = range.giveUp()
  }

  /// Ends this owner without unmapping; the caller owns the range.
  private consuming func giveUp() -> (base: UnsafeMutableRawPointer, byteCount: Int) {
    let range = (ownedBase, ownedByteCount)
    discard self
    return range
  }

  deinit {
    do {
      try Host.unmap(ownedBase, byteCount: ownedByteCount)
    } catch {
      // At its limit of mappings a process cannot even unmap, if the kernel joined this mapping
      // with its neighbours. The addresses are lost then; private memory is not. All else is a bug
      // here.
      guard error.errno == .noMemory else {
        fatalError("an owned mapping could not be unmapped: \(error)")
      }
      try? Host.advise(ownedBase, byteCount: ownedByteCount, .drop)
    }
  }
}
