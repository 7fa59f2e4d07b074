import CPhysmemShim
import Glibc

// With KVM+Mappings.swift the only caller of the shim in this module: here its results become typed errors, or plain error
// numbers where those are what a caller wants to see.

/// The system calls around a virtual machine.
enum KVM {
  /// Throws the error that a shim function returned. The text is only built for a failure.
  static func check(
    _ result: Int32, _ operation: @autoclosure () -> String
  ) throws(RealGuestError) {
    guard result == 0 else { throw .host(operation: operation(), errno: -result) }
  }

  static let interrupted = EINTR
  static let badAddress = EFAULT

  /// The C name of an error, as `ENOMEM`.
  static func errorName(_ errno: Int32) -> String? {
    pm_host_error_name(errno).map { String(cString: $0) }
  }

  static func close(_ descriptor: Int32) throws(RealGuestError) {
    try check(pm_host_close(descriptor), "close of descriptor \(descriptor)")
  }

  static func duplicate(_ descriptor: Int32) throws(RealGuestError) -> Int32 {
    var duplicate: Int32 = -1
    try check(pm_kvm_duplicate(descriptor, &duplicate), "dup of descriptor \(descriptor)")
    return duplicate
  }
}

// MARK: - The machine

extension KVM {
  static let userMemory2Capability = UInt32(PM_KVM_CAP_USER_MEMORY2)
  static let dirtyRingCapability = UInt32(PM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL)

  static func open() throws(RealGuestError) -> Int32 {
    var descriptor: Int32 = -1
    try check(pm_kvm_open(&descriptor), "opening /dev/kvm")
    return descriptor
  }

  static func createVM(_ kvm: Int32) throws(RealGuestError) -> Int32 {
    var descriptor: Int32 = -1
    try check(pm_kvm_create_vm(kvm, &descriptor), "KVM_CREATE_VM")
    return descriptor
  }

  static func checkExtension(
    _ descriptor: Int32, _ capability: UInt32
  ) throws(RealGuestError) -> Int {
    var value: Int32 = 0
    try check(
      pm_kvm_check_extension(descriptor, capability, &value), "KVM_CHECK_EXTENSION \(capability)")
    return Int(value)
  }

  /// The error number, or 0.
  static func enableCapability(
    _ vm: Int32, _ capability: UInt32, flags: UInt32, arguments: [UInt64]
  ) -> Int32 {
    precondition(arguments.count <= 4, "\(arguments.count) arguments of a capability")
    let all = arguments + Array(repeating: 0, count: 4 - arguments.count)
    return -pm_kvm_enable_capability(vm, capability, flags, all)
  }
}

// MARK: - Memory regions

extension KVM {
  struct Region {
    var slot: UInt32
    var flags: UInt32
    var guestPhysicalAddress: UInt64
    var memorySize: UInt64
    var userspaceAddress: UInt64
  }

  /// The error number, or 0.
  static func setRegion(_ vm: Int32, _ region: Region, isSecondForm: Bool) -> Int32 {
    var request = pm_kvm_region(
      slot: region.slot, flags: region.flags,
      guest_physical_address: region.guestPhysicalAddress, memory_size: region.memorySize,
      userspace_address: region.userspaceAddress)
    return -(isSecondForm ? pm_kvm_set_region2(vm, &request) : pm_kvm_set_region(vm, &request))
  }

  /// The error number, or 0. The bitmap must have a bit for each page of the slot.
  static func dirtyLog(_ vm: Int32, slot: UInt32, into bitmap: inout [UInt64]) -> Int32 {
    bitmap.withUnsafeMutableBufferPointer { dirtyLog(vm, slot: slot, into: $0) }
  }

  /// The same into memory of the caller's.
  static func dirtyLog(
    _ vm: Int32, slot: UInt32, into words: UnsafeMutableBufferPointer<UInt64>
  ) -> Int32 {
    guard let base = words.baseAddress else { fatalError("a dirty log of no words") }
    return -pm_kvm_get_dirty_log(vm, slot, base)
  }

  /// The error number, or 0. The bitmap must have a bit for each of the pages.
  static func clearDirtyLog(
    _ vm: Int32, slot: UInt32, firstPage: UInt64, pageCount: UInt32, bitmap: [UInt64]
  ) -> Int32 {
    bitmap.withUnsafeBufferPointer { words in
      var none: UInt64 = 0
      guard let base = words.baseAddress else {
        return -pm_kvm_clear_dirty_log(vm, slot, firstPage, pageCount, &none)
      }
      return -pm_kvm_clear_dirty_log(vm, slot, firstPage, pageCount, base)
    }
  }
}

// MARK: - The virtual CPU

extension KVM {
  struct Registers {
    var rip: UInt64
    var rax: UInt64 = 0
    var rbx: UInt64 = 0
    var rsi: UInt64 = 0
    var rdi: UInt64 = 0
  }

  struct Exit {
    var reason: UInt32
    var port: UInt16
    var isWrite: Bool
    var byteCount: Int
    var guestPhysicalAddress: UInt64

