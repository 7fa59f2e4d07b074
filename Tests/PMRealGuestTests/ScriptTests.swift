import CPhysmemShim
import Foundation
import PMArena
import PMRealGuest
import Testing

extension RealGuestTests {
  /// Many accesses at a time.
  @Suite struct Scripts {
    @Test("10^5 random accesses do what a plain array does")
    func model() throws {
      let pages: UInt64 = 2048
      let stage = try Stage(pages: pages)
      var random = SplitMix64(seed: randomSeed)
      var model = [UInt8](repeating: 0, count: Int(pages * pageBytes))
      var script: [RealAccess] = []
      var expected: [UInt64] = []
      for _ in 0..<100_000 {
        // Half of them on few bytes, so that they meet.
        let extent = Bool.random(using: &random) ? 4096 : pages * pageBytes
        let size = RealAccessSize.allCases[Int.random(in: 0..<4, using: &random)]
        let offset = UInt64.random(in: 0...extent - UInt64(size.rawValue), using: &random)
        let isWrite = Bool.random(using: &random)
        var value = random.next()
        for byte in 0..<size.rawValue where isWrite {
          model[Int(offset) + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * byte))
        }
        script.append(
          RealAccess(
            guestPhysicalAddress: slotStart + offset, size: size, isWrite: isWrite, value: value))
        if !isWrite {
          value = (0..<size.rawValue).reduce(0) { sum, byte in
            sum | UInt64(model[Int(offset) + byte]) << UInt64(8 * byte)
          }
        }
        expected.append(value)
      }
      let clock = ContinuousClock()
      var report: RealScriptReport?
      let first = try clock.measure { report = try stage.machine.perform(script: &script) }
      #expect(report == RealScriptReport(stops: [], endIndex: script.count))
      let wrong = script.indices.first { script[$0].value != expected[$0] }
      #expect(wrong == nil, "access \(wrong ?? -1) differs; replay: PHYSMEM_SEED=\(randomSeed)")
      let memory = UnsafeRawBufferPointer(start: stage.arena.base, count: model.count)
      #expect(memory.elementsEqual(model), "memory differs; replay: PHYSMEM_SEED=\(randomSeed)")
      let again = try clock.measure { report = try stage.machine.perform(script: &script) }
      let single = try clock.measure {
        for access in script.prefix(10_000) { _ = try stage.perform(access) }
      }
      print(
        "10^5 accesses of a real guest: \(first) on untouched memory, \(again) again, \(single * 10) singly"
      )
    }

    @Test("A script reports what does not finish, and goes on behind it")
    func stops() throws {
      let stage = try Stage(pages: 64)
      let range = try MirroredRange(byteCount: 4096, of: stage.arena)
      let hole = slotStart + 0x20_0000
      let errno = stage.machine.setMemoryRegion(
        slot: 2, flags: 0, guestPhysicalAddress: hole, memorySize: 4096,
        userspaceAddress: range.userspaceAddress)
      #expect(errno == 0)
      let nowhere = slotStart + 0x40_0000
      var script: [RealAccess] = [
        .read(hole), .write(1, to: slotStart), .read(nowhere, .two), .write(2, to: nowhere, .eight),
        .read(slotStart), .write(3, to: hole),
      ]
      let first = script
      let report = try stage.machine.perform(script: &script)
      #expect(report.endIndex == 6)
      #expect(report.stops.map(\.index) == [0, 2, 3, 5])
      #expect(isFailure(report.stops[0].outcome, EFAULT))
      #expect(report.stops[1].outcome == mmio(nowhere, 2, isWrite: false))
      #expect(report.stops[2].outcome == mmio(nowhere, 8, isWrite: true))
      #expect(isFailure(report.stops[3].outcome, EFAULT))
      #expect(script[4].value == 1)
      #expect(script[0] == first[0])
      #expect(script[2] == first[2])
    }

    @Test("Batches end where they should", arguments: [0, 1, 2047, 2048, 2049, 4096, 5000])
    func batches(count: Int) throws {
      let stage = try Stage(pages: 64)
      let nowhere = slotStart + 0x40_0000
      var script = (0..<count).map { index in
        RealAccess.write(UInt64(index), to: slotStart + UInt64(index % 1000) * 8, .eight)
      }
      if count > 0 { script[count - 1] = .read(nowhere) }
      let report = try stage.machine.perform(script: &script)
      #expect(report.endIndex == count)
      #expect(report.stops.map(\.index) == (count > 0 ? [count - 1] : []))
      let part = try stage.machine.perform(script: &script, in: 0..<max(0, count - 1))
      #expect(part == RealScriptReport(stops: [], endIndex: max(0, count - 1)))
    }

    @Test("Another thread can stop a script that never ends", .timeLimit(.minutes(1)))
    func stopFromOutside() throws {
      let stage = try Stage()
      let machine = stage.machine
      let word = address(stage.arena.base)
      let stopper = Thread {
        // Not before the guest is at work.
        guard let word = UnsafePointer<UInt32>(bitPattern: UInt(word)) else { return }
        while pm_word_load_relaxed(word) == 0 {}
        machine.requestStop()
      }
      stopper.start()
      var script = [RealAccess](repeating: .write(1, to: slotStart, .eight), count: 10_000)
      var report = RealScriptReport(stops: [], endIndex: script.count)
      while report.endIndex == script.count { report = try machine.perform(script: &script) }
      #expect(report.stops == [.init(index: report.endIndex, outcome: .interrupted)])
    }

    @Test("A script with one access out of reach does nothing")
    func outOfReach() throws {
      let stage = try Stage()
      var script: [RealAccess] = [.write(1, to: slotStart), .read(0)]
      #expect(throws: RealGuestError.unreachable(guestPhysicalAddress: 0, byteCount: 4)) {
        try stage.machine.perform(script: &script)
      }
      #expect(stage.word(0) == 0)
      #expect(throws: RealGuestError.self) {
        try stage.machine.perform(script: &script, in: 0..<3)
      }
    }
  }
}
