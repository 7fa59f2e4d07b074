public import PMUnits

/// What can be asked for with `KVM_CHECK_EXTENSION`, as far as memory is concerned. The raw value is
/// the kernel's name.
public enum KVMCapability: String, CaseIterable, Hashable, Sendable {
  /// Slots can be set.
  case userMemory = "KVM_CAP_USER_MEMORY"
  /// How many slots an address space has.
  case memslotCount = "KVM_CAP_NR_MEMSLOTS"
  /// The MMU follows the process's page tables through notifiers.
  case synchronousMMU = "KVM_CAP_SYNC_MMU"
  /// A slot can be deleted.
  case destroyMemoryRegion = "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"
  /// Slots may adjoin where others were.
  case joinMemoryRegions = "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS"
  /// Slots can be read-only.
  case readonlyMemory = "KVM_CAP_READONLY_MEM"
  /// How many address spaces there are; 0 stands for one.
  case multiAddressSpace = "KVM_CAP_MULTI_ADDRESS_SPACE"
  /// Pages that are not there can be waited for by the guest.
  case asynchronousPageFaults = "KVM_CAP_ASYNC_PF"
  /// The bits that ``ManualDirtyProtect`` may have.
  case manualDirtyLogProtect2 = "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"
  /// The longest dirty ring, in bytes.
  case dirtyLogRing = "KVM_CAP_DIRTY_LOG_RING"
  /// The same, where user space keeps to acquire and release order.
  case dirtyLogRingAcquireRelease = "KVM_CAP_DIRTY_LOG_RING_ACQ_REL"
  /// Whether a ring can go with a bitmap for what no vCPU writes.
  case dirtyLogRingWithBitmap = "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP"
  /// `KVM_SET_USER_MEMORY_REGION2` is there.
  case userMemory2 = "KVM_CAP_USER_MEMORY2"
  /// Failed faults say where.
  case memoryFaultInfo = "KVM_CAP_MEMORY_FAULT_INFO"
  /// `KVM_PRE_FAULT_MEMORY` is there.
  case preFaultMemory = "KVM_CAP_PRE_FAULT_MEMORY"
  /// The attributes that ranges of guest memory can have.
  case memoryAttributes = "KVM_CAP_MEMORY_ATTRIBUTES"
  /// Guest memfds can be made.
  case guestMemfd = "KVM_CAP_GUEST_MEMFD"
}

/// What a VM's host offers, where hosts differ: the facts that decide whether an argument is legal.
public struct VMCapabilities: Hashable, Sendable {
  /// The ids of slots lie below this. Mirrors `KVM_USER_MEM_SLOTS`.
  public var slotLimit: UInt32 = 32764
  /// What `KVM_CAP_MULTI_ADDRESS_SPACE` says: 2 with system management mode, 0 without.
  public var multiAddressSpace: Int = 2
  /// The end of what a process can map, in bytes. Mirrors `TASK_SIZE_MAX`.
  public var userAddressLimit: UInt64
  /// The bits of a guest physical address, 36 to 52: those of the host with nested paging, 52
  /// without.
  public var guestPhysicalAddressBits: Int
  /// `KVM_SET_USER_MEMORY_REGION2` is there (Linux 6.8).
  public var supportsRegion2: Bool = false
  /// ``MemslotFlags/guestMemfd`` is known to `KVM_SET_USER_MEMORY_REGION2`.
  public var supportsGuestMemfd: Bool = false
  /// `KVM_PRE_FAULT_MEMORY` is there (Linux 6.11, nested paging only).
  public var supportsPreFault: Bool = false
  /// A slot cannot be moved while something outside KVM tracks its writes (Linux 6.13).
  public var refusesMoveWhileTracked: Bool = false
  /// The longest dirty ring, in bytes; 0 where there are no rings.
  public var dirtyRingByteLimit: Int = 65536 * 16
  /// Page modification logging: the processor may log 512 pages before KVM notices.
  public var hasPageModificationLog: Bool = false
  /// The bits that the argument of ``KVMCapability/manualDirtyLogProtect2`` may have.
  public var manualDirtyProtectMask: ManualDirtyProtect = [.enabled, .initiallySet]

  /// A host by the two facts without a default.
  public init(userAddressLimit: UInt64, guestPhysicalAddressBits: Int) {
    self.userAddressLimit = userAddressLimit
    self.guestPhysicalAddressBits = guestPhysicalAddressBits
  }

  /// The end of a process's addresses with page tables of 4 or 5 levels.
  public static func userAddressLimit(fiveLevel: Bool) -> UInt64 {
    (1 << (fiveLevel ? 56 : 47)) - 4096
  }

