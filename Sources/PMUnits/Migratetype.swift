/// The mobility class of a pageblock, of a free list and of an allocation.
///
/// Mirrors `enum migratetype`, Linux 6.1 without CMA; the raw values are the kernel's.
public enum Migratetype: UInt8, CaseIterable, Sendable, Hashable {
  /// Kernel memory that cannot be moved.
  case unmovable = 0
  /// Memory that page migration can move, user memory above all.
  case movable = 1
  /// Kernel memory that reclaim can give back.
  case reclaimable = 2
  /// Pageblocks reserved for atomic high-order requests.
  case highatomic = 3
  /// Pageblocks taken out of use for a contiguous allocation or memory removal.
  case isolate = 4

  /// The types that an allocation can ask for and that per-CPU lists exist for.
  public static let perCPUCount: Int = 3
}

extension Migratetype: CustomStringConvertible {
  /// The name as `/proc/pagetypeinfo` prints it.
  public var description: String {
    switch self {
    case .unmovable: "Unmovable"
    case .movable: "Movable"
    case .reclaimable: "Reclaimable"
    case .highatomic: "HighAtomic"
    case .isolate: "Isolate"
    }
  }
}
