import PMPageAllocator
import PMUnits

/// Machines for lockstep runs: small, so that memory runs out, and crooked.
enum LockstepShapes {
  /// A machine of 24 to 600 MiB. Small ones are more frequent: they fill up sooner.
  static func random(_ rng: inout SplitMix64) -> MachineDescription {
    let total = rng.oneIn(8) ? 200 + rng.below(401) : 24 + rng.below(rng.chance(50) ? 40 : 140)
    let nodeCount = rng.pick([1, 1, 1, 2, 2, 3])
    var left = UInt64(total) << 8
    var nodes: [MachineDescription.Node] = []
    for index in 0..<nodeCount {
      var frames = left
      if index < nodeCount - 1 {
        frames = left * UInt64(15 + rng.below(60)) / 100
        // Half of the borders are not aligned to anything.
        if rng.chance(50) { frames &= ~1023 }
      }
      left -= frames
      nodes.append(MachineDescription.Node(memory: ByteCount(frames << 12)))
    }
    var description = MachineDescription(nodes: nodes, cpus: 1 + rng.below(3))
    description.cpuNodes = description.cpuNodes.map { _ in rng.below(nodeCount) }
    if rng.chance(65) { description.lowMemoryEnd = .mib(UInt64(16 + 4 * rng.below(13))) }
    if nodeCount > 1, rng.chance(40) {
      description.distances = (0..<nodeCount).map { from in
        (0..<nodeCount).map { $0 == from ? 10 : 11 + rng.below(30) }
      }
    }
    if rng.chance(8) {
      // A node of CPUs only.
      description.nodes.append(MachineDescription.Node(memory: ByteCount(0)))
      description.cpuNodes.append(nodeCount)
      description.distances = nil
    }
    description.reservesFirstMegabyte = rng.chance(70)
    description.parameters = parameters(total: total, &rng)
    return description
  }

  /// A machine of 24 to 40 MiB that is contiguous, so that all of its frames are soon looked at.
  static func tiny(_ rng: inout SplitMix64) -> MachineDescription {
    var description = MachineDescription(
      memory: ByteCount(UInt64(24 << 8 + rng.below(16 << 8)) << 12), cpus: 1 + rng.below(2))
    description.reservesFirstMegabyte = rng.chance(70)
    description.parameters = parameters(total: 32, &rng)
    return description
  }

  private static func parameters(total: Int, _ rng: inout SplitMix64) -> KernelParameters {
    var parameters = KernelParameters()
    if rng.chance(70) { parameters.minFreeKiB = UInt64(128 << rng.below(5)) }
    if rng.chance(40) {
      parameters.perCPUPagelistHighFraction = UInt64(rng.pick([8, 16, 64, 500]))
    }
    if rng.chance(30) { parameters.movableCore = .mib(UInt64(4 + rng.below(total / 2))) }
    parameters.watermarkBoostFactor = rng.pick([15000, 15000, 15000, 0, 2000])
    parameters.watermarkScaleFactor = rng.pick([10, 10, 10, 200])
    if rng.chance(15) { parameters.lowmemReserveRatio = [32, 0, 8, 0] }
    return parameters
  }

  /// The machine itself, now and then one whose state boot does not give: an isolated pageblock, a
  /// zone under reclaim, no grouping by mobility, an empty pageset.
  static func machine(
    _ description: MachineDescription, _ rng: inout SplitMix64, hasLongLists: Bool = false
  ) throws -> Machine {
    let machine = try Machine(description)
    guard hasLongLists || rng.chance(25) else { return machine }
    var state = machine.state(withMaps: true)
    if hasLongLists { lengthenLists(&state, &rng) }
    let zone = rng.below(state.zones.count)
    switch rng.below(hasLongLists ? 8 : 4) {
    case 0: isolateBlock(&state, zone: zone)
    case 1: state.zones[zone].flags |= 2
    case 2: state.isMobilityDisabled = true
    case 4...: break
    default:
      for cpu in state.zones[zone].pagesets.indices {
        state.zones[zone].pagesets[cpu].high = Int32(rng.pick([0, 1, 5]))
        state.zones[zone].pagesets[cpu].batch = Int32(rng.pick([1, 3, 7]))
      }
    }
    return try Machine(state: state, refcountLayout: description.refcountLayout)
  }

  /// Per-CPU lists as a machine of some GiB has them: many frames are on no buddy list and in no use.
  private static func lengthenLists(_ state: inout MachineState, _ rng: inout SplitMix64) {
    let batch = Int32(rng.pick([15, 31, 63]))
    for zone in state.zones.indices {
      for cpu in state.zones[zone].pagesets.indices {
        state.zones[zone].pagesets[cpu].batch = batch
        state.zones[zone].pagesets[cpu].high = batch * Int32(rng.pick([4, 10]))
      }
    }
  }

  /// Makes half of a free block of the highest order an isolated pageblock.
  static func isolateBlock(_ state: inout MachineState, zone: Int) {
    let slot = 10 * 5 + 1
    guard let block = state.zones[zone].freeLists[slot].popLast() else { return }
    let firstPageblock = state.zones[zone].start >> 9
    state.zones[zone].freeLists[9 * 5 + 4].append(block)
    state.zones[zone].freeLists[9 * 5 + 1].append(block + 512)
    state.zones[zone].pageblocks[Int(block >> 9 - firstPageblock)] = 4
    state.zones[zone].isolated += 1
    state.zones[zone].free -= 512
  }
}
