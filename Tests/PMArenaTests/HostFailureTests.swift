import CPhysmemShim
import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

@Suite struct HostFailureTests {
  @Test(arguments: plainBackings, forcedErrors)
  func `Each system call of making an arena may fail and nothing is left behind`(
    _ backing: Backing, _ errno: Errno
  ) throws {
    let result = failEachCall(with: errno) {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(4), backing: backing))
      pm_host_fault_disarm()
      try arena.storeWord(1, at: 0)
    }
    #expect(result.calls >= (backing.isShared ? 5 : 3))
    if isFinal(errno) { #expect(result.survived == 0) }
    if errno == .interrupted { #expect(result.survived == result.calls) }
  }

  @Test(arguments: [Backing.memfd, .anonymous], forcedErrors)
  func `Each system call of placing and reserving an arena may fail`(
    _ backing: Backing, _ errno: Errno
  ) throws {
    let node = try #require(try Host.nodes().first { $0.isUsable && $0.byteCount > ByteCount(0) })
    let configuration = ArenaConfiguration(
      byteCount: .mib(4), backing: backing,
      nodeRanges: [.init(startOffset: 0, byteCount: .mib(2), hostNode: node.id)],
      interleaveHostNodes: [node.id], reserve: true)
    let result = failEachCall(with: errno) {
      let arena = try Arena(configuration)
      pm_host_fault_disarm()
      try arena.storeWord(1, at: 0)
    }
    #expect(result.calls >= 5)
    if isFinal(errno) { #expect(result.survived == 0) }
  }

  @Test(arguments: forcedErrors)
  func `Each system call of a prefault may fail and the next one works`(_ errno: Errno) throws {
    let result = failEachCall(with: errno) {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(8)))
      defer { pm_host_fault_disarm() }
      do {
        try arena.prefault(0..<arena.byteCount, threads: 4)
      } catch {
        try arena.prefault(0..<arena.byteCount, threads: 4)
        throw error
      }
    }
    #expect(result.calls >= 5 + 7)
    if isFinal(errno) { #expect(result.survived == 0) }
  }

  @Test(arguments: [Backing.memfd, .anonymous], forcedErrors)
  func `Discarding, duplicating and asking for a node may fail`(
    _ backing: Backing, _ errno: Errno
  ) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: backing))
    try arena.storeWord(7, at: 4096)
    let result = failEachCall(with: errno) {
      let node = try arena.hostNode(at: 4096)
      #expect(node != nil)
      if let duplicate = try arena.duplicateFileDescriptor() { close(duplicate) }
      try arena.discard(0..<4096)
    }
    #expect(result.calls == (backing.isShared ? 3 : 2))
    #expect(result.survived == (errno == .interrupted ? result.calls : 0))
    #expect(try arena.loadWord(at: 4096) == 7)
  }

  @Test(arguments: forcedErrors)
  func `Each system call of a question to the host may fail`(_ errno: Errno) throws {
    let result = failEachCall(with: errno) {
      _ = try Host.nodes()
      _ = try Host.hugePagePools()
      _ = try Host.transparentHugePages()
      _ = try Host.overcommitPolicy()
      _ = try Host.memoryLockLimit()
    }
    #expect(result.calls > 20)
    if isFinal(errno) { #expect(result.survived == 0) }
  }

  @Test func `A mapping that cannot be unmapped at the limit of mappings gives its memory back`()
    throws
  {
    let mappings = pm_host_thread_live_mappings()
    let base: UnsafeMutableRawPointer
    do {
      let table = try TableMapping(byteCount: 1 << 20)
      base = table.base
      base.initializeMemory(as: UInt8.self, repeating: 1, count: 1 << 20)
      pm_host_fault_arm(.PM_HOST_CALL_MUNMAP, 1, Errno.noMemory.rawValue)
    }
    pm_host_fault_disarm()
    #expect(pm_host_fault_fired())
    #expect(pm_host_thread_live_mappings() == mappings + 1)
    #expect(base.load(as: UInt8.self) == 0)
    #expect(pm_host_unmap(base, 1 << 20) == 0)
  }

  @Test func `A mapping that somebody else unmapped ends the process`() async {
    await #expect(processExitsWith: .failure) {
      let table = try TableMapping(byteCount: 4096)
      pm_host_fault_arm(.PM_HOST_CALL_MUNMAP, 1, Errno.invalidArgument.rawValue)
      _ = consume table
    }
  }

  @Test func `A descriptor that somebody else closed ends the process`() async {
    await #expect(processExitsWith: .failure) {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
      close(try arena.requiredDescriptor())
      _ = consume arena
    }
  }

  @Test func `The process-wide counts return to zero`() async {
    // In a process of its own, as others run beside these tests.
    await #expect(processExitsWith: .success) {
      for backing in plainBackings {
        let arena = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: backing))
        let file: Int64 = backing.isShared ? 1 : 0
        #expect(pm_host_live_mappings() == 1)
        #expect(pm_host_live_fds() == file)
        _ = try Host.hugePagePools()
        #expect(pm_host_live_fds() == file)
        _ = consume arena
        #expect(pm_host_live_mappings() == 0)
        #expect(pm_host_live_fds() == 0)
      }
    }
  }
}
