import CPhysmemShim
import Physmem
import SystemPackage
import Testing

@Suite struct FaultTests {
  private static let errors: [Errno] = [.noMemory, .tooManyOpenFiles, .notPermitted]

  @Test(arguments: errors, [Backing.memfd, .anonymous])
  func `Each system call of adding a region may fail, and nothing is left`(
    _ errno: Errno, _ backing: Backing
  ) throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    try memory.startTrackingDirtyPages()
    let calls = failEachCall(with: errno) {
      do {
        try memory.add(.ram(at: GPA(1 << 20), byteCount: .mib(1), backing: backing))
      } catch {
        #expect(memory.regions.count == 1)
        throw error
      }
      pm_host_fault_disarm()
      try memory.removeRegion(at: GPA(1 << 20))
    }
    #expect(calls >= 4)
  }

  @Test(arguments: errors)
  func `Each system call of mapping a file may fail`(_ errno: Errno) throws {
    let owner = GuestMemory()
    try owner.add(.ram(at: GPA(0), byteCount: .mib(1)))
    let file = try #require(owner.regions[0].fileDescriptor)
    let memory = GuestMemory()
    let calls = failEachCall(with: errno) {
      try memory.add(.pmem(at: GPA(0), byteCount: .mib(1), file: file))
      pm_host_fault_disarm()
      try memory.removeRegion(at: GPA(0))
    }
    #expect(calls >= 4)
  }

  @Test(arguments: errors)
  func `Each system call of a fork may fail, and the memory is as it was`(_ errno: Errno) throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    try memory.add(.ram(at: GPA(1 << 20), byteCount: .mib(1), backing: .anonymous))
    try memory.write([1, 2, 3], at: GPA((1 << 20) - 1))
    let calls = failEachCall(with: errno) {
      do {
        let child = try memory.fork()
        pm_host_fault_disarm()
        #expect(try child.bytes(at: GPA((1 << 20) - 1), count: 3) == [1, 2, 3])
      } catch {
        pm_host_fault_disarm()
        try memory.write([1, 2, 3], at: GPA((1 << 20) - 1))
        #expect(try memory.bytes(at: GPA((1 << 20) - 1), count: 3) == [1, 2, 3])
        throw error
      }
    }
    #expect(calls >= 6)
  }

  /// All that a merge makes, except that it unmaps: that fails at the limit of mappings only, and loses addresses.
  private static let mergeCalls: [pm_host_call] = [
    .PM_HOST_CALL_OPEN, .PM_HOST_CALL_READ, .PM_HOST_CALL_MADVISE, .PM_HOST_CALL_MEMFD_CREATE,
    .PM_HOST_CALL_FTRUNCATE, .PM_HOST_CALL_SEAL, .PM_HOST_CALL_MMAP,
  ]

  @Test(arguments: errors, mergeCalls)
  func `Each system call of a merge may fail, and no byte is lost`(
    _ errno: Errno, _ call: pm_host_call
  ) throws {
    func check(_ memory: GuestMemory) throws {
      for page in 0..<UInt64(128) {
        let word = try memory.load(UInt64.self, at: GPA(page << 12 + 64))
        #expect(word == page % 3 * 0x101_0101_0101_0101)
      }
    }
    var calls = 0
    for ordinal in 1...UInt32(100) {
      let before = LiveCounts()
      let memory = GuestMemory()
      try memory.add(.ram(at: GPA(0), byteCount: .kib(512), backing: .anonymous))
      for page in 0..<UInt64(128) {
        try memory.fill(
          GuestRange(start: GPA(page << 12), byteCount: 4096), with: UInt8(page % 3))
      }
      let made = LiveCounts()
      pm_host_fault_arm(call, ordinal, errno.rawValue)
      let result = Result { try memory.mergePages() }
      pm_host_fault_disarm()
      #expect(LiveCounts() == made && made != before)
      try check(memory)
      guard pm_host_fault_fired() else {
        #expect(try result.get().mergedPages == 85)
        break
      }
      calls += 1
      guard case .failure(GuestMemoryError.arena(.host(let error))) = result else {
        // What has a second way: memory files before Linux 6.3.
        continue
      }
      #expect(error.errno == errno)
      // The next one does what is left.
      _ = try memory.mergePages()
      try check(memory)
    }
    #expect(calls >= 1)
  }

  @Test func `A discard that fails leaves the bytes, and the balloon as it was`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    try memory.store(UInt64(5), at: GPA(0x2000))
    let page = GuestRange(start: GPA(0x2000), byteCount: 4096)
    let calls = failEachCall(with: .notPermitted) {
      do { try memory.inflateBalloon(page) } catch {
        #expect(try memory.load(UInt64.self, at: GPA(0x2000)) == 5)
        #expect(memory.balloonedByteCount == 0)
        throw error
      }
    }
    #expect(calls == 1)
    #expect(memory.balloonedByteCount == 4096)
  }
}
