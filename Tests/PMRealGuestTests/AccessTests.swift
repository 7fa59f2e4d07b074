import Glibc
import PMArena
import PMRealGuest
import Testing

extension RealGuestTests {
  /// Single accesses, and what ends them.
  @Suite struct Accesses {
    @Test("Reads of each size see the arena, zero-extended")
    func reads() throws {
      let stage = try Stage()
      stage.arena.base.storeBytes(of: 0x8877_6655_f4f3_f2f1, toByteOffset: 4096, as: UInt64.self)
      let values: [(RealAccessSize, UInt64)] = [
        (.one, 0xf1), (.two, 0xf2f1), (.four, 0xf4f3_f2f1), (.eight, 0x8877_6655_f4f3_f2f1),
      ]
      for (size, value) in values {
        let outcome = try stage.perform(.read(slotStart + 4096, size))
        #expect(outcome == .done(value: value), "\(size)")
      }
      #expect(try stage.perform(.read(slotStart + 4101, .two)) == .done(value: 0x7766))
    }

    @Test("Writes of each size land in the arena, and touch nothing else")
    func writes() throws {
      let stage = try Stage()
      for (index, size) in RealAccessSize.allCases.enumerated() {
        let offset = UInt64(4096 * index + 8)
        for byte in 0..<24 {
          stage.arena.base.storeBytes(
            of: 0xaa, toByteOffset: Int(offset) - 8 + byte, as: UInt8.self)
        }
        let outcome = try stage.perform(.write(0x1122_3344_5566_7788, to: slotStart + offset, size))
        #expect(outcome == .done(value: 0x1122_3344_5566_7788 & size.mask))
        let found = (0..<24).map {
          stage.arena.base.load(fromByteOffset: Int(offset) - 8 + $0, as: UInt8.self)
        }
        let written: [UInt8] = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
        var expected = [UInt8](repeating: 0xaa, count: 24)
        expected.replaceSubrange(8..<8 + size.rawValue, with: written.prefix(size.rawValue))
        #expect(found == expected, "\(size)")
      }
    }

    @Test("An access across a page border reaches both pages")
    func crossing() throws {
      let stage = try Stage()
      let address = slotStart + 4094
      #expect(try stage.perform(.write(0x9988_7766, to: address)) == .done(value: 0x9988_7766))
      #expect(stage.word(4094) == 0x9988_7766)
      #expect(try stage.perform(.read(address)) == .done(value: 0x9988_7766))
    }

    @Test("Where no slot is there is device memory; the guest goes on behind it")
    func noSlot() throws {
      let stage = try Stage()
      let outside = slotStart + 0x100_0000
      for size in RealAccessSize.allCases {
        let read = try stage.perform(.read(outside, size))
        #expect(read == mmio(outside, size.rawValue, isWrite: false))
        let write = try stage.perform(.write(1, to: outside, size))
        #expect(write == mmio(outside, size.rawValue, isWrite: true))
      }
      stage.store(77, at: 0)
      #expect(try stage.perform(.read(slotStart)) == .done(value: 77))
    }

    @Test("A read-only slot can be read; writes are device memory")
    func readOnlySlot() throws {
      let stage = try Stage(flags: readOnly)
      stage.store(55, at: 4096)
      #expect(try stage.perform(.read(slotStart + 4096)) == .done(value: 55))
      let write = try stage.perform(.write(1, to: slotStart + 4096))
      #expect(write == mmio(slotStart + 4096, isWrite: true))
      #expect(stage.word(4096) == 55)
    }

    @Test("Where the host has nothing mapped the run fails")
    func unmapped() throws {
      let stage = try Stage(pages: 4)
      let range = try MirroredRange(byteCount: 16 * 4096, of: stage.arena)
      let errno = stage.machine.setMemoryRegion(
        slot: 2, flags: 0, guestPhysicalAddress: slotStart + 0x20_0000, memorySize: 16 * 4096,
        userspaceAddress: range.userspaceAddress)
      #expect(errno == 0)
      #expect(isFailure(try stage.perform(.read(slotStart + 0x20_0000)), EFAULT))
      #expect(isFailure(try stage.perform(.write(1, to: slotStart + 0x20_0000)), EFAULT))
    }

    @Test("The guest refuses what is not in its reach, or is its own")
    func reach() throws {
      let stage = try Stage()
      for address in [0, stage.machine.privateByteCount - 1, 4 << 30, (4 << 30) - 3, .max] {
        #expect(
          throws: RealGuestError.unreachable(guestPhysicalAddress: address, byteCount: 4)
        ) { try stage.perform(.read(address)) }
      }
      let last: UInt64 = (4 << 30) - 4
      #expect(try stage.perform(.read(last)) == mmio(last, isWrite: false))
    }

    @Test("A guest of 512 GiB reaches its last bytes")
    func farReach() throws {
      let stage = try Stage(RealVM.Configuration(reachGiB: 512))
      let start: UInt64 = (512 << 30) - 64 * 4096
      let errno = stage.machine.setMemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: start, memorySize: 64 * 4096,
        userspaceAddress: address(stage.arena.base))
      #expect(errno == 0)
      let last = (512 << 30) - UInt64(8)
      #expect(try stage.perform(.write(.max, to: last, .eight)) == .done(value: .max))
      #expect(stage.word(64 * 4096 - 4) == .max)
    }

    @Test("A stop ends accesses until it is taken back")
    func stop() throws {
      let stage = try Stage()
      stage.machine.requestStop()
      #expect(try stage.perform(.read(slotStart)) == .interrupted)
      var script = [RealAccess](repeating: .write(5, to: slotStart), count: 3)
      let stopped = try stage.machine.perform(script: &script)
      #expect(stopped.endIndex == 0)
      #expect(stopped.stops == [.init(index: 0, outcome: .interrupted)])
      #expect(stage.word(0) == 0)
      stage.machine.clearStop()
      #expect(try stage.machine.perform(script: &script).endIndex == 3)
      #expect(stage.word(0) == 5)
    }

    @Test("A machine without a guest has regions and no accesses")
    func noGuest() throws {
      let machine = try RealVM(RealVM.Configuration(hasGuest: false))
      #expect(machine.privateByteCount == 0)
      #expect(throws: RealGuestError.noGuest) { try machine.perform(.read(slotStart)) }
      let arena = try makeArena(pages: 4)
      let errno = machine.setMemoryRegion(
        slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: 4 * 4096,
        userspaceAddress: address(arena.base))
      #expect(errno == 0)
    }

    @Test("Impossible machines are refused before the kernel is asked")
    func impossible() {
      for gigabytes in [0, -1, 513, .max] {
        #expect(throws: RealGuestError.self) {
          try RealVM(RealVM.Configuration(reachGiB: gigabytes))
        }
      }
      #expect(throws: RealGuestError.self) {
        try RealVM(RealVM.Configuration(dirtyRingByteCount: -1))
      }
      #expect(
        throws: RealGuestError.host(operation: "a dirty ring of 100 bytes", errno: EINVAL)
      ) { try RealVM(RealVM.Configuration(dirtyRingByteCount: 100)) }
    }
  }
}
