internal import CPhysmemShim
internal import PMHostMap
public import PMPageAllocator
public import PMUnits

// Changes of memslots: checked, published in the kernel's order, with what each drops.
extension VirtualMachine {
  func noteRootsDropped() { _ = pm_counter_add_seq_cst(counters + 1, 1) }

  /// Creates, deletes, moves a slot or changes its flags. Throws what the kernel returns: EINVAL,
  /// EEXIST, ENOMEM. Mirrors `KVM_SET_USER_MEMORY_REGION`.
  public func setUserMemoryRegion(
    _ region: MemoryRegion, on cpu: inout CPU
  ) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    let host = configuration.capabilities
    try apply(
      slots.classify(region, capabilities: host),
      unlimited: slots.classify(region, capabilities: host.withoutFrameLimit), on: &cpu)
  }

  /// The same with the wider argument. ENOTTY before Linux 6.8. Mirrors `KVM_SET_USER_MEMORY_REGION2`.
  public func setUserMemoryRegion2(
    _ region: MemoryRegion2, on cpu: inout CPU
  ) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    let host = configuration.capabilities
    try apply(
      slots.classify(region, capabilities: host),
      unlimited: slots.classify(region, capabilities: host.withoutFrameLimit), on: &cpu)
  }

  /// A move beyond the last guest frame is refused only when the slot has been taken out already: it
  /// comes back, without its translations. Mirrors the failure of `kvm_prepare_memory_region` in
  /// `kvm_set_memslot`.
  private func apply(
    _ change: Result<MemslotChange, KernelErrno>,
    unlimited: Result<MemslotChange, KernelErrno>, on cpu: inout CPU
  ) throws(KernelErrno) {
    if case .failure(let error) = change, case .success(.move(let old, _)) = unlimited {
      invalidate(old, on: &cpu)
      publish(old: old, new: old)
      throw error
    }
    try apply(change.get(), on: &cpu)
  }

  /// The slots as they are: a value that does not change any more.
  public var memslots: MemslotSets {
    readers.lockShared()
    defer { readers.unlock() }
    return slots
  }

  private func apply(_ change: MemslotChange, on cpu: inout CPU) throws(KernelErrno) {
    switch change {
    case .unchanged: return
    case .create:
      let new = try change.makeSlot(settings: settings)
      publish(old: nil, new: new)
    case .flagsOnly(let old, _):
      let new = try change.makeSlot(settings: settings)
      publish(old: old, new: new)
      if let new { flagsChanged(from: old, to: new, on: &cpu) }
    case .delete(let old):
      invalidate(old, on: &cpu)
      publish(old: old, new: nil)
    case .move(let old, _):
      let new = try change.makeSlot(settings: settings)
      invalidate(old, on: &cpu)
      publish(old: old, new: new)
    }
  }

  /// Shows readers the slot as invalid, then drops what the tables have of it: all of the VM's entries, as
  /// 6.1 does and later kernels do by default. Mirrors `kvm_invalidate_memslot`.
  private func invalidate(_ old: Memslot, on cpu: inout CPU) {
    publish(old: old, new: old.invalidated())
    if !pm_planted(PM_PLANTED_DELETE_KEEPS_ENTRIES) { dropAll(on: &cpu) }
    for cache in notifierLock.withLock({ pfnCaches }) { cache.invalidateAll() }
  }

  /// Replaces a set once no invalidation is between its start and its end, and waits for the readers of
  /// the old one. Mirrors `kvm_swap_active_memslots`.
  private func publish(old: Memslot?, new: Memslot?) {
    guard let space = (old ?? new)?.addressSpace else { return }
    while true {
      readers.lockExclusive()
      notifierLock.lock()
      if activeInvalidations == 0 {
        let current = slots[space]
        let place = old.flatMap { current.slot(id: $0.id) }
        let set = current.replacing(place, with: new)
        slots.publish(set)
        notifierLock.unlock()
        // With `readers` held nobody is left who looks at the old set.
        set.finishUpdate()
        readers.unlock()
        return
      }
      readers.unlock()
      while activeInvalidations > 0 { notifierIdle.wait(notifierLock) }
      notifierLock.unlock()
    }
  }
}
