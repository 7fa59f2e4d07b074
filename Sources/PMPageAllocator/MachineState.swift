public import PMUnits

/// The whole state of a machine's allocator as values: what a kernel trace prints before and after
/// its operations, what a machine can be created from, and what it can be asked for.
public struct MachineState: Hashable, Sendable {
  /// A node's memory and what kswapd of it is wanted for.
  public struct Node: Hashable, Sendable {
    /// First PFN, frames spanned with holes, frames present.
    public var start: UInt32
    /// Frames from the first to the last, holes included.
    public var spanned: UInt64
    /// Frames that exist.
    public var present: UInt64
    /// The order that kswapd was woken for; 0 before it was.
    public var kswapdOrder: UInt32
    /// The highest zone index it was woken for; 5 before it was.
    public var kswapdHighestZone: UInt32
    /// How often kswapd failed; carried along only.
    public var kswapdFailures: UInt32

    /// A node from its parts.
    public init(
      start: UInt32, spanned: UInt64, present: UInt64, kswapdOrder: UInt32 = 0,
      kswapdHighestZone: UInt32 = 5, kswapdFailures: UInt32 = 0
    ) {
      self.start = start
      self.spanned = spanned
      self.present = present
      self.kswapdOrder = kswapdOrder
      self.kswapdHighestZone = kswapdHighestZone
      self.kswapdFailures = kswapdFailures
    }
  }

  /// The zones to try, in order, by preferred node.
  public struct Zonelist: Hashable, Sendable {
    /// All nodes by distance.
    public var fallback: [ZoneID]
    /// The own node only (`__GFP_THISNODE`).
    public var thisNode: [ZoneID]

    /// A node's two lists.
    public init(fallback: [ZoneID], thisNode: [ZoneID]) {
      self.fallback = fallback
      self.thisNode = thisNode
    }
  }

  /// A block on a per-CPU list.
  public struct CachedBlock: Hashable, Sendable {
    /// The block's first frame.
    public var pfn: UInt32
    /// The migratetype stored with it, which decides where a drain puts it.
    public var type: UInt8
    /// The count of its first frame; not 0 only after a misuse.
    public var refcount: Int32

    /// A block from its parts.
    public init(pfn: UInt32, type: UInt8, refcount: Int32 = 0) {
      self.pfn = pfn
      self.type = type
      self.refcount = refcount
    }
  }

  /// A CPU's lists and counters for one zone.
  public struct Pageset: Hashable, Sendable {
    /// Pages on all lists.
    public var count: Int32
    /// From this count on a free drains.
    public var high: Int32
    /// How much moves at once.
    public var batch: Int32
    /// How far the next drain is scaled up, 0 to 5.
    public var freeFactor: Int16
    /// Carried along only.
    public var expire: Int16
    /// What is not yet in the zone's free counter.
    public var statDiff: Int32
    /// How large that may get.
    public var statThreshold: Int32
    /// The 14 lists, front first: 3 × order + migratetype for orders 0 to 3, then order 9 not
    /// movable, order 9 movable.
    public var lists: [[CachedBlock]]

    /// A pageset from its parts.
    public init(
      count: Int32, high: Int32, batch: Int32, freeFactor: Int16 = 0, expire: Int16 = 0,
      statDiff: Int32 = 0, statThreshold: Int32,
      lists: [[CachedBlock]] = Array(repeating: [], count: 14)
    ) {
      self.count = count
      self.high = high
      self.batch = batch
      self.freeFactor = freeFactor
      self.expire = expire
      self.statDiff = statDiff
      self.statThreshold = statThreshold
      self.lists = lists
    }
  }

  /// What a frame of a zone's span is.
  public enum FrameClass: String, Hashable, Sendable, CaseIterable {
    /// In a free block.
    case free = "B"
    /// On a per-CPU list.
    case perCPU = "P"
    /// Reserved.
    case reserved = "R"
    /// On an LRU list or movable by its driver.
    case lru = "L"
    /// Slab.
    case slab = "S"
    /// In use otherwise.
    case used = "U"
    /// Not a frame of this zone.
    case absent = "x"
  }

  /// A run of frames of one class.
  public struct FrameRun: Hashable, Sendable {
    /// First PFN.
    public var start: UInt32
    /// Number of frames.
    public var count: UInt32
    /// Their class.
    public var frameClass: FrameClass

