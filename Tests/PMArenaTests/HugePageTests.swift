import CPhysmemShim
import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

// Serialized: the pool of huge pages belongs to the whole machine.
@Suite(.serialized) struct HugePageTests {
  @Test(arguments: [Backing.anonymousHugeTLB2MiB, .sharedHugeTLB, .anonymousHugeTLB1GiB])
  func `Every page of a huge backing is a huge page`(_ backing: Backing) throws {
    let pageSize = backing.pageSize
    let count = pageSize == .gib(1) ? 1 : 4
    try withHugePages(count, of: pageSize) {
      let byteCount = ByteCount(pageSize.rawValue * UInt64(count))
      let arena = try Arena(ArenaConfiguration(byteCount: byteCount, backing: backing))
      #expect(UInt(bitPattern: arena.base) % UInt(pageSize.rawValue) == 0)
      #expect(try smaps(at: arena.base)["KernelPageSize"] == "\(pageSize.rawValue >> 10)")
      try arena.prefault(0..<byteCount.rawValue, threads: 2)
      #expect(try residentByteCount(at: arena.base) == byteCount.rawValue)
      try arena.storeWord(0xfeed, at: byteCount.rawValue - 8)
      #expect(try arena.loadWord(at: byteCount.rawValue - 8) == 0xfeed)
      #expect(try arena.hostNode(at: 0) != nil)
      try arena.discard(byteCount.rawValue - pageSize.rawValue..<byteCount.rawValue)
      #expect(
        try residentByteCount(at: arena.base) == byteCount.rawValue - pageSize.rawValue)
      #expect(try arena.loadWord(at: byteCount.rawValue - 8) == 0)
      let half = pageSize.rawValue / 2
      #expect(throws: ArenaError.unaligned(offset: half, byteCount: half, unit: pageSize)) {
        try arena.discard(half..<pageSize.rawValue)
      }
    }
  }

  @Test func `A second process reads a file of huge pages`() throws {
    try withHugePages(2, of: .mib(2)) {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(4), backing: .sharedHugeTLB))
      let file = try arena.requiredDescriptor()
      try arena.storeWord(0x4847_4645_4443_4241, at: 3 << 20)
      let path = "/proc/\(getpid())/fd/\(file)"
      let bytes = try shell("dd if=\(path) bs=8 skip=\((3 << 20) / 8) count=1 status=none")
      #expect(String(decoding: bytes, as: UTF8.self) == "ABCDEFGH")
    }
  }

  @Test func `Huge pages are bound to a node that has them`() throws {
    let node = try #require(try Host.nodes().first { $0.isUsable && $0.byteCount > ByteCount(0) })
    try withHugePages(2, of: .mib(2)) {
      let arena = try Arena(
        ArenaConfiguration(
          byteCount: .mib(4), backing: .sharedHugeTLB,
          nodeRanges: [.init(startOffset: 0, byteCount: .mib(4), hostNode: node.id)]))
      try arena.prefault(0..<4 << 20, threads: 1)
      #expect(try arena.hostNode(at: 2 << 20) == node.id)
    }
  }

  @Test(arguments: [Backing.anonymousHugeTLB2MiB, .sharedHugeTLB, .anonymousHugeTLB1GiB])
  func `Too few huge pages are said at creation, with the command that gets them`(
    _ backing: Backing
  ) throws {
    let pageSize = backing.pageSize
    guard let pool = try Host.hugePagePools().first(where: { $0.pageSize == pageSize }) else {
      return skip("this host has no pages of \(pageSize)")
    }
    let needed = Int(ByteCount.tib(8).rawValue / pageSize.rawValue)
    let size = pool.total + needed - pool.available
    let before = LiveCounts()
    do {
      _ = try Arena(ArenaConfiguration(byteCount: .tib(8), backing: backing))
      Issue.record("8 TiB of huge pages were found")
    } catch {
      let file =
        pool.isDefault
        ? "/proc/sys/vm/nr_hugepages"
        : "/sys/kernel/mm/hugepages/hugepages-\(pageSize.rawValue >> 10)kB/nr_hugepages"
      #expect(
        error
          == .hugePagesShort(
            pageSize: pageSize, free: pool.available, needed: needed,
            remedy: "echo \(size) > \(file)"))
      #expect(
        "\(error)"
          == "huge pages of \(pageSize): \(pool.available) free, \(needed) needed; to get them: "
          + "echo \(size) > \(file)")
    }
    #expect(LiveCounts() == before)
  }

  @Test func `One page too many is too many`() throws {
    try withHugePages(3, of: .mib(2)) {
      let pool = try #require(try Host.hugePagePools().first { $0.pageSize == .mib(2) })
      let byteCount = ByteCount.mib(UInt64(pool.available + 1) * 2)
      let error = ArenaError.hugePagesShort(
        pageSize: .mib(2), free: pool.available, needed: pool.available + 1,
        remedy: "echo \(pool.total + 1) > \(pool.sizeFile)")
      #expect(throws: error) {
        _ = try Arena(ArenaConfiguration(byteCount: byteCount, backing: .sharedHugeTLB))
      }
      let all = try Arena(
        ArenaConfiguration(byteCount: .mib(UInt64(pool.available) * 2), backing: .sharedHugeTLB))
      #expect(all.byteCount == UInt64(pool.available) * 2 << 20)
    }
  }

  @Test(arguments: forcedErrors)
  func `Each system call of making an arena of huge pages may fail`(_ errno: Errno) throws {
    try withHugePages(2, of: .mib(2)) {
      for backing in [Backing.sharedHugeTLB, .anonymousHugeTLB2MiB] {
        let result = failEachCall(with: errno) {
          let arena = try Arena(ArenaConfiguration(byteCount: .mib(4), backing: backing))
          pm_host_fault_disarm()
          try arena.storeWord(1, at: 0)
        }
        #expect(result.calls >= 1)
      }
    }
  }

  @Test func `A node with too few huge pages is said, with the command that gets them`() throws {
    let file = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    let short = HugePagePool(
      pageSize: .mib(2), total: 10, free: 3, reserved: 0, growthLimit: 0, isDefault: true,
      sizeFile: file)
    let configuration = ArenaConfiguration(
      byteCount: .mib(24), backing: .sharedHugeTLB,
      nodeRanges: [
        .init(startOffset: 0, byteCount: .mib(4), hostNode: 1),
        .init(startOffset: 4 << 20, byteCount: .mib(16), hostNode: nil),
        .init(startOffset: 20 << 20, byteCount: .mib(4), hostNode: 1),
      ])
    #expect(
      throws: ArenaError.hugePagesShort(
        pageSize: .mib(2), free: 3, needed: 4, remedy: "echo 11 > \(file)")
    ) {
      try configuration.checkNodePools { $0 == 1 ? short : nil }
    }
    try configuration.checkNodePools { _ in nil }
  }
}
