import Foundation
import PMArena
import PMGuestMap
import PMHostMap
import PMPageAllocator
import PMRealGuest
import PMUnits
import Testing

extension RealGuestTests {
  /// The same work on a software guest and on a real one.
  @Suite struct Lockstep {
    /// `PHYSMEM_STEPS`, or what takes a few seconds.
    private static var steps: Int {
      if let steps = ProcessInfo.processInfo.environment["PHYSMEM_STEPS"].flatMap({ Int($0) }) {
        return steps
      }
      #if DEBUG
        return 100_000
      #else
        return 300_000
      #endif
    }

    @Test("Software guest and real guest: values, errors, exits and dirty bits are the same")
    func random() throws {
      let before = try KVMCounts()
      let replay =
        "env PHYSMEM_SEED=\(randomSeed) PHYSMEM_STEPS=\(Self.steps) swift test -c release "
        + "-Xswiftc -enable-testing --filter RealGuestTests/Lockstep"
      let report = try RealLockstep.run(seed: randomSeed, steps: Self.steps)
      print("\(report)\nreplay: \(replay)")
      #expect(
        report.mismatches == 0, "\(report.firstMismatch ?? "no text"); replay: \(replay)")
      #expect(report.steps == Self.steps)
      #expect(report.silentUpgrades == 0)
      if Self.steps >= 10_000 {
        #expect(report.accesses > Self.steps / 2)
        #expect(report.deviceAccesses > 0 && report.failedAccesses > 0)
        #expect(report.mappingChanges > 0 && report.slotCalls > 0 && report.dirtyPages > 0)
      }
      #expect(try KVMCounts() == before)
    }

    @Test("The same seed makes the same run")
    func replay() throws {
      var first = try RealLockstep.run(seed: 7, steps: 3000)
      var second = try RealLockstep.run(seed: 7, steps: 3000)
      first.seconds = 0
      second.seconds = 0
      #expect(first == second)
      let other = try RealLockstep.run(seed: 8, steps: 3000)
      #expect(other.deviceAccesses != first.deviceAccesses)
    }

    @Test(
      "A deliberate error is found",
      arguments: MirroredVM.Mistake.allCases.map { RealLockstep.Mistake.mirror($0) } + [
        .staleSoftwareGuest, .skipsRealDirtyLog,
      ])
    func canary(mistake: RealLockstep.Mistake) throws {
      // The finer ones take long to show: a page more or less that is mapped along with another.
      for seed in 1...12 as ClosedRange<UInt64> {
        let report = try RealLockstep.run(
          RealLockstep.Options(seed: seed, steps: 50_000, mistake: mistake))
        guard let text = report.firstMismatch else { continue }
        print("\(mistake), seed \(seed), step \(report.steps): \(text)")
        return
      }
      Issue.record("\(mistake) was not noticed")
    }

    @Test("What the host's KVM is like can be found out")
    func model() throws {
      let found = try RealVM.modelConfiguration()
      let real = try RealVM(RealVM.Configuration(hasGuest: false))
      let limit = found.capabilities.userAddressLimit
      func set(_ address: UInt64, _ userspaceAddress: UInt64) -> Int32 {
        real.setMemoryRegion(
          slot: 1, flags: 0, guestPhysicalAddress: address, memorySize: 4096,
          userspaceAddress: userspaceAddress)
      }
      #expect(set(0, limit) == EINVAL)
      #expect(set(0, limit - 4096) == 0)
      let last = found.capabilities.lastGFN.guestPhysicalAddress
      #expect(
        real.setMemoryRegion(
          slot: 2, flags: 0, guestPhysicalAddress: last, memorySize: 4096, userspaceAddress: 1 << 30
        )
          == 0)
    }
  }
}

// MARK: - One step at a time

extension RealGuestTests {
  /// An emulated process with 16 pages of anonymous memory in slot 1, and a real guest on them.
  private final class Pair {
    static let base: UInt64 = 0x7000_0000_0000
    let process: HostProcess
    let mirror: MirroredVM
    var cpu: CPU

