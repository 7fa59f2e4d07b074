import Synchronization

/// The guest's own memory, which all vCPUs of a machine use: each its own records.
final class GuestMemory: Sendable {
  let mapping: KVMMapping

  init(owning mapping: consuming KVMMapping) { self.mapping = mapping }
}

/// A vCPU of a ``RealVM``.
final class VirtualCPU: @unchecked Sendable {
  // @unchecked: everything is constant but this vCPU's records in the guest's memory and its
  // registers in the kernel, which `busy` guards: every method that touches them holds it. The stop
  // flag and the runner are atomic, the ring's index has a lock of its own.

  private let memory: GuestMemory
  private let records: UInt64
  private let descriptor: KVMDescriptor
  private let shared: KVMMapping
  private let dirtyRing: KVMMapping?
  private let reach: UInt64
  private let busy = Mutex(())
  private let stop = Atomic(false)
  /// The thread that is in the guest or about to enter it, or 0.
  private let runner = Atomic<Int32>(0)
  /// The next entry of the dirty ring to look at.
  private let ringIndex = Mutex(0)

  /// Makes a vCPU of a machine, by its number. `memory` is set up and is the machine's slot 0
  /// already.
  init(
    kvm: borrowing KVMDescriptor, vm: borrowing KVMDescriptor, memory: GuestMemory, index: Int,
    _ configuration: RealVM.Configuration
  ) throws(RealGuestError) {
    let dirtyRingByteCount = configuration.dirtyRingByteCount
    let descriptor = KVMDescriptor(owning: try KVM.createVCPU(vm.rawValue, index: index))
    let shared = KVMMapping(
      owning: try KVM.mapRun(kvm: kvm.rawValue, vcpu: descriptor.rawValue))
    var dirtyRing: KVMMapping?
    if dirtyRingByteCount > 0 {
      dirtyRing = KVMMapping(
        owning: try KVM.mapDirtyRing(descriptor.rawValue, byteCount: dirtyRingByteCount))
    }
    try KVM.setDefaultCPUID(kvm: kvm.rawValue, vcpu: descriptor.rawValue)
    try KVM.setUserMode(descriptor.rawValue)
    self.memory = memory
    records = GuestProgram.records(vcpu: index)
    self.descriptor = descriptor
    self.shared = shared
    self.dirtyRing = dirtyRing
    reach = UInt64(configuration.reachGiB) << 30
  }

  /// Throws unless the guest can do this access without touching what is its own.
  private func check(_ access: RealAccess) throws(RealGuestError) {
    let count = UInt64(access.size.rawValue)
    let address = access.guestPhysicalAddress
    guard address >= memory.mapping.byteCount, address <= reach - count else {
      throw .unreachable(guestPhysicalAddress: address, byteCount: access.size.rawValue)
    }
  }
}

// MARK: - Stopping

extension VirtualCPU {
  func requestStop() {
    // This order, against the opposite one in `run()`.
    stop.store(true, ordering: .sequentiallyConsistent)
    KVM.setImmediateExit(shared.base, true)
  }

  func clearStop() { stop.store(false, ordering: .sequentiallyConsistent) }

  /// Requests a stop and gets the running thread, if there is one, out of the kernel. A thread that
  /// is about to enter it finds `immediate_exit` set, or the flag when it looks next.
  func kick() {
    requestStop()
    let thread = runner.load(ordering: .sequentiallyConsistent)
    if thread != 0 { KVM.kick(thread: thread) }
  }
}

// MARK: - Running

extension VirtualCPU {
  /// How a run ended; nil for the guest's word that it is done.
  private func run() throws(RealGuestError) -> RealAccessOutcome? {
    runner.store(KVM.threadID, ordering: .sequentiallyConsistent)
    defer { runner.store(0, ordering: .sequentiallyConsistent) }
    while true {
      KVM.setImmediateExit(shared.base, false)
      if stop.load(ordering: .sequentiallyConsistent) { return .interrupted }
      let (errno, exit) = KVM.run(
        descriptor.rawValue, shared.base, unsetReason: RealVM.unsetExitReason)
      if errno == KVM.interrupted { continue }
      if errno != 0 { return .failed(errno: errno, exitReason: exit.reason) }
      if exit.isPort && exit.port == GuestProgram.donePort { return nil }
      if exit.isDirtyRingFull { return .dirtyRingFull }
      if exit.isMMIO {
        try KVM.completeMMIO(descriptor.rawValue, shared.base, fill: 0xee)
        return .mmio(
          guestPhysicalAddress: exit.guestPhysicalAddress, byteCount: exit.byteCount,
          isWrite: exit.isWrite)
      }
      try KVM.setUserMode(descriptor.rawValue)
      return .other(exitReason: exit.reason)
    }
  }

  func perform(_ access: RealAccess) throws(RealGuestError) -> RealAccessOutcome {
    try check(access)
    return try busy.withLock { (_) throws(RealGuestError) in
      try KVM.setRegisters(
        descriptor.rawValue,
        KVM.Registers(
          rip: GuestProgram.single(access.size, isWrite: access.isWrite),
          rax: access.isWrite ? access.value : 0xdead_beef, rbx: access.guestPhysicalAddress))
      if let outcome = try run() {
        guard outcome.endsScript, try isPast(access) else { return outcome }
      }
      guard !access.isWrite else { return .done(value: access.value & access.size.mask) }
      return .done(value: try KVM.registers(descriptor.rawValue).rax)
    }
  }

