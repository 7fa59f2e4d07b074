internal import PMArena
internal import PMPageAllocator
internal import PMUnits

/// What is checked when all threads of a round have ended, and how a thread comes to its CPU.
enum StressRest {
  /// Claims the CPU of a thread, with the faults of the plan; nil, with the failure noted, where it is
  /// in use.
  static func claim(
    _ machine: Machine, _ index: Int, _ plan: StressPlan, _ worker: StressWorker
  ) -> CPU? {
    do throws(MachineError) {
      var cpu = try machine.claimCPU(index)
      arm(&cpu, plan)
      return cpu
    } catch {
      worker.fail("\(error)")
      return nil
    }
  }

  /// Lets allocations of a CPU fail as the plan says.
  static func arm(_ cpu: inout CPU, _ plan: StressPlan) {
    cpu.failPageAllocSeed = plan.seed &+ UInt64(cpu.index)
    cpu.failPageAlloc = plan.options.faults.failPageAlloc
  }

  /// Lets `settle` give back what the round held, then compares free pages with those before, and looks
  /// at every list, at the modelled kernel's findings and at the counts.
  static func check(
    _ machine: Machine, freeBefore: Int64, _ plan: StressPlan, _ control: StressControl,
    _ settle: (inout CPU) -> [String]
  ) throws {
    func fail(_ message: String) {
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil, message: message))
    }
    do {
      var cpu = try machine.claimCPU(0)
      for text in settle(&cpu) { fail(text) }
    }
    // Each CPU empties its own lists, so that what is left in a list of another shows.
    for index in machine.cpuNodes.indices {
      var cpu = try machine.claimCPU(index)
      cpu.drainLocalPages()
    }
    // What was found first explains the rest.
    for finding in machine.findings.findings.prefix(5) { fail("\(finding)") }
    if machine.findings.total > 5 { fail("\(machine.findings.total) findings in all") }
    for text in machine.invariantViolations().prefix(5) { fail(text) }
    let free = machine.freePageCount
    if free != freeBefore {
      fail(
        "\(free) pages are free at the end, \(freeBefore) were before: pages are lost or doubled")
    }
  }
}

extension StressPlan {
  /// The machine of a round whose threads use it without guests, a CPU for each.
  var machineWithoutGuests: MachineDescription {
    var description = MachineDescription(
      memory: ByteCount(max(options.byteCount, 16 << 20)), cpus: options.threads,
      backing: options.backing.arenaBacking)
    description.model.kvm = era
    description.refcountLayout = options.refcountLayout
    return description
  }
}

extension StressBacking {
  /// The host memory that the machine of a round is made of.
  var arenaBacking: PMArena.Backing {
    switch self {
    case .anonymous: .anonymous
    case .anonymousTHP: .anonymousTHP
    case .anonymousHugeTLB, .anonymousHugeTLB2MiB: .anonymousHugeTLB2MiB
    case .anonymousHugeTLB1GiB: .anonymousHugeTLB1GiB
    case .shmem: .memfd
    case .sharedHugeTLB: .sharedHugeTLB
    }
  }
}