    var isPort: Bool { reason == UInt32(PM_KVM_EXIT_IO) }
    var isMMIO: Bool { reason == UInt32(PM_KVM_EXIT_MMIO) }
    var isDirtyRingFull: Bool { reason == UInt32(PM_KVM_EXIT_DIRTY_RING_FULL) }
  }

  static func createVCPU(_ vm: Int32, index: Int) throws(RealGuestError) -> Int32 {
    var descriptor: Int32 = -1
    try check(pm_kvm_create_vcpu(vm, UInt32(index), &descriptor), "KVM_CREATE_VCPU \(index)")
    return descriptor
  }

  static func mapRun(
    kvm: Int32, vcpu: Int32
  ) throws(RealGuestError) -> UnsafeMutableRawBufferPointer {
    var base: UnsafeMutableRawPointer?
    var byteCount = 0
    try check(pm_kvm_map_run(kvm, vcpu, &byteCount, &base), "mapping a vCPU")
    return UnsafeMutableRawBufferPointer(start: base, count: byteCount)
  }

  static func setDefaultCPUID(kvm: Int32, vcpu: Int32) throws(RealGuestError) {
    try check(pm_kvm_set_default_cpuid(kvm, vcpu), "KVM_SET_CPUID2")
  }

  static func setUserMode(_ vcpu: Int32) throws(RealGuestError) {
    var tables = pm_kvm_tables(
      page_table_root: GuestProgram.pageTableRoot,
      descriptor_table: GuestProgram.descriptorTable,
      descriptor_table_limit: GuestProgram.descriptorTableLimit,
      code_selector: GuestProgram.codeSelector, data_selector: GuestProgram.dataSelector,
      task_selector: GuestProgram.taskSelector, task_segment: GuestProgram.taskSegment)
    try check(pm_kvm_set_user_mode(vcpu, &tables), "KVM_SET_SREGS")
  }

  static func setRegisters(_ vcpu: Int32, _ registers: Registers) throws(RealGuestError) {
    var request = pm_kvm_registers(
      rip: registers.rip, rax: registers.rax, rbx: registers.rbx, rsi: registers.rsi,
      rdi: registers.rdi)
    try check(pm_kvm_set_registers(vcpu, &request), "KVM_SET_REGS")
  }

  static func registers(_ vcpu: Int32) throws(RealGuestError) -> Registers {
    var found = pm_kvm_registers()
    try check(pm_kvm_get_registers(vcpu, &found), "KVM_GET_REGS")
    return Registers(
      rip: found.rip, rax: found.rax, rbx: found.rbx, rsi: found.rsi, rdi: found.rdi)
  }

  /// One `KVM_RUN`: the error number, or 0, and the exit, which is there in any case.
  static func run(
    _ vcpu: Int32, _ run: UnsafeMutableRawPointer, unsetReason: UInt32
  ) -> (errno: Int32, exit: Exit) {
    var found = pm_kvm_exit()
    let result = pm_kvm_run(vcpu, run, unsetReason, &found)
    let exit = Exit(
      reason: found.reason, port: found.port, isWrite: found.is_write,
      byteCount: Int(found.byte_count), guestPhysicalAddress: found.guest_physical_address)
    return (-result, exit)
  }

  static func completeMMIO(
    _ vcpu: Int32, _ run: UnsafeMutableRawPointer, fill: UInt8
  ) throws(RealGuestError) {
    try check(pm_kvm_complete_mmio(vcpu, run, fill), "completing a device access")
  }

  static func setImmediateExit(_ run: UnsafeMutableRawPointer, _ value: Bool) {
    pm_kvm_set_immediate_exit(run, value)
  }

  static var threadID: Int32 { pm_kvm_thread_id() }

  static func prepareKicks() throws(RealGuestError) {
    try check(pm_kvm_prepare_kicks(), "a handler for the kick signal")
  }

  /// A thread that has ended meanwhile needs no kick: that is no error.
  static func kick(thread: Int32) { _ = pm_kvm_kick(thread) }
}

// MARK: - The dirty ring

extension KVM {
  static let dirtyRingEntrySize = Int(PM_KVM_DIRTY_RING_ENTRY_SIZE)

  static func mapDirtyRing(
    _ vcpu: Int32, byteCount: Int
  ) throws(RealGuestError) -> UnsafeMutableRawBufferPointer {
    var base: UnsafeMutableRawPointer?
    try check(pm_kvm_map_dirty_ring(vcpu, byteCount, &base), "mapping the dirty ring")
    return UnsafeMutableRawBufferPointer(start: base, count: byteCount)
  }

  /// Takes an entry out of the ring, or nil if it is not dirty.
  static func harvest(
    _ ring: UnsafeMutableRawPointer, index: Int
  ) -> (slot: UInt32, offset: UInt64)? {
    var page = pm_kvm_dirty_page()
    return pm_kvm_harvest_dirty_page(ring, index, &page) ? (page.slot, page.offset) : nil
  }

  /// The error number, or 0, and how many entries were given back.
  static func resetDirtyRings(_ vm: Int32) -> (errno: Int32, count: Int) {
    var count: UInt32 = 0
    let result = pm_kvm_reset_dirty_rings(vm, &count)
    return (-result, Int(count))
  }
}
