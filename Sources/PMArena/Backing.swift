import PMUnits

/// What kind of host memory an arena is made of.
///
/// The raw values are the names that users write, except for `memfd` those of the `-s` option of
/// the KVM selftests. The shared kinds are files: another process can map the descriptor, and sees
/// the byte of physical address *a* at offset *a*.
public enum Backing: String, CaseIterable, Sendable {
  /// A memory file, shared: the default. The host's `shmem_enabled` decides about huge pages.
  case memfd
  /// Private memory in 4 KiB pages, without transparent huge pages.
  case anonymous
  /// Private memory in transparent huge pages wherever the kernel finds some.
  case anonymousTHP = "anonymous_thp"
  /// Private memory in 2 MiB pages from the host's pool, reserved at creation.
  case anonymousHugeTLB2MiB = "anonymous_hugetlb_2mb"
  /// Private memory in 1 GiB pages from the host's pool, reserved at creation.
  case anonymousHugeTLB1GiB = "anonymous_hugetlb_1gb"
  /// Another name of ``memfd``.
  case shmem
  /// A memory file in 2 MiB pages from the host's pool, shared, reserved at creation.
  case sharedHugeTLB = "shared_hugetlb"

  /// The page size that the host guarantees: sizes, node ranges and discarded ranges are multiples.
  ///
  /// For transparent huge pages this is 4 KiB, as nothing guarantees more.
  public var pageSize: ByteCount { ByteCount(1 << UInt64(hugePageShift == 0 ? 12 : hugePageShift)) }

  /// Whether every page is a huge page from the host's pool.
  public var isHuge: Bool { hugePageShift != 0 }

  /// Whether the memory is a file that other processes can map.
  public var isShared: Bool {
    switch self {
    case .memfd, .shmem, .sharedHugeTLB: true
    case .anonymous, .anonymousTHP, .anonymousHugeTLB2MiB, .anonymousHugeTLB1GiB: false
    }
  }

  /// The binary logarithm of the page size for pages from the pool, else 0.
  var hugePageShift: Int {
    switch self {
    case .memfd, .shmem, .anonymous, .anonymousTHP: 0
    case .anonymousHugeTLB2MiB, .sharedHugeTLB: 21
    case .anonymousHugeTLB1GiB: 30
    }
  }
}
