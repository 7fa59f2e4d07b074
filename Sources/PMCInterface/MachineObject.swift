internal import CPhysmemShim
internal import Glibc
internal import Physmem

/// What a `pm_machine` names.
final class MachineObject: Sendable {
  /// Handles that end with the machine's.
  struct Children: Sendable {
    var names: Set<UInt64> = []
    var isClosed = false
  }

  let machine: Machine
  let memory: GuestMemory
  /// Slots in virtual machines of KVM.
  let kvmMappings = Guarded<[KVMMapping]>([])
  private let children = Guarded(Children())

  init(machine: Machine, memory: GuestMemory) {
    self.machine = machine
    self.memory = memory
  }

  /// Names an object that ends with this machine.
  func makeChild(
    _ kind: pm_handle_kind, _ object: Unmanaged<AnyObject>
  ) throws(Refusal) -> UInt64 {
    try children.withLock { children throws(Refusal) in
      guard !children.isClosed else { throw Refusal(EBADF, "the machine is being closed") }
      let name = try Handle.make(kind, object.toOpaque())
      children.names.insert(name)
      return name
    }
  }

  func forget(child name: UInt64) { children.withLock { _ = $0.names.remove(name) } }

  /// No child can be made from here on; returns those there are.
  func close() -> Set<UInt64> {
    children.withLock {
      $0.isClosed = true
      return $0.names
    }
  }
}

/// Names given out to C.
enum Handle {
  /// Names an object that is retained once for it.
  static func make(
    _ kind: pm_handle_kind, _ object: UnsafeMutableRawPointer
  ) throws(Refusal) -> UInt64 {
    var name: UInt64 = 0
    guard pm_handle_make(kind, object, &name) else {
      throw Refusal(EMFILE, "\(PM_HANDLE_COUNT) handles are open, and no more can be")
    }
    return name
  }

  static func name(_ handle: OpaquePointer?) -> UInt64 { UInt64(UInt(bitPattern: handle)) }

  static func pointer(_ name: UInt64) -> OpaquePointer? {
    OpaquePointer(bitPattern: UInt(name))
  }

  /// Why a handle was not found.
  static func refusal(_ kind: pm_handle_kind, _ handle: OpaquePointer?) -> Refusal {
    let type =
      switch kind {
      case .PM_HANDLE_MACHINE: "pm_machine"
      case .PM_HANDLE_CPU: "pm_cpu"
      case .PM_HANDLE_HARVEST: "pm_harvest"
      @unknown default: "handle"
      }
    guard handle != nil else { return Refusal(EBADF, "the \(type) is NULL") }
    let name = name(handle)
    if pm_handle_is_from_parent(name) {
      return Refusal(ECHILD, "the \(type) belongs to the process that this one was forked from")
    }
    return Refusal(EBADF, "0x\(String(name, radix: 16)) is no open \(type)")
  }

  /// The machine of a handle, kept as long as the caller has it.
  static func machine(_ handle: OpaquePointer?) throws(Refusal) -> MachineObject {
    guard let object = openMachine(handle) else { throw refusal(.PM_HANDLE_MACHINE, handle) }
    return object
  }

  private static func openMachine(_ handle: OpaquePointer?) -> MachineObject? {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    guard let object = pm_handle_find_acquire(.PM_HANDLE_MACHINE, name(handle)) else { return nil }
    return Unmanaged<MachineObject>.fromOpaque(object).takeUnretainedValue()
  }

  /// Does what a function of C does with the memory of a machine.
  static func withMemory(
    _ handle: OpaquePointer?, _ body: (GuestMemory) throws(GuestMemoryError) -> Int32
  ) -> Int32 {
    PMCInterface.answer { () throws(Refusal) in
      let object = try machine(handle)
      do throws(GuestMemoryError) { return try body(object.memory) } catch { throw Refusal(error) }
    }
  }
}
