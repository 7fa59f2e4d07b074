internal import PMArena
internal import PMHostMap
internal import PMPageAllocator
public import PMUnits

/// What became of one guest access, as user space sees it after KVM_RUN.
public enum GuestAccess: Hashable, Sendable {
  /// The access finished; the value is that of a read, in the low bytes.
  case done(UInt64)
  /// KVM_EXIT_MMIO: this part of the access is user space's.
  case mmio(gpa: UInt64, byteCount: Int, isWrite: Bool)
  /// KVM_RUN returned an error. `exitReasonIsSet` tells whether the kernel wrote an exit reason
  /// (KVM_EXIT_UNKNOWN from 6.13 on) or left what user space had put there.
  case failed(KernelErrno, exitReasonIsSet: Bool)
  /// KVM_RUN returned EINTR with KVM_EXIT_INTR.
  case interrupted
  /// KVM_EXIT_DIRTY_RING_FULL, before the access.
  case dirtyRingFull
}

/// A software guest's processor: reads and writes guest memory through the VM's tables, with translations
/// of its own that the notifier invalidates.
///
/// An emulator uses it as its memory path: ``loadUInt64(at:)`` and its relatives are the hot path for what
/// is translated already, ``read(_:byteCount:on:)`` and ``write(_:byteCount:value:on:)`` take every access
/// to its end, faults included.
///
/// One thread at a time; ``bind()`` on each thread that takes it over.
public final class VCPU: @unchecked Sendable {
  // Sendable: used by one thread at a time, which `bind` names; what others change about it is the gate's
  // flush counter, an atomic, and its ring, which is atomic too.

  /// The VM.
  public let vm: VirtualMachine
  /// The vCPU's number.
  public let index: Int
  /// The address space that accesses go to: 0, or 1 for system management mode.
  public var addressSpace: Int = 0 {
    didSet { if addressSpace != oldValue { cache.flush() } }
  }
  /// Its dirty ring, where the VM has rings.
  public let ring: DirtyRing?
  /// What answers for frames without bytes: device registers. Given the physical address and the length;
  /// all ones by default, as a bus without a device.
  public var readsDevice: ((UInt64, Int) -> UInt64)?
  @usableFromInline let cache: TranslationCache
  private var fetch: GFN?

  /// A vCPU. Throws ENOMEM where the host has no room for a ring.
  public init(_ vm: VirtualMachine, index: Int = 0) throws(KernelErrno) {
    self.vm = vm
    self.index = index
    cache = TranslationCache(gate: vm.gate)
    ring = try vm.noteVCPU()
    cache.bind()
  }

  /// Names the calling thread as the one that runs the vCPU. Mirrors `vcpu_load`.
  public func bind() { cache.bind() }

  /// Says that no thread runs the vCPU for now. Mirrors `vcpu_put`.
  public func unbind() { cache.unbind() }

  // MARK: hot path

  /// Loads eight bytes if the page is translated already; nil asks for ``read(_:byteCount:on:)``.
  @inlinable @inline(__always)
  public func loadUInt64(at gpa: UInt64) -> UInt64? { cache.loadUInt64(at: gpa) }

  /// Loads four bytes if the page is translated already.
  @inlinable @inline(__always)
  public func loadUInt32(at gpa: UInt64) -> UInt32? { cache.loadUInt32(at: gpa) }

  /// Loads two bytes if the page is translated already.
  @inlinable @inline(__always)
  public func loadUInt16(at gpa: UInt64) -> UInt16? { cache.loadUInt16(at: gpa) }

  /// Loads one byte if the page is translated already.
  @inlinable @inline(__always)
  public func loadUInt8(at gpa: UInt64) -> UInt8? { cache.loadUInt8(at: gpa) }

  /// Stores eight bytes if the page is translated for writing already; false asks for
  /// ``write(_:byteCount:value:on:)``.
  @inlinable @inline(__always)
  public func store(_ value: UInt64, at gpa: UInt64) -> Bool { cache.store(value, at: gpa) }

  /// Stores four bytes if the page is translated for writing already.
  @inlinable @inline(__always)
  public func store(_ value: UInt32, at gpa: UInt64) -> Bool { cache.store(value, at: gpa) }

  /// Stores two bytes if the page is translated for writing already.
  @inlinable @inline(__always)
  public func store(_ value: UInt16, at gpa: UInt64) -> Bool { cache.store(value, at: gpa) }

  /// Stores one byte if the page is translated for writing already.
  @inlinable @inline(__always)
  public func store(_ value: UInt8, at gpa: UInt64) -> Bool { cache.store(value, at: gpa) }

  /// The host address of a page's bytes if it is translated already; good until the next flush request,
  /// so only for an emulator that has flush requests wait for it, see ``TranslationCache``.
  @inlinable @inline(__always)
  public func withTranslation<Result>(
    _ gfn: GFN, forWrite: Bool, _ body: (UnsafeMutableRawPointer?) -> Result
  ) -> Result {
    cache.enter()
    defer { cache.leave() }
    return body(cache.translate(gfn, forWrite: forWrite))
  }
}

extension VirtualMachine {
  /// Notes that there is a vCPU and gives it its ring.
  func noteVCPU() throws(KernelErrno) -> DirtyRing? {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    hasVCPU = true
    guard let shape = settings.ring else { return nil }
    return try DirtyRing(shape)
  }
}