  /// Linux 6.1 on x86 with system management mode.
  ///
  /// - Parameters:
  ///   - fiveLevel: whether the host kernel runs with page tables of five levels.
  ///   - physicalAddressBits: those of the host with nested paging, 52 without.
  public static func linux61(fiveLevel: Bool, physicalAddressBits: Int) -> VMCapabilities {
    VMCapabilities(
      userAddressLimit: userAddressLimit(fiveLevel: fiveLevel),
      guestPhysicalAddressBits: physicalAddressBits)
  }

  /// Linux 6.18 on x86 as it was measured: shadow paging, no system management mode, page tables of
  /// four levels.
  public static let linux618: VMCapabilities = {
    var host = VMCapabilities(
      userAddressLimit: userAddressLimit(fiveLevel: false), guestPhysicalAddressBits: 52)
    host.multiAddressSpace = 0
    host.supportsRegion2 = true
    host.supportsGuestMemfd = true
    host.refusesMoveWhileTracked = true
    return host
  }()

  /// How many address spaces a VM has, 1 or more.
  public var addressSpaceCount: Int { max(1, multiAddressSpace) }

  /// The highest guest frame that a slot may hold. Mirrors `kvm_mmu_max_gfn`.
  public var lastGFN: GFN { GFN((1 << UInt64(guestPhysicalAddressBits - 12)) - 1) }

  /// The same host without a limit of guest frames.
  var withoutFrameLimit: VMCapabilities {
    var host = self
    host.guestPhysicalAddressBits = 64
    return host
  }

  /// The flags that a caller may pass.
  ///
  /// - Parameters:
  ///   - flags: what it passes: private memory is neither logged nor read-only.
  ///   - isRegion2: whether it calls `KVM_SET_USER_MEMORY_REGION2`.
  public func knownFlags(for flags: MemslotFlags, isRegion2: Bool) -> MemslotFlags {
    guard isRegion2, supportsGuestMemfd, flags.contains(.guestMemfd) else {
      return [.logDirtyPages, .readonly]
    }
    return .guestMemfd
  }

  /// The answer of `KVM_CHECK_EXTENSION`, the same on `/dev/kvm` and on a VM; 0 means no.
  public func checkExtension(_ capability: KVMCapability) -> Int {
    switch capability {
    case .userMemory, .synchronousMMU, .destroyMemoryRegion, .joinMemoryRegions, .readonlyMemory,
      .asynchronousPageFaults:
      1
    case .memslotCount: Int(slotLimit)
    case .multiAddressSpace: multiAddressSpace
    case .manualDirtyLogProtect2: Int(manualDirtyProtectMask.rawValue)
    case .dirtyLogRing, .dirtyLogRingAcquireRelease: dirtyRingByteLimit
    // On x86 nothing writes guest memory outside a vCPU.
    case .dirtyLogRingWithBitmap: 0
    case .userMemory2, .memoryFaultInfo: supportsRegion2 ? 1 : 0
    case .preFaultMemory: supportsPreFault ? 1 : 0
    // Default VMs have no private memory.
    case .memoryAttributes: 0
    case .guestMemfd: supportsGuestMemfd ? 1 : 0
    }
  }

  /// The answer of `KVM_CHECK_EXTENSION` for a capability by the kernel's name; 0 for one that is
  /// not known, as the kernel answers unknown numbers.
  public func checkExtension(_ name: String) -> Int {
    KVMCapability(rawValue: name).map(checkExtension) ?? 0
  }
}

/// The argument of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, with the kernel's values.
public struct ManualDirtyProtect: OptionSet, Hashable, Sendable, BitwiseCopyable {
  /// The bits as in `kvm_enable_cap.args[0]`.
  public let rawValue: UInt64

  /// A setting from its bits, unchecked.
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// `KVM_GET_DIRTY_LOG` copies only; `KVM_CLEAR_DIRTY_LOG` clears and protects
  /// (`KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`).
  public static let enabled: ManualDirtyProtect = ManualDirtyProtect(rawValue: 1)
  /// A new log says that every page is dirty, and nothing is protected until it is cleared
  /// (`KVM_DIRTY_LOG_INITIALLY_SET`).
  public static let initiallySet: ManualDirtyProtect = ManualDirtyProtect(rawValue: 2)
}

extension VMCapabilities {
  /// The checks of `KVM_CREATE_GUEST_MEMFD`; there are no guest memfds here, so that nothing is made.
  ///
  /// Throws `ENOTTY` where the kernel does not have it, and `EINVAL` where flags are not 0 or the
  /// size is 0, no multiple of 4096, or too large for a file.
  public func checkGuestMemfd(byteCount: UInt64, flags: UInt64 = 0) throws(KernelErrno) {
    guard supportsGuestMemfd else { throw .enotty }
    guard flags == 0, byteCount & 0xfff == 0, Int64(bitPattern: byteCount) > 0 else {
      throw .einval
    }
  }
}
