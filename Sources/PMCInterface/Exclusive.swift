internal import CPhysmemShim
internal import Glibc
internal import Physmem
internal import Synchronization

/// What a `pm_cpu` or a `pm_harvest` names: a value that one thread at a time uses.
///
/// Whoever ends the handle gives the value up; if another thread is using it then (its machine is being closed),
/// that one does when it is done.
final class Exclusive<Value: ~Copyable>: @unchecked Sendable {
  // Sendable: `value` is touched only by the thread that took `state` from idle to busy, or to ended.
  private enum State {
    static var idle: UInt8 { 0 }
    static var busy: UInt8 { 1 }
    /// Busy, and to be given up after.
    static var busyEnded: UInt8 { 2 }
    static var ended: UInt8 { 3 }
  }

  private var value: Value?
  private let state = Atomic<UInt8>(State.idle)
  /// The machine, which is kept.
  let owner: MachineObject
  /// The runs of a harvest: ascending, constant.
  let runs: [GuestRange]

  init(_ value: consuming Value, owner: MachineObject, runs: [GuestRange] = []) {
    self.value = consume value
    self.owner = owner
    self.runs = runs
  }

  /// Names it, as a child of its machine.
  static func name(
    _ kind: pm_handle_kind, _ value: consuming Value, owner: MachineObject, runs: [GuestRange] = []
  ) throws(Refusal) -> OpaquePointer? {
    let object = Exclusive(value, owner: owner, runs: runs)
    let retained = Unmanaged.passRetained(object as AnyObject)
    do throws(Refusal) {
      return Handle.pointer(try owner.makeChild(kind, retained))
    } catch {
      retained.release()
      throw error
    }
  }

  // MARK: one thread at a time

  /// Does `body` with the value of a handle.
  @inline(__always)
  static func use(
    _ kind: pm_handle_kind, _ handle: OpaquePointer?,
    _ body: (Exclusive, inout Value) throws(Refusal) -> Int32
  ) -> Int32 {
    guard let claimed = claim(kind, Handle.name(handle)) else {
      return unclaimable(kind, handle).answer()
    }
    let result = claimed._withUnsafeGuaranteedRef { object in
      answer { () throws(Refusal) in try body(object, &object.value!) }
    }
    finish(claimed)
    return result
  }

  /// Ends a handle; `body` gets the value.
  static func end(
    _ kind: pm_handle_kind, _ handle: OpaquePointer?, _ body: (consuming Value) -> Void
  ) -> Int32 {
    let name = Handle.name(handle)
    guard let claimed = claim(kind, name) else { return unclaimable(kind, handle).answer() }
    guard pm_handle_end(kind, name) != nil else {
      // Its machine is being closed.
      finish(claimed)
      return Handle.refusal(kind, handle).answer()
    }
    let object = claimed.takeRetainedValue()
    object.owner.forget(child: name)
    if let value = object.value.take() { body(value) }
    return 0
  }

  /// Ends a handle because its machine is closed.
  static func endWithMachine(_ kind: pm_handle_kind, _ name: UInt64) {
    guard let object = pm_handle_end(kind, name) else { return }
    let unmanaged = Unmanaged<Exclusive>.fromOpaque(object)
    while true {
      let (isIdle, seen) = unmanaged._withUnsafeGuaranteedRef {
        $0.state.compareExchange(
          expected: State.idle, desired: State.ended, ordering: .acquiringAndReleasing)
      }
      if isIdle { return unmanaged.release() }
      let isTold = unmanaged._withUnsafeGuaranteedRef {
        $0.state.compareExchange(
          expected: seen, desired: State.busyEnded, ordering: .acquiringAndReleasing
        ).exchanged
      }
      if isTold { return }
    }
  }

  @inline(__always)
  private static func claim(_ kind: pm_handle_kind, _ name: UInt64) -> Unmanaged<Exclusive>? {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    guard let object = pm_handle_find_acquire(kind, name) else { return nil }
    let unmanaged = Unmanaged<Exclusive>.fromOpaque(object)
    let isClaimed = unmanaged._withUnsafeGuaranteedRef {
      $0.state.compareExchange(
        expected: State.idle, desired: State.busy, ordering: .acquiringAndReleasing
      ).exchanged
    }
    return isClaimed ? unmanaged : nil
  }

  @inline(__always)
  private static func finish(_ claimed: Unmanaged<Exclusive>) {
    let isIdle = claimed._withUnsafeGuaranteedRef {
      $0.state.compareExchange(
        expected: State.busy, desired: State.idle, ordering: .acquiringAndReleasing
      ).exchanged
    }
    if !isIdle { claimed.release() }
  }

  @inline(never)
  private static func unclaimable(_ kind: pm_handle_kind, _ handle: OpaquePointer?) -> Refusal {
    let port = pm_readers_enter()
    let isThere = pm_handle_find_acquire(kind, Handle.name(handle)) != nil
    pm_readers_leave(port)
    return isThere
      ? Refusal(EBUSY, "another thread is using the handle") : Handle.refusal(kind, handle)
  }
}
