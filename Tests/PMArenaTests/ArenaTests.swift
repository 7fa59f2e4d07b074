import CPhysmemShim
import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

/// Backings that need nothing of the host but memory.
let plainBackings: [Backing] = [.memfd, .anonymous, .anonymousTHP, .shmem]

@Suite struct ArenaTests {
  @Test(arguments: plainBackings)
  func `New memory is zero, aligned to 2 MiB and of the size asked for`(_ backing: Backing) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(6), backing: backing))
    #expect(arena.byteCount == 6 << 20)
    #expect(arena.backing == backing)
    #expect(UInt(bitPattern: arena.base) % (2 << 20) == 0)
    #expect((arena.fileDescriptor != nil) == backing.isShared)
    let bytes = UnsafeRawBufferPointer(start: arena.base, count: Int(arena.byteCount))
    #expect(bytes.allSatisfy { $0 == 0 })
  }

  @Test(arguments: plainBackings)
  func `Nothing is left when the arena ends`(_ backing: Backing) throws {
    let before = LiveCounts()
    do {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(4), backing: backing))
      #expect(pm_host_thread_live_mappings() == before.mappings + 1)
      #expect(pm_host_thread_live_fds() == before.descriptors + (backing.isShared ? 1 : 0))
      #expect(arena.byteCount == 4 << 20)
    }
    #expect(LiveCounts() == before)
  }

  @Test func `Sizes of zero, of broken pages and above 8 TiB are refused`() throws {
    func refusal(_ byteCount: ByteCount, _ backing: Backing = .memfd) -> String? {
      do {
        _ = try Arena(ArenaConfiguration(byteCount: byteCount, backing: backing))
        return nil
      } catch {
        guard case .invalidSize(byteCount, _) = error else { return "another error: \(error)" }
        return "\(error)"
      }
    }
    #expect(refusal(ByteCount(0)) == "an arena cannot have 0B: it must have some memory")
    #expect(
      refusal(ByteCount(4097)) == "an arena cannot have 4097B: the pages of memfd have 4KiB each")
    #expect(
      refusal(.mib(3), .sharedHugeTLB)
        == "an arena cannot have 3MiB: the pages of shared_hugetlb have 2MiB each")
    #expect(
      refusal(.mib(512), .anonymousHugeTLB1GiB)
        == "an arena cannot have 512MiB: the pages of anonymous_hugetlb_1gb have 1GiB each")
    #expect(
      refusal(ByteCount(8 << 40 + 4096))
        == "an arena cannot have \(ByteCount(8 << 40 + 4096)): the largest is 8TiB")
    #expect(refusal(ByteCount(UInt64.max)) != nil)
  }

  @Test(arguments: plainBackings)
  func `The largest arena is one of 8 TiB and its last word can be used`(_ backing: Backing) throws
  {
    guard hasAddressesForTheLargest else { return skip("8 TiB of addresses are not free here") }
    let arena = try Arena(ArenaConfiguration(byteCount: .tib(8), backing: backing))
    let last = PFN.max.physicalAddress + 4088
    try arena.storeWord(0xfeed, at: last)
    #expect(try arena.loadWord(at: last) == 0xfeed)
  }

  @Test func `Creating an arena makes five system calls whatever its size`() throws {
    for byteCount in [ByteCount.mib(2), .tib(1)] {
      pm_host_fault_arm(.PM_HOST_CALL_ANY, 1, 0)
      let arena = try Arena(ArenaConfiguration(byteCount: byteCount))
      #expect(pm_host_fault_calls(.PM_HOST_CALL_ANY) == 5)
      #expect(pm_host_fault_calls(.PM_HOST_CALL_MEMFD_CREATE) == 1)
      #expect(pm_host_fault_calls(.PM_HOST_CALL_FTRUNCATE) == 1)
      #expect(pm_host_fault_calls(.PM_HOST_CALL_SEAL) == 1)
      #expect(pm_host_fault_calls(.PM_HOST_CALL_MMAP) == 2)
      #expect(arena.byteCount == byteCount.rawValue)
    }
  }

  @Test(arguments: plainBackings)
  func `Bytes and words read back, and only inside the arena`(_ backing: Backing) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: backing))
    let written: [UInt8] = Array(1...100)
    var found = [UInt8](repeating: 0, count: 100)
    try written.withUnsafeBytes { bytes in try arena.write(bytes, at: 4090) }
    try found.withUnsafeMutableBytes { buffer in try arena.read(into: buffer, at: 4090) }
    #expect(found == written)
    try arena.storeWord(0x0102_0304_0506_0708, at: 8)
    #expect(try arena.loadWord(at: 8) == 0x0102_0304_0506_0708)
    #expect(throws: ArenaError.unaligned(offset: 12, byteCount: 8, unit: ByteCount(8))) {
      try arena.loadWord(at: 12)
    }
    for offset: UInt64 in [(2 << 20) - 99, 2 << 20, UInt64.max] {
      let expected = ArenaError.outOfRange(
        offset: offset, byteCount: 100, arenaByteCount: 2 << 20)
      #expect(throws: expected) {
        try written.withUnsafeBytes { bytes in try arena.write(bytes, at: offset) }
      }
      #expect(throws: expected) {
        try found.withUnsafeMutableBytes { buffer in try arena.read(into: buffer, at: offset) }
      }
    }
    #expect(throws: ArenaError.outOfRange(offset: 2 << 20, byteCount: 8, arenaByteCount: 2 << 20)) {
      try arena.storeWord(1, at: 2 << 20)
    }
    try written.withUnsafeBytes { bytes in try arena.write(bytes, at: (2 << 20) - 100) }
  }

  @Test func `A word is never torn while two threads write it`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
    let values: [UInt64] = [0x1111_1111_1111_1111, 0x2222_2222_2222_2222]
    try arena.storeWord(values[0], at: 64)
    DispatchQueue.concurrentPerform(iterations: 3) { index in
      for _ in 0..<20_000 {
        if index < 2 {
          try? arena.storeWord(values[index], at: 64)
        } else {
          let found = (try? arena.loadWord(at: 64)) ?? 0
          if !values.contains(found) { Issue.record("torn: \(found)") }
        }
      }
    }
  }

  @Test func `A reserved memory file has all its pages at creation`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(130), reserve: true))
    let file = try arena.requiredDescriptor()
    #expect(try allocatedByteCount(of: file) == 130 << 20)
    let lazy = try Arena(ArenaConfiguration(byteCount: .mib(130)))
    #expect(try allocatedByteCount(of: lazy.requiredDescriptor()) == 0)
  }

  @Test func `A memory file larger than the host's memory is not reserved`() throws {
    guard hasAddressesForTheLargest else { return skip("8 TiB of addresses are not free here") }
    let before = LiveCounts()
    do {
      _ = try Arena(ArenaConfiguration(byteCount: .tib(8), reserve: true))
      Issue.record("8 TiB were reserved")
    } catch {
      #expect(hostErrno(of: error) == .noMemory)
      #expect("\(error)".hasPrefix("reserving 8TiB with "))
    }
    #expect(LiveCounts() == before)
  }

  @Test func `Private memory is accounted only if it is reserved`() throws {
    for reserve in [false, true] {
      let arena = try Arena(
        ArenaConfiguration(byteCount: .mib(4), backing: .anonymous, reserve: reserve))
      let flags = try #require(try smaps(at: arena.base)["VmFlags"]).split(separator: " ")
      #expect(flags.contains("nr") == !reserve)
      #expect(flags.contains("nh"), "no transparent huge pages")
    }
  }
}
