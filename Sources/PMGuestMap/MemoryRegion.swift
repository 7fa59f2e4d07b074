/// The argument of `KVM_SET_USER_MEMORY_REGION`, unchecked.
///
/// Same fields as `struct kvm_userspace_memory_region`; sizes and addresses in bytes.
public struct MemoryRegion: Hashable, Sendable {
  /// The address space in the upper 16 bits, the slot's id in it in the lower 16.
  public var slot: UInt32
  /// Raw flags, see ``MemslotFlags``.
  public var flags: UInt32
  /// Where the guest sees the memory.
  public var guestPhysicalAddress: UInt64
  /// How long it is; 0 deletes the slot.
  public var memorySize: UInt64
  /// Where the memory is in the process that runs the guest.
  public var userspaceAddress: UInt64

  /// An argument from its fields.
  public init(
    slot: UInt32, flags: UInt32 = 0, guestPhysicalAddress: UInt64, memorySize: UInt64,
    userspaceAddress: UInt64
  ) {
    self.slot = slot
    self.flags = flags
    self.guestPhysicalAddress = guestPhysicalAddress
    self.memorySize = memorySize
    self.userspaceAddress = userspaceAddress
  }

  /// The upper half of ``slot``: 0 the normal address space, 1 that of system management mode.
  public var addressSpace: Int { Int(slot >> 16) }
  /// The lower half of ``slot``.
  public var id: UInt16 { UInt16(truncatingIfNeeded: slot) }
}

/// The argument of `KVM_SET_USER_MEMORY_REGION2` (Linux 6.8 and later), unchecked.
///
/// Same fields as `struct kvm_userspace_memory_region2` without its padding, which is not checked.
public struct MemoryRegion2: Hashable, Sendable {
  /// What it shares with the older call.
  public var region: MemoryRegion
  /// A guest memfd's descriptor; read only with ``MemslotFlags/guestMemfd``.
  public var guestMemfd: Int32
  /// Where in the guest memfd the slot begins, in bytes.
  public var guestMemfdOffset: UInt64

  /// An argument from its fields.
  public init(_ region: MemoryRegion, guestMemfd: Int32 = 0, guestMemfdOffset: UInt64 = 0) {
    self.region = region
    self.guestMemfd = guestMemfd
    self.guestMemfdOffset = guestMemfdOffset
  }
}

/// Flags of a memslot, with the kernel's values.
public struct MemslotFlags: OptionSet, Hashable, Sendable, BitwiseCopyable {
  /// The bits as in `kvm_userspace_memory_region.flags`.
  public let rawValue: UInt32

  /// Flags from their bits, unchecked.
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Writes are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
  public static let logDirtyPages: MemslotFlags = MemslotFlags(rawValue: 1 << 0)
  /// Guest writes go to user space (`KVM_MEM_READONLY`).
  public static let readonly: MemslotFlags = MemslotFlags(rawValue: 1 << 1)
  /// Private memory comes from a guest memfd (`KVM_MEM_GUEST_MEMFD`, Linux 6.8).
  public static let guestMemfd: MemslotFlags = MemslotFlags(rawValue: 1 << 2)
  /// The slot is on its way out (`KVM_MEMSLOT_INVALID`): faults in it are tried again. Internal;
  /// no caller may pass it.
  public static let invalid: MemslotFlags = MemslotFlags(rawValue: 1 << 16)
}
