internal import CPhysmemShim

/// The shoot-down of software guests' translations: who takes a translation away waits here until
/// no vCPU uses it any more.
///
/// A vCPU's thread brackets each access by plain stores and one load of the request counter
/// (``TranslationCache``); the order that this needs between processors is paid for by the
/// requester (membarrier, Linux 4.14), or by a fence in each access where the host has none.
/// Mirrors what `kvm_flush_remote_tlbs` promises: after it no access of before is under way, and
/// none begins with a translation of before.
///
/// Thread rules: every call may come from any thread. A request is made outside of accesses (two
/// threads that make one inside would wait for each other), and not while the caller holds what a
/// vCPU's thread may wait for inside of an access: vCPUs leave the access before they take a lock.
public final class FlushGate: @unchecked Sendable {
  // Sendable: the counter and the ports are atomic words under the protocol of pm_guest.h; `lock`
  // covers the list of idle ports.

  /// Whether requests send out barriers; else each access has a fence of its own.
  public let usesMembarrier: Bool
  /// The request counter and, on a line of its own, the head of the list of ports.
  private let requests: UnsafeMutablePointer<UInt64>
  private let head: UnsafeMutablePointer<UnsafeMutablePointer<pm_gate_port>?>
  private let lock: UnsafeMutablePointer<UInt32>
  private var idle: [UnsafeMutablePointer<pm_gate_port>] = []

  /// A gate without vCPUs.
  public convenience init() { self.init(usesMembarrier: pm_gate_has_membarrier()) }

  /// A gate that does without membarrier where `usesMembarrier` is false; it must not be true where
  /// the host has none.
  package init(usesMembarrier: Bool) {
    self.usesMembarrier = usesMembarrier
    let block = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)
    requests = block.bindMemory(to: UInt64.self, capacity: 1)
    requests.initialize(to: 1)
    head = (block + 64).bindMemory(
      to: UnsafeMutablePointer<pm_gate_port>?.self, capacity: 1)
    head.initialize(to: nil)
    lock = (block + 72).bindMemory(to: UInt32.self, capacity: 1)
    lock.initialize(to: 0)
  }

  deinit {
    // Each cache keeps its gate, so that there is none left.
    var port = head.pointee
    while let current = port {
      port = current.pointee.next
      UnsafeMutableRawPointer(current).deallocate()
    }
    UnsafeMutableRawPointer(requests).deallocate()
  }

  /// Makes every vCPU drop all its translations before its next access, and waits until none is in
  /// an access that began before.
  ///
  /// To be called after the tables were changed and before the pages (or the tables) are reused. A
  /// vCPU of the calling thread is not waited for: it drops its translations at its next access.
  /// Costs an atomic addition where no other thread runs a vCPU, else a membarrier (about a
  /// microsecond) and the wait.
  public func requestFlush() { pm_gate_request(head, requests, !usesMembarrier) }

  /// How many flushes were requested since the gate was made.
  public var requestCount: UInt64 { pm_gate_requests_load_acquire(requests) - 1 }

  /// A port for a vCPU with this cache, linked and without an owner.
  func takePort(
    entries: UnsafeMutablePointer<pm_translation>
  ) -> UnsafeMutablePointer<pm_gate_port> {
    pm_lock_acquire(lock)
    let recycled = idle.popLast()
    pm_lock_release(lock)
    if let recycled {
      recycled.pointee.entries = entries
      recycled.pointee.epoch = TranslationCache.firstEpoch
      return recycled
    }
    let port = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
      .bindMemory(to: pm_gate_port.self, capacity: 1)
    port.initialize(
      to: pm_gate_port(
        in_access: 0, seen: 0, owner: 0, next: nil, requests: requests,
        fenced: usesMembarrier ? 0 : 1, entries: entries, epoch: TranslationCache.firstEpoch))
    pm_gate_link(head, port)
    return port
  }

  /// Takes a port back whose vCPU is gone; it stays linked.
  func giveBack(_ port: UnsafeMutablePointer<pm_gate_port>) {
    pm_gate_leave(port)
    pm_gate_owner_store_seq_cst(port, 0)
    pm_lock_acquire(lock)
    idle.append(port)
    pm_lock_release(lock)
  }
}
