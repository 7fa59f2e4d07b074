import Foundation
import PMArena
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// vCPUs on threads of their own while the memory under them comes and goes. Also to be run with the
/// thread sanitizer.
@Suite struct GuestThreadTests {
  private static let pages: UInt64 = 256
  private static let gpa: UInt64 = 0x4000_0000

  /// What the threads have in common.
  private final class Shared: @unchecked Sendable {
    // Sendable: `lock` is held around every access to the variables.
    private let lock = NSLock()
    private var isStopped = false
    private var texts: [String] = []
    private var running = 0

    var stopped: Bool { lock.withLock { isStopped } }
    func stop() { lock.withLock { isStopped = true } }
    func fail(_ text: String) {
      lock.withLock {
        texts.append(text)
        isStopped = true
      }
    }
    var failures: [String] { lock.withLock { texts } }
  }

  /// A word that says to which guest page it belongs.
  private static func tag(_ page: UInt64) -> UInt64 { 0xabcd_0000_0000_0000 | page }

  private static func guest(
    _ vm: VirtualMachine, cpu index: Int, seed: UInt64, steps: Int, _ shared: Shared
  ) {
    do {
      var cpu = try vm.kernel.machine.claimCPU(index)
      let vcpu = try VCPU(vm, index: index)
      var random = SplitMix64(seed: seed &+ UInt64(index))
      for _ in 0..<steps where !shared.stopped {
        let page = random.next() % pages
        let address = gpa + page << 12 + (random.next() % 512) * 8
        if random.next() & 1 == 0 {
          switch vcpu.write(address, byteCount: 8, value: tag(page), on: &cpu) {
          case .done, .mmio, .failed(.efault, exitReasonIsSet: _): break
          case let other: shared.fail("write of page \(page): \(other)")
          }
        } else {
          switch vcpu.read(address, byteCount: 8, on: &cpu) {
          case .done(let value):
            if value != 0, value != tag(page) {
              shared.fail("page \(page) reads \(String(value, radix: 16))")
            }
          case .mmio, .failed(.efault, exitReasonIsSet: _): break
          case let other: shared.fail("read of page \(page): \(other)")
          }
        }
      }
      kernelDrain(vm, &cpu)
      vcpu.unbind()
    } catch {
      shared.fail("\(error)")
    }
  }

  private static func kernelDrain(_ vm: VirtualMachine, _ cpu: inout CPU) {
    vm.kernel.drainLRUBatches(on: &cpu)
    cpu.drainLocalPages()
  }

  /// One change of the mapping under the guests.
  private func change(
    _ vm: VirtualMachine, _ process: HostProcess, _ base: UInt64, _ random: inout SplitMix64,
    _ cpu: inout CPU
  ) throws {
    let first = random.next() % Self.pages
    let count = min(Self.pages - first, random.next() % 32 + 1)
    let range = (base + first << 12)..<(base + (first + count) << 12)
    func set(_ byteCount: UInt64, _ flags: UInt32) throws {
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: 1, flags: flags, guestPhysicalAddress: Self.gpa, memorySize: byteCount,
          userspaceAddress: base), on: &cpu)
    }
    switch random.next() % 8 {
    case 0, 1: try process.discard(range, on: &cpu)
    case 2: try process.protect(range, rights: .read, on: &cpu)
    case 3: try process.protect(range, rights: [.read, .write], on: &cpu)
    case 4:
      try process.unmap(range, on: &cpu)
      try process.map(.init(byteCount: count << 12, address: range.lowerBound), on: &cpu)
    case 5: _ = process.clearYoung(range, on: &cpu)
    case 6:
      let logs = vm.memslots[0].slot(id: 1)?.logsDirtyPages ?? false
      try set(Self.pages << 12, logs ? 0 : 1)
    default:
      try set(0, 0)
      try set(Self.pages << 12, 0)
    }
  }

  @Test(arguments: KernelModel.KVM.allCases, [VirtualMachine.MMU.tdp, .shadow])
  func `Guests never see another page while the memory under them changes`(
    _ era: KernelModel.KVM, _ mmu: VirtualMachine.MMU
  ) throws {
    let seed = UInt64(ProcessInfo.processInfo.environment["PHYSMEM_SEED"] ?? "") ?? 20_261_124
    print("GuestThreadTests: PHYSMEM_SEED=\(seed) repeats this run")
    let machine = try Machine(MachineDescription(memory: .mib(64), cpus: 3))
    var cpu = try machine.claimCPU(0)
    let kernel = try HostKernel(machine: machine, on: &cpu)
    kernel.drainLRUBatches(on: &cpu)
    cpu.drainLocalPages()
    let before = machine.freePageCount
    let process = HostProcess(kernel: kernel)
    let base = try process.map(.init(byteCount: Self.pages << 12), on: &cpu)
    let vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: .linux618, mmu: mmu, era: era))
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: Self.gpa, memorySize: Self.pages << 12,
        userspaceAddress: base), on: &cpu)
    let shared = Shared()
    let group = DispatchGroup()
    for index in 1...2 {
      group.enter()
      Thread {
        Self.guest(vm, cpu: index, seed: seed, steps: 40_000, shared)
        group.leave()
      }.start()
    }
    var random = SplitMix64(seed: seed)
    for _ in 0..<400 where !shared.stopped {
      try change(vm, process, base, &random, &cpu)
    }
    group.wait()
    #expect(shared.failures == [], "PHYSMEM_SEED=\(seed)")
    #expect(vm.staleTranslations() == [])
    #expect(vm.invalidationsInProgressCount == 0)
    vm.close(on: &cpu)
    process.exit(on: &cpu)
    kernel.drainLRUBatches(on: &cpu)
    cpu.drainLocalPages()
    let after = machine.freePageCount
    #expect(after == before)
    #expect(machine.invariantViolations() == [])
  }
}