  /// Whether a single access that was stopped was stopped behind its instruction.
  private func isPast(_ access: RealAccess) throws(RealGuestError) -> Bool {
    let start = GuestProgram.single(access.size, isWrite: access.isWrite)
    let end = start + GuestProgram.length(access.size, isWrite: access.isWrite)
    return try KVM.registers(descriptor.rawValue).rip == end
  }

  func perform(
    script accesses: inout [RealAccess], in range: Range<Int>
  ) throws(RealGuestError) -> RealScriptReport {
    for access in accesses[range] { try check(access) }
    // By pointer, because the lock's closure may not capture what is inout.
    return try accesses.withUnsafeMutableBufferPointer { (all) throws(RealGuestError) in
      var report = RealScriptReport(stops: [], endIndex: range.lowerBound)
      while report.endIndex < range.upperBound {
        let count = min(range.upperBound - report.endIndex, GuestProgram.recordCapacity)
        let batch = report.endIndex..<report.endIndex + count
        let stops = try perform(batch: batch, of: all)
        report.stops += stops
        if let last = stops.last, last.outcome.endsScript {
          report.endIndex = last.index
          break
        }
        report.endIndex = batch.upperBound
      }
      return report
    }
  }

  /// Performs what fits into the guest's records. The lock is taken for each such batch, so that
  /// threads take turns in long scripts.
  private func perform(
    batch: Range<Int>, of accesses: UnsafeMutableBufferPointer<RealAccess>
  ) throws(RealGuestError) -> [RealScriptReport.Stop] {
    let work = UnsafeMutableBufferPointer(rebasing: accesses[batch])
    return try busy.withLock { (_) throws(RealGuestError) in
      storeRecords(work)
      let stops = try runRecords(batch)
      // A record that was not done holds what was put there: all may be taken.
      loadRecords(work)
      return stops
    }
  }

  /// Runs the script over the records of `batch`, again after each access that does not finish.
  private func runRecords(
    _ batch: Range<Int>
  ) throws(RealGuestError) -> [RealScriptReport.Stop] {
    var stops: [RealScriptReport.Stop] = []
    var first = 0
    let end = records + UInt64(batch.count) * GuestProgram.recordSize
    while first < batch.count {
      let start = records + UInt64(first) * GuestProgram.recordSize
      try KVM.setRegisters(
        descriptor.rawValue, KVM.Registers(rip: GuestProgram.script, rsi: start, rdi: end))
      guard let outcome = try run() else { break }
      let index = try indexInWork(first..<batch.count, after: outcome)
      stops.append(RealScriptReport.Stop(index: batch.lowerBound + index, outcome: outcome))
      if outcome.endsScript { break }
      first = index + 1
    }
    return stops
  }

  /// The record that the script stands at, or, where that is done already and must not be done again,
  /// the one behind it.
  private func indexInWork(
    _ range: Range<Int>, after outcome: RealAccessOutcome
  ) throws(RealGuestError) -> Int {
    let registers = try KVM.registers(descriptor.rawValue)
    let (index, rest) = (registers.rsi &- records).quotientAndRemainder(
      dividingBy: GuestProgram.recordSize)
    guard rest == 0, index <= UInt64(range.upperBound) else {
      throw .guestLost(instructionPointer: registers.rip)
    }
    if outcome.endsScript, range.contains(Int(index)),
      GuestProgram.hasDoneAccess(scriptAt: registers.rip)
    {
      return Int(index) + 1
    }
    // Behind the last record only something that is no access can stop it.
    guard range.contains(Int(index)) || outcome.endsScript && index == UInt64(range.upperBound)
    else { throw .guestLost(instructionPointer: registers.rip) }
    return Int(index)
  }

  private func storeRecords(_ work: UnsafeMutableBufferPointer<RealAccess>) {
    var record = memory.mapping.base + Int(records)
    for access in work {
      record.storeBytes(of: access.guestPhysicalAddress, as: UInt64.self)
      record.storeBytes(of: access.value, toByteOffset: 8, as: UInt64.self)
      record.storeBytes(
        of: GuestProgram.handler(access.size, isWrite: access.isWrite), toByteOffset: 16,
        as: UInt64.self)
      record += Int(GuestProgram.recordSize)
    }
  }

  private func loadRecords(_ work: UnsafeMutableBufferPointer<RealAccess>) {
    var record = memory.mapping.base + Int(records)
    for index in work.indices {
      if !work[index].isWrite {
        work[index].value = record.load(fromByteOffset: 8, as: UInt64.self)
      }
      record += Int(GuestProgram.recordSize)
    }
  }
}

extension RealAccessOutcome {
  /// Whether a script ends here, with this access not done.
  fileprivate var endsScript: Bool {
    switch self {
    case .dirtyRingFull, .interrupted: true
    case .done, .mmio, .failed, .other: false
    }
  }
}

// MARK: - The dirty ring

extension VirtualCPU {
  func harvestDirtyRing() -> [RealDirtyPage] {
    // Beside a running guest: what the kernel and user space do to an entry is ordered by its flags.
    ringIndex.withLock { index in
      guard let (ring, capacity) = ringMemory() else { return [] }
      var pages: [RealDirtyPage] = []
      while pages.count < capacity, let (slot, offset) = KVM.harvest(ring, index: index) {
        pages.append(RealDirtyPage(slot: slot, page: offset))
        index = (index + 1) % capacity
      }
      return pages
    }
  }

  private func ringMemory() -> (UnsafeMutableRawPointer, capacity: Int)? {
    switch dirtyRing {
    case .some(let ring): (ring.base, ring.byteCount / KVM.dirtyRingEntrySize)
    case .none: nil
    }
  }
}
