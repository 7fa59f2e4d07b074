import PMUnits

/// What an ``Arena`` is to be made of.
public struct ArenaConfiguration: Equatable, Sendable {
  /// A part of the arena whose pages shall come from one host node.
  public struct NodeRange: Equatable, Sendable {
    /// The first byte, counted from the arena's start; a multiple of the backing's page size.
    public var startOffset: UInt64
    /// The size; a multiple of the backing's page size, and not 0.
    public var byteCount: ByteCount
    /// The host's number of the node, or nil to leave the range as the rest of the arena is.
    public var hostNode: Int?

    /// Names the part of `byteCount` bytes from `startOffset`, and its node.
    public init(startOffset: UInt64, byteCount: ByteCount, hostNode: Int?) {
      self.startOffset = startOffset
      self.byteCount = byteCount
      self.hostNode = hostNode
    }
  }

  /// The size: 1 to 8 TiB, a multiple of the backing's page size.
  public var byteCount: ByteCount
  /// The kind of host memory.
  public var backing: Backing
  /// Parts bound to host nodes; where they overlap the later one counts.
  public var nodeRanges: [NodeRange]
  /// Host nodes that pages come from in turn, where no node range says otherwise. Empty: the node
  /// of the CPU that touches a page first.
  public var interleaveHostNodes: [Int]
  /// Whether the host must promise all memory at creation.
  ///
  /// False: pages are taken as they are touched, and a host that runs out kills the process. True:
  /// a memory file gets all its pages at creation, private memory is accounted as the host's
  /// overcommit mode says. Pages from the huge page pool are reserved either way.
  public var reserve: Bool

  /// Describes an arena; all but the size have defaults.
  public init(
    byteCount: ByteCount, backing: Backing = .memfd, nodeRanges: [NodeRange] = [],
    interleaveHostNodes: [Int] = [], reserve: Bool = false
  ) {
    self.byteCount = byteCount
    self.backing = backing
    self.nodeRanges = nodeRanges
    self.interleaveHostNodes = interleaveHostNodes
    self.reserve = reserve
  }

  /// The host nodes named anywhere, each once, in ascending order.
  var namedHostNodes: [Int] {
    Set(nodeRanges.compactMap(\.hostNode) + interleaveHostNodes).sorted()
  }
}
