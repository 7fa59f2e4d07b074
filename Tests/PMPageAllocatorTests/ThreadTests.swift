import Foundation
import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// Several CPUs on threads of their own. Also to be run with the thread sanitizer.
@Suite struct ThreadTests {
  /// Runs a body on threads of its own and waits for all of them.
  private func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    let group = DispatchGroup()
    for index in 0..<count {
      group.enter()
      let thread = Thread {
        body(index)
        group.leave()
      }
      thread.start()
    }
    group.wait()
  }

  /// A block on its way from the CPU that allocated it to the one that frees it.
  struct Parcel: Sendable {
    var pfn: PFN
    var order: Int
  }

  // Both use NSLock because ThreadSanitizer knows it, and does not know Synchronization.Mutex.
  final class Mailbox: @unchecked Sendable {
    // Sendable: `lock` is held around every access.
    private let lock = NSLock()
    private var parcels: [Parcel] = []

    func post(_ parcel: Parcel) { lock.withLock { parcels.append(parcel) } }
    func take() -> Parcel? { lock.withLock { parcels.popLast() } }
  }

  final class Failures: @unchecked Sendable {
    // Sendable: `lock` is held around every access.
    private let lock = NSLock()
    private var texts: [String] = []

    func add(_ text: String) { lock.withLock { texts.append(text) } }
    var all: [String] { lock.withLock { texts } }
  }

  /// Drains all CPUs and checks that everything is free again and fits together.
  private func checkAllFree(_ machine: Machine, _ frames: Int64) throws {
    for index in machine.cpuNodes.indices {
      var cpu = try machine.claimCPU(index)
      cpu.drainLocalPages()
    }
    #expect(machine.freePageCount == frames)
    #expect(machine.invariantViolations() == [])
    #expect(machine.findings.findings == [])
  }

  @Test(arguments: [2, 3])
  func `CPUs that allocate and free each other's blocks lose nothing`(_ cpus: Int) throws {
    let steps = RandomRun.steps(release: 300_000, debug: 20_000)
    RandomRun.announce("ThreadTests", steps: steps)
    var description = MachineDescription(
      nodes: [
        MachineDescription.Node(memory: .mib(40)), MachineDescription.Node(memory: .mib(24)),
      ], cpus: cpus)
    description.lowMemoryEnd = .mib(32)
    description.parameters.minFreeKiB = 256
    let machine = try Machine(description)
    let frames = machine.freePageCount
    let mailboxes = (0..<cpus).map { _ in Mailbox() }
    let failures = Failures()
    onThreads(cpus) { index in
      do {
        var cpu = try machine.claimCPU(index)
        var rng = SplitMix64(seed: RandomRun.seed &+ UInt64(index))
        var held: [Parcel] = []
        for _ in 0..<(steps / cpus) {
          if let parcel = mailboxes[index].take() {
            cpu.freePages(parcel.pfn, order: parcel.order)
          }
          if rng.chance(held.count < 200 ? 60 : 40) {
            let order = rng.pick([0, 0, 0, 0, 1, 2, 3, 4, 6, 9])
            let gfp: GFP = rng.pick([
              .noWait, .atomic, [.noWait, .movable], [.noWait, .reclaimable],
            ])
            let isCompound = rng.chance(30)
            let request = isCompound && order > 0 ? gfp.union(.comp) : gfp
            guard let pfn = try? cpu.allocatePages(order: order, gfp: request) else { continue }
            if machine.frames.refcount(pfn) != 1 { failures.add("count of \(pfn) is not 1") }
            held.append(Parcel(pfn: pfn, order: order))
          } else if let parcel = held.popLast() {
            if rng.chance(40) {
              mailboxes[rng.below(mailboxes.count)].post(parcel)
            } else {
              cpu.freePages(parcel.pfn, order: parcel.order)
            }
          }
          if rng.oneIn(1000) { cpu.drainLocalPages() }
        }
        for parcel in held { cpu.freePages(parcel.pfn, order: parcel.order) }
      } catch {
        failures.add("\(error)")
      }
    }
    #expect(failures.all == [])
    do {
      var cpu = try machine.claimCPU(0)
      for mailbox in mailboxes {
        while let parcel = mailbox.take() { cpu.freePages(parcel.pfn, order: parcel.order) }
      }
    }
    try checkAllFree(machine, frames)
  }

  @Test func `References from several CPUs to shared pages end with one free each`() throws {
    let steps = RandomRun.steps(release: 300_000, debug: 20_000)
    let cpus = 3
    let machine = try Machine(MachineDescription(memory: .mib(32), cpus: cpus))
    let frames = machine.freePageCount
    let shared: [PFN]
    do {
      var cpu = try machine.claimCPU(0)
      shared = try (0..<64).map { index in
        index % 2 == 0 ? try cpu.allocatePages() : try cpu.allocateFolio(order: 3)
      }
    }
    let failures = Failures()
    onThreads(cpus) { index in
      do {
        var cpu = try machine.claimCPU(index)
        var rng = SplitMix64(seed: UInt64(index))
        for _ in 0..<(steps / cpus) {
          let pfn = shared[rng.below(shared.count)]
          if cpu.getPageUnlessZero(pfn) {
            cpu.getPage(pfn)
            cpu.putPage(pfn)
            cpu.putPage(pfn)
          } else {
            failures.add("\(pfn) has no reference")
          }
        }
      } catch {
        failures.add("\(error)")
      }
    }
    #expect(failures.all == [])
    for pfn in shared { #expect(machine.frames.refcount(pfn) == 1) }
    do {
      var cpu = try machine.claimCPU(1)
      cpu.releasePages(shared)
    }
    try checkAllFree(machine, frames)
  }

  @Test func `A page is freed once, by whichever CPU drops the last reference`() throws {
    let rounds = RandomRun.steps(release: 100_000, debug: 5000) / 10
    let machine = try Machine(MachineDescription(memory: .mib(32), cpus: 2))
    let frames = machine.freePageCount
    let mailbox = Mailbox()
    let failures = Failures()
    onThreads(2) { index in
      do {
        var cpu = try machine.claimCPU(index)
        for round in 0..<rounds {
          if index == 0 {
            let order = round % 3 == 0 ? 2 : 0
            // The other side may be behind with everything that is free.
            guard let pfn = try? cpu.allocateFolio(order: order) else { continue }
            // One reference for the other side.
            cpu.getPage(pfn)
            mailbox.post(Parcel(pfn: pfn, order: order))
            cpu.freePages(pfn, order: order)
          } else if let parcel = mailbox.take() {
            cpu.putPage(parcel.pfn)
          }
        }
      } catch {
        failures.add("\(error)")
      }
    }
    #expect(failures.all == [])
    do {
      var cpu = try machine.claimCPU(1)
      while let parcel = mailbox.take() { cpu.putPage(parcel.pfn) }
    }
    try checkAllFree(machine, frames)
  }
}
