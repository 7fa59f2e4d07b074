internal import CPhysmemLimits
internal import PMArena
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

extension BenchmarkCase {
  static func guestCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    // The goals are what vm-memory takes for looking the region up and nothing more. With 512
    // regions that is 15 ns, which the bar is beyond already.
    [(1, 5.0, 1.4), (8, 10.0, 4.6), (512, 10.0, nil)].map { regions, most, goal in
      BenchmarkCase(
        "guest.read.\(regions)", "guest loads of 8 bytes at random, \(regions) regions",
        bar: .atMost(most), goal: goal.map { .atMost($0) }
      ) { try guestRead(machine, regions: regions) }
    }
  }

  private static func guestRead(_ machine: BenchmarkMachines, regions: Int) throws -> Subject {
    let guest = try BenchmarkGuest(machine(.mib(64)), regions: regions)
    let reads = 1 << 16
    var random = SplitMix64(seed: 11)
    // Offsets in the working set; the guest sees them scattered over the regions.
    let offsets = (0..<reads).map { _ in
      UInt32(truncatingIfNeeded: random.next() % UInt64(BenchmarkGuest.byteCount)) & ~7
    }
    let addresses = offsets.map { guest.address(of: Int($0)) }
    let subject = Workload(
      operations: reads, before: { guest.bind() }, run: { pm_limit_keep(guest.sum(addresses)) })
    let limit = Workload(operations: reads) {
      let sum = offsets.withUnsafeBufferPointer { offsets in
        offsets.baseAddress.map { pm_limit_loads(guest.base, $0, reads) } ?? 0
      }
      pm_limit_keep(sum)
    }
    return .single(subject, limit: limit)
  }
}

/// A guest with 2 MiB of memory in memslots that are 16 MiB of guest addresses apart.
final class BenchmarkGuest {
  static let byteCount = 2 << 20

  private var cpu: CPU
  private let process: HostProcess
  private let vm: VirtualMachine
  private let vcpu: VCPU
  private let share: Int
  /// The memory as a plain pointer, for the limit.
  let base: UnsafeMutableRawPointer

  init(_ machine: Machine, regions count: Int) throws {
    share = BenchmarkGuest.byteCount / count
    var cpu = try machine.claimCPU(0)
    let kernel = try HostKernel(machine: machine, on: &cpu)
    process = HostProcess(kernel: kernel)
    // Adjacent frames, so that the plain pointer sees the same bytes in the same order.
    let first = try cpu.allocatePages(order: 9, gfp: .highUser)
    let driver = RemapDriver(pages: (0..<512).map { first + $0 }, style: .remap)
    let address = try process.map(
      .init(
        byteCount: UInt64(BenchmarkGuest.byteCount), isShared: true, backing: .driver(driver)),
      on: &cpu)
    base = machine.arena.base + Int(first.physicalAddress)
    base.initializeMemory(as: UInt8.self, repeating: 1, count: BenchmarkGuest.byteCount)
    vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: .linux618, era: .c))
    for index in 0..<count {
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: UInt32(index), flags: 0, guestPhysicalAddress: UInt64(index) << 24,
          memorySize: UInt64(share), userspaceAddress: address + UInt64(index * share)),
        on: &cpu)
    }
    vcpu = try VCPU(vm)
    self.cpu = cpu
  }

  deinit {
    vm.close(on: &cpu)
    process.exit(on: &cpu)
  }

  func bind() { vcpu.bind() }

  /// The guest address of a byte of the working set.
  func address(of offset: Int) -> UInt64 {
    (UInt64(offset / share) << 24) + UInt64(offset % share)
  }

  /// Loads the word at a guest address, as a guest's instruction does.
  @inline(__always)
  func load(_ address: UInt64) -> UInt64 {
    if let value = vcpu.loadUInt64(at: address) { return value }
    guard case .done(let value) = vcpu.read(address, byteCount: 8, on: &cpu) else { return 0 }
    return value
  }

  /// Loads the words at these guest addresses and adds them up.
  func sum(_ addresses: [UInt64]) -> UInt64 {
    var sum: UInt64 = 0
    for address in addresses { sum &+= load(address) }
    return sum
  }
}
