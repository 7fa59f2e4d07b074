/// The zones of a node on x86-64, from the lowest addresses up.
///
/// Mirrors `enum zone_type`, Linux 6.1 on x86-64; the raw values are the kernel's indices.
public enum ZoneKind: UInt8, CaseIterable, Comparable, Sendable, Hashable {
  /// The first 16 MiB.
  case dma = 0
  /// Below 4 GiB.
  case dma32 = 1
  /// Everything above.
  case normal = 2
  /// Memory kept for movable allocations (`movablecore=`).
  case movable = 3
  /// Device memory. No allocation comes from it; it only holds an index.
  case device = 4

  /// Whether the left zone lies below the right one.
  public static func < (lhs: ZoneKind, rhs: ZoneKind) -> Bool { lhs.rawValue < rhs.rawValue }
}

extension ZoneKind: CustomStringConvertible {
  /// The name as `/proc/zoneinfo` prints it.
  public var description: String {
    switch self {
    case .dma: "DMA"
    case .dma32: "DMA32"
    case .normal: "Normal"
    case .movable: "Movable"
    case .device: "Device"
    }
  }
}

/// A zone of a machine: its node and its kind, written `NODE.INDEX` as in kernel traces.
public struct ZoneID: Hashable, Comparable, Sendable, CustomStringConvertible {
  /// The NUMA node, from 0.
  public var node: Int
  /// The zone of that node.
  public var kind: ZoneKind

  /// Names the zone `kind` of `node`.
  public init(node: Int, kind: ZoneKind) {
    self.node = node
    self.kind = kind
  }

  /// Nodes ascending, zones ascending within a node.
  public static func < (lhs: ZoneID, rhs: ZoneID) -> Bool {
    (lhs.node, lhs.kind) < (rhs.node, rhs.kind)
  }

  /// `NODE.INDEX`.
  public var description: String { "\(node).\(kind.rawValue)" }
}
