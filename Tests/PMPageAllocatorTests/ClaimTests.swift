import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// Who may use a CPU, and what stops the process.
@Suite struct ClaimTests {
  private func refusal(_ machine: Machine, _ index: Int) -> String? {
    do throws(MachineError) {
      _ = try machine.claimCPU(index)
      return nil
    } catch {
      return "\(error)"
    }
  }

  @Test func `A CPU serves one holder at a time and comes back when its value ends`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(16), cpus: 2))
    do {
      let cpu = try machine.claimCPU(0)
      #expect(refusal(machine, 0) == "CPU 0 is in use: a CPU serves one thread at a time")
      #expect(refusal(machine, 1) == nil)
      #expect(cpu.index == 0)
    }
    #expect(refusal(machine, 0) == nil)
    #expect(refusal(machine, 2) == "no CPU 2: the machine has CPUs 0 to 1")
    #expect(refusal(machine, -1) == "no CPU -1: the machine has CPUs 0 to 1")
  }

  @Test func `A CPU keeps its lists while nobody holds it`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    let pfn: PFN
    do {
      var cpu = try machine.claimCPU(0)
      pfn = try cpu.allocatePages()
      cpu.freePages(pfn, order: 0)
    }
    var cpu = try machine.claimCPU(0)
    #expect(try cpu.allocatePages() == pfn)
  }

  @Test func `A CPU keeps its machine alive`() throws {
    func claim() throws -> CPUHolder {
      CPUHolder(try Machine(MachineDescription(memory: .mib(16))).claimCPU(0))
    }
    let holder = try claim()
    let pfn = try holder.cpu.allocatePages(order: 2)
    holder.cpu.freePages(pfn, order: 2)
    #expect(holder.cpu.machine.freePageCount == 16 << 8 - 0x100)
  }

  @Test func `Requests that no kernel would serve are refused with their reason`() throws {
    let machine = try Machine(
      MachineDescription(
        nodes: [
          MachineDescription.Node(memory: .mib(16)), MachineDescription.Node(memory: .mib(16)),
        ]))
    var cpu = try machine.claimCPU(0)
    #expect(throws: AllocationError.invalidOrder(11)) { try cpu.allocatePages(order: 11) }
    #expect(throws: AllocationError.invalidOrder(-1)) { try cpu.allocatePages(order: -1) }
    #expect(throws: AllocationError.invalidMigratetype) {
      try cpu.allocatePages(gfp: [.kernel, .movable, .reclaimable])
    }
    #expect(throws: AllocationError.noZone) { try cpu.allocatePages(node: 2) }
    #expect(throws: AllocationError.noZone) {
      try cpu.allocatePages(gfp: [.kernel, .dma, .thisNode], node: 1)
    }
    #expect(throws: AllocationError.invalidSize(0)) { try cpu.allocateExact(bytes: 0) }
    #expect(throws: AllocationError.invalidSize(4 << 20 + 1)) {
      try cpu.allocateExact(bytes: 4 << 20 + 1)
    }
    #expect(
      machine.findings.findings == [.warning(pfn: nil, what: "order above 10 requested")])
  }

  @Test func `A PFN outside every zone stops the process`() async {
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      var cpu = try machine.claimCPU(0)
      cpu.freePages(PFN(0x1000), order: 0)
    }
    await #expect(processExitsWith: .failure) {
      var description = MachineDescription(memory: .mib(64))
      description.lowMemoryEnd = .mib(32)
      let machine = try Machine(description)
      var cpu = try machine.claimCPU(0)
      // In the hole below 4 GiB.
      cpu.putPage(PFN(0x3000))
    }
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      _ = machine.frames.refcount(PFN(0x1000))
    }
  }

  @Test func `An order outside 0 to 10 stops the process in a free`() async {
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      var cpu = try machine.claimCPU(0)
      cpu.freePages(PFN(0x800), order: 11)
    }
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      var cpu = try machine.claimCPU(0)
      cpu.freePages(PFN(0x800), order: -1)
    }
  }

  @Test func `A block that is not aligned to its order stops the process`() async {
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      var cpu = try machine.claimCPU(0)
      cpu.freePages(PFN(0x801), order: 1)
    }
    await #expect(processExitsWith: .failure) {
      let machine = try Machine(MachineDescription(memory: .mib(16)))
      var cpu = try machine.claimCPU(0)
      cpu.splitPage(PFN(0x802), order: 2)
    }
  }
}
