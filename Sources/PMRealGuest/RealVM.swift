/// A real virtual machine of this host's KVM.
///
/// Its memory regions may name any memory of this process: that of an arena, or a
/// ``MirroredRange`` of one. Its guest is a small program of ours in 64-bit user mode, which
/// reads and writes guest physical memory as it is told, one access after another. (Why user mode:
/// some KVMs run a privileged guest in their instruction emulator, which does not use the MMU.)
/// The guest's own program is slot 0, from guest physical address 0, ``privateByteCount`` bytes.
///
/// All methods may be called from any threads. The vCPUs run beside each other, each on the thread
/// that asks it for accesses; accesses of several threads to one vCPU take turns. The calls about
/// memory run beside all of them, as the kernel lets them. The end of the value ends the machine;
/// the memory that its regions name must stay mapped until then, or the accesses fail.
public final class RealVM: Sendable {
  /// How to make a machine.
  public struct Configuration: Equatable, Sendable {
    /// Up to which guest physical address the guest can reach, in GiB: 1 to 512. Costs 4 KiB each.
    public var reachGiB: Int
    /// Whether there is a guest; without one there is no slot 0 either, and no vCPU.
    public var hasGuest: Bool
    /// The size of the dirty ring in bytes, or 0 for none: a power of two from a page on. With a
    /// ring the kernel refuses the bitmaps of ``RealVM/dirtyLog(slot:pageCount:)``.
    /// Each vCPU has a ring of its own.
    public var dirtyRingByteCount: Int
    /// The guest's vCPUs: 1 to 1024. Costs 64 KiB each, and two descriptors with their mappings.
    public var vcpuCount: Int

    /// Describes a machine; by default one with a guest of one vCPU that reaches 4 GiB, and no dirty
    /// ring.
    public init(
      reachGiB: Int = 4, hasGuest: Bool = true, dirtyRingByteCount: Int = 0, vcpuCount: Int = 1
    ) {
      self.reachGiB = reachGiB
      self.hasGuest = hasGuest
      self.dirtyRingByteCount = dirtyRingByteCount
      self.vcpuCount = vcpuCount
    }
  }

  /// The exit reason that stands there before each run: what the kernel leaves alone keeps it.
  public static let unsetExitReason: UInt32 = 0x7fff_0001

  /// The size of the guest's own memory in bytes, a multiple of 4096: no tested access may be below
  /// and no other region may be there. 0 for a machine without a guest.
  public let privateByteCount: UInt64
  /// How the machine was made.
  public let configuration: Configuration

  private let cpus: [VirtualCPU]
  let memory: RealMemoryRegions

  /// Makes a machine.
  ///
  /// Throws ``RealGuestError/invalid(_:)`` for a configuration that cannot be, else what the host
  /// refused, with nothing left behind. Whether a guest works here at all is what
  /// ``unavailability()`` finds out.
  public init(_ configuration: Configuration = Configuration()) throws(RealGuestError) {
    guard (1...512).contains(configuration.reachGiB) else {
      throw .invalid("a guest that reaches \(configuration.reachGiB)GiB")
    }
    guard (1...1024).contains(configuration.vcpuCount) else {
      throw .invalid("a guest of \(configuration.vcpuCount) vCPUs")
    }
    let kvm = KVMDescriptor(owning: try KVM.open())
    let vm = KVMDescriptor(owning: try KVM.createVM(kvm.rawValue))
    if configuration.dirtyRingByteCount != 0 {
      try Self.enableDirtyRing(vm, byteCount: configuration.dirtyRingByteCount)
    }
    let hasSecondForm =
      try KVM.checkExtension(vm.rawValue, KVM.userMemory2Capability) > 0
    var cpus: [VirtualCPU] = []
    var privateByteCount: UInt64 = 0
    if configuration.hasGuest {
      privateByteCount = GuestProgram.byteCount(
        reachGiB: configuration.reachGiB, vcpuCount: configuration.vcpuCount)
      cpus = try Self.makeGuest(kvm, vm, configuration)
    }
    self.configuration = configuration
    self.privateByteCount = privateByteCount
    self.cpus = cpus
    memory = RealMemoryRegions(
      vm: vm, hasSecondForm: hasSecondForm,
      privatePageCount: privateByteCount / GuestProgram.pageSize)
  }

  private static func enableDirtyRing(
    _ vm: borrowing KVMDescriptor, byteCount: Int
  ) throws(RealGuestError) {
    guard let argument = UInt64(exactly: byteCount) else {
      throw .invalid("a dirty ring of \(byteCount) bytes")
    }
    let errno = KVM.enableCapability(
      vm.rawValue, KVM.dirtyRingCapability, flags: 0, arguments: [argument])
    guard errno == 0 else {
      throw .host(operation: "a dirty ring of \(byteCount) bytes", errno: errno)
    }
  }

