internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// One guest access to one page on a fresh machine: what a cell of the truth table says is what it finds.
final class KVMExperiment {
  /// Where the slot stands: at a border of 1 GiB.
  static let testedGPA: UInt64 = 0x4000_0000

  let machine: Machine
  let kernel: HostKernel
  let process: HostProcess
  let ledger = ReferenceLedger()
  var cpu: CPU
  var cell: KVMCell
  /// Who else has the page: the owner of remapped user memory, the child of a fork.
  var others: [HostProcess] = []

  private init(_ cell: KVMCell, _ machine: Machine, _ cpu: consuming CPU) throws {
    self.cell = cell
    self.machine = machine
    kernel = try HostKernel(
      machine: machine, behaviour: cell.era == .c ? .linux618 : .linux61, hugePageCount: 1,
      ledger: ledger, on: &cpu)
    self.cpu = cpu
    process = HostProcess(kernel: kernel)
  }

  /// Makes the experiment of a cell.
  static func run(
    _ kind: KVMPageKind, _ area: KVMArea, _ access: KVMAccess, _ era: KernelModel.KVM
  ) throws -> KVMCell {
    var description = MachineDescription(memory: .mib(128))
    description.model = KernelModel(kvm: era)
    let machine = try Machine(description)
    let experiment = try KVMExperiment(
      KVMCell(kind, area, access, era), machine, machine.claimCPU(0))
    return try experiment.run()
  }

  // MARK: the access

  private func run() throws -> KVMCell {
    let place = try makePlace()
    kernel.drainLRUBatches(on: &cpu)
    let address = place.base + UInt64(place.page) << 12
    let before = process.frame(at: address)
    let baseline = before.map(headCount)
    let vm = try VirtualMachine(process: process)
    vm.checksAccesses = true
    let vcpu = try VCPU(vm)
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 1, flags: cell.area.hasReadonlySlot ? MemslotFlags.readonly.rawValue : 0,
        guestPhysicalAddress: KVMExperiment.testedGPA, memorySize: place.byteCount,
        userspaceAddress: place.base), on: &cpu)
    let watch = KVMWatch(process, at: address)
    kernel.observer = watch
    let gpa = KVMExperiment.testedGPA + UInt64(place.page) << 12
    let gfn = GFN(guestPhysicalAddress: gpa)
    watch.note("before: the guest \(cell.access.rawValue)s gfn \(gfn)")
    cpu.pageFreeEvent = { first, order, _ in watch.freed(first, order: order) }
    let made =
      cell.access == .read
      ? vcpu.read(gpa, byteCount: 4, on: &cpu)
      : vcpu.write(gpa, byteCount: 4, value: 0x1234_5678, on: &cpu)
    kernel.drainLRUBatches(on: &cpu)
    cpu.pageFreeEvent = nil
    watch.beginZap()
    let translation = vm.translation(gfn)
    cell.outcome = outcome(made, hasEntry: translation != nil)
    watch.note("after: \(cell.outcome.rawValue)")
    let now = process.frame(at: address)
    cell.changesPage = before != nil && now != nil && now != before
    cell.entry = translation.map { spte, level in
      KVMCell.Entry(
        level: level, isWritable: spte.isWritable, isHostWritable: spte.isHostWritable,
        isRefcounted: spte.isRefcounted)
    }
    noteCounts(watch, before: before, baseline: baseline, now: now)
    cell.isFreedByFault = watch.isFreed
    if translation != nil { try zap(place, watch) }
    cell.faultMarks = watch.faultMarks
    cell.zapMarks = watch.zapMarks
    cell.path = watch.path
    cell.reachesFreeFrame = !vm.verdict().noAccessAfterFree
    cell.findings = machine.findings.findings.map(\.description)
    cell.steps = watch.steps
    vm.close(on: &cpu)
    return cell
  }

  /// Drops the entry without any change of the page's own: mprotect only notifies.
  private func zap(_ place: Place, _ watch: KVMWatch) throws {
    watch.note("the entry is dropped: mprotect(PROT_NONE) notifies")
    try process.protect(place.base..<(place.base + place.byteCount), rights: [], on: &cpu)
    watch.endZap()
    watch.note("after the zap: page marked \(watch.zapMarks.letters)")
  }

  private func outcome(_ access: GuestAccess, hasEntry: Bool) -> KVMCell.Outcome {
    switch access {
    case .done: hasEntry ? .ok : .emulated
    case .mmio: .mmio
    case .failed: .efault
    case .interrupted, .dirtyRingFull: .interrupted
    }
  }

  /// The counts as differences: to what the count was, or, for a page that the fault brought, to what
  /// others than KVM hold.
  private func noteCounts(_ watch: KVMWatch, before: PFN?, baseline: Int?, now: PFN?) {
    let isSame = before != nil && now == before
    if let install = watch.atInstall, kernel.hasPage(install.pfn) {
      cell.during = Int(install.head) - (isSame ? baseline ?? 0 : install.others)
    }
    guard let now, kernel.hasPage(now) else { return }
    cell.after = headCount(now) - (isSame ? baseline ?? 0 : heldByOthers(now))
  }

  private func headCount(_ pfn: PFN) -> Int {
    kernel.hasPage(pfn) ? Int(kernel.frames.pageCount(pfn)) : 0
  }

  private func heldByOthers(_ pfn: PFN) -> Int {
    ledger.holders(of: kernel.frames.compoundHead(of: pfn)).reduce(0) { sum, held in
      if case .guestFault = held.holder { sum } else { sum + held.count }
    }
  }
}
