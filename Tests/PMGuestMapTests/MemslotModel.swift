import PMUnits

@testable import PMGuestMap

/// The checks and the bookkeeping of a VM's slots and logs without the VM around them, as a value that
/// tests can copy.
struct MemslotModel: Sendable {
  /// What its host offers.
  let capabilities: VMCapabilities
  /// Its slots.
  private(set) var slots: MemslotSets
  /// How it logs.
  private(set) var settings: DirtyLogSettings
  /// How many vCPUs were made; with one or more the rings can no longer be enabled.
  var vCPUCount: Int

  /// A new VM.
  init(capabilities: VMCapabilities) {
    self.capabilities = capabilities
    slots = MemslotSets(addressSpaceCount: capabilities.addressSpaceCount)
    settings = DirtyLogSettings()
    vCPUCount = 0
  }

  /// `KVM_SET_USER_MEMORY_REGION`: returns what it did. Errors as
  /// `MemslotSets.classify`, and `ENOMEM` where the host has no room for a log.
  @discardableResult
  mutating func setUserMemoryRegion(
    _ region: MemoryRegion
  ) throws(KernelErrno) -> MemslotChange {
    try apply(slots.classify(region, capabilities: capabilities).get())
  }

  /// `KVM_SET_USER_MEMORY_REGION2`: the same, and `ENOTTY` or `EBADF`.
  @discardableResult
  mutating func setUserMemoryRegion2(
    _ region: MemoryRegion2
  ) throws(KernelErrno) -> MemslotChange {
    try apply(slots.classify(region, capabilities: capabilities).get())
  }

  private mutating func apply(_ change: MemslotChange) throws(KernelErrno) -> MemslotChange {
    if case .unchanged = change { return change }
    let new = try change.makeSlot(settings: settings)
    guard let space = (new ?? change.old)?.addressSpace else { return change }
    let set = slots[space].replacing(change.old, with: new)
    slots.publish(set)
    set.finishUpdate()
    return change
  }

  /// `KVM_GET_DIRTY_LOG` into a buffer of one word for 64 pages of the slot or more; nil stands for
  /// one that cannot be written.
  ///
  /// Errors as ``MemslotSets/logToGet(slot:settings:capabilities:)``, then `EFAULT`, with which the
  /// marks that were taken out are lost.
  func getDirtyLog(
    slot: UInt32, into buffer: UnsafeMutableBufferPointer<UInt64>?
  ) throws(KernelErrno) {
    let bitmap = try slots.logToGet(
      slot: slot, settings: settings, capabilities: capabilities
    ).bitmap
    if settings.manualProtect.contains(.enabled) {
      if let buffer { bitmap.copy(to: buffer) }
    } else {
      bitmap.harvest(into: buffer)
    }
    if buffer == nil { throw .efault }
  }

  /// `KVM_CLEAR_DIRTY_LOG` with a bitmap of ``DirtyLogRange/wordCount`` words or more; nil stands for
  /// one that cannot be read, which does not matter where no word is read.
  ///
  /// Errors as ``MemslotSets/logToClear(_:settings:capabilities:)``, then `EFAULT`, with which
  /// nothing is cleared.
  func clearDirtyLog(
    _ range: DirtyLogRange, bits: UnsafeBufferPointer<UInt64>?
  ) throws(KernelErrno) {
    let bitmap = try slots.logToClear(
      range, settings: settings, capabilities: capabilities
    ).bitmap
    guard range.wordCount > 0 else { return }
    guard let bits else { throw .efault }
    bitmap.clear(range, bits: bits)
  }

  /// The checks of `KVM_CREATE_GUEST_MEMFD`.
  func checkGuestMemfd(byteCount: UInt64, flags: UInt64 = 0) throws(KernelErrno) {
    try capabilities.checkGuestMemfd(byteCount: byteCount, flags: flags)
  }

  /// `KVM_ENABLE_CAP`: manual protection and rings. `EINVAL` for anything else, as where the kernel
  /// does not know a capability.
  mutating func enable(
    _ capability: KVMCapability, flags: UInt32 = 0, argument: UInt64
  ) throws(KernelErrno) {
    switch capability {
    case .manualDirtyLogProtect2:
      settings.manualProtect = try ManualDirtyProtect.checked(
        flags: flags, argument: argument, capabilities: capabilities)
    case .dirtyLogRing, .dirtyLogRingAcquireRelease:
      settings.ring = try DirtyRingShape.checked(
        byteCount: argument, settings: settings, vCPUCount: vCPUCount, capabilities: capabilities)
    default: throw .einval
    }
  }
}
