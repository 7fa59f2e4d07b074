import Glibc
import PMArena
import PMRealGuest
import Testing

extension RealGuestTests {
  /// Memory regions and their errors, and dirty logs.
  @Suite struct Regions {
    @Test("Both forms of the call say the same", arguments: [RealRegionForm.first, .second])
    func errors(form: RealRegionForm) throws {
      let stage = try Stage(pages: 16, slotPages: 4)
      // KVM_CAP_USER_MEMORY2.
      if form == .second, try stage.machine.checkExtension(231) == 0 { return }
      func set(
        slot: UInt32 = 2, flags: UInt32 = 0, at guest: UInt64 = slotStart + 0x10_0000,
        size: UInt64 = 4 * 4096, offset: UInt64 = 0
      ) -> Int32 {
        stage.machine.setMemoryRegion(
          slot: slot, flags: flags, guestPhysicalAddress: guest, memorySize: size,
          userspaceAddress: address(stage.arena.base) + offset, form: form)
      }
      #expect(set() == 0)
      #expect(set() == 0)  // nothing changes
      #expect(set(flags: logDirtyPages) == 0)
      #expect(set(flags: readOnly) == EINVAL)
      #expect(set(flags: 1 << 31) == EINVAL)
      #expect(set(size: 8 * 4096) == EINVAL)
      #expect(set(slot: 3, at: slotStart + 3 * 4096) == EEXIST)
      #expect(set(slot: 3, at: 0) == EEXIST)  // the guest's own slot
      #expect(set(slot: 3, size: 0) == EINVAL)
      #expect(set(slot: 3, at: slotStart + 0x20_0000, size: 4095) == EINVAL)
      #expect(set(slot: 3, at: slotStart + 0x20_0001) == EINVAL)
      #expect(set(slot: 3, at: slotStart + 0x20_0000, offset: 1) == EINVAL)
      #expect(set(slot: 0xffff, at: slotStart + 0x20_0000) == EINVAL)
      #expect(set(size: 0) == 0)
      #expect(set(size: 0) == EINVAL)
    }

    @Test("A slot can be deleted, made again and moved")
    func changes() throws {
      let stage = try Stage(pages: 16)
      stage.store(11, at: 0)
      func set(_ guest: UInt64, _ size: UInt64 = 16 * 4096) -> Int32 {
        stage.machine.setMemoryRegion(
          slot: 1, flags: 0, guestPhysicalAddress: guest, memorySize: size,
          userspaceAddress: address(stage.arena.base))
      }
      #expect(try stage.perform(.read(slotStart)) == .done(value: 11))
      #expect(set(slotStart, 0) == 0)
      #expect(try stage.perform(.read(slotStart)) == mmio(slotStart, isWrite: false))
      #expect(set(slotStart) == 0)
      #expect(try stage.perform(.read(slotStart)) == .done(value: 11))
      #expect(set(slotStart + 0x10_0000) == 0)
      #expect(try stage.perform(.read(slotStart)) == mmio(slotStart, isWrite: false))
      #expect(try stage.perform(.read(slotStart + 0x10_0000)) == .done(value: 11))
    }

