/// Zeroed memory for metadata tables: private to the process, and taken from the host page by page
/// as it is touched.
///
/// Making one costs the same whatever its size. The value owns the memory: its end unmaps it, and
/// `base` must not be used after that. The memory is not reserved: a host that runs out kills a
/// process that touches a new page.
public struct TableMapping: ~Copyable, @unchecked Sendable {
  // @unchecked because of `base`: it never changes, and the mapping lives as long as this value.
  // Who may touch the memory behind it, and when, is the rule of the table laid into it.

  /// The first byte: a multiple of 4096, and of 2 MiB for mappings of 4 MiB or more.
  public let base: UnsafeMutableRawPointer
  /// The number of bytes asked for. Up to the end of their last page the bytes behind are there
  /// too.
  public let byteCount: Int
  private let mapping: OwnedMapping

  /// The size from which huge pages pay.
  private static let hugeByteCount = 4 << 20

  /// Maps `byteCount` bytes (1 or more) of zeroes.
  ///
  /// Throws what the host says: `ENOMEM` where it has no addresses left or its overcommit mode
  /// allows no more, `EINVAL` for 0 bytes.
  public init(byteCount: Int) throws(HostError) {
    precondition(byteCount >= 0, "a table of \(byteCount) bytes")
    let request = Host.MapRequest(byteCount: byteCount)
    mapping =
      byteCount >= TableMapping.hugeByteCount
      ? try OwnedMapping(request, alignedTo: 2 << 20) : try OwnedMapping(request)
    base = mapping.base
    self.byteCount = byteCount
  }

  /// Asks the kernel to back the table with transparent huge pages.
  ///
  /// Does nothing for tables below 4 MiB. A host that has no such pages, or refuses them, changes
  /// nothing but the speed: its refusal is ignored. Touching one byte may then take 2 MiB from the
  /// host.
  public func adviseHugePages() {
    guard byteCount >= TableMapping.hugeByteCount else { return }
    try? Host.advise(base, byteCount: byteCount, .hugePages)
  }
}
