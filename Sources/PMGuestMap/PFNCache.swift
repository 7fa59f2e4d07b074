internal import PMFrames
internal import PMHostMap
public import PMPageAllocator
public import PMUnits

/// One guest page kept reachable for the host, as Xen's and pvclock's shared pages are.
///
/// It holds no reference between refreshes: the notifier invalidates it. ``check(byteCount:)`` comes
/// before every use, ``refresh(gpa:on:)`` after a check that failed. Mirrors `gfn_to_pfn_cache`.
public final class PFNCache: @unchecked Sendable {
  // Sendable: `state` is touched under `lock` only.

  private struct State {
    var gpa: UInt64 = 0
    var uhva: UInt64?
    var generation: UInt64 = .max
    var pfn: PFN?
    var isValid = false
    var isActive = true
  }

  private let vm: VirtualMachine
  private let lock = HostMutex()
  private let refreshLock = HostMutex()
  private var state = State()

  /// An active cache of a VM, known to its notifier, that shows nothing yet. Mirrors `kvm_gpc_activate`
  /// without its first refresh.
  public init(_ vm: VirtualMachine) {
    self.vm = vm
    vm.notifierLock.withLock { vm.pfnCaches.append(self) }
  }

  /// Takes the cache off the notifier's list; it cannot be refreshed or used any more. Mirrors
  /// `kvm_gpc_deactivate`.
  public func deactivate() {
    lock.withLock { state = State(isActive: false) }
    vm.notifierLock.withLock { vm.pfnCaches.removeAll { $0 === self } }
  }

  /// The frame, where the cache is valid.
  public var pfn: PFN? { lock.withLock { state.isValid ? state.pfn : nil } }

  /// Whether the cache may be used for the first `byteCount` bytes behind its address: active, inside the
  /// page, of the present generation of slots, and not invalidated. Mirrors `kvm_gpc_check`.
  public func check(byteCount: Int) -> Bool {
    let generation = vm.memslots[0].generation
    return lock.withLock {
      state.isActive && Int(state.gpa & 4095) + byteCount <= 4096
        && state.generation == generation && state.uhva != nil && state.isValid
    }
  }

  /// Points the cache to a guest page and looks its frame up, for writing. Throws EINVAL where the cache
  /// is not active (what CVE-2022-49882 lacked), EFAULT where the lookup fails. Mirrors
  /// `kvm_gpc_refresh`.
  public func refresh(gpa: UInt64, on cpu: inout CPU) throws(KernelErrno) {
    refreshLock.lock()
    defer { refreshLock.unlock() }
    guard lock.withLock({ state.isActive }) else { throw .einval }
    let gfn = GFN(guestPhysicalAddress: gpa)
    let set = vm.memslots[0]
    let address = set.slot(containing: gfn)?.gfnToHVA(gfn, forWrite: true).address
    lock.withLock {
      if state.uhva != address { state.isValid = false }
      state.gpa = gpa
      state.uhva = address
      state.generation = set.generation
    }
    guard let address, let slot = set.slot(containing: gfn) else {
      lock.withLock { state.isValid = false }
      throw .efault
    }
    if lock.withLock({ state.isValid }) { return }
    try lookUp(gfn, address, slot, on: &cpu)
  }

  /// Mirrors `hva_to_pfn_retry`.
  private func lookUp(
    _ gfn: GFN, _ address: UInt64, _ slot: Memslot, on cpu: inout CPU
  ) throws(KernelErrno) {
    let holder = Holder.pfnCache(vm: vm.id, gfn: gfn)
    let request = PFNRequest(gfn: gfn, isWrite: true, holder: holder)
    while true {
      let sequence = vm.invalidationSequence
      vm.readers.lockShared()
      let found = vm.lookUp(slot, request, on: &cpu)
      vm.readers.unlock()
      guard case .page(let pfn) = found.result else { throw .efault }
      // Invalidations that are under way count here, not those that hit a slot.
      let isStale = vm.notifierLock.withLock {
        vm.activeInvalidations > 0 || vm.invalidationSequence != sequence
      }
      if isStale {
        release(found, pfn, isUnused: true, holder, on: &cpu)
        continue
      }
      lock.withLock {
        state.pfn = pfn
        state.isValid = true
      }
      // An invalidation between the test and now has found the cache invalid and left it so.
      if vm.notifierLock.withLock({
        vm.activeInvalidations > 0 || vm.invalidationSequence != sequence
      }) {
        lock.withLock { state.isValid = false }
        release(found, pfn, isUnused: true, holder, on: &cpu)
        continue
      }
      return release(found, pfn, isUnused: false, holder, on: &cpu)
    }
  }

  private func release(
    _ found: PFNLookup, _ pfn: PFN, isUnused: Bool, _ holder: Holder, on cpu: inout CPU
  ) {
    guard vm.era == .c else {
      // The v7 series still takes a reference here, and the same pages are refused.
      return vm.releaseClean(pfn, holder, on: &cpu)
    }
    guard let page = found.refcountedPage else { return }
    if !isUnused, !vm.kernel.isReserved(page) { vm.kernel.markAccessed(page, on: &cpu) }
    vm.kernel.put(page, holder, on: &cpu)
  }

  func invalidate(_ range: Range<UInt64>) {
    lock.withLock {
      if let uhva = state.uhva, range.contains(uhva & ~4095) { state.isValid = false }
    }
  }

  func invalidateAll() { lock.withLock { state.isValid = false } }
}