    @Test("The dirty log names the pages written, once")
    func dirtyLog() throws {
      let stage = try Stage(pages: 200, flags: logDirtyPages)
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 200) == (0, [0, 0, 0, 0]))
      for page in [3, 63, 64, 199] as [UInt64] {
        _ = try stage.perform(.write(page, to: slotStart + page * 4096))
      }
      _ = try stage.perform(.read(slotStart + 50 * 4096, .one))
      let log = stage.machine.dirtyLog(slot: 1, pageCount: 200)
      #expect(log.errno == 0)
      #expect(log.bitmap[0] & ~(1 << 50) == 1 << 3 | UInt64(1) << 63)
      #expect(Array(log.bitmap[1...]) == [1, 0, 1 << 7])
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 200) == (0, [0, 0, 0, 0]))
      _ = try stage.perform(.write(1, to: slotStart + 130 * 4096))
      var bitmap = [UInt64](repeating: .max, count: 4)
      #expect(stage.machine.dirtyLog(slot: 1, into: &bitmap) == 0)
      #expect(bitmap == [0, 0, 1 << 2, 0])
      #expect(stage.machine.dirtyLog(slot: 7, into: &bitmap) == ENOENT)
    }

    @Test("A caller that asks for fewer pages than the slot has is given so many, and no more")
    func shortDirtyLog() throws {
      let stage = try Stage(pages: 4096, flags: logDirtyPages)
      _ = try stage.perform(.write(1, to: slotStart + 4095 * 4096))
      _ = try stage.perform(.write(1, to: slotStart + 1 * 4096))
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 5) == (0, [2]))
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 0) == (0, []))
      #expect(stage.machine.dirtyLog(slot: 7, pageCount: 64) == (ENOENT, [0]))
    }

    @Test("With manual protection bits stay until they are cleared")
    func manualProtection() throws {
      let stage = try Stage(pages: 128)
      // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, without "initially all set".
      let capability: UInt32 = 168
      guard try stage.machine.checkExtension(capability) & 1 == 1 else { return }
      #expect(stage.machine.enableCapability(capability, arguments: [1]) == 0)
      #expect(stage.machine.enableCapability(capability, arguments: [8]) == EINVAL)
      let errno = stage.machine.setMemoryRegion(
        slot: 1, flags: logDirtyPages, guestPhysicalAddress: slotStart, memorySize: 128 * 4096,
        userspaceAddress: address(stage.arena.base))
      #expect(errno == 0)
      _ = stage.machine.dirtyLog(slot: 1, pageCount: 128)
      _ = try stage.perform(.write(1, to: slotStart + 2 * 4096))
      _ = try stage.perform(.write(1, to: slotStart + 70 * 4096))
      for _ in 0..<2 {
        #expect(stage.machine.dirtyLog(slot: 1, pageCount: 128) == (0, [4, 64]))
      }
      func clear(_ first: UInt64, _ count: UInt32, _ bitmap: [UInt64]) -> Int32 {
        stage.machine.clearDirtyLog(slot: 1, firstPage: first, pageCount: count, bitmap: bitmap)
      }
      #expect(clear(64, 64, [64]) == 0)
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 128) == (0, [4, 0]))
      #expect(clear(1, 64, [.max]) == EINVAL)
      #expect(clear(0, 128, [.max, .max]) == 0)
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 128) == (0, [0, 0]))
    }

    @Test("A dirty ring names pages in order, fills up, and is reset")
    func dirtyRing() throws {
      // KVM_CAP_DIRTY_LOG_RING_ACQ_REL.
      let probe = try RealVM(RealVM.Configuration(hasGuest: false))
      guard try probe.checkExtension(223) >= ringBytes else { return }
      let stage = try Stage(
        pages: 4096, flags: logDirtyPages, RealVM.Configuration(dirtyRingByteCount: ringBytes))
      #expect(stage.machine.dirtyLog(slot: 1, pageCount: 64).errno == ENXIO)
      for page in [3, 700, 3] as [UInt64] {
        _ = try stage.perform(.write(page, to: slotStart + page * 4096))
      }
      #expect(
        stage.machine.harvestDirtyRing()
          == [RealDirtyPage(slot: 1, page: 3), RealDirtyPage(slot: 1, page: 700)])
      #expect(stage.machine.harvestDirtyRing() == [])
      #expect(stage.machine.resetDirtyRings() == (0, 2))
      // A script across all pages, as the owner of a ring does it.
      var script = (0..<4096 as Range<UInt64>).map { page in
        RealAccess.write(page, to: slotStart + page * 4096)
      }
      var found: [UInt64] = []
      var next = 0
      var fullCount = 0
      while next < script.count {
        let report = try stage.machine.perform(script: &script, in: next..<script.count)
        next = report.endIndex
        if let last = report.stops.last {
          #expect(last == .init(index: next, outcome: .dirtyRingFull))
          fullCount += 1
        }
        found += stage.machine.harvestDirtyRing().map(\.page)
        #expect(stage.machine.resetDirtyRings().errno == 0)
      }
      #expect(fullCount >= 4096 / 1024)
      #expect(Set(found) == Set(0..<4096))
      for page in 0..<4096 as Range<UInt64> { #expect(stage.word(page * 4096) == UInt32(page)) }
    }
  }
}
