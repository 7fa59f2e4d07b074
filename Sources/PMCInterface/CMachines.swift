// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

public import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import Physmem

/// As physmem.h has it.
@c @implementation
public func pm_abi_version() -> UInt32 { UInt32(PM_ABI_VERSION) }

/// As physmem.h has it.
@c @implementation
public func pm_last_error() -> UnsafePointer<CChar>! { pm_error_text() }

/// As physmem.h has it.
@c @implementation
public func pm_open(
  _ memory: UInt64, _ machine: UnsafeMutablePointer<OpaquePointer?>!
) -> Int32 {
  var options = pm_options()
  options.memory = memory
  options.numa_node = -1
  options.cpus = 1
  return answer { () throws(Refusal) in try open(options, machine) }
}

/// As physmem.h has it.
@c @implementation
public func pm_open_options(
  _ options: UnsafePointer<pm_options>!, _ machine: UnsafeMutablePointer<OpaquePointer?>!
) -> Int32 {
  answer { () throws(Refusal) in
    guard let options else { throw .null("options") }
    try check(size: options.pointee.size, of: pm_options.self)
    return try open(options.pointee, machine)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_close(_ machine: OpaquePointer!) -> Int32 {
  guard let ended = pm_handle_end(.PM_HANDLE_MACHINE, Handle.name(machine)) else {
    return Handle.refusal(.PM_HANDLE_MACHINE, machine).answer()
  }
  let object = Unmanaged<MachineObject>.fromOpaque(ended).takeRetainedValue()
  for name in object.close() {
    if name >> 1 & 7 == UInt64(pm_handle_kind.PM_HANDLE_CPU.rawValue) {
      Exclusive<CPU>.endWithMachine(.PM_HANDLE_CPU, name)
    } else {
      Exclusive<DirtyHarvest>.endWithMachine(.PM_HANDLE_HARVEST, name)
    }
  }
  return 0
}

/// As physmem.h has it.
@c @implementation
public func pm_fork(
  _ parent: OpaquePointer!, _ child: UnsafeMutablePointer<OpaquePointer?>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(parent)
    guard let child else { throw .null("child") }
    let copy: Result<GuestMemory, GuestMemoryError>
    do throws(MachineError) {
      copy = try object.machine.withCPUsAtRest {
        Result { () throws(GuestMemoryError) in try object.memory.fork() }
      }
    } catch { throw Refusal(error) }
    let memory: GuestMemory
    do throws(GuestMemoryError) { memory = try copy.get() } catch { throw Refusal(error) }
    guard let machine = memory.machine else {
      throw Refusal(EOPNOTSUPP, "the machine's own regions were removed")
    }
    child.pointee = try name(MachineObject(machine: machine, memory: memory))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_machine_get_info(
  _ machine: OpaquePointer!, _ info: UnsafeMutablePointer<pm_machine_info>!
) -> Int32 {
  Handle.answer(machine, info) { (object, info) throws(Refusal) in
    var result = pm_machine_info()
    result.size = info.pointee.size
    result.cpus = UInt32(object.machine.cpuNodes.count)
    result.nodes = UInt32(object.machine.nodeCount)
    result.regions = UInt32(object.memory.regions.count)
    result.memory = object.memory.byteCount
    result.frame_count = UInt64(object.machine.frames.frameCount)
    result.ballooned = object.memory.balloonedByteCount
    do throws(GuestMemoryError) { result.resident = try object.memory.residentByteCount() } catch {
      throw Refusal(error)
    }
    result.finding_count = UInt64(object.machine.findings.findings.count)
    info.pointee = result
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_finding(
  _ machine: OpaquePointer!, _ index: UInt64, _ text: UnsafeMutablePointer<CChar>!,
  _ capacity: Int
) -> Int32 {
  answer { () throws(Refusal) in
    let findings = try Handle.machine(machine).machine.findings.findings
    guard index < findings.count else {
      throw Refusal(ENOENT, "finding \(index): there are \(findings.count)")
    }
    return try copy("\(findings[Int(index)])", to: text, capacity: capacity)
  }
}

// MARK: -

/// Structs of C that begin with their size.
protocol SizedStruct {
  var size: UInt32 { get }
}
extension pm_machine_info: SizedStruct {}
extension pm_ref_table_info: SizedStruct {}
extension pm_merge_result: SizedStruct {}

extension Handle {
  /// Does `body` with a machine and a struct that it fills.
  static func answer<Struct: SizedStruct>(
    _ machine: OpaquePointer?, _ result: UnsafeMutablePointer<Struct>?,
    _ body: (MachineObject, UnsafeMutablePointer<Struct>) throws(Refusal) -> Void
  ) -> Int32 {
    PMCInterface.answer { () throws(Refusal) in
      let object = try Handle.machine(machine)
      guard let result else { throw .null("\(Struct.self)") }
      try check(size: result.pointee.size, of: Struct.self)
      try body(object, result)
      return 0
    }
  }
}

private func open(
  _ options: pm_options, _ machine: UnsafeMutablePointer<OpaquePointer?>?
) throws(Refusal) -> Int32 {
  guard let machine else { throw .null("machine") }
  let description = try description(of: options)
  let made: Machine
  do throws(MachineError) { made = try Machine(description) } catch { throw Refusal(error) }
  let hostNode = options.numa_node < 0 ? nil : Int(options.numa_node)
  let object = MachineObject(
    machine: made, memory: GuestMemory(made, hostNode: hostNode))
  machine.pointee = try name(object)
  return 0
}

/// A new handle of a machine.
func name(_ object: MachineObject) throws(Refusal) -> OpaquePointer? {
  let retained = Unmanaged.passRetained(object)
  do throws(Refusal) {
    return Handle.pointer(try Handle.make(.PM_HANDLE_MACHINE, retained.toOpaque()))
  } catch {
    retained.release()
    throw error
  }
}

private func description(of options: pm_options) throws(Refusal) -> MachineDescription {
  guard (1...8192).contains(options.cpus) else {
    throw Refusal(EINVAL, "\(options.cpus) CPUs: expected 1 to 8192")
  }
  guard options.numa_node >= -1 else {
    throw Refusal(EINVAL, "numa_node \(options.numa_node): expected a node, or -1")
  }
  let known = PM_OPEN_RESERVE.rawValue | PM_OPEN_PC_LAYOUT.rawValue
  guard options.flags & ~known == 0 else {
    throw Refusal(EINVAL, "flags 0x\(String(options.flags & ~known, radix: 16)) are unknown")
  }
  guard options.huge_page_size != 4096 else {
    throw Refusal(EINVAL, "huge_page_size 4096: expected 0, 2 MiB or 1 GiB")
  }
  let pageSize = options.huge_page_size == 0 ? 4096 : options.huge_page_size
  let backing = try backing(options.backing, pageSize: pageSize)
  guard options.memory >= 4 << 20, options.memory <= 8 << 40, options.memory % pageSize == 0 else {
    throw Refusal(
      EINVAL,
      "memory of \(options.memory) bytes: expected 4 MiB to 8 TiB, a multiple of \(pageSize)")
  }
  let hostNode = options.numa_node < 0 ? nil : Int(options.numa_node)
  var description = MachineDescription(
    nodes: [.init(memory: ByteCount(options.memory), hostNode: hostNode)],
    cpus: Int(options.cpus), backing: backing)
  description.reservesHostMemory = options.flags & PM_OPEN_RESERVE.rawValue != 0
  if options.flags & PM_OPEN_PC_LAYOUT.rawValue != 0 { description.lowMemoryEnd = .gib(3) }
  description.model = try model(options)
  switch options.refcount_layout {
  case PM_REFCOUNT_LAYOUT_PACKED.rawValue: description.refcountLayout = .packed
  case PM_REFCOUNT_LAYOUT_STRIDED.rawValue: description.refcountLayout = .strided
  default: throw Refusal(EINVAL, "refcount_layout \(options.refcount_layout) is unknown")
  }
  return description
}

private func model(_ options: pm_options) throws(Refusal) -> KernelModel {
  var model = KernelModel.linux61
  switch options.kvm_model {
  case PM_KVM_MODEL_DEFAULT.rawValue: break
  case PM_KVM_MODEL_A0.rawValue: model.kvm = .a0
  case PM_KVM_MODEL_A.rawValue: model.kvm = .a
  case PM_KVM_MODEL_B.rawValue: model.kvm = .b
  case PM_KVM_MODEL_C.rawValue: model.kvm = .c
  default: throw Refusal(EINVAL, "kvm_model \(options.kvm_model) is unknown")
  }
  switch options.free_pages_model {
  case PM_FREE_PAGES_DEFAULT.rawValue: break
  case PM_FREE_PAGES_BEFORE_TAIL_FIX.rawValue: model.freePages = .beforeTailFix
  case PM_FREE_PAGES_HEAD_READ_AFTER_PUT.rawValue: model.freePages = .headReadAfterPut
  case PM_FREE_PAGES_HEAD_READ_BEFORE_PUT.rawValue: model.freePages = .headReadBeforePut
  default: throw Refusal(EINVAL, "free_pages_model \(options.free_pages_model) is unknown")
  }
  return model
}

/// The backing of these numbers.
func backing(_ number: UInt32, pageSize: UInt64) throws(Refusal) -> Backing {
  guard [4096, 2 << 20, 1 << 30].contains(pageSize) else {
    throw Refusal(EINVAL, "a page size of \(pageSize): expected 4 KiB, 2 MiB or 1 GiB")
  }
  let name: String
  switch (number, pageSize) {
  case (PM_BACKING_MEMFD.rawValue, 4096): return .memfd
  case (PM_BACKING_HUGETLB.rawValue, 2 << 20): return .sharedHugeTLB
  case (PM_BACKING_ANONYMOUS.rawValue, 4096): return .anonymous
  case (PM_BACKING_ANONYMOUS.rawValue, 2 << 20): return .anonymousHugeTLB2MiB
  case (PM_BACKING_ANONYMOUS.rawValue, 1 << 30): return .anonymousHugeTLB1GiB
  case (PM_BACKING_ANONYMOUS_THP.rawValue, 4096): return .anonymousTHP
  case (PM_BACKING_MEMFD.rawValue, _): name = "PM_BACKING_MEMFD"
  case (PM_BACKING_HUGETLB.rawValue, _): name = "PM_BACKING_HUGETLB"
  case (PM_BACKING_ANONYMOUS_THP.rawValue, _): name = "PM_BACKING_ANONYMOUS_THP"
  default: throw Refusal(EINVAL, "backing \(number) is unknown")
  }
  throw Refusal(EOPNOTSUPP, "\(name) cannot have pages of \(ByteCount(pageSize))")
}
