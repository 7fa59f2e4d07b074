/// How many bytes one access of a guest reads or writes.
public enum RealAccessSize: Int, Sendable, CaseIterable {
  /// 1 byte.
  case one = 1
  /// 2 bytes.
  case two = 2
  /// 4 bytes.
  case four = 4
  /// 8 bytes.
  case eight = 8

  /// The bits of a value that such an access carries.
  public var mask: UInt64 { .max >> UInt64(64 - 8 * rawValue) }
}

/// One read or write that the guest shall do with a single instruction.
public struct RealAccess: Equatable, Sendable {
  /// The first byte, as a guest physical address in bytes. Need not be aligned.
  public var guestPhysicalAddress: UInt64
  /// How many bytes.
  public var size: RealAccessSize
  /// Whether the guest writes; else it reads.
  public var isWrite: Bool
  /// For a write what to write, of which the lowest ``size`` bytes count; for a read what was read,
  /// zero-extended, once it has been done.
  public var value: UInt64

  /// A read of `size` bytes.
  public static func read(
    _ guestPhysicalAddress: UInt64, _ size: RealAccessSize = .four
  ) -> RealAccess {
    RealAccess(
      guestPhysicalAddress: guestPhysicalAddress, size: size, isWrite: false, value: 0)
  }

  /// A write of the lowest `size` bytes of `value`.
  public static func write(
    _ value: UInt64, to guestPhysicalAddress: UInt64, _ size: RealAccessSize = .four
  ) -> RealAccess {
    RealAccess(
      guestPhysicalAddress: guestPhysicalAddress, size: size, isWrite: true, value: value)
  }

  /// Describes an access by its parts.
  public init(guestPhysicalAddress: UInt64, size: RealAccessSize, isWrite: Bool, value: UInt64) {
    self.guestPhysicalAddress = guestPhysicalAddress
    self.size = size
    self.isWrite = isWrite
    self.value = value
  }
}

/// What became of one access.
public enum RealAccessOutcome: Equatable, Sendable {
  /// The instruction finished. The value read, zero-extended; for a write the value written, cut to
  /// the access's size.
  case done(value: UInt64)
  /// KVM handed the access to user space as device memory. Where it begins, how many bytes (for an
  /// access across a page border: of its first piece), and whether it is a write. The instruction
  /// was then completed, a read with bytes of 0xee.
  case mmio(guestPhysicalAddress: UInt64, byteCount: Int, isWrite: Bool)
  /// `KVM_RUN` failed: the error number (positive), and the exit reason, which is
  /// ``RealVM/unsetExitReason`` if the kernel left it alone.
  case failed(errno: Int32, exitReason: UInt32)
  /// The dirty ring is full: harvest and reset it, then do the access again. It has not been done.
  case dirtyRingFull
  /// A stop was asked for, see ``RealVM/requestStop()``. The access has not been done.
  case interrupted
  /// Another exit, with its `KVM_EXIT_` number. The vCPU was set up afresh.
  case other(exitReason: UInt32)
}

/// What became of a script of accesses.
public struct RealScriptReport: Equatable, Sendable {
  /// An access that did not finish.
  public struct Stop: Equatable, Sendable {
    /// Its index in the array of accesses.
    public var index: Int
    /// What became of it; never ``RealAccessOutcome/done(value:)``.
    public var outcome: RealAccessOutcome

    /// Says that the access at `index` ended as `outcome`.
    public init(index: Int, outcome: RealAccessOutcome) {
      self.index = index
      self.outcome = outcome
    }
  }

  /// The accesses that did not finish, in order.
  public var stops: [Stop]
  /// The index of the first access that was not tried: the end of what was asked for, unless the
  /// last stop is ``RealAccessOutcome/dirtyRingFull`` or ``RealAccessOutcome/interrupted``; then
  /// the index of that.
  public var endIndex: Int

  /// Says which accesses did not finish, and where the script ended.
  public init(stops: [Stop], endIndex: Int) {
    self.stops = stops
    self.endIndex = endIndex
  }
}

/// Why a real guest could not be made or used.
public enum RealGuestError: Error, Equatable, Sendable {
  /// The host refused a call: what was asked for, in words, and the error number (positive).
  case host(operation: String, errno: Int32)
  /// The guest has no page tables for these bytes, or they are the guest's own program.
  case unreachable(guestPhysicalAddress: UInt64, byteCount: Int)
  /// The machine was made without a guest.
  case noGuest
  /// The guest's own program is not where it should be: its slot 0 was changed.
  case guestLost(instructionPointer: UInt64)
  /// A size or a place that cannot be, in words.
  case invalid(String)
}

extension RealGuestError: CustomStringConvertible {
  /// As `KVM_CREATE_VM: ENOMEM`.
  public var description: String {
    switch self {
    case .host(let operation, let errno):
      "\(operation): \(KVM.errorName(errno) ?? "errno \(errno)")"
    case .unreachable(let address, let byteCount):
      "the guest cannot access \(byteCount) bytes at 0x\(String(address, radix: 16))"
    case .noGuest: "this machine was made without a guest"
    case .guestLost(let pointer):
      "the guest's program is gone: it stands at 0x\(String(pointer, radix: 16))"
    case .invalid(let text): text
    }
  }
}
