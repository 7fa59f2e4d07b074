internal import CPhysmemShim
public import PMArena
public import PMFrames
public import PMUnits

/// Why a machine could not be made or used.
public enum MachineError: Error, Sendable {
  /// The host could not give the memory.
  case arena(ArenaError)
  /// The host could not map the frame tables.
  case tables(HostError)
  /// The description contradicts itself or asks for more than there can be.
  case invalidDescription(String)
  /// A state to load contradicts itself.
  case invalidState(String)
  /// The CPU is in use already: one thread at a time.
  case cpuInUse(Int)
  /// The machine has no such CPU.
  case noSuchCPU(Int, count: Int)
}

extension MachineError: CustomStringConvertible {
  /// One line that says what is wrong and what was expected.
  public var description: String {
    switch self {
    case .arena(let error): "\(error)"
    case .tables(let error): "frame tables: \(error)"
    case .invalidDescription(let text): text
    case .invalidState(let text): text
    case .cpuInUse(let cpu): "CPU \(cpu) is in use: a CPU serves one thread at a time"
    case .noSuchCPU(let cpu, let count): "no CPU \(cpu): the machine has CPUs 0 to \(count - 1)"
    }
  }
}

/// The physical memory of one machine: bytes, counts, zones.
///
/// A machine comes from a ``MachineDescription`` (as after boot) or from a ``MachineState`` (as a
/// trace holds it). Physical addresses are offsets into its ``arena``. Allocation and freeing go
/// through the machine's CPUs, see ``CPU``; counts can be changed by any thread through ``frames``.
///
/// What covers the whole machine — ``state(withMaps:)``, ``snapshot()``, ``restore(_:)`` and
/// ``invariantViolations()`` — needs the CPUs at rest.
public final class Machine: @unchecked Sendable {
  // Sendable: all stored properties are constant; what they point to is atomic, under a zone's lock,
  // or per-CPU and handed out once by `claims`.

  /// The bytes.
  public let arena: Arena
  /// Counts and states of all frames.
  public let frames: FrameTable
  /// What the modelled kernel would have reported.
  public let findings: FindingLog
  /// Which kernel's behaviour the machine has.
  public let model: KernelModel
  /// The zones, ascending by node and kind.
  public let zoneIDs: [ZoneID]
  /// The node of each CPU.
  public let cpuNodes: [Int]
  /// How many nodes there are.
  public let nodeCount: Int
  let records: MachineRecords
  let details: PageDetailTable
  let shape: MachineState
  private let claims: Guarded<[Bool]>

  /// Maps memory and tables for a machine of this shape; lists are empty, all frames untouched.
  /// `shape` gives the scalars only.
  convenience init(
    shape: MachineState, segments: [MachineSegment], arena configuration: ArenaConfiguration,
    model: KernelModel, refcountLayout: RefcountLayout, zeroesOnAllocation: Bool = false
  ) throws(MachineError) {
    let arena: Arena
    do { arena = try Arena(configuration) } catch { throw .arena(error) }
    try self.init(
      shape: shape, segments: segments, memory: arena,
      frameCount: Int(configuration.byteCount.rawValue >> 12), model: model,
      refcountLayout: refcountLayout, zeroesOnAllocation: zeroesOnAllocation)
  }

  /// The same with memory that is there already.
  private init(
    shape: MachineState, segments: [MachineSegment], memory: consuming Arena, frameCount: Int,
    model: KernelModel, refcountLayout: RefcountLayout, zeroesOnAllocation: Bool
  ) throws(MachineError) {
    arena = memory
    do {
      frames = try FrameTable(
        frameCount: frameCount,
        sentinelCount: MachineRecords.listHeadCount(
          zones: shape.zones.count, cpus: shape.cpuNodes.count), layout: refcountLayout)
      records = try MachineRecords(shape: shape, segments: segments)
      details = try PageDetailTable(frameCount: frameCount)
    } catch { throw .tables(error) }
    findings = FindingLog()
    self.model = model
    self.shape = shape
    zoneIDs = shape.zones.map(\.id)
    cpuNodes = shape.cpuNodes
    nodeCount = shape.nodes.count
    claims = Guarded(Array(repeating: false, count: shape.cpuNodes.count))
    settings = Settings(
      zeroesOnAllocation: zeroesOnAllocation,
      isMultiNode: shape.nodes.count > 1)
    cores = .allocate(capacity: shape.cpuNodes.count)
    for cpu in shape.cpuNodes.indices { (cores + cpu).initialize(to: makeFields(cpu: cpu)) }
    let core = core(cpu: 0)
    core.makeEmpty(Core.poison)
    for zone in 0..<records.zoneCount {
      for slot in 0..<80 {
        core.makeEmpty(UInt32(bitPattern: records.zones[zone].list_base) &+ UInt32(slot))
      }
    }
    for pageset in 0..<(records.zoneCount * cpuNodes.count) {
      for slot in 0..<14 {
        core.makeEmpty(UInt32(bitPattern: records.pagesets[pageset].list_base) &+ UInt32(slot))
      }
    }
  }

