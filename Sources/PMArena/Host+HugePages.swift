import PMUnits
import SystemPackage

/// The host's pool of huge pages of one size, or one node's part of it.
public struct HugePagePool: Equatable, Sendable {
  /// The size of each page.
  public let pageSize: ByteCount
  /// Pages in the pool, used or not.
  public let total: Int
  /// Pages that nobody has.
  public let free: Int
  /// Free pages that are promised to a mapping. Always 0 for a node: promises have no node.
  public let reserved: Int
  /// How many pages above its size the pool may take by itself. Always 0 for a node.
  public let growthLimit: Int
  /// Whether this is the size that Linux uses where none is named.
  public let isDefault: Bool
  /// The file that holds the pool's size.
  public let sizeFile: String

  /// Puts the facts about a pool together.
  package init(
    pageSize: ByteCount, total: Int, free: Int, reserved: Int, growthLimit: Int, isDefault: Bool,
    sizeFile: String
  ) {
    self.pageSize = pageSize
    self.total = total
    self.free = free
    self.reserved = reserved
    self.growthLimit = growthLimit
    self.isDefault = isDefault
    self.sizeFile = sizeFile
  }

  /// Pages that a new mapping can have.
  public var available: Int { max(0, free - reserved) }

  /// The shell command that adds this many pages to the pool.
  public func commandForMore(_ count: Int) -> String { "echo \(total + count) > \(sizeFile)" }
}

/// The host's settings for transparent huge pages.
public struct TransparentHugePages: Equatable, Sendable {
  /// For private memory: `always`, `madvise` or `never`; nil if the kernel has no such pages.
  public let anonymous: String?
  /// For memory files: `always`, `within_size`, `advise`, `never`, `deny` or `force`; nil as above.
  public let shared: String?
}

extension Host {
  /// The pools of 2 MiB and 1 GiB pages, in this order, as far as the host has them.
  public static func hugePagePools() throws(HostError) -> [HugePagePool] {
    var pools: [HugePagePool] = []
    for pageSize in [ByteCount.mib(2), ByteCount.gib(1)] {
      if let pool = try hugePagePool(pageSize: pageSize) { pools.append(pool) }
    }
    return pools
  }

  /// The settings for transparent huge pages.
  public static func transparentHugePages() throws(HostError) -> TransparentHugePages {
    TransparentHugePages(
      anonymous: try selectedWord(of: "/sys/kernel/mm/transparent_hugepage/enabled"),
      shared: try selectedWord(of: "/sys/kernel/mm/transparent_hugepage/shmem_enabled"))
  }

  /// The whole pool of one page size, or nil if the host has none.
  static func hugePagePool(pageSize: ByteCount) throws(HostError) -> HugePagePool? {
    let folder = "/sys/kernel/mm/hugepages/\(folderName(pageSize))"
    guard let total = try integer(in: "\(folder)/nr_hugepages") else { return nil }
    let isDefault = try defaultHugePageSize() == pageSize
    return HugePagePool(
      pageSize: pageSize, total: total,
      free: try integer(in: "\(folder)/free_hugepages") ?? 0,
      reserved: try integer(in: "\(folder)/resv_hugepages") ?? 0,
      growthLimit: try integer(in: "\(folder)/nr_overcommit_hugepages") ?? 0,
      isDefault: isDefault,
      sizeFile: isDefault ? "/proc/sys/vm/nr_hugepages" : "\(folder)/nr_hugepages")
  }

  /// One node's part of a pool, or nil if there is none.
  static func hugePagePool(pageSize: ByteCount, node: Int) throws(HostError) -> HugePagePool? {
    let folder = "/sys/devices/system/node/node\(node)/hugepages/\(folderName(pageSize))"
    guard let total = try integer(in: "\(folder)/nr_hugepages") else { return nil }
    return HugePagePool(
      pageSize: pageSize, total: total,
      free: try integer(in: "\(folder)/free_hugepages") ?? 0, reserved: 0, growthLimit: 0,
      isDefault: try defaultHugePageSize() == pageSize, sizeFile: "\(folder)/nr_hugepages")
  }

  private static func folderName(_ pageSize: ByteCount) -> String {
    "hugepages-\(pageSize.rawValue >> 10)kB"
  }

  private static func defaultHugePageSize() throws(HostError) -> ByteCount? {
    try memoryInfo("Hugepagesize:")
  }

  /// The word in brackets: the one in force among those that a file offers.
  private static func selectedWord(of path: String) throws(HostError) -> String? {
    let words = (try text(of: path) ?? "").split(whereSeparator: \.isWhitespace)
    return words.first { $0.hasPrefix("[") && $0.hasSuffix("]") }
      .map { String($0.dropFirst().dropLast()) }
  }
}
