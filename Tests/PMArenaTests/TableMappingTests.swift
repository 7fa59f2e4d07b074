import CPhysmemShim
import PMArena
import PMUnits
import SystemPackage
import Testing

@Suite struct TableMappingTests {
  @Test(arguments: [1, 4096, 100_000, 4 << 20, 100 << 20])
  func `A table is zero, can be written and takes memory only where it is touched`(
    _ byteCount: Int
  ) throws {
    let before = LiveCounts()
    do {
      let table = try TableMapping(byteCount: byteCount)
      #expect(table.byteCount == byteCount)
      #expect(UInt(bitPattern: table.base) % 4096 == 0)
      if byteCount >= 4 << 20 { #expect(UInt(bitPattern: table.base) % (2 << 20) == 0) }
      let last = table.base + (byteCount - 1)
      #expect(last.load(as: UInt8.self) == 0)
      last.storeBytes(of: 1, as: UInt8.self)
      #expect(last.load(as: UInt8.self) == 1)
    }
    #expect(LiveCounts() == before)
  }

  @Test func `A table of a tebibyte costs two mappings and no memory`() throws {
    pm_host_fault_arm(.PM_HOST_CALL_ANY, 1, 0)
    let table = try TableMapping(byteCount: 1 << 40)
    #expect(pm_host_fault_calls(.PM_HOST_CALL_ANY) == 2)
    #expect(try residentByteCount(at: table.base) == 0)
  }

  @Test func `Huge pages are advised from 4 MiB on, and a refusal changes nothing`() throws {
    let small = try TableMapping(byteCount: 2 << 20)
    let large = try TableMapping(byteCount: 4 << 20)
    pm_host_fault_arm(.PM_HOST_CALL_ANY, 1, Errno.invalidArgument.rawValue)
    small.adviseHugePages()
    #expect(!pm_host_fault_fired())
    large.adviseHugePages()
    #expect(pm_host_fault_fired())
    pm_host_fault_disarm()
    large.adviseHugePages()
    if try Host.transparentHugePages().anonymous != nil {
      let flags = try #require(try smaps(at: large.base)["VmFlags"])
      #expect(flags.split(separator: " ").contains("hg"))
    }
    large.base.storeBytes(of: 1, as: UInt8.self)
  }

  @Test(arguments: [1 << 16, 8 << 20], forcedErrors)
  func `Each system call of making a table may fail`(_ byteCount: Int, _ errno: Errno) throws {
    let result = failEachCall(with: errno) {
      let table = try TableMapping(byteCount: byteCount)
      pm_host_fault_disarm()
      table.base.storeBytes(of: 1, as: UInt8.self)
    }
    #expect(result.calls == (byteCount >= 4 << 20 ? 2 : 1))
    #expect(result.survived == (errno == .interrupted ? result.calls : 0))
  }

  @Test func `The host's refusal is passed on with the size`() throws {
    do {
      _ = try TableMapping(byteCount: 1 << 50)
      Issue.record("a pebibyte was mapped")
    } catch {
      #expect(error == HostError(operation: "mmap of 1024TiB", errno: .noMemory))
    }
    #expect(throws: HostError(operation: "mmap of 0B", errno: .invalidArgument)) {
      try TableMapping.probe(byteCount: 0)
    }
  }
}

extension TableMapping {
  /// Makes a table and ends it.
  fileprivate static func probe(byteCount: Int) throws {
    _ = try TableMapping(byteCount: byteCount)
  }
}
