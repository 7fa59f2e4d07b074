public import PMUnits

/// What a call of `KVM_SET_USER_MEMORY_REGION` comes to, once its arguments are found legal.
/// Mirrors `enum kvm_mr_change`.
public enum MemslotChange: Sendable {
  /// A new slot.
  case create(MemslotShape)
  /// The slot goes.
  case delete(Memslot)
  /// The slot goes to another place; its flags may change with it.
  case move(old: Memslot, new: MemslotShape)
  /// Its flags change.
  case flagsOnly(old: Memslot, new: MemslotShape)
  /// The slot is so already.
  case unchanged

  /// The slot before.
  public var old: Memslot? {
    switch self {
    case .delete(let old), .move(let old, _), .flagsOnly(let old, _): old
    case .create, .unchanged: nil
    }
  }

  /// What the slot is afterwards.
  public var new: MemslotShape? {
    switch self {
    case .create(let new), .move(_, let new), .flagsOnly(_, let new): new
    case .delete, .unchanged: nil
    }
  }

  /// Makes the slot as it is afterwards; nil where it goes or stays. Throws `ENOMEM` where the host
  /// has no room for its log.
  public func makeSlot(settings: DirtyLogSettings) throws(KernelErrno) -> Memslot? {
    guard let new else { return nil }
    return try Memslot(new, replacing: old, settings: settings)
  }
}

extension MemslotSets {
  /// The most pages of a slot. Mirrors `KVM_MEM_MAX_NR_PAGES`.
  public static let maximumPageCount: UInt64 = (1 << 31) - 1

  /// Checks the arguments of `KVM_SET_USER_MEMORY_REGION` in the kernel's order and says what the
  /// call comes to; nothing changes.
  ///
  /// Fails with `EINVAL` where an argument is illegal or contradicts the slot, and with `EEXIST`
  /// where another slot has a frame of the range. `isTracked`: something outside KVM tracks the
  /// VM's writes. Mirrors `kvm_vm_ioctl_set_memory_region`, `__kvm_set_memory_region` and
  /// `kvm_arch_prepare_memory_region`, Linux 6.1.
  public func classify(
    _ region: MemoryRegion, capabilities: VMCapabilities, isTracked: Bool = false
  ) -> Result<MemslotChange, KernelErrno> {
    checked { () throws(KernelErrno) in
      try change(
        MemoryRegion2(region), isRegion2: false, capabilities: capabilities, isTracked: isTracked)
    }
  }

  /// The same for `KVM_SET_USER_MEMORY_REGION2`: `ENOTTY` where the kernel does not have it.
  ///
  /// There are no guest memfds here, so that a descriptor of one is never good: `EBADF` where a
  /// slot with ``MemslotFlags/guestMemfd`` would otherwise be made.
  /// Mirrors `kvm_set_memory_region`, Linux 6.18.
  public func classify(
    _ region: MemoryRegion2, capabilities: VMCapabilities, isTracked: Bool = false
  ) -> Result<MemslotChange, KernelErrno> {
    checked { () throws(KernelErrno) in
      guard capabilities.supportsRegion2 else { throw .enotty }
      return try change(
        region, isRegion2: true, capabilities: capabilities, isTracked: isTracked)
    }
  }

  private func checked(
    _ body: () throws(KernelErrno) -> MemslotChange
  ) -> Result<MemslotChange, KernelErrno> {
    do throws(KernelErrno) { return .success(try body()) } catch { return .failure(error) }
  }

  private func change(
    _ argument: MemoryRegion2, isRegion2: Bool, capabilities: VMCapabilities, isTracked: Bool
  ) throws(KernelErrno) -> MemslotChange {
    let region = argument.region
    try checkFields(argument, isRegion2: isRegion2, capabilities: capabilities)
    let old = spaces[region.addressSpace].slot(id: region.id)
    guard region.memorySize > 0 else {
      // Place and flags of what goes do not matter.
      guard let old else { throw .einval }
      return .delete(old)
    }
    let new = MemslotShape(region)
    let change: MemslotChange
    if let old {
      // A slot with private memory cannot change at all.
      guard !new.flags.contains(.guestMemfd), old.userspaceAddress == new.userspaceAddress,
        old.pageCount == new.pageCount,
        old.flags.contains(.readonly) == new.flags.contains(.readonly)
      else { throw .einval }
      if old.baseGFN != new.baseGFN {
        change = .move(old: old, new: new)
      } else if old.flags != new.flags {
        return .flagsOnly(old: old, new: new)
      } else {
        return .unchanged
      }
    } else {
      guard !pageCount.addingReportingOverflow(UInt64(new.pageCount)).overflow else {
        throw .einval
      }
      change = .create(new)
    }
    guard
      !spaces[new.addressSpace].hasSlot(in: new.baseGFN..<new.endGFN, otherThan: new.id)
    else { throw .eexist }
    if new.flags.contains(.guestMemfd) { throw .ebadf }
    if case .move = change, capabilities.refusesMoveWhileTracked, isTracked { throw .einval }
    // The range is not empty and does not wrap, so that there is a frame before its end.
    guard new.endGFN.rawValue - 1 <= capabilities.lastGFN.rawValue else { throw .einval }
    return change
  }

  /// What can be said without a look at the slots.
  private func checkFields(
    _ argument: MemoryRegion2, isRegion2: Bool, capabilities: VMCapabilities
  ) throws(KernelErrno) {
    let region = argument.region
    func isAligned(_ value: UInt64) -> Bool { value & 0xfff == 0 }
    func fits(_ start: UInt64, below limit: UInt64) -> Bool {
      let end = start.addingReportingOverflow(region.memorySize)
      return !end.overflow && end.partialValue <= limit
    }
    guard UInt32(region.id) < capabilities.slotLimit else { throw .einval }
    let flags = MemslotFlags(rawValue: region.flags)
    guard capabilities.knownFlags(for: flags, isRegion2: isRegion2).isSuperset(of: flags) else {
      throw .einval
    }
    guard isAligned(region.memorySize), isAligned(region.guestPhysicalAddress),
      isAligned(region.userspaceAddress),
      fits(region.userspaceAddress, below: capabilities.userAddressLimit)
    else { throw .einval }
    if flags.contains(.guestMemfd) {
      guard isAligned(argument.guestMemfdOffset),
        fits(argument.guestMemfdOffset, below: .max)
      else { throw .einval }
    }
    guard region.addressSpace < spaces.count else { throw .einval }
    guard fits(region.guestPhysicalAddress, below: .max) else { throw .einval }
    guard region.memorySize >> 12 <= MemslotSets.maximumPageCount else { throw .einval }
  }
}