    init() throws {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      cpu = try machine.claimCPU(0)
      let kernel = try HostKernel(machine: machine, behaviour: .linux618, on: &cpu)
      process = HostProcess(kernel: kernel)
      let vm = try VirtualMachine(
        process: process, configuration: try RealVM.modelConfiguration())
      mirror = try MirroredVM(vm, base: Pair.base, pageCount: 16, on: &cpu)
      try process.map(
        HostProcess.MapRequest(byteCount: 16 * 4096, address: Pair.base), on: &cpu)
      let answer = try mirror.setMemoryRegion(
        MemoryRegion(
          slot: 1, guestPhysicalAddress: slotStart, memorySize: 16 * 4096,
          userspaceAddress: Pair.base), on: &cpu)
      try #require(answer.emulated == 0 && answer.isEqual)
    }

    deinit { try? mirror.close(on: &cpu) }

    func submit(_ access: RealAccess, _ expected: GuestAccess) throws {
      try mirror.submit(access, expecting: expected, on: &cpu)
      try mirror.flush()
    }

    /// Makes a call about a slot that shows the pages from `first`; true if both machines agree.
    func set(
      slot: UInt32 = 1, flags: UInt32 = 0, gpa: UInt64 = slotStart, first: UInt64 = 0,
      count: UInt64 = 16
    ) throws -> MirroredAnswer {
      try mirror.setMemoryRegion(
        MemoryRegion(
          slot: slot, flags: flags, guestPhysicalAddress: gpa, memorySize: count * 4096,
          userspaceAddress: Pair.base + first * 4096), on: &cpu)
    }

    /// The process writes to pages, which then have entries that a guest can have for nothing.
    func touch(_ pages: Range<UInt64>) throws {
      for page in pages { try process.write32(Pair.base + page * 4096, 0, on: &cpu) }
      try mirror.sync(pages: 0..<16)
    }

    /// The pages of a slot, from `gpa`, that the guest does not have: log, read, look.
    func missing(slot: UInt32 = 1, gpa: UInt64 = slotStart, first: UInt64 = 0, count: UInt64 = 16)
      throws -> MirroredAnswer
    {
      let answer = try set(slot: slot, flags: logDirtyPages, gpa: gpa, first: first, count: count)
      try #require(answer.emulated == 0 && answer.isEqual)
      for page in 0..<count { try submit(.read(gpa + page * 4096), .done(0)) }
      return try mirror.dirtyLog(slot: slot, pageCount: Int(count), on: &cpu)
    }

    var isShadow: Bool { mirror.vm.configuration.mmu == .shadow }

    func unmap(page: Int) throws {
      let address = mirror.address(of: page)
      try process.unmap(address..<address + 4096, on: &cpu)
      try mirror.sync()
    }

    var fault: GuestAccess { .failed(.efault, exitReasonIsSet: mirror.vm.era == .c) }
  }

  /// The coupling of an emulated machine with a real one.
  @Suite struct MirroredMachines {
    @Test("What the emulated process unmaps the real guest loses, and its data stays in the arena")
    func unmap() throws {
      let pair = try Pair()
      try pair.submit(.write(0x1234, to: slotStart + 4096), .done(0))
      let pfn = try #require(pair.process.frame(at: pair.mirror.address(of: 1)))
      let bytes = pair.process.kernel.machine.arena.base + Int(pfn.physicalAddress)
      #expect(bytes.load(as: UInt32.self) == 0x1234)
      try pair.submit(.read(slotStart + 4096), .done(0x1234))
      try pair.unmap(page: 1)
      try pair.submit(.read(slotStart + 4096), pair.fault)
      try pair.submit(.read(slotStart + 2 * 4096), .done(0))
      #expect(pair.mirror.mismatches == [])
    }

