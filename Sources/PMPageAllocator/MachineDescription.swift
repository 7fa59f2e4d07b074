public import PMArena
public import PMFrames
public import PMUnits

/// What a machine is to be: its memory, nodes and CPUs, and its kernel's settings.
public struct MachineDescription: Sendable {
  /// A NUMA node's memory.
  public struct Node: Hashable, Sendable {
    /// How much memory the node has; 0 for a node of CPUs only.
    public var memory: ByteCount
    /// The host's node that is to hold it; nil: the node of the same number where the host has
    /// several, else wherever the host puts it.
    public var hostNode: Int?

    /// A node from its parts.
    public init(memory: ByteCount, hostNode: Int? = nil) {
      self.memory = memory
      self.hostNode = hostNode
    }
  }

  /// The nodes, whose memory follows one another in the physical address space.
  public var nodes: [Node]
  /// Distances between nodes as in ACPI's SLIT; nil: 10 to itself, 20 to any other.
  public var distances: [[Int]]?
  /// The node of each CPU.
  public var cpuNodes: [Int]
  /// Where memory below 4 GiB ends, as for a device window; what does not fit continues at 4 GiB.
  /// nil: memory is contiguous.
  public var lowMemoryEnd: ByteCount?
  /// Whether the first MiB is kept back and holds the BIOS hole, as on a PC.
  public var reservesFirstMegabyte: Bool
  /// The settings of the machine's kernel.
  public var parameters: KernelParameters
  /// What the host backs the memory with.
  public var backing: Backing
  /// Whether the host has to set the memory aside now; huge pages always are.
  public var reservesHostMemory: Bool
  /// Which kernel's behaviour.
  public var model: KernelModel
  /// How far apart the frames' reference counts stand: another speed, the same behaviour.
  public var refcountLayout: RefcountLayout

  /// A machine with one node and one CPU unless told otherwise.
  public init(memory: ByteCount, cpus: Int = 1, backing: Backing = .memfd) {
    self.init(nodes: [Node(memory: memory)], cpus: cpus, backing: backing)
  }

  /// A machine with these nodes; CPUs are spread over them in blocks, as firmware numbers them.
  public init(nodes: [Node], cpus: Int = 1, backing: Backing = .memfd) {
    self.nodes = nodes
    cpuNodes = (0..<max(cpus, 0)).map { $0 * nodes.count / max(cpus, 1) }
    distances = nil
    lowMemoryEnd = nil
    reservesFirstMegabyte = true
    parameters = KernelParameters()
    self.backing = backing
    reservesHostMemory = false
    model = .linux61
    refcountLayout = .packed
  }

  // MARK: the layout

  /// Memory of a node: frames from `start` to before `end`.
  struct Range: Hashable {
    var start: UInt64
    var end: UInt64
    var node: Int
    var count: UInt64 { end - start }
  }

  static let dmaEnd: UInt64 = 0x1000
  static let dma32End: UInt64 = 0x10_0000

  func check() throws(MachineError) {
    guard !nodes.isEmpty, nodes.count <= 1024 else {
      throw .invalidDescription("\(nodes.count) nodes: expected 1 to 1024")
    }
    guard !cpuNodes.isEmpty, cpuNodes.count <= 8192 else {
      throw .invalidDescription("\(cpuNodes.count) CPUs: expected 1 to 8192")
    }
    for (cpu, node) in cpuNodes.enumerated() where !nodes.indices.contains(node) {
      throw .invalidDescription("CPU \(cpu) is on node \(node): nodes are 0 to \(nodes.count - 1)")
    }
    for (index, node) in nodes.enumerated() {
      guard node.memory.rawValue & 4095 == 0 else {
        throw .invalidDescription("node \(index) has \(node.memory): expected a multiple of 4 KiB")
      }
      guard node.memory <= .tib(8) else {
        throw .invalidDescription("node \(index) has \(node.memory): a machine reaches 8 TiB")
      }
    }
    if let distances {
      guard distances.count == nodes.count, distances.allSatisfy({ $0.count == nodes.count }),
        distances.allSatisfy({ $0.allSatisfy { (10...255).contains($0) } })
      else {
        throw .invalidDescription("distances: expected a row of 10...255 per node and node")
      }
    }
    if let end = lowMemoryEnd {
      guard end.rawValue & 0x3f_ffff == 0, end >= .mib(16), end <= .gib(4) else {
        throw .invalidDescription("low memory ends at \(end): expected 16 MiB to 4 GiB by 4 MiB")
      }
    }
    let ranges = ranges()
    guard let last = ranges.last else { throw .invalidDescription("the machine has no memory") }
    guard last.end <= UInt64(PFN.max.rawValue) + 1 else {
      throw .invalidDescription(
        "memory ends at \(ByteCount(last.end << 12)): the address space of a machine is 8 TiB")
    }
    guard ranges.reduce(0, { $0 + $1.count }) >= 1024 else {
      throw .invalidDescription("a machine needs at least 4 MiB")
    }
  }

