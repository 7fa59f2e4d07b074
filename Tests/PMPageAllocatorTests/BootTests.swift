import Foundation
import PMArena
import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// Machines as they are after boot.
@Suite struct BootTests {
  /// Machines of several shapes, by what is special about them.
  static let descriptions: [MachineDescription] = {
    var plain = MachineDescription(memory: .mib(64))
    plain.reservesFirstMegabyte = false
    let odd = MachineDescription(memory: ByteCount(37 << 20 + 3 << 12))
    var holed = MachineDescription(memory: .mib(96), cpus: 2)
    holed.lowMemoryEnd = .mib(36)
    var nodes = MachineDescription(
      nodes: [
        MachineDescription.Node(memory: ByteCount(20 << 20 + 5 << 12)),
        MachineDescription.Node(memory: ByteCount(30 << 20 + 7 << 12)),
        MachineDescription.Node(memory: .mib(41)),
      ], cpus: 3)
    nodes.lowMemoryEnd = .mib(32)
    var movable = MachineDescription(memory: .mib(80))
    movable.parameters.movableCore = .mib(30)
    return [plain, odd, holed, nodes, movable, MachineDescription(memory: .gib(8))]
  }()

  /// The natural blocks of a run of frames, ascending, by order.
  private static func naturalBlocks(_ run: Range<UInt32>, _ lists: inout [[UInt32]]) {
    var cursor = run.lowerBound
    while cursor < run.upperBound {
      var order = min(10, cursor == 0 ? 10 : cursor.trailingZeroBitCount)
      while cursor + 1 << UInt32(order) > run.upperBound { order -= 1 }
      lists[order].append(cursor)
      cursor += 1 << UInt32(order)
    }
  }

  @Test(arguments: descriptions.indices)
  func `All memory is free in ascending natural blocks on the movable lists`(_ index: Int) throws {
    let description = BootTests.descriptions[index]
    let machine = try Machine(description)
    let state = machine.state(withMaps: true)
    for zone in state.zones {
      var expected = [[UInt32]](repeating: [], count: 11)
      for run in zone.map ?? [] where run.frameClass == .free {
        BootTests.naturalBlocks(run.start..<(run.start + run.count), &expected)
      }
      for order in 0...10 {
        #expect(zone.freeLists[order * 5 + 1] == expected[order], "zone \(zone.id) order \(order)")
        for type in [0, 2, 3, 4] { #expect(zone.freeLists[order * 5 + type] == []) }
      }
      #expect(zone.pageblocks.allSatisfy { $0 == 1 })
      #expect(UInt64(zone.free) == zone.managed)
      #expect(zone.freeExact == zone.free)
      #expect(zone.pagesets.allSatisfy { $0.count == 0 && $0.lists.allSatisfy(\.isEmpty) })
    }
    #expect(machine.invariantViolations() == [])
    let memory = description.nodes.reduce(0) { $0 + $1.memory.frames }
    let reserved: UInt64 = description.reservesFirstMegabyte ? 0x100 : 0
    #expect(UInt64(machine.freePageCount) == memory - reserved)
  }

  @Test func `Zones end where the kernel ends them, and zonelists go down and away`() throws {
    let ids = try BootTests.descriptions.map { try Machine($0).zoneIDs.map(\.description) }
    #expect(
      ids == [
        ["0.0", "0.1"], ["0.0", "0.1"], ["0.0", "0.1", "0.2"],
        ["0.0", "0.1", "1.1", "1.2", "2.2"], ["0.0", "0.1", "0.3"], ["0.0", "0.1", "0.2"],
      ])
    let lists = try Machine(BootTests.descriptions[3]).state(withMaps: false).zonelists
    #expect(lists[0].fallback.map(\.description) == ["0.1", "0.0", "1.2", "1.1", "2.2"])
    #expect(lists[0].thisNode.map(\.description) == ["0.1", "0.0"])
    #expect(lists[2].thisNode.map(\.description) == ["2.2"])
    let hole = try Machine(BootTests.descriptions[2])
    #expect(hole.zone(of: PFN(0x2400 - 1))?.kind == .dma32)
    #expect(hole.zone(of: PFN(0x2400)) == nil)
    #expect(hole.whereabouts(of: PFN(0x2400)) == .hole)
    #expect(hole.zone(of: PFN(0x10_0000))?.kind == .normal)
    #expect(hole.whereabouts(of: PFN(0x10_0000)) == .free(head: PFN(0x10_0000), order: 10))
  }

  @Test func `The first allocation of a machine takes the lowest block of its highest zone`() throws
  {
    var description = MachineDescription(memory: .gib(8))
    description.reservesFirstMegabyte = true
    let machine = try Machine(description)
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages() == PFN(0x10_0000))
    // An unmovable page has to be stolen, and the largest block is.
    #expect(try cpu.allocatePages(gfp: [.kernel, .dma]) == PFN(0x400))
    #expect(try cpu.allocatePages(gfp: [.kernel, .dma, .movable]) == PFN(0x100))
    #expect(try cpu.allocatePages(order: 10, gfp: [.kernel, .dma32]) == PFN(0x1000))
  }

  /// Whether the process has the addresses of the largest machine free: under the thread sanitizer it
  /// has not.
  private var hasAddressesForTheLargest: Bool {
    if (try? Machine(MachineDescription(memory: .tib(8)))) != nil { return true }
    print("SKIPPED: the addresses of a machine of 8 TiB are not free here")
    return false
  }

  @Test func `A machine as large as it can be costs next to nothing`() async {
    guard hasAddressesForTheLargest else { return }
    // A process of its own, so that nothing else grows meanwhile.
    await #expect(processExitsWith: .success) {
      func residentPages() -> Int {
        let text = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8)) ?? ""
        return text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? -1
      }
      // Code and what the first machine loads do not count.
      withExtendedLifetime(try Machine(MachineDescription(memory: .gib(16), cpus: 2))) {}
      for memory in [ByteCount.tib(1), ByteCount(8 << 40 - 4 << 20)] {
        let before = residentPages()
        let machine = try Machine(MachineDescription(memory: memory, cpus: 2))
        let growth = (residentPages() - before) * 4096
        withExtendedLifetime(machine) {}
        if before < 0 || growth >= 1 << 20 {
          fatalError("\(memory): \(growth) bytes became resident")
        }
      }
    }
  }

  @Test func `The last frame of a machine of 8 TiB can be allocated`() throws {
    guard hasAddressesForTheLargest else { return }
    let machine = try Machine(MachineDescription(memory: .tib(8)))
    #expect(machine.zone(of: PFN.max)?.kind == .normal)
    #expect(machine.whereabouts(of: PFN.max) == .free(head: PFN(0x7fff_fc00), order: 10))
    #expect(machine.frames.refcount(PFN.max) == 0)
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages(order: 10) == PFN(0x10_0000))
  }
}
