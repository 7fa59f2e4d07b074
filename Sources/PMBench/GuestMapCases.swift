internal import CPhysmemLimits
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

extension BenchmarkCase {
  /// What a virtual machine does as a whole, through its public calls.
  static func guestMapCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    [
      BenchmarkCase(
        "dirty.clean", "KVM_GET_DIRTY_LOG of 1 GiB, all clean", unit: "us", bar: .atMost(10),
        goal: .atMost(4)
      ) { try harvest(machine, dirty: false) },
      BenchmarkCase(
        "dirty.full", "KVM_GET_DIRTY_LOG of 1 GiB, all dirty, pages protected again", unit: "us",
        bar: .atMost(1000), goal: .atMost(300)
      ) { try harvest(machine, dirty: true) },
      BenchmarkCase(
        "notifier.page", "invalidation of 512 mapped pages by the notifier, per page",
        bar: .ratio(1.3), goal: .ratio(1)
      ) { try invalidate(machine) },
    ]
  }

  private static func harvest(_ machine: BenchmarkMachines, dirty: Bool) throws -> Subject {
    let guest = try BenchmarkVM(machine, pageCount: 1 << 18)
    let clock = ContinuousClock()
    return .figure {
      if dirty { try guest.dirtyAll() } else { try guest.harvest() }
      let start = clock.now
      try guest.harvest()
      let elapsed = start.duration(to: clock.now)
      let microseconds = Double(elapsed.components.attoseconds) / 1e12
      // The bar is a time: what plain C takes to look at as many words stands beside it.
      let before = clock.now
      pm_limit_keep(guest.sumOfWords())
      let limit = before.duration(to: clock.now)
      return (microseconds, Double(limit.components.attoseconds) / 1e12)
    }
  }

  private static func invalidate(_ machine: BenchmarkMachines) throws -> Subject {
    let guest = try BenchmarkVM(machine, pageCount: 512)
    guard let radix = pm_limit_radix_create(16) else { throw BenchmarkVM.NoMemory() }
    let subject = Workload(
      operations: 512, before: { try? guest.dirtyAll() }, run: { guest.invalidate() })
    let limit = Workload(
      operations: 512, before: { pm_limit_radix_map(radix, 0x40000, 0, 512) },
      run: { pm_limit_keep(UInt64(pm_limit_radix_unmap(radix, 0x40000, 512))) })
    return .single(subject, limit: limit)
  }
}

/// A VM with one slot of plain memory that logs, and a vCPU, used through their public calls.
final class BenchmarkVM {
  struct NoMemory: Error, CustomStringConvertible {
    var description: String { "no memory for the C table" }
  }

  struct Unmapped: Error, CustomStringConvertible {
    var access: GuestAccess
    var description: String { "a guest write did not finish: \(access)" }
  }

  static let first = GFN(0x40000)
  private let pageCount: Int
  private var cpu: CPU
  private let process: HostProcess
  private let vm: VirtualMachine
  private let vcpu: VCPU
  private let base: UInt64
  private var words: [UInt64]

  init(_ machines: BenchmarkMachines, pageCount: Int) throws {
    self.pageCount = pageCount
    let byteCount = UInt64(pageCount) << 12
    let machine = try machines(ByteCount(2 * byteCount + (64 << 20)))
    var cpu = try machine.claimCPU(0)
    let kernel = try HostKernel(machine: machine, on: &cpu)
    process = HostProcess(kernel: kernel)
    base = try process.map(.init(byteCount: byteCount, extra: .noHugePage), on: &cpu)
    vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: .linux618, era: .c))
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 1, flags: 1, guestPhysicalAddress: BenchmarkVM.first.guestPhysicalAddress,
        memorySize: byteCount, userspaceAddress: base), on: &cpu)
    vcpu = try VCPU(vm)
    words = Array(repeating: 0, count: pageCount / 64)
    self.cpu = cpu
  }

  deinit {
    vm.close(on: &cpu)
    process.exit(on: &cpu)
  }

  /// The guest writes a word to every page.
  func dirtyAll() throws {
    for page in 0..<pageCount {
      let address = (BenchmarkVM.first + page).guestPhysicalAddress
      if vcpu.store(UInt64(page), at: address) { continue }
      let access = vcpu.write(address, byteCount: 8, value: UInt64(page), on: &cpu)
      guard case .done = access else { throw Unmapped(access: access) }
    }
  }

  func harvest() throws {
    var failure: KernelErrno?
    words.withUnsafeMutableBufferPointer { buffer in
      do throws(KernelErrno) {
        try vm.getDirtyLog(slot: 1, into: buffer, on: &cpu)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
  }

  func sumOfWords() -> UInt64 { words.reduce(0, &+) }

  func invalidate() { invalidate(pages: 0..<pageCount) }

  /// Adds or deletes a slot of the same size over the same memory, which nobody uses.
  func setIdleSlot(isThere: Bool) throws(KernelErrno) {
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 2, flags: 0, guestPhysicalAddress: 1 << 44,
        memorySize: isThere ? UInt64(pageCount) << 12 : 0, userspaceAddress: base), on: &cpu)
  }

  /// What the notifier does where the host takes these pages away.
  func invalidate(pages: Range<Int>) {
    let range = (base + UInt64(pages.lowerBound) << 12)..<(base + UInt64(pages.upperBound) << 12)
    vm.invalidateRangeStart(range, on: &cpu)
    vm.invalidateRangeEnd(range, on: &cpu)
  }
}
