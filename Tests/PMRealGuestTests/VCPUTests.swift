import Foundation
import PMArena
import Synchronization
import Testing

@testable import PMRealGuest

extension RealGuestTests {
  /// Several vCPUs of one machine, kicks, and private memory that moves.
  @Suite struct VCPUs {
    @Test("vCPUs run beside each other, each with its own accesses")
    func severalVCPUs() throws {
      let stage = try Stage(pages: 64, RealVM.Configuration(vcpuCount: 3))
      let failures = Mutex<[String]>([])
      let machine = stage.machine
      DispatchQueue.concurrentPerform(iterations: 3) { vcpu in
        do {
          for round in 0..<20 as Range<UInt64> {
            var script: [RealAccess] = []
            for page in 0..<64 as Range<UInt64> {
              let address = slotStart + page * pageBytes + UInt64(vcpu) * 8
              script.append(.write(round << 32 | page << 8 | UInt64(vcpu), to: address, .eight))
              script.append(.read(address, .eight))
            }
            let report = try machine.perform(script: &script, on: vcpu)
            for (write, read) in zip(script.indices, script.indices.dropFirst())
            where script[write].isWrite && script[write].value != script[read].value {
              failures.withLock { $0.append("vCPU \(vcpu) reads \(script[read])") }
            }
            if !report.stops.isEmpty { failures.withLock { $0.append("\(report)") } }
          }
        } catch { failures.withLock { $0.append("\(error)") } }
      }
      #expect(failures.withLock { $0 } == [])
      for page in 0..<64 as Range<UInt64> {
        for vcpu in 0..<3 as Range<UInt64> {
          #expect(stage.word(page * pageBytes + vcpu * 8) == UInt32(page << 8 | vcpu))
        }
      }
    }

    @Test("A kick ends the run of its vCPU, and of no other")
    func kicks() throws {
      let stage = try Stage(RealVM.Configuration(vcpuCount: 2))
      let machine = stage.machine
      let isRunning = Atomic(false)
      let ended = DispatchSemaphore(value: 0)
      let outcome = Mutex<RealAccessOutcome?>(nil)
      let thread = Thread {
        var script = [RealAccess](repeating: .read(slotStart), count: 2048)
        // Until it is kicked: a kick that is not heeded lets the test hang, not pass.
        while true {
          isRunning.store(true, ordering: .relaxed)
          guard let report = try? machine.perform(script: &script, on: 1),
            report.stops.isEmpty
          else { break }
        }
        let last = try? machine.perform(.read(slotStart), on: 1)
        outcome.withLock { $0 = last }
        ended.signal()
      }
      thread.start()
      while !isRunning.load(ordering: .relaxed) { sched_yield() }
      try machine.kick(vcpu: 1)
      ended.wait()
      #expect(outcome.withLock { $0 } == .interrupted)
      #expect(try machine.perform(.read(slotStart), on: 0) == .done(value: 0))
      try machine.clearStop(vcpu: 1)
      #expect(try machine.perform(.read(slotStart), on: 1) == .done(value: 0))
      #expect(throws: RealGuestError.invalid("vCPU 2 of 2")) { try machine.kick(vcpu: 2) }
      #expect(throws: RealGuestError.invalid("vCPU -1 of 2")) {
        try machine.perform(.read(slotStart), on: -1)
      }
    }

    @Test("A script that is kicked in its middle does each access once")
    func eachAccessOnce() throws {
      let stage = try Stage()
      let machine = stage.machine
      let isOver = Atomic(false)
      let ended = DispatchSemaphore(value: 0)
      // SAFETY: aligned, and mapped as long as the stage, which outlives the thread.
      nonisolated(unsafe) let word = stage.arena.base.assumingMemoryBound(to: Atomic<UInt64>.self)
      let kicker = Thread {
        var seen: UInt64 = 0
        while !isOver.load(ordering: .relaxed) {
          // Only a guest that has come on is kicked, so that kicks meet it in its work.
          let now = word.pointee.load(ordering: .relaxed)
          if now != seen { try? machine.kick(vcpu: 0) }
          seen = now
        }
        ended.signal()
      }
      kicker.start()
      for round in 1...500 as ClosedRange<UInt64> {
        var script = (0..<2000 as Range<UInt64>).map {
          RealAccess.write(round << 16 | $0, to: slotStart)
        }
        var next = 0
        while next < script.count {
          let report = try machine.perform(script: &script, in: next..<script.count)
          try #require(report.endIndex >= next)
          if report.endIndex > next {
            // The word is that of the last access that is said to be done, and of no later one.
            let last = round << 16 | UInt64(report.endIndex - 1)
            #expect(stage.word(0) == UInt32(last))
          }
          next = report.endIndex
          try machine.clearStop(vcpu: 0)
        }
      }
      isOver.store(true, ordering: .relaxed)
      ended.wait()
    }

