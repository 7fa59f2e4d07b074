import Foundation
import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Pages that move while other threads access them, look them up and fork. Also to be run with the
/// thread sanitizer.
@Suite struct MigrationThreadTests {
  private static let pages: UInt64 = 48

  /// What the threads have in common.
  private final class Shared: @unchecked Sendable {
    // Sendable: `lock` is held around every access to the variables.
    private let lock = NSLock()
    private var texts: [String] = []
    private var left: Int
    private var sum = MigrationResult()

    init(threads: Int) { left = threads }
    func fail(_ text: String) { lock.withLock { texts.append(text) } }
    var failures: [String] { lock.withLock { texts } }
    /// Whether a thread beside the one that moves is still at work.
    var isBusy: Bool { lock.withLock { left > 0 && texts.count < 10 } }
    func finish() { lock.withLock { left -= 1 } }
    func add(_ result: MigrationResult) { lock.withLock { sum = sum + result } }
    var moved: MigrationResult { lock.withLock { sum } }
  }

  /// Runs a body on a thread and CPU of its own.
  private func start(
    _ machine: Machine, _ index: Int, _ group: DispatchGroup, _ shared: Shared,
    _ body: @escaping @Sendable (inout CPU) throws -> Void
  ) {
    group.enter()
    Thread {
      do {
        var cpu = try machine.claimCPU(index)
        try body(&cpu)
        cpu.drainLocalPages()
      } catch {
        shared.fail("CPU \(index): \(error)")
      }
      if index > 0 { shared.finish() }
      group.leave()
    }.start()
  }

  /// Writes rising numbers into one word of each page and expects to read what it wrote last.
  private static func access(
    _ process: HostProcess, _ base: UInt64, steps: Int, _ random: inout SplitMix64,
    _ shared: Shared, _ cpu: inout CPU
  ) throws {
    var last = [UInt32](repeating: 0, count: Int(pages))
    for step in 1...steps where shared.isBusy {
      let page = random.below(Int(pages))
      let address = base + UInt64(page) << 12 + 8
      let value = try process.read32(address, on: &cpu)
      if value != last[page] { shared.fail("page \(page): read \(value), wrote \(last[page])") }
      if step % 2 == 0 {
        last[page] = UInt32(step)
        try process.write32(address, UInt32(step), on: &cpu)
      }
    }
    process.kernel.drainLRUBatches(on: &cpu)
  }

  /// Writes through pins into another word of each page, as a device does, and expects the same.
  private static func pin(
    _ process: HostProcess, _ base: UInt64, steps: Int, _ random: inout SplitMix64,
    _ shared: Shared, _ cpu: inout CPU
  ) throws {
    var last = [UInt32](repeating: 0, count: Int(pages))
    let holder = Holder.pin("device")
    for step in 1...steps where shared.isBusy {
      let page = random.below(Int(pages))
      let address = base + UInt64(page) << 12
      var found = process.getUserPageFast(address, [.pin, .write], holder, on: &cpu)
      if found == nil,
        case .page(let slow) = process.getUserPage(address, [.pin, .write], holder, on: &cpu)
      {
        found = slow
      }
      guard let frame = found, let bytes = process.kernel.bytes(of: frame) else {
        shared.fail("page \(page) cannot be pinned")
        continue
      }
      let word = bytes + 16
      let value = word.load(as: UInt32.self)
      if value != last[page] {
        shared.fail("page \(page): device read \(value), wrote \(last[page])")
      }
      last[page] = UInt32(step)
      word.storeBytes(of: UInt32(step), as: UInt32.self)
      // Absent for a moment is an attempt to move it that found the pin.
      if let now = process.frame(at: address), now != frame {
        shared.fail("pinned page \(page) has moved")
      }
      process.release(frame, [.pin, .write], holder, on: &cpu)
    }
    process.kernel.drainLRUBatches(on: &cpu)
  }

