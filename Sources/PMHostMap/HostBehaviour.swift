/// Where kernels and their settings differ in how they map and mark pages of host processes.
public struct HostBehaviour: Hashable, Sendable {
  /// When a fault in anonymous memory is answered with a 2 MiB page.
  public enum TransparentHugePages: String, Hashable, Sendable {
    /// In every aligned 2 MiB range.
    case always
    /// Where `MADV_HUGEPAGE` asked for it.
    case madvise
    /// Never.
    case never
  }

  /// Pages of one per-CPU LRU batch (`PAGEVEC_SIZE`): 15 in 6.1, 31 in 6.18.
  public var lruBatchSize: Int
  /// Whether munmap and MADV_DONTNEED drain the LRU batches first; so in 6.1, not seen in 6.18.
  public var drainsBatchesOnUnmap: Bool
  /// Whether unmapping a run of pages of one compound page marks it once (6.18) instead of once a page.
  public var marksRunsOnce: Bool
  /// When huge pages are used for anonymous memory.
  public var transparentHugePages: TransparentHugePages
  /// Pages around a read fault on a file that are mapped with it: 16 where `fault_around_bytes` is 64 KiB.
  public var faultAroundPages: Int
  /// The order of the page-cache folios of files on disk: 0 in 6.1, up to 9 with large folios.
  public var diskFolioOrder: Int

  /// A behaviour from its parts; the defaults are Linux 6.1 with classic LRU lists.
  public init(
    lruBatchSize: Int = 15, drainsBatchesOnUnmap: Bool = true, marksRunsOnce: Bool = false,
    transparentHugePages: TransparentHugePages = .madvise, faultAroundPages: Int = 16,
    diskFolioOrder: Int = 0
  ) {
    self.lruBatchSize = lruBatchSize
    self.drainsBatchesOnUnmap = drainsBatchesOnUnmap
    self.marksRunsOnce = marksRunsOnce
    self.transparentHugePages = transparentHugePages
    self.faultAroundPages = faultAroundPages
    self.diskFolioOrder = diskFolioOrder
  }

  /// Linux 6.1.
  public static let linux61: HostBehaviour = HostBehaviour()
  /// Linux 6.18.
  public static let linux618: HostBehaviour = HostBehaviour(
    lruBatchSize: 31, drainsBatchesOnUnmap: false, marksRunsOnce: true, diskFolioOrder: 9)
}