  private static func makeGuest(
    _ kvm: borrowing KVMDescriptor, _ vm: borrowing KVMDescriptor, _ configuration: Configuration
  ) throws(RealGuestError) -> [VirtualCPU] {
    let count = configuration.vcpuCount
    let size = GuestProgram.byteCount(reachGiB: configuration.reachGiB, vcpuCount: count)
    let memory = GuestMemory(
      owning: KVMMapping(owning: try KVM.map(byteCount: Int(size), isAccessible: true)))
    let base = memory.mapping.base
    GuestProgram.write(to: base, reachGiB: configuration.reachGiB, vcpuCount: count)
    let region = KVM.Region(
      slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: size,
      userspaceAddress: UInt64(UInt(bitPattern: base)))
    let errno = KVM.setRegion(vm.rawValue, region, isSecondForm: false)
    guard errno == 0 else { throw .host(operation: "KVM_SET_USER_MEMORY_REGION", errno: errno) }
    var cpus: [VirtualCPU] = []
    for index in 0..<count {
      cpus.append(
        try VirtualCPU(kvm: kvm, vm: vm, memory: memory, index: index, configuration))
    }
    return cpus
  }
}

// MARK: - Accesses

extension RealVM {
  private func guest(_ vcpu: Int) throws(RealGuestError) -> VirtualCPU {
    guard !cpus.isEmpty else { throw .noGuest }
    guard cpus.indices.contains(vcpu) else { throw .invalid("vCPU \(vcpu) of \(cpus.count)") }
    return cpus[vcpu]
  }

  /// Lets a vCPU of the guest do one access, and says what became of it.
  ///
  /// Costs one exit. Throws ``RealGuestError/unreachable(guestPhysicalAddress:byteCount:)`` without
  /// running anything for addresses outside of ``privateByteCount`` to the configured reach.
  public func perform(
    _ access: RealAccess, on vcpu: Int = 0
  ) throws(RealGuestError) -> RealAccessOutcome {
    try guest(vcpu).perform(access)
  }

  /// Lets a vCPU of the guest do many accesses in order; values read are put into `accesses`.
  ///
  /// Costs one exit for each 2048 accesses and each that does not finish. An access that fails or
  /// that is handed out as device memory is reported and skipped, and the script goes on behind it.
  /// A full dirty ring or a requested stop end the script; go on later with the rest as `range`.
  ///
  /// `range`: which of the accesses; nil for all. Throws before anything runs if the guest cannot
  /// reach one of them; another error, in the middle, leaves those values as they were that are
  /// behind the last whole 2048.
  public func perform(
    script accesses: inout [RealAccess], in range: Range<Int>? = nil, on vcpu: Int = 0
  ) throws(RealGuestError) -> RealScriptReport {
    let range = range ?? accesses.indices
    guard range.lowerBound >= 0, range.upperBound <= accesses.count else {
      throw .invalid("accesses \(range) of a script of \(accesses.count)")
    }
    return try guest(vcpu).perform(script: &accesses, in: range)
  }

  /// Makes the accesses of all threads end as ``RealAccessOutcome/interrupted``, from now on.
  ///
  /// One that is in the kernel or the guest ends when that next looks: to be prompt, send its
  /// thread a signal that has a handler, or use ``kick(vcpu:)``. Without a request, interrupted
  /// runs are resumed.
  public func requestStop() { for cpu in cpus { cpu.requestStop() } }

  /// Takes back ``requestStop()``.
  public func clearStop() { for cpu in cpus { cpu.clearStop() } }

  /// Makes the accesses of one vCPU end as ``RealAccessOutcome/interrupted``, from now on until
  /// ``clearStop(vcpu:)``, and gets the thread that runs it out of the guest by a signal.
  ///
  /// The signal is a real-time one that gets a handler of ours unless it has one. Throws what the
  /// host refuses about that, and for a vCPU that is not there.
  public func kick(vcpu: Int) throws(RealGuestError) {
    try Self.kicksAreReady.get()
    try guest(vcpu).kick()
  }

  /// Takes back ``kick(vcpu:)``.
  public func clearStop(vcpu: Int) throws(RealGuestError) { try guest(vcpu).clearStop() }

  private static let kicksAreReady: Result<Void, RealGuestError> = prepareKicks()

  private static func prepareKicks() -> Result<Void, RealGuestError> {
    do throws(RealGuestError) { return .success(try KVM.prepareKicks()) } catch {
      return .failure(error)
    }
  }
}

// MARK: - The dirty ring

/// A page that the dirty ring names.
public struct RealDirtyPage: Equatable, Sendable {
  /// Address space << 16 | slot number.
  public var slot: UInt32
  /// The page's number in its slot.
  public var page: UInt64

  /// Names page `page` of slot `slot`.
  public init(slot: UInt32, page: UInt64) {
    self.slot = slot
    self.page = page
  }
}

extension RealVM {
  /// Takes what is in the dirty ring of a vCPU, oldest first; nothing for a machine without rings or
  /// such a vCPU. The vCPU may run meanwhile.
  ///
  /// The entries stay taken, and their pages unwatched, until ``resetDirtyRings()``.
  public func harvestDirtyRing(vcpu: Int = 0) -> [RealDirtyPage] {
    cpus.indices.contains(vcpu) ? cpus[vcpu].harvestDirtyRing() : []
  }

  /// Gives harvested entries of all rings back to the kernel, which watches their pages again.
  ///
  /// The error number, 0 for success, and how many entries that were.
  public func resetDirtyRings() -> (errno: Int32, count: Int) { memory.resetDirtyRings() }
}
