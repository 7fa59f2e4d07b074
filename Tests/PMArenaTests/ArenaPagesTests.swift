import CPhysmemShim
import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

@Suite struct ArenaPagesTests {
  @Test(arguments: plainBackings, [1, 2, 7, 1000])
  func `Prefault makes every page present and changes none`(
    _ backing: Backing, _ threads: Int
  ) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(20), backing: backing))
    try arena.storeWord(42, at: 5 << 20)
    try arena.prefault(0..<arena.byteCount, threads: threads)
    #expect(try residentByteCount(at: arena.base) == 20 << 20)
    #expect(try arena.loadWord(at: 5 << 20) == 42)
  }

  @Test func `Prefault takes whole pages of the range and no others`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(4)))
    try arena.prefault(8191..<12289, threads: 3)
    #expect(try residentByteCount(at: arena.base) == 3 * 4096)
    try arena.prefault(0..<0, threads: 1)
    #expect(throws: ArenaError.outOfRange(offset: 1, byteCount: 4 << 20, arenaByteCount: 4 << 20)) {
      try arena.prefault(1..<(4 << 20) + 1, threads: 1)
    }
  }

  @Test func `Prefault touches the pages where the kernel cannot populate them`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(4)))
    try arena.storeWord(42, at: 8192)
    pm_host_fault_arm(.PM_HOST_CALL_MADVISE, 1, Errno.invalidArgument.rawValue)
    try arena.prefault(0..<arena.byteCount, threads: 1)
    #expect(pm_host_fault_fired())
    #expect(try residentByteCount(at: arena.base) == 4 << 20)
    #expect(try arena.loadWord(at: 8192) == 42)
  }

  @Test func `Prefault workers carry the faults of the thread that starts them`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(8)))
    pm_host_fault_arm(.PM_HOST_CALL_MADVISE, 4, Errno.noMemory.rawValue)
    #expect(throws: ArenaError.self) { try arena.prefault(0..<arena.byteCount, threads: 4) }
    #expect(pm_host_fault_calls(.PM_HOST_CALL_MADVISE) == 4)
    #expect(pm_host_fault_calls(.PM_HOST_CALL_THREAD_CREATE) == 3)
    pm_host_fault_disarm()
  }

  @Test(arguments: plainBackings)
  func `Discarded memory goes back to the host and reads as zero`(_ backing: Backing) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(8), backing: backing))
    for offset in stride(from: UInt64(0), to: arena.byteCount, by: 4096) {
      try arena.storeWord(offset + 1, at: offset)
    }
    if let file = arena.fileDescriptor {
      #expect(try allocatedByteCount(of: file) == 8 << 20)
    }
    try arena.discard(2 << 20..<6 << 20)
    #expect(try residentByteCount(at: arena.base) == 4 << 20)
    if let file = arena.fileDescriptor {
      #expect(try allocatedByteCount(of: file) == 4 << 20)
    }
    #expect(try arena.loadWord(at: (2 << 20) - 4096) == (2 << 20) - 4095)
    #expect(try arena.loadWord(at: 2 << 20) == 0)
    #expect(try arena.loadWord(at: (6 << 20) - 4096) == 0)
    #expect(try arena.loadWord(at: 6 << 20) == (6 << 20) + 1)
  }

  @Test func `Only whole pages inside the arena can be discarded`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
    #expect(throws: ArenaError.unaligned(offset: 100, byteCount: 4096, unit: .kib(4))) {
      try arena.discard(100..<4196)
    }
    #expect(throws: ArenaError.outOfRange(offset: 0, byteCount: 4 << 20, arenaByteCount: 2 << 20)) {
      try arena.discard(0..<4 << 20)
    }
    try arena.discard(4096..<4096)
  }

  @Test(arguments: plainBackings)
  func `A page has a host node once it is touched`(_ backing: Backing) throws {
    let nodes = try Host.nodes()
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: backing))
    #expect(try arena.hostNode(at: 4096) == nil)
    #expect(try arena.hostNode(at: 4096) == nil, "asking does not touch")
    try arena.storeWord(1, at: 4096)
    let node = try #require(try arena.hostNode(at: 4100))
    #expect(nodes.contains { $0.id == node })
    #expect(throws: ArenaError.outOfRange(offset: 2 << 20, byteCount: 1, arenaByteCount: 2 << 20)) {
      try arena.hostNode(at: 2 << 20)
    }
  }
}

@Suite struct ArenaNodeTests {
  @Test(arguments: plainBackings)
  func `Ranges are bound to their nodes and the rest is interleaved`(_ backing: Backing) throws {
    let node = try #require(try Host.nodes().first { $0.isUsable && $0.byteCount > ByteCount(0) })
    let arena = try Arena(
      ArenaConfiguration(
        byteCount: .mib(8), backing: backing,
        nodeRanges: [
          .init(startOffset: 0, byteCount: .mib(2), hostNode: node.id),
          .init(startOffset: 2 << 20, byteCount: .mib(2), hostNode: nil),
        ], interleaveHostNodes: [node.id]))
    let start = UInt(bitPattern: arena.base)
    #expect(
      try memoryPolicies(in: start..<start + 8 << 20)
        == ["bind:\(node.id)", "interleave:\(node.id)"])
    try arena.storeWord(1, at: 0)
    #expect(try arena.hostNode(at: 0) == node.id)
  }

  @Test func `A node that does not exist is named together with those that do`() throws {
    let available = try Host.nodes().filter { $0.isUsable && $0.byteCount > ByteCount(0) }.map(\.id)
    let list = available.map(String.init).joined(separator: ", ")
    for node in [-1, 777, 100_000] {
      let range = ArenaConfiguration.NodeRange(
        startOffset: 0, byteCount: .mib(2), hostNode: node)
      for configuration in [
        ArenaConfiguration(byteCount: .mib(2), nodeRanges: [range]),
        ArenaConfiguration(byteCount: .mib(2), interleaveHostNodes: available + [node]),
      ] {
        let before = LiveCounts()
        do {
          _ = try Arena(configuration)
          Issue.record("node \(node) was accepted")
        } catch {
          #expect(error == .noSuchNode(node, available: available))
          #expect("\(error)" == "no host node \(node) with memory; there are: \(list)")
        }
        #expect(LiveCounts() == before)
      }
    }
  }

  @Test func `Node ranges lie inside the arena and consist of pages`() throws {
    func error(_ offset: UInt64, _ byteCount: ByteCount) -> ArenaError? {
      do {
        _ = try Arena(
          ArenaConfiguration(
            byteCount: .mib(2),
            nodeRanges: [.init(startOffset: offset, byteCount: byteCount, hostNode: 0)]))
        return nil
      } catch { return error }
    }
    for (offset, byteCount) in [
      (UInt64(0), ByteCount.mib(4)), (2 << 20, .kib(4)), (0, ByteCount(0)), (.max, .kib(4)),
    ] {
      #expect(
        error(offset, byteCount)
          == .outOfRange(offset: offset, byteCount: byteCount.rawValue, arenaByteCount: 2 << 20))
    }
    #expect(
      error(100, .kib(4)) == .unaligned(offset: 100, byteCount: 4096, unit: .kib(4)))
    #expect(
      error(0, ByteCount(100)) == .unaligned(offset: 0, byteCount: 100, unit: .kib(4)))
  }
}
