import Glibc
public import PMGuestMap
internal import PMPageAllocator

extension RealVM {
  /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
  static let manualDirtyLogProtect2: UInt32 = 168
  private static let memslotCount: UInt32 = 10
  private static let multiAddressSpace: UInt32 = 118
  private static let userMemory2: UInt32 = 231
  private static let guestMemfd: UInt32 = 234

  /// How to set up an emulated machine so that it is this host's KVM, as far as that can be found
  /// out: by asking, by trying regions on a machine without a guest, by the kernel's release, and by
  /// the settings of KVM's modules.
  ///
  /// A KVM without such settings is taken for one with shadow paging. Costs a few machines' worth of
  /// calls. Throws what making a machine throws.
  public static func modelConfiguration() throws(RealGuestError) -> VirtualMachine.Configuration {
    let probe = try RealVM(Configuration(hasGuest: false))
    let era = hostEra()
    var host = VMCapabilities(
      userAddressLimit: VMCapabilities.userAddressLimit(
        fiveLevel: probe.accepts(guestPhysicalAddress: 0, userspaceAddress: 1 << 47)),
      guestPhysicalAddressBits: 36)
    for bits in 36...52 as ClosedRange<UInt64>
    where probe.accepts(guestPhysicalAddress: (1 << bits) - 4096, userspaceAddress: 1 << 30) {
      host.guestPhysicalAddressBits = Int(bits)
    }
    host.slotLimit = UInt32(try probe.checkExtension(memslotCount))
    host.multiAddressSpace = try probe.checkExtension(multiAddressSpace)
    host.supportsRegion2 = try probe.checkExtension(userMemory2) > 0
    host.supportsGuestMemfd = try probe.checkExtension(guestMemfd) > 0
    host.refusesMoveWhileTracked = era == .c
    host.dirtyRingByteLimit = try probe.checkExtension(KVM.dirtyRingCapability)
    host.manualDirtyProtectMask = ManualDirtyProtect(
      rawValue: UInt64(try probe.checkExtension(manualDirtyLogProtect2)))
    let isNested = isOn("kvm_intel/parameters/ept") || isOn("kvm_amd/parameters/npt")
    // Page modification logging changes how writes are found, not which: without it the emulated
    // machine needs no data to find them.
    return VirtualMachine.Configuration(
      capabilities: host, mmu: isNested ? .tdp : .shadow, era: era)
  }

  /// Whether a region of one page may be there; it is deleted again.
  private func accepts(guestPhysicalAddress: UInt64, userspaceAddress: UInt64) -> Bool {
    func set(_ size: UInt64) -> Int32 {
      setMemoryRegion(
        slot: 1, flags: 0, guestPhysicalAddress: guestPhysicalAddress, memorySize: size,
        userspaceAddress: userspaceAddress)
    }
    guard set(GuestProgram.pageSize) == 0 else { return false }
    return set(0) == 0
  }

  /// The way of this host's kernel with the pages that it maps, by its release.
  static func hostEra() -> KernelModel.KVM {
    var names = utsname()
    guard uname(&names) == 0 else { return .c }
    let release = withUnsafeBytes(of: &names.release) { bytes in
      String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
    guard numbers.count == 2 else { return .c }
    let version = (numbers[0], numbers[1])
    return version >= (6, 13) ? .c : version >= (5, 13) ? .a : .a0
  }

  /// Whether a module's setting is `Y` or `1`.
  private static func isOn(_ setting: String) -> Bool {
    guard let file = fopen("/sys/module/\(setting)", "re") else { return false }
    defer { fclose(file) }
    let first = fgetc(file)
    return first == CInt(UInt8(ascii: "Y")) || first == CInt(UInt8(ascii: "1"))
  }
}
