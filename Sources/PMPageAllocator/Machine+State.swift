internal import CPhysmemShim
public import PMArena
public import PMFrames
public import PMUnits

extension Machine {
  // MARK: from a state

  /// A machine in a given state: that of a trace, or one that ``state(withMaps:)`` gave. Every zone
  /// needs its map. Throws ``MachineError/invalidState(_:)`` where the state contradicts itself, with
  /// the zone and the frame.
  public convenience init(
    state: MachineState, backing: Backing = .memfd, model: KernelModel = .linux61,
    refcountLayout: RefcountLayout = .packed
  ) throws(MachineError) {
    let segments = try StateLoader.segments(of: state)
    let end = segments.map { UInt64($0.start) + UInt64($0.count) }.max() ?? 0
    guard end > 0, end <= UInt64(PFN.max.rawValue) + 1 else {
      throw .invalidState("frames end at \(String(end, radix: 16)): expected 1 to 80000000")
    }
    let page = max(backing.pageSize.rawValue, 4096)
    let bytes = ((end << 12) + page - 1) / page * page
    try self.init(
      shape: state, segments: segments,
      arena: ArenaConfiguration(byteCount: ByteCount(bytes), backing: backing), model: model,
      refcountLayout: refcountLayout)
    try StateLoader(machine: self, state: state).load()
    frames.adviseHugePages()
  }

  // MARK: to a state

  /// The whole state as values. The CPUs must be at rest. With maps it costs time per frame.
  public func state(withMaps: Bool) -> MachineState {
    var state = shape
    for node in state.nodes.indices {
      state.nodes[node].kswapdOrder = records.nodes[node].kswapd_order
      state.nodes[node].kswapdHighestZone = records.nodes[node].kswapd_highest_zoneidx
    }
    for zone in state.zones.indices {
      state.zones[zone] = zoneState(zone, withMap: withMaps)
    }
    return state
  }

  /// One zone's part of ``state(withMaps:)``.
  public func zoneState(_ index: Int, withMap: Bool) -> MachineState.Zone {
    let core = core(cpu: 0)
    let record = records.zones + index
    var zone = shape.zones[index]
    zone.boost = record.pointee.watermark_boost
    zone.highatomic = record.pointee.nr_reserved_highatomic
    zone.flags = record.pointee.flags
    zone.isolated = record.pointee.nr_isolate_pageblock
    zone.free = record.pointee.nr_free_pages
    zone.pageblocks = pageblockTypes(index)
    for order in UInt32(0)..<11 {
      for type in UInt8(0)..<5 {
        zone.freeLists[Int(order) * 5 + Int(type)] = core.blocks(
          on: core.freeList(record, order: order, type: type))
      }
    }
    zone.pagesets = cpuNodes.indices.map { cpu in
      let pageset = records.pagesets + cpu * records.zoneCount + index
      return MachineState.Pageset(
        count: pageset.pointee.count, high: pageset.pointee.high, batch: pageset.pointee.batch,
        freeFactor: pageset.pointee.free_factor, expire: pageset.pointee.expire,
        statDiff: pageset.pointee.stat_diff, statThreshold: pageset.pointee.stat_threshold,
        lists: (0..<14).map { slot in
          core.blocks(on: UInt32(bitPattern: pageset.pointee.list_base) + UInt32(slot)).map {
            MachineState.CachedBlock(
              pfn: $0, type: core.cachedType($0), refcount: frames.refcount(PFN($0)))
          }
        })
    }
    zone.map = withMap ? map(of: zone, index) : nil
    return zone
  }

  /// The pageblock types of a zone's span; 0xff where the state that the machine was made from had no
  /// memory section.
  func pageblockTypes(_ index: Int) -> [UInt8] {
    let zone = shape.zones[index]
    let first = zone.start >> 9
    let last = (zone.start + zone.spanned - 1) >> 9
    let absent = zone.pageblocks
    return (first...last).map { block in
      let slot = Int(block - first)
      if slot < absent.count, absent[slot] == 0xff { return 0xff }
      return core(cpu: 0).pageblockType(block << 9)
    }
  }