    /// A run from its parts.
    public init(start: UInt32, count: UInt32, frameClass: FrameClass) {
      self.start = start
      self.count = count
      self.frameClass = frameClass
    }
  }

  /// A zone with its lists.
  public struct Zone: Hashable, Sendable {
    /// Node and kind.
    public var id: ZoneID
    /// First PFN.
    public var start: UInt32
    /// Frames from the first to the last, holes included.
    public var spanned: UInt32
    /// Frames that exist.
    public var present: UInt64
    /// Frames that the allocator manages.
    public var managed: UInt64
    /// The watermarks MIN, LOW, HIGH without the boost.
    public var watermarks: [Int64]
    /// `watermark_boost`.
    public var boost: Int64
    /// `nr_reserved_highatomic`, in pages.
    public var highatomic: Int64
    /// Bit 0 recently boosted, bit 1 reclaim active.
    public var flags: UInt32
    /// Carried along only.
    public var contiguous: UInt32
    /// Isolated pageblocks.
    public var isolated: UInt32
    /// The zone's own copy of high and batch.
    public var pagesetHigh: Int32
    /// The zone's own copy of batch.
    public var pagesetBatch: Int32
    /// Carried along only.
    public var driftMark: UInt32
    /// The counter that watermark checks read.
    public var free: Int64
    /// The reserve against requests by their highest zone index, five values.
    public var lowmemReserve: [Int64]
    /// Pageblock types from the block that contains the first frame to the one that contains the
    /// last; 0xff where no memory section is.
    public var pageblocks: [UInt8]
    /// Heads of free blocks, front first, by order × 5 + migratetype.
    public var freeLists: [[UInt32]]
    /// By CPU.
    public var pagesets: [Pageset]
    /// The class of every frame of the span, in PFN order; nil where it was not asked for.
    public var map: [FrameRun]?

    /// The free pages over lists, buddy lists only, and without isolated ones.
    public var freeExact: Int64 { free + pagesets.reduce(0) { $0 + Int64($1.statDiff) } }

    /// A zone from its parts.
    public init(
      id: ZoneID, start: UInt32, spanned: UInt32, present: UInt64, managed: UInt64,
      watermarks: [Int64], boost: Int64 = 0, highatomic: Int64 = 0, flags: UInt32 = 0,
      contiguous: UInt32 = 1, isolated: UInt32 = 0, pagesetHigh: Int32, pagesetBatch: Int32,
      driftMark: UInt32 = 0, free: Int64, lowmemReserve: [Int64], pageblocks: [UInt8],
      freeLists: [[UInt32]] = Array(repeating: [], count: 55), pagesets: [Pageset],
      map: [FrameRun]? = nil
    ) {
      self.id = id
      self.start = start
      self.spanned = spanned
      self.present = present
      self.managed = managed
      self.watermarks = watermarks
      self.boost = boost
      self.highatomic = highatomic
      self.flags = flags
      self.contiguous = contiguous
      self.isolated = isolated
      self.pagesetHigh = pagesetHigh
      self.pagesetBatch = pagesetBatch
      self.driftMark = driftMark
      self.free = free
      self.lowmemReserve = lowmemReserve
      self.pageblocks = pageblocks
      self.freeLists = freeLists
      self.pagesets = pagesets
      self.map = map
    }
  }

  /// By node number.
  public var nodes: [Node]
  /// By preferred node.
  public var zonelists: [Zonelist]
  /// Ascending by node and kind.
  public var zones: [Zone]
  /// The node of each CPU.
  public var cpuNodes: [Int]
  /// The boost factor in units of 1/10000 (`watermark_boost_factor`).
  public var watermarkBoostFactor: Int64
  /// `page_group_by_mobility_disabled`.
  public var isMobilityDisabled: Bool

  /// A state from its parts.
  public init(
    nodes: [Node], zonelists: [Zonelist], zones: [Zone], cpuNodes: [Int],
    watermarkBoostFactor: Int64 = 15000, isMobilityDisabled: Bool = false
  ) {
    self.nodes = nodes
    self.zonelists = zonelists
    self.zones = zones
    self.cpuNodes = cpuNodes
    self.watermarkBoostFactor = watermarkBoostFactor
    self.isMobilityDisabled = isMobilityDisabled
  }
}
