public import CPhysmemShim
public import PMUnits

/// A vCPU's translations: guest frames to the host addresses of their bytes, the software guest's
/// TLB.
///
/// Direct-mapped, one entry per 4 KiB whatever the size of the leaf behind it. An access is
/// bracketed by ``enter()`` and ``leave()``, or is one of the loads and stores that do both:
///
///     cache.enter()
///     if cache.translate(gfn, forWrite: false) == nil {
///       // Still inside: a lock-free walk of the tables may fill the cache.
///     }
///     cache.leave()
///     // Outside: whatever may wait for a lock, as the handling of a stage-2 fault.
///
/// Between the two no flush request of another thread returns, so that an address that was
/// translated is good until ``leave()``, and tables that are read are not recycled. Accesses do not
/// nest.
///
/// A value of one word without mutating calls, so that it costs nothing to keep it as a constant of
/// a class.
///
/// Thread rules: ``bind()`` on the thread that runs the vCPU, and then everything on that thread
/// only. Any thread may make the cache and end it.
public struct TranslationCache: ~Copyable, @unchecked Sendable {
  // Sendable: the port's shared words follow the gate's protocol; all else is touched by the thread
  // that owns the port.

  @usableFromInline let port: UnsafeMutablePointer<pm_gate_port>
  private let gate: FlushGate

  /// The binary logarithm of the number of entries: 4096 entries of 16 bytes.
  @inlinable @inline(__always)
  static var entryBits: UInt64 { 12 }
  /// Guest frames have at most 52 bits; the epoch stands above them.
  @inlinable @inline(__always)
  static var firstEpoch: UInt64 { 1 << 52 }

  /// An empty cache of a vCPU behind `gate`. No thread runs it yet: see ``bind()``.
  public init(gate: FlushGate) {
    let count = 1 << Int(TranslationCache.entryBits)
    let entries = UnsafeMutableRawPointer.allocate(
      byteCount: count * MemoryLayout<pm_translation>.stride, alignment: 64
    ).bindMemory(to: pm_translation.self, capacity: count)
    entries.initialize(repeating: pm_translation(tag: 0, page: 0), count: count)
    self.gate = gate
    port = gate.takePort(entries: entries)
  }

  deinit {
    let entries = port.pointee.entries
    gate.giveBack(port)
    UnsafeMutableRawPointer(entries).deallocate()
  }

  // MARK: The thread

  /// Names the calling thread as the one that runs the vCPU. To be called before its first access
  /// on a thread; costs next to nothing when it is the same as before. Mirrors `vcpu_load`, Linux
  /// 6.1.
  /// pre: no other thread is inside of an access of this vCPU.
  @inlinable @inline(__always)
  public func bind() {
    let token = pm_thread_token()
    if pm_gate_owner_load_relaxed(port) != token { pm_gate_owner_store_seq_cst(port, token) }
  }

  /// Says that no thread runs the vCPU for now, so that flush requests need no barrier for it. pre:
  /// outside of an access. Mirrors `vcpu_put`.
  public func unbind() { pm_gate_owner_store_seq_cst(port, 0) }

  // MARK: Accesses

  /// Enters an access; drops all translations first if a flush was requested since the last one.
  @inlinable @inline(__always)
  public func enter() {
    if !pm_gate_enter(port) { catchUp() }
  }

  /// Leaves an access.
  @inlinable @inline(__always)
  public func leave() { pm_gate_leave(port) }

  /// Whether the vCPU is inside of an access.
  public var isEntered: Bool { pm_gate_is_entered(port) }

  @usableFromInline @inline(never)
  func catchUp() {
    let requests = pm_gate_requests_load_acquire(port.pointee.requests)
    flush()
    pm_gate_seen_store_release(port, requests)
  }

  /// Drops all translations. Does not touch them: the epoch moves on.
  public func flush() {
    let (epoch, isOverflow) = port.pointee.epoch.addingReportingOverflow(
      TranslationCache.firstEpoch)
    if isOverflow {
      // After 4095 epochs old tags would be valid again.
      port.pointee.entries.update(
        repeating: pm_translation(tag: 0, page: 0), count: 1 << Int(TranslationCache.entryBits))
    }
    port.pointee.epoch = isOverflow ? TranslationCache.firstEpoch : epoch
  }

  /// The entry of a frame. Multiplied, so that frames at regular distances spread: for 512 frames
  /// in 1 to 512 runs at distances of 2 MiB to 1 GiB this factor gives a fifth of the clashes that
  /// chance would, in the median none.
  @inlinable @inline(__always)
  func entry(_ gfn: UInt64) -> UnsafeMutablePointer<pm_translation> {
    let hash = (gfn &* 0xd6e8_feb8_6659_fd93) &>> (64 &- TranslationCache.entryBits)
    return port.pointee.entries + Int(truncatingIfNeeded: hash)
  }

  /// The host address of a guest frame's first byte, or nil where the cache does not know it (for
  /// this kind of access). pre: inside of an access; good until its end.
  @inlinable @inline(__always)
  public func translate(_ gfn: GFN, forWrite: Bool) -> UnsafeMutableRawPointer? {
    let found = entry(gfn.rawValue).pointee
    guard found.tag == gfn.rawValue | port.pointee.epoch, !forWrite || found.page & 1 != 0 else {
      return nil
    }
    return UnsafeMutableRawPointer(bitPattern: UInt(found.page & ~1)).unsafelyUnwrapped
  }

  /// Keeps the translation of a frame until the next flush. pre: inside of an access that began
  /// before the tables were read; `page` is a multiple of 4096, and not null. `isWritable` only
  /// where writes need no further look at the tables: the leaf has W and is dirty.
  @inlinable
  public func fill(_ gfn: GFN, page: UnsafeMutableRawPointer, isWritable: Bool) {
    assert(isEntered, "a translation that no flush waits for")
    entry(gfn.rawValue).pointee = pm_translation(
      tag: gfn.rawValue | port.pointee.epoch,
      page: UInt64(UInt(bitPattern: page)) | (isWritable ? 1 : 0))
  }

  /// The host address of `count` (1 to 8) bytes at a guest physical address, or nil where the cache
  /// does not know it or the bytes cross the end of the page. pre: inside of an access.
  @inlinable @inline(__always)
  public func translate(
    address: UInt64, count: UInt64, forWrite: Bool
  ) -> UnsafeMutableRawPointer? {
    let found = entry(address &>> 12).pointee
    // The frame of the last byte: bytes that cross the end of the page miss.
    let last = (address &+ count &- 1) &>> 12
    guard found.tag == last | port.pointee.epoch, !forWrite || found.page & 1 != 0 else {
      return nil
    }
    let bits = UInt(found.page & ~1) &+ UInt(address & 4095)
    return UnsafeMutableRawPointer(bitPattern: bits).unsafelyUnwrapped
  }
}