    @Test(
      "Where a script stands tells whether its access is done", arguments: RealAccessSize.allCases)
    func doneAccesses(_ size: RealAccessSize) {
      for isWrite in [false, true] {
        let start = GuestProgram.handler(size, isWrite: isWrite)
        let behind = start + GuestProgram.length(size, isWrite: isWrite)
        #expect(!GuestProgram.hasDoneAccess(scriptAt: start))
        // What was read is in a register only, and would be lost.
        #expect(GuestProgram.hasDoneAccess(scriptAt: behind) == isWrite)
        let single = GuestProgram.single(size, isWrite: isWrite)
        #expect(!GuestProgram.hasDoneAccess(scriptAt: single))
      }
      #expect(!GuestProgram.hasDoneAccess(scriptAt: GuestProgram.script))
    }

    @Test("Each vCPU has a dirty ring of its own")
    func rings() throws {
      let stage = try Stage(
        flags: logDirtyPages, RealVM.Configuration(dirtyRingByteCount: ringBytes, vcpuCount: 2))
      for vcpu in 0..<2 {
        let page = UInt64(3 + vcpu)
        _ = try stage.machine.perform(.write(1, to: slotStart + page * pageBytes), on: vcpu)
        #expect(
          stage.machine.harvestDirtyRing(vcpu: vcpu) == [RealDirtyPage(slot: 1, page: page)])
        #expect(stage.machine.harvestDirtyRing(vcpu: 1 - vcpu) == [])
      }
      #expect(stage.machine.resetDirtyRings() == (0, 2))
      #expect(stage.machine.harvestDirtyRing(vcpu: 2) == [])
    }

    @Test("Private pages move under the guest, with their contents")
    func privatePages() throws {
      let range = try PrivateRange(byteCount: 8 * 4096)
      try range.map(pages: 0..<8)
      let machine = try RealVM()
      let errno = machine.setMemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: slotStart, memorySize: 8 * pageBytes,
        userspaceAddress: range.userspaceAddress)
      try #require(errno == 0)
      _ = try machine.perform(.write(77, to: slotStart))
      try range.move(pages: 0..<1, to: 5)
      #expect(try machine.perform(.read(slotStart)) == .done(value: 0))
      #expect(try machine.perform(.read(slotStart + 5 * pageBytes)) == .done(value: 77))
      try range.discard(pages: 5..<6)
      #expect(try machine.perform(.read(slotStart + 5 * pageBytes)) == .done(value: 0))
      try range.protect(pages: 5..<6, .read)
      #expect(isFailure(try machine.perform(.write(1, to: slotStart + 5 * pageBytes)), EFAULT))
      try range.unmap(pages: 5..<6)
      #expect(isFailure(try machine.perform(.read(slotStart + 5 * pageBytes)), EFAULT))
      #expect(throws: RealGuestError.invalid("pages 0..<3 to be moved to page 2")) {
        try range.move(pages: 0..<3, to: 2)
      }
      #expect(throws: RealGuestError.invalid("pages 7..<9 of a range of 8")) {
        try range.map(pages: 7..<9)
      }
      #expect(throws: RealGuestError.invalid("a range of private memory of 4096 bytes")) {
        _ = try PrivateRange(byteCount: 4096, .huge2MiB)
      }
    }

    @Test("Entries that are zapped come back with their bytes")
    func zap() throws {
      let arena = try makeArena(pages: 16)
      let range = try MirroredRange(byteCount: 4 * 4096, of: arena)
      try range.map(page: 0, physicalAddress: 0, byteCount: 4 * 4096, isWritable: true)
      let machine = try RealVM()
      let errno = machine.setMemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: slotStart, memorySize: 4 * pageBytes,
        userspaceAddress: range.userspaceAddress)
      try #require(errno == 0)
      _ = try machine.perform(.write(99, to: slotStart))
      try range.zap(pages: 0..<4)
      #expect(try machine.perform(.read(slotStart)) == .done(value: 99))
    }

    @Test("A machine of no vCPUs or too many is refused")
    func counts() {
      for count in [0, 1025] {
        #expect(throws: RealGuestError.invalid("a guest of \(count) vCPUs")) {
          try RealVM(RealVM.Configuration(vcpuCount: count))
        }
      }
    }
  }
}
