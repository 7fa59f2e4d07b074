// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

internal import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import PMExport
internal import PMVhostUser
internal import Physmem
internal import SystemPackage

/// The slots that one call made in a virtual machine.
struct KVMMapping: Sendable {
  let vm: Int32
  let firstSlot: UInt32
  let isLogging: Bool
  let ranges: [GuestRange]
}

/// As physmem.h has it.
@c @implementation
public func pm_map_kvm(
  _ machine: OpaquePointer!, _ vm: Int32, _ firstSlot: UInt32, _ flags: UInt32
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard flags & ~UInt32(PM_KVM_LOG_DIRTY_PAGES.rawValue) == 0 else {
      throw Refusal(EINVAL, "flags 0x\(String(flags, radix: 16)) are unknown")
    }
    // Kept meanwhile, so that no region goes while its slot is made.
    let snapshot = object.memory.snapshot()
    defer { withExtendedLifetime(snapshot) {} }
    let regions = snapshot.regions.filter { $0.kind != .mmio }
    guard UInt64(firstSlot) + UInt64(regions.count) <= UInt64(UInt32.max) else {
      throw Refusal(EINVAL, "slots from \(firstSlot) on: \(regions.count) do not fit")
    }
    return try object.kvmMappings.withLock { mappings throws(Refusal) in
      let hasSecondForm = try kvmHasSecondForm(vm)
      for (index, region) in regions.enumerated() {
        var slot = pm_kvm_region(slot: firstSlot + UInt32(index), region)
        slot.flags = flags | (region.kind == .rom ? 2 : 0)
        let error = kvmSet(vm, slot, hasSecondForm)
        guard error == 0 else {
          for made in 0..<index { kvmDelete(vm, firstSlot + UInt32(made), hasSecondForm) }
          mappings.removeAll { $0.vm == vm && $0.firstSlot == firstSlot }
          throw Refusal(host: -error, "KVM's slot \(slot.slot) for \(region.range)")
        }
      }
      // A mapping of before was of a virtual machine that is gone, or these slots.
      mappings.removeAll { $0.vm == vm && $0.firstSlot == firstSlot }
      mappings.append(
        KVMMapping(
          vm: vm, firstSlot: firstSlot,
          isLogging: flags & UInt32(PM_KVM_LOG_DIRTY_PAGES.rawValue) != 0,
          ranges: regions.map(\.range)))
      return Int32(regions.count)
    }
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_unmap_kvm(_ machine: OpaquePointer!, _ vm: Int32, _ firstSlot: UInt32) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    return try object.kvmMappings.withLock { mappings throws(Refusal) in
      let index = try place(of: vm, firstSlot, among: mappings)
      let hasSecondForm = try kvmHasSecondForm(vm)
      let mapping = mappings.remove(at: index)
      var failure: Refusal?
      for (offset, range) in mapping.ranges.enumerated() {
        let slot = firstSlot + UInt32(offset)
        let error = kvmDelete(vm, slot, hasSecondForm)
        if error != 0, failure == nil {
          failure = Refusal(host: -error, "deleting KVM's slot \(slot) for \(range)")
        }
      }
      if let failure { throw failure }
      return 0
    }
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_collect_kvm(_ machine: OpaquePointer!, _ vm: Int32, _ firstSlot: UInt32) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    return try object.kvmMappings.withLock { mappings throws(Refusal) in
      let mapping = mappings[try place(of: vm, firstSlot, among: mappings)]
      // Asked before KVM's log is taken, which clears it.
      guard object.memory.isTrackingDirtyPages else { throw Refusal(.notTracking) }
      guard mapping.isLogging else {
        throw Refusal(
          ENODATA, "the slots from \(firstSlot) on were made without PM_KVM_LOG_DIRTY_PAGES")
      }
      for (offset, range) in mapping.ranges.enumerated() {
        try collect(range, slot: firstSlot + UInt32(offset), of: vm, into: object.memory)
      }
      return 0
    }
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_qemu_args(
  _ machine: OpaquePointer!, _ text: UnsafeMutablePointer<CChar>!, _ capacity: Int
) -> Int32 {
  answer { () throws(Refusal) in
    let regions = try Handle.machine(machine).memory.regions.filter { $0.kind == .ram }
    let size = ByteCount(regions.reduce(0) { $0 + $1.range.byteCount })
    var descriptors: Set<Int32> = []
    for region in regions {
      guard let descriptor = region.fileDescriptor else {
        throw Refusal(EOPNOTSUPP, "the bytes of \(region.range) are private to this process")
      }
      descriptors.insert(descriptor)
    }
    let runs = regions.map { QEMUMachine.Run(range: $0.range, fileOffset: $0.fileOffset) }
    guard let descriptor = descriptors.first, descriptors.count == 1,
      let type = QEMUMachine.allCases.first(where: { $0.runs(memory: size) == runs })
    else {
      func text(_ runs: [QEMUMachine.Run]) -> String {
        runs.map { "\($0.range) at offset 0x\(String($0.fileOffset, radix: 16))" }
          .joined(separator: ", ")
      }
      let have = text(runs)
      let wanted = text(QEMUMachine.q35.runs(memory: size))
      throw Refusal(
        EOPNOTSUPP,
        "RAM is \(have.isEmpty ? "nowhere" : have): QEMU has it in one file at \(wanted)")
    }
    let arguments = QEMUArguments(
      machine: type, memory: size, process: getpid(), descriptor: descriptor)
    return try copy(arguments.line, to: text, capacity: capacity)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_vhost_user_add(_ machine: OpaquePointer!, _ socket: Int32, _ flags: UInt32) -> Int32
{
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    let known = PM_VHOST_USER_REPLY_ACK.rawValue | PM_VHOST_USER_CONFIGURE_MEM_SLOTS.rawValue
    guard flags & ~known == 0 else {
      throw Refusal(EINVAL, "flags 0x\(String(flags & ~known, radix: 16)) are unknown")
    }
    var features: VhostUserProtocolFeatures = []
    if flags & PM_VHOST_USER_REPLY_ACK.rawValue != 0 { features.insert(.replyAck) }
    if flags & PM_VHOST_USER_CONFIGURE_MEM_SLOTS.rawValue != 0 {
      features.insert(.configureMemSlots)
    }
    do throws(VhostUserError) {
      return Int32(
        try VhostUser.addRegions(of: object.memory, to: socket, features: features))
    } catch { throw Refusal(error.errno.rawValue, "\(error)") }
  }
}

private func place(
  of vm: Int32, _ firstSlot: UInt32, among mappings: [KVMMapping]
) throws(Refusal) -> Int {
  guard let index = mappings.firstIndex(where: { $0.vm == vm && $0.firstSlot == firstSlot }) else {
    throw Refusal(ENOENT, "pm_map_kvm made no slots from \(firstSlot) on in VM \(vm)")
  }
  return index
}

/// Adds a slot's log to the record.
private func collect(
  _ range: GuestRange, slot: UInt32, of vm: Int32, into memory: GuestMemory
) throws(Refusal) {
  let pages = range.byteCount >> 12
  var log = [UInt64](repeating: 0, count: Int((pages + 63) / 64))
  let error = log.withUnsafeMutableBufferPointer { pm_kvm_get_dirty_log(vm, slot, $0.baseAddress!) }
  guard error == 0 else { throw Refusal(host: -error, "KVM's dirty log of slot \(slot), \(range)") }
  var failure: GuestMemoryError?
  for (index, word) in log.enumerated() where word != 0 {
    var bits = word
    while bits != 0 {
      let low = bits.trailingZeroBitCount
      let count = (~(bits >> UInt64(low))).trailingZeroBitCount
      bits = low + count == 64 ? 0 : bits & (UInt64.max << UInt64(low + count))
      let start = range.start + (index * 64 + low) << 12
      do throws(GuestMemoryError) {
        try memory.markDirty(GuestRange(start: start, byteCount: UInt64(count) << 12))
      } catch {
        // The region was removed; the rest of the log is not lost for it.
        failure = error
      }
    }
  }
  if let failure { throw Refusal(failure) }
}

private func kvmHasSecondForm(_ vm: Int32) throws(Refusal) -> Bool {
  var value: Int32 = 0
  let error = pm_kvm_check_extension(vm, UInt32(PM_KVM_CAP_USER_MEMORY2), &value)
  guard error == 0 else { throw Refusal(host: -error, "file \(vm) is no VM of KVM") }
  return value > 0
}

private func kvmSet(_ vm: Int32, _ slot: pm_kvm_region, _ hasSecondForm: Bool) -> Int32 {
  var slot = slot
  return hasSecondForm ? pm_kvm_set_region2(vm, &slot) : pm_kvm_set_region(vm, &slot)
}

@discardableResult
private func kvmDelete(_ vm: Int32, _ slot: UInt32, _ hasSecondForm: Bool) -> Int32 {
  var region = pm_kvm_region()
  region.slot = slot
  return kvmSet(vm, region, hasSecondForm)
}

extension pm_kvm_region {
  fileprivate init(slot: UInt32, _ region: GuestRegion) {
    self.init()
    self.slot = slot
    guest_physical_address = region.range.start.rawValue
    memory_size = region.range.byteCount
    userspace_address = UInt64(UInt(bitPattern: region.hostAddress))
  }
}