    @Test("One unmap that is left out is noticed by the next access")
    func skippedUnmap() throws {
      let pair = try Pair()
      try pair.submit(.write(0x1234, to: slotStart + 4096), .done(0))
      pair.mirror.mistake = .skipsUnmap
      try pair.unmap(page: 1)
      pair.mirror.mistake = nil
      try pair.submit(.read(slotStart + 4096), pair.fault)
      #expect(pair.mirror.mismatches.count == 1)
      #expect(pair.mirror.mismatches.first?.contains("the real guest got 0x1234") == true)
    }

    @Test("A wrong value is noticed")
    func wrongValue() throws {
      let pair = try Pair()
      try pair.submit(.write(7, to: slotStart), .done(0))
      try pair.submit(.read(slotStart), .done(8))
      #expect(pair.mirror.mismatches.count == 1)
    }

    @Test("A zero page is replaced by a copy when the guest writes, in both")
    func copyOnWrite() throws {
      let pair = try Pair()
      try pair.submit(.read(slotStart + 3 * 4096), .done(0))
      let address = pair.mirror.address(of: 3)
      #expect(pair.process.frame(at: address) == pair.process.kernel.zeroPage)
      try pair.submit(.write(5, to: slotStart + 3 * 4096), .done(0))
      #expect(pair.process.frame(at: address) != pair.process.kernel.zeroPage)
      try pair.submit(.read(slotStart + 3 * 4096), .done(5))
      #expect(pair.mirror.mismatches == [])
    }

    @Test("Neighbours of another slot are mapped along with a page")
    func prefetchOfAnotherSlot() throws {
      let pair = try Pair()
      try #require(try pair.set(count: 0).isEqual)
      try #require(try pair.set(slot: 1, count: 4).isEqual)
      try #require(
        try pair.set(slot: 2, gpa: slotStart + 4 * 4096, first: 4, count: 4).isEqual)
      try pair.touch(0..<8)
      try pair.submit(.read(slotStart + 4 * 4096), .done(0))
      let log = try pair.missing(slot: 1, count: 4)
      #expect(log.isEqual, "\(log)")
      if pair.isShadow { #expect(log.realLog == [0]) }
      #expect(pair.mirror.mismatches == [])
    }

    @Test("A write to a protected page of a slot that logs no more maps neighbours")
    func noFastFault() throws {
      let pair = try Pair()
      try pair.touch(0..<8)
      try pair.submit(.write(0, to: slotStart), .done(0))
      for flags in [logDirtyPages, 0] {
        let answer = try pair.set(flags: flags)
        try #require(answer.emulated == 0 && answer.isEqual)
      }
      // Page 1 loses its translation, page 0 has one without the right to write.
      try pair.unmap(page: 1)
      try pair.process.map(
        HostProcess.MapRequest(byteCount: 4096, address: Pair.base + 4096), on: &pair.cpu)
      try pair.touch(1..<2)
      try pair.submit(.write(0, to: slotStart), .done(0))
      let log = try pair.missing()
      #expect(log.isEqual, "\(log)")
      if pair.isShadow { #expect(log.realLog[0] & 0xff == 0) }
      #expect(pair.mirror.mismatches == [])
    }

    @Test("A move beyond the last guest frame fails, and costs all translations")
    func lateRefusal() throws {
      let pair = try Pair()
      try pair.touch(0..<8)
      try pair.submit(.write(0, to: slotStart), .done(0))
      let answer = try pair.set(gpa: 1 << 52)
      #expect(answer.real == EINVAL && answer.isEqual)
      let log = try pair.missing()
      #expect(log.isEqual, "\(log)")
      #expect(log.realLog[0] & 0xff == 0xff)
      #expect(pair.mirror.mismatches == [])
    }

    @Test("Memory outside of the mirrored range is refused before the real kernel hears of it")
    func outside() throws {
      let pair = try Pair()
      #expect(throws: RealGuestError.self) {
        try pair.mirror.setMemoryRegion(
          MemoryRegion(
            slot: 2, guestPhysicalAddress: slotStart + 0x10_0000, memorySize: 2 * 4096,
            userspaceAddress: Pair.base + 15 * 4096), on: &pair.cpu)
      }
    }
  }
}
