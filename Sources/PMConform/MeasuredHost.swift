internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// An emulated host like the one that a table was measured on: 1 GiB, one CPU, 24 huge pages.
final class MeasuredHost {
  let facts: HostFacts
  let machine: Machine
  let kernel: HostKernel
  var cpu: CPU

  private init(_ facts: HostFacts, _ machine: Machine, _ kernel: HostKernel, _ cpu: consuming CPU) {
    self.facts = facts
    self.machine = machine
    self.kernel = kernel
    self.cpu = cpu
  }

  static func make(_ facts: HostFacts) throws -> MeasuredHost {
    var description = MachineDescription(memory: .gib(1))
    description.model = KernelModel(kvm: facts.kvm)
    let machine = try Machine(description)
    var cpu = try machine.claimCPU(0)
    let kernel = try HostKernel(
      machine: machine, behaviour: facts.kernel >= KernelVersion(6, 13) ? .linux618 : .linux61,
      hugePageCount: 24, on: &cpu)
    return MeasuredHost(facts, machine, kernel, cpu)
  }
}

/// The VM of the measurements: slot 0 with the guest's code and tables, one vCPU without an in-kernel
/// interrupt controller, and the slot under test at gpa 0x40000000.
final class MeasuredVM {
  /// Where the slot under test stands.
  static let testedGPA: UInt64 = 0x4000_0000
  /// The guest's code.
  static let codeGPA: UInt64 = 0x1000

  let facts: HostFacts
  let vm: VirtualMachine
  let vcpu: VCPU
  private var before = Stage2Table.LeafCounts()
  private var faultsBefore: Int64 = 0

  /// A VM without any slot, for the ioctl rows, or with the guest's own.
  init(
    _ facts: HostFacts, process: HostProcess, hasGuest: Bool = true, ringByteCount: UInt64? = nil,
    on cpu: inout CPU
  ) throws {
    self.facts = facts
    vm = try VirtualMachine(process: process, configuration: facts.configuration)
    if let ringByteCount { try vm.enableDirtyRing(byteCount: ringByteCount) }
    if hasGuest {
      // Populated writable before the slot is set.
      let memory = try process.map(.init(byteCount: 0x8000, extra: .noHugePage), on: &cpu)
      try process.fill(memory..<(memory + 0x8000), 0, on: &cpu)
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: 0x8000, userspaceAddress: memory),
        on: &cpu)
    }
    vcpu = try VCPU(vm)
    // Registers of a device read as something else than zero.
    vcpu.readsDevice = { _, _ in 0x0012_3400_8086_a701 }
  }

  /// One access of the guest: its instruction is fetched from the code page first, so that the page has
  /// an entry; then 4 bytes.
  func access(_ gpa: UInt64, write value: UInt32? = nil, on cpu: inout CPU) -> GuestAccess {
    if facts.isEmulated {
      return vcpu.emulatedAccess(gpa, byteCount: 4, write: value.map(UInt64.init), on: &cpu)
    }
    let fetched = vcpu.read(MeasuredVM.codeGPA, byteCount: 1, on: &cpu)
    guard case .done = fetched else { return fetched }
    if let value { return vcpu.write(gpa, byteCount: 4, value: UInt64(value), on: &cpu) }
    return vcpu.read(gpa, byteCount: 4, on: &cpu)
  }

  /// The read of gpa 0x2000 after which the growth columns start to count.
  func warmUp(on cpu: inout CPU) {
    _ = access(0x2000, on: &cpu)
    before = vm.leafCounts
    faultsBefore = vm.fixedFaultCount
  }

  /// Small leaves since the warm-up.
  var grownPages4K: Int { vm.leafCounts.pages4K - before.pages4K }
  /// 2 MiB leaves since the warm-up.
  var grownPages2M: Int { vm.leafCounts.pages2M - before.pages2M }
  /// Fixed faults since the warm-up.
  var grownFaults: Int64 { vm.fixedFaultCount - faultsBefore }

  /// Sets a slot; "0" or the errno's name.
  func set(
    slot: UInt32, flags: UInt32 = 0, gpa: UInt64, byteCount: UInt64, hva: UInt64,
    on cpu: inout CPU
  ) -> String {
    result { () throws(KernelErrno) in
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: slot, flags: flags, guestPhysicalAddress: gpa, memorySize: byteCount,
          userspaceAddress: hva), on: &cpu)
    }
  }
}

/// A row of a table whose rows share one machine, because pages go on from row to row.
protocol SharedMachineRow: Hashable {
  /// All rows in the order in which they were measured.
  static var all: [Self] { get }
  func play(_ host: MeasuredHost) throws -> RowOutcome
}

extension SharedMachineRow {
  /// Plays all rows in one machine, which `prepare` puts into the state of the measured one.
  static func playAll(
    on facts: HostFacts, prepare: (MeasuredHost) -> Void = { _ in }
  ) -> [Self: RowOutcome] {
    do {
      let host = try MeasuredHost.make(facts)
      prepare(host)
      var outcomes: [Self: RowOutcome] = [:]
      for row in all {
        do {
          outcomes[row] = try row.play(host)
        } catch {
          outcomes[row] = .failed("\(error)")
        }
      }
      return outcomes
    } catch {
      return Dictionary(uniqueKeysWithValues: all.map { ($0, .failed("\(error)")) })
    }
  }
}

/// "0", or the name of the error that `body` throws.
func result(_ body: () throws(KernelErrno) -> Void) -> String {
  do throws(KernelErrno) {
    try body()
    return "0"
  } catch {
    return "\(error)"
  }
}

extension HostFacts {
  /// The VM's configuration on that host.
  var configuration: VirtualMachine.Configuration {
    VirtualMachine.Configuration(
      capabilities: capabilities, mmu: hasNestedPaging ? .tdp : .shadow,
      levels: hasFiveLevels ? 5 : 4)
  }

  /// How tables print what KVM_RUN returned and the exit reason.
  func describe(_ access: GuestAccess) -> (error: String, exit: String) {
    switch access {
    case .done: ("0", "DONE")
    case .mmio: ("0", "MMIO")
    case .failed(let error, let isSet): ("\(error)", isSet ? "UNKNOWN(0)" : "unset")
    case .interrupted: ("EINTR", "INTR")
    case .dirtyRingFull: ("0", "DIRTY_RING_FULL")
    }
  }
}