  /// A machine of another's shape, whose lists are empty.
  convenience init(copying other: Machine, memory: consuming Arena) throws(MachineError) {
    let records = other.records
    let segments = (0..<records.segmentCount).map { index in
      let segment = records.segments[index]
      return MachineSegment(
        start: segment.start, count: segment.count, zone: Int(segment.zone))
    }
    try self.init(
      shape: other.shape, segments: segments, memory: memory,
      frameCount: other.frames.frameCount, model: other.model,
      refcountLayout: other.frames.refcountLayout,
      zeroesOnAllocation: other.settings.zeroesOnAllocation)
  }

  deinit { cores.deallocate() }

  private let cores: UnsafeMutablePointer<CoreFields>

  private struct Settings: Sendable {
    var zeroesOnAllocation: Bool
    var isMultiNode: Bool
  }
  private let settings: Settings

  /// The engine as one CPU sees it.
  func core(cpu: Int) -> Core { Core(fields: cores + cpu) }

  private func makeFields(cpu: Int) -> CoreFields {
    CoreFields(
      links: frames.links, states: frames.states, counts: frames.counts,
      pageblocks: frames.pageblocks, marks: frames.marks,
      broken: frames.broken, zones: records.zones,
      pagesets: records.pagesets + cpu * records.zoneCount, nodes: records.nodes,
      segments: records.segments, segmentCount: records.segmentCount,
      zonelistBounds: records.zonelistBounds, zonelistEntries: records.zonelistEntries,
      runs: records.runs + cpu * records.runCapacity,
      hints: records.hints + cpu * records.zoneCount * records.hintCapacity,
      hintMask: UInt32(records.hintCapacity - 1), pfmemalloc: records.pfmemalloc + cpu * 64,
      arena: arena.base, log: Unmanaged.passUnretained(findings),
      details: Unmanaged.passUnretained(details), zoneCount: records.zoneCount,
      frameLimit: frames.frameCount, watermarkBoostFactor: shape.watermarkBoostFactor,
      isMultiNode: settings.isMultiNode, isMultiProcessor: cpuNodes.count > 1,
      isMobilityDisabled: shape.isMobilityDisabled,
      zeroesOnAllocation: settings.zeroesOnAllocation)
  }

  // MARK: CPUs

  /// Hands out a CPU until the returned value goes out of scope.
  public func claimCPU(_ index: Int) throws(MachineError) -> CPU {
    guard cpuNodes.indices.contains(index) else {
      throw .noSuchCPU(index, count: cpuNodes.count)
    }
    let isFree = claims.withLock { claims in
      if claims[index] { return false }
      claims[index] = true
      return true
    }
    guard isFree else { throw .cpuInUse(index) }
    return CPU(machine: self, index: index, node: cpuNodes[index], core: core(cpu: index))
  }

  /// Does something that needs the CPUs at rest, as a snapshot or a fork does, while none of them can be
  /// claimed: ``claimCPU(_:)`` throws ``MachineError/cpuInUse(_:)`` meanwhile, in `body`, too. So does this if
  /// a CPU is claimed.
  public func withCPUsAtRest<Result>(_ body: () -> Result) throws(MachineError) -> Result {
    let busy = claims.withLock { claims in
      if let busy = claims.firstIndex(of: true) { return busy as Int? }
      for index in claims.indices { claims[index] = true }
      return nil
    }
    if let busy { throw .cpuInUse(busy) }
    defer { claims.withLock { claims in for index in claims.indices { claims[index] = false } } }
    return body()
  }

  func giveBack(cpu: Int) { claims.withLock { $0[cpu] = false } }

  // MARK: looking

  /// The zone's index in ``zoneIDs``, or nil.
  public func zoneIndex(_ zone: ZoneID) -> Int? { zoneIDs.firstIndex(of: zone) }

  /// The zone of a frame, or nil for a hole.
  public func zone(of pfn: PFN) -> ZoneID? {
    core(cpu: 0).segment(containing: pfn.rawValue).map { zoneIDs[Int($0.pointee.zone)] }
  }

  /// The migratetype of the pageblock that contains a frame.
  public func pageblockType(of pfn: PFN) -> Migratetype {
    _ = frames.refcount(pfn)
    return Migratetype(rawValue: core(cpu: 0).pageblockType(pfn.rawValue)) ?? .unmovable
  }

  /// Bytes of address space for everything per frame: the frame table and the machine's records.
  public var metadataByteCount: Int {
    frames.byteCount + records.byteCount + details.byteCount
  }
}

/// A run of frames of one zone, as the machine is laid out.
public struct MachineSegment: Hashable, Sendable {
  /// First PFN.
  public var start: UInt32
  /// Number of frames.
  public var count: UInt32
  /// Index of the zone in the machine's zones.
  public var zone: Int

  /// A segment from its parts.
  public init(start: UInt32, count: UInt32, zone: Int) {
    self.start = start
    self.count = count
    self.zone = zone
  }
}
