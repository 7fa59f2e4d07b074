internal import CPhysmemShim
internal import PMHostMap
public import PMPageAllocator
public import PMUnits

/// How the handling of a guest fault ended. Mirrors RET_PF_* and what follows from them.
public enum FaultOutcome: Hashable, Sendable {
  /// The guest tries again: something changed under the fault.
  case retry
  /// An entry was made or changed.
  case fixed
  /// The entry allowed the access already.
  case spurious
  /// The instruction is emulated: its write goes through the user address.
  case emulate
  /// No slot: the access goes to user space.
  case mmio
  /// KVM_RUN returns this error.
  case failed(KernelErrno)
  /// SIGBUS for poisoned memory.
  case hwpoison
  /// A signal is pending: KVM_RUN returns EINTR.
  case interrupted
}

/// A guest fault on its way.
struct GuestFault {
  var gfn: GFN
  var addressSpace: Int
  var isWrite: Bool
  var isFetch: Bool
  var slot: Memslot?
  var sequence: Int64
  var rootGeneration: Int64
  var hva: UInt64
  var vcpu: VCPU?
}

extension VirtualMachine {
  /// Handles a stage-2 fault: the order of events is the kernel's, see the specification 2.1 and 2.3.
  /// Mirrors `direct_page_fault` (6.1) and `kvm_tdp_mmu_page_fault` with `kvm_mmu_faultin_pfn` (6.13).
  /// To be called outside of an access of the vCPU.
  public func handleFault(
    _ gfn: GFN, addressSpace: Int = 0, isWrite: Bool, isFetch: Bool = false,
    vcpu: VCPU? = nil, on cpu: inout CPU
  ) -> FaultOutcome {
    readers.lockShared()
    defer { readers.unlock() }
    guard gfn.rawValue < tables[addressSpace].frameLimit else { return .mmio }
    var fault = GuestFault(
      gfn: gfn, addressSpace: addressSpace, isWrite: isWrite, isFetch: isFetch,
      slot: slots[addressSpace].slot(containing: gfn), sequence: 0,
      rootGeneration: rootGeneration, hva: 0, vcpu: vcpu)
    if let slot = fault.slot { fault.hva = slot.hva(of: gfn) }
    if configuration.mmu == .tdp, let fast = fastFault(fault) { return fast }
    // The snapshot comes before any look at the host's page table.
    fault.sequence = invalidationSequence
    guard let slot = fault.slot else {
      step("no slot for gfn \(gfn): MMIO")
      return .mmio
    }
    if slot.isInvalid { return .retry }
    if era == .c, mustRetryUnlocked(fault) { return .retry }
    let found = faultIn(fault, on: &cpu)
    if let early = outcome(of: found.result, fault) { return early }
    return map(fault, found, on: &cpu)
  }

  /// The fast page fault, without the lock and without a look at the page. Direct MMUs only: a guest with
  /// page tables of its own that are shadowed takes the slow way, prefetch included.
  private func fastFault(_ fault: GuestFault) -> FaultOutcome? {
    // Inside an access of the vCPU, or under the lock where there is none: tables that leave the tree are
    // not used again before that ends.
    if let vcpu = fault.vcpu { vcpu.cache.enter() } else { mmuLock.lockShared() }
    let result = tables[fault.addressSpace].fastFix(
      fault.gfn, write: fault.isWrite, execute: fault.isFetch,
      logsDirty: fault.slot?.logsDirtyPages ?? false)
    if let vcpu = fault.vcpu { vcpu.cache.leave() } else { mmuLock.unlock() }
    switch result {
    case .giveUp: return nil
    case .spurious: return .spurious
    case .fixed(let addedWrite):
      step("fast page fault: the entry of gfn \(fault.gfn) allows the access again")
      if addedWrite, let slot = fault.slot, !pm_planted(PM_PLANTED_FAST_FAULT_NOT_LOGGED) {
        markDirty(fault.gfn, slot, fault.vcpu)
      }
      noteFixedFault()
      return .fixed
    }
  }

  /// The unlocked test of 6.13: only an optimisation, may err both ways.
  private func mustRetryUnlocked(_ fault: GuestFault) -> Bool {
    invalidationSequence != fault.sequence
  }

  /// Both tries of the lookup: the first does not sleep. No vCPU here has an in-kernel APIC, so that no
  /// page fault is ever asynchronous. Mirrors `kvm_faultin_pfn` and `__kvm_mmu_faultin_pfn`.
  private func faultIn(_ fault: GuestFault, on cpu: inout CPU) -> PFNLookup {
    var request = PFNRequest(
      gfn: fault.gfn, isWrite: fault.isWrite, noWait: true, isGuarded: era == .b,
      holder: .guestFault(vm: id, gfn: fault.gfn))
    let first = lookUp(fault.slot, request, on: &cpu)
    guard first.result == .needsIO else { return first }
    request.noWait = false
    request.interruptible = era == .b || era == .c
    return lookUp(fault.slot, request, on: &cpu)
  }

  /// What an error frame comes to; nil for a frame. Mirrors `kvm_handle_error_pfn`.
  private func outcome(of result: PFNResult, _ fault: GuestFault) -> FaultOutcome? {
    switch result {
    case .page: return nil
    case .noSlot: return .mmio
    case .readOnlyFault: return .emulate
    case .hwpoison: return .hwpoison
    case .signalPending: return .interrupted
    case .fault, .needsIO:
      step("KVM_PFN_ERR_FAULT for gfn \(fault.gfn): EFAULT")
      return .failed(.efault)
    }
  }

  /// The part under the lock: stale test, level, entry; then the end of the fault, which is before the
  /// unlock in C and after it in the other eras.
  private func map(
    _ fault: GuestFault, _ found: PFNLookup, on cpu: inout CPU
  ) -> FaultOutcome {
    guard case .page(let pfn) = found.result else { return .retry }
    if era == .c, mustRetryUnlocked(fault) {
      finishBeforeUnlock(found, outcome: .retry, gfn: fault.gfn, on: &cpu)
      return .retry
    }
    kernel.observer?.beforeLock(fault.gfn, on: &cpu)
    if configuration.mmu == .tdp { mmuLock.lockShared() } else { mmuLock.lockExclusive() }
    var outcome = FaultOutcome.retry
    if rootGeneration == fault.rootGeneration,
      !mustRetry(fault.sequence, hva: fault.hva, gfn: fault.gfn)
    {
      outcome = install(fault, pfn, found, on: &cpu)
    } else {
      step("an invalidation came between lookup and lock: retry")
    }
    finishBeforeUnlock(found, outcome: outcome, gfn: fault.gfn, on: &cpu)
    mmuLock.unlock()
    finishAfterUnlock(found, gfn: fault.gfn, on: &cpu)
    if outcome == .fixed { noteFixedFault() }
    return outcome
  }
}
