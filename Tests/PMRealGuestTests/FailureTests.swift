import CPhysmemShim
import Glibc
import PMArena
import PMRealGuest
import Testing

extension RealGuestTests {
  /// Nothing is left behind, whatever the host refuses.
  @Suite struct Failures {
    /// A whole life: a machine, a mirrored range, regions and accesses.
    private func live(_ arena: borrowing Arena) throws {
      let range = try MirroredRange(byteCount: 16 * 4096, of: arena)
      try range.map(page: 0, physicalAddress: 0, byteCount: 8 * 4096, isWritable: true)
      try range.protect(pages: 4..<8, .read)
      try range.unmap(pages: 6..<8)
      try range.zap(pages: 0..<4)
      let memory = try PrivateRange(byteCount: 4 * 4096)
      try memory.map(pages: 0..<4)
      try memory.move(pages: 0..<1, to: 2)
      try memory.protect(pages: 0..<1, .none)
      try memory.discard(pages: 1..<2)
      try memory.unmap(pages: 3..<4)
      let machine = try RealVM(
        RealVM.Configuration(dirtyRingByteCount: ringBytes, vcpuCount: 2))
      let errno = machine.setMemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: slotStart, memorySize: 16 * 4096,
        userspaceAddress: range.userspaceAddress)
      guard errno == 0 else { throw RealGuestError.host(operation: "a region", errno: errno) }
      let outcomes = [
        try machine.perform(.write(9, to: slotStart)), try machine.perform(.read(slotStart)),
        try machine.perform(.read(slotStart + 0x100_0000)),
      ]
      var script: [RealAccess] = [.read(slotStart), .read(slotStart + 0x100_0000)]
      let report = try machine.perform(script: &script)
      for outcome in outcomes + report.stops.map(\.outcome) {
        guard case .failed(let errno, let reason) = outcome else { continue }
        #expect(reason == RealVM.unsetExitReason || reason == 0)
        throw RealGuestError.host(operation: "a run", errno: errno)
      }
      pm_host_fault_disarm()
      #expect(outcomes[1] == .done(value: 9))
    }

    @Test(
      "Each system call fails once: its error comes out, and nothing is left",
      arguments: [ENOMEM, EMFILE, EINTR])
    func eachCall(forced: Int32) throws {
      let arena = try makeArena(pages: 16)
      try live(arena)
      let before = try KVMCounts()
      var ordinal: UInt32 = 1
      var unnoticed = 0
      while true {
        pm_host_fault_arm(.PM_HOST_CALL_ANY, ordinal, forced)
        var failure: RealGuestError?
        do {
          try live(arena)
        } catch let error as RealGuestError {
          failure = error
        }
        pm_host_fault_disarm()
        #expect(try KVMCounts() == before, "call \(ordinal)")
        guard pm_host_fault_fired() else {
          #expect(failure == nil)
          break
        }
        if let failure {
          guard case .host(_, forced) = failure else {
            Issue.record("call \(ordinal): \(failure)")
            break
          }
          #expect(forced != EINTR, "call \(ordinal): \(failure)")
        } else {
          unnoticed += 1
        }
        ordinal += 1
      }
      // Interrupted calls are repeated. Of all others the caller is told, but for the close of
      // /dev/kvm: a descriptor is closed whatever close says.
      #expect(unnoticed == (forced == EINTR ? Int(ordinal) - 1 : 1))
      #expect(ordinal > 30, "\(ordinal - 1) calls")
    }

    @Test("Machines and ranges close and unmap everything")
    func nothingLeft() throws {
      let arena = try makeArena(pages: 16)
      let before = try KVMCounts()
      for _ in 0..<20 { try live(arena) }
      #expect(try KVMCounts() == before)
    }

    @Test("A machine's end closes its descriptors")
    func end() throws {
      let before = try KVMCounts()
      var machine: RealVM? = try RealVM()
      let with = try KVMCounts()
      #expect(with.descriptors == before.descriptors + 2)  // the machine and its vCPU
      #expect(with.mappings == before.mappings + 1)
      #expect(machine != nil)
      machine = nil
      #expect(try KVMCounts() == before)
    }

    @Test("Errors read well")
    func texts() {
      let host = RealGuestError.host(operation: "KVM_CREATE_VM", errno: ENOMEM)
      #expect("\(host)" == "KVM_CREATE_VM: ENOMEM")
      let reach = RealGuestError.unreachable(guestPhysicalAddress: 0x10, byteCount: 4)
      #expect("\(reach)" == "the guest cannot access 4 bytes at 0x10")
      #expect("\(RealGuestError.host(operation: "x", errno: 9999))" == "x: errno 9999")
    }
  }
}