  /// Forks and looks at the child's pages, some of which it writes to.
  private static func fork(
    _ process: HostProcess, _ base: UInt64, rounds: Int, _ random: inout SplitMix64,
    _ shared: Shared, _ cpu: inout CPU
  ) throws {
    for round in 0..<rounds where shared.isBusy {
      let child = process.fork(on: &cpu)
      for _ in 0..<32 {
        let page = random.below(Int(pages))
        let address = base + UInt64(page) << 12
        let tag = try child.read32(address, on: &cpu)
        if tag != 0x7a00_0000 | UInt32(page) {
          shared.fail("round \(round): child's page \(page) reads \(String(tag, radix: 16))")
        }
        if random.below(2) == 0 { try child.write32(address + 24, 1, on: &cpu) }
        shared.add(child.migrate(address..<address + 4096, on: &cpu))
      }
      child.exit(on: &cpu)
      process.kernel.drainLRUBatches(on: &cpu)
    }
  }

  @Test func `Nothing is lost while pages move under accesses, pins and forks`() throws {
    let environment = ProcessInfo.processInfo.environment
    let seed = UInt64(environment["PHYSMEM_SEED"] ?? "") ?? UInt64.random(in: 1...999_999_999)
    let steps = Int(environment["PHYSMEM_STEPS"] ?? "") ?? 10_000
    print("MigrationThreadTests: PHYSMEM_SEED=\(seed) PHYSMEM_STEPS=\(steps) repeats this run")
    let machine = try Machine(MachineDescription(memory: .mib(32), cpus: 4))
    let ledger = ReferenceLedger()
    let (kernel, process, base, before) = try {
      var cpu = try machine.claimCPU(0)
      let kernel = try HostKernel(machine: machine, ledger: ledger, on: &cpu)
      cpu.drainLocalPages()
      let before = machine.freePageCount
      let process = HostProcess(kernel: kernel)
      let base = try process.map(.init(byteCount: Self.pages << 12), on: &cpu)
      for page in 0..<Self.pages {
        try process.write32(base + page << 12, 0x7a00_0000 | UInt32(page), on: &cpu)
      }
      kernel.drainLRUBatches(on: &cpu)
      return (kernel, process, base, before)
    }()
    let shared = Shared(threads: 3)
    let group = DispatchGroup()
    start(machine, 0, group, shared) { cpu in
      var random = SplitMix64(seed: seed)
      // At least one round, however late this thread comes.
      repeat {
        let first = UInt64(random.below(Int(Self.pages)))
        let count = min(Self.pages - first, UInt64(1 + random.below(8)))
        let range = (base + first << 12)..<(base + (first + count) << 12)
        shared.add(process.migrate(range, on: &cpu))
      } while shared.isBusy
      kernel.drainLRUBatches(on: &cpu)
    }
    start(machine, 1, group, shared) { cpu in
      var random = SplitMix64(seed: seed &+ 1)
      try Self.access(process, base, steps: steps, &random, shared, &cpu)
    }
    start(machine, 2, group, shared) { cpu in
      var random = SplitMix64(seed: seed &+ 2)
      try Self.pin(process, base, steps: steps, &random, shared, &cpu)
    }
    start(machine, 3, group, shared) { cpu in
      var random = SplitMix64(seed: seed &+ 3)
      try Self.fork(process, base, rounds: max(4, steps / 200), &random, shared, &cpu)
    }
    group.wait()
    #expect(shared.failures == [], "PHYSMEM_SEED=\(seed)")
    #expect(shared.moved.moved > 0 && shared.moved.notMovable == 0)
    print("MigrationThreadTests: \(shared.moved)")
    var cpu = try machine.claimCPU(0)
    for page in 0..<Self.pages {
      let tag = try process.read32(base + page << 12, on: &cpu)
      #expect(tag == 0x7a00_0000 | UInt32(page), "PHYSMEM_SEED=\(seed)")
    }
    process.exit(on: &cpu)
    kernel.drainLRUBatches(on: &cpu)
    cpu.drainLocalPages()
    let after = machine.freePageCount
    #expect(after == before, "PHYSMEM_SEED=\(seed)")
    #expect(ledger.pages == [kernel.zeroPage] && ledger.unmatchedPuts == [])
    #expect(machine.findings.findings == [] && machine.invariantViolations() == [])
  }
}