  /// The nodes' memory in address order.
  func ranges() -> [Range] {
    let holeStart = (lowMemoryEnd ?? .gib(4)).frames
    var cursor: UInt64 = 0
    var ranges: [Range] = []
    for (index, node) in nodes.enumerated() {
      var left = node.memory.frames
      while left > 0 {
        if cursor >= holeStart, cursor < MachineDescription.dma32End {
          cursor = MachineDescription.dma32End
        }
        let room = cursor < holeStart ? holeStart - cursor : UInt64.max
        let count = min(left, room)
        ranges.append(Range(start: cursor, end: cursor + count, node: index))
        cursor += count
        left -= count
      }
    }
    return ranges
  }

  func distance(_ from: Int, _ to: Int) -> Int {
    distances?[from][to] ?? (from == to ? 10 : 20)
  }

  /// Where zone Movable starts on each node; nil where the node has none.
  ///
  /// `movablecore` leaves the rest as kernel memory, spread evenly over the nodes; memory below the
  /// highest kernel zone counts as kernel memory first. Follows the outcome of
  /// `find_zone_movable_pfns_for_nodes`, Linux 6.1.
  func movableStarts(_ ranges: [Range]) -> [UInt64?] {
    var starts = [UInt64?](repeating: nil, count: nodes.count)
    guard let movable = parameters.movableCore?.frames, movable > 0 else { return starts }
    let total = ranges.reduce(0) { $0 + $1.count }
    let block = UInt64(Order.maxBlockFrames)
    let rounded = min((movable + block - 1) / block * block, total)
    var kernelLeft = total - rounded
    guard kernelLeft > 0 else { return starts }
    let top = ranges.last?.end ?? 0
    let usableStart =
      top > MachineDescription.dma32End
      ? MachineDescription.dma32End
      : top > MachineDescription.dmaEnd ? MachineDescription.dmaEnd : 0
    let populated = Set(ranges.map(\.node)).sorted()
    var reached = [UInt64](repeating: 0, count: nodes.count)
    var share = populated.count
    repeat {
      var perNode = kernelLeft / UInt64(share)
      for node in populated {
        if kernelLeft < perNode { perNode = kernelLeft / UInt64(share) }
        var remaining = perNode
        for range in ranges where range.node == node {
          var start = max(range.start, reached[node])
          guard start < range.end else { continue }
          if start < usableStart {
            let kernel = min(range.end, usableStart) - start
            remaining -= min(kernel, remaining)
            kernelLeft -= min(kernel, kernelLeft)
            if range.end <= usableStart {
              reached[node] = range.end
              continue
            }
            start = usableStart
          }
          let used = min(range.end - start, remaining)
          reached[node] = start + used
          kernelLeft -= min(kernelLeft, used)
          remaining -= used
          if remaining == 0 { break }
        }
      }
      share -= 1
    } while share > 0 && kernelLeft > UInt64(share)
    for node in populated {
      let start = (reached[node] + block - 1) / block * block
      let end = ranges.last { $0.node == node }?.end ?? 0
      starts[node] = start < end ? start : nil
    }
    return starts
  }
}
