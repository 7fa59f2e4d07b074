internal import PMFrames
public import PMHostMap
public import PMPageAllocator
public import PMUnits

/// A guest page mapped into the host for long, as nested virtualisation does with the pages of its guest's
/// guest: the one consumer that no notifier reaches. Mirrors `struct kvm_host_map`.
///
/// It has to be ended with ``unmap(dirty:on:)``; until then its reference or pin stays.
public struct GuestPageMap: Sendable {
  /// The guest frame.
  public let gfn: GFN
  /// The frame that was found.
  public let pfn: PFN
  /// Whether it may be written.
  public let isWritable: Bool
  private let vm: VirtualMachine
  private let pinned: PFN?
  private let slot: Memslot

  private init(
    _ vm: VirtualMachine, _ gfn: GFN, _ pfn: PFN, isWritable: Bool, pinned: PFN?, slot: Memslot
  ) {
    self.vm = vm
    self.gfn = gfn
    self.pfn = pfn
    self.isWritable = isWritable
    self.pinned = pinned
    self.slot = slot
  }

  /// Maps a guest page. Up to the v7 series the lookup is always for writing and takes a reference; from
  /// 6.13 on it pins, for writing only if asked, and refuses remapped areas unless the VM allows unsafe
  /// mappings. Throws EINVAL where the lookup fails. Mirrors `kvm_vcpu_map`.
  public static func map(
    _ gfn: GFN, of vm: VirtualMachine, addressSpace: Int = 0, writable: Bool = true,
    on cpu: inout CPU
  ) throws(KernelErrno) -> GuestPageMap {
    vm.readers.lockShared()
    defer { vm.readers.unlock() }
    let isWrite = vm.era != .c || writable
    let request = PFNRequest(
      gfn: gfn, isWrite: isWrite, wantsWritable: false, pins: vm.era == .c,
      holder: .vcpuMap(vm: vm.id, gfn: gfn))
    let slot = vm.slots[addressSpace].slot(containing: gfn)
    let found = vm.lookUp(slot, request, on: &cpu)
    guard case .page(let pfn) = found.result, let slot else { throw .einval }
    return GuestPageMap(
      vm, gfn, pfn, isWritable: isWrite, pinned: found.refcountedPage, slot: slot)
  }

  /// Ends the mapping: the guest frame is dirty in its slot if it was written, and the page gets the marks
  /// and loses the reference or pin of its era. Mirrors `kvm_vcpu_unmap`.
  public func unmap(dirty: Bool, on cpu: inout CPU) {
    let holder = Holder.vcpuMap(vm: vm.id, gfn: gfn)
    let isDirty = vm.era == .c ? isWritable : dirty
    if isDirty { vm.markDirtyIfLogged(gfn, slot, nil) }
    guard vm.era == .c else {
      return vm.releaseClean(pfn, dirty: dirty, holder, on: &cpu)
    }
    guard let pinned else { return }
    if isWritable, !vm.kernel.isReserved(pinned) { vm.kernel.setDirty(pinned) }
    if !vm.kernel.isReserved(pinned) { vm.kernel.markAccessed(pinned, on: &cpu) }
    vm.process.release(pinned, .pin, holder, on: &cpu)
  }
}

extension VirtualMachine {
  /// Looks up the page of a guest frame for a caller in the kernel: with a reference that the caller has
  /// to put, or nil for frames that are not counted (A, B: also an error). Mirrors `gfn_to_page`.
  public func page(of gfn: GFN, holder: Holder, on cpu: inout CPU) -> PFN? {
    readers.lockShared()
    defer { readers.unlock() }
    let request = PFNRequest(gfn: gfn, isWrite: true, wantsWritable: false, holder: holder)
    let found = lookUp(slots[0].slot(containing: gfn), request, on: &cpu)
    guard case .page(let pfn) = found.result else { return nil }
    return era == .c ? found.refcountedPage : refcountedPage(pfn)
  }
}