  private func map(of zone: MachineState.Zone, _ index: Int) -> [MachineState.FrameRun] {
    var classes = [MachineState.FrameClass](repeating: .absent, count: Int(zone.spanned))
    let core = core(cpu: 0)
    for segment in 0..<records.segmentCount
    where records.segments[segment].zone == UInt32(index) {
      let run = records.segments[segment]
      for pfn in run.start..<(run.start + run.count) {
        classes[Int(pfn - zone.start)] = core.classInUse(pfn)
      }
    }
    func mark(_ pfn: UInt32, _ order: Int, _ kind: MachineState.FrameClass) {
      for frame in pfn..<(pfn + 1 << UInt32(order)) { classes[Int(frame - zone.start)] = kind }
    }
    for (slot, blocks) in zone.freeLists.enumerated() {
      for pfn in blocks { mark(pfn, slot / 5, .free) }
    }
    for pageset in zone.pagesets {
      for (slot, blocks) in pageset.lists.enumerated() {
        for block in blocks {
          mark(block.pfn, Int(Core.order(ofPerCPUIndex: UInt32(slot))), .perCPU)
        }
      }
    }
    var runs: [MachineState.FrameRun] = []
    for (offset, kind) in classes.enumerated() {
      if let last = runs.last, last.frameClass == kind {
        runs[runs.count - 1].count += 1
      } else {
        runs.append(
          MachineState.FrameRun(start: zone.start + UInt32(offset), count: 1, frameClass: kind))
      }
    }
    return runs
  }

  /// Where a frame is: what a person asks first about a page. Needs the CPUs at rest.
  public func whereabouts(of pfn: PFN) -> Whereabouts {
    _ = frames.refcount(pfn)
    let core = core(cpu: 0)
    guard let segment = core.segment(containing: pfn.rawValue) else { return .hole }
    let zone = Int(segment.pointee.zone)
    for cpu in cpuNodes.indices {
      let base = UInt32(bitPattern: records.pagesets[cpu * records.zoneCount + zone].list_base)
      for slot in UInt32(0)..<14 {
        let order = Core.order(ofPerCPUIndex: slot)
        for block in core.blocks(on: base + slot)
        where block <= pfn.rawValue && pfn.rawValue < block + 1 << order {
          return .perCPU(cpu: cpu, head: PFN(block), order: Int(order))
        }
      }
    }
    for order in UInt32(0)..<11 {
      let head = pfn.rawValue & ~(1 << order - 1)
      if core.contains(core.zones + zone, head), core.freeBlockOrder(head) == order {
        return .free(head: PFN(head), order: Int(order))
      }
    }
    return .used
  }

  /// The answer of ``whereabouts(of:)``.
  public enum Whereabouts: Hashable, Sendable {
    /// In no zone.
    case hole
    /// In a block of the buddy lists.
    case free(head: PFN, order: Int)
    /// In a block on a CPU's own list.
    case perCPU(cpu: Int, head: PFN, order: Int)
    /// Allocated, reserved, or leaked.
    case used
  }

  /// Pages in the buddy lists and on per-CPU lists, over all zones. Needs the CPUs at rest.
  public var freePageCount: Int64 {
    var sum: Int64 = 0
    for zone in 0..<records.zoneCount {
      sum += pm_counter_load_relaxed(&records.zones[zone].nr_free_pages)
      for cpu in cpuNodes.indices {
        let pageset = records.pagesets[cpu * records.zoneCount + zone]
        sum += Int64(pageset.stat_diff) + Int64(pageset.count)
      }
    }
    return sum
  }

  /// Blocks per order of a zone over all migratetypes, as `/proc/buddyinfo` prints them.
  public func freeBlockCounts(zone index: Int) -> [Int] {
    (0..<11).map { Int(pm_zone_nr_free(records.zones + index)[$0]) }
  }
}

extension Core {
  /// The blocks of a list, front first. A list that a misuse tied into a ring ends after as many
  /// blocks as there are frames.
  func blocks(on head: UInt32) -> [UInt32] {
    var blocks: [UInt32] = []
    var index = next(head)
    while index != head, Int32(bitPattern: index) >= 0, blocks.count < frameLimit {
      blocks.append(index)
      index = next(index)
    }
    return blocks
  }

  @inline(__always)
  func cachedType(_ index: UInt32) -> UInt8 {
    UInt8(
      truncatingIfNeeded: (state(index) & FrameState.migratetypeMask)
        >> FrameState.migratetypeShift)
  }

  /// The class of a frame that is on no list.
  func classInUse(_ index: UInt32) -> MachineState.FrameClass {
    let state = state(index)
    if state & FrameState.reserved != 0 { return .reserved }
    if state & FrameState.slab != 0 { return .slab }
    if state & FrameState.lru != 0 { return .lru }
    return .used
  }
}
