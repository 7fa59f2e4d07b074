internal import PMArena
internal import PMExport
public import PMGuestMemory
public import PMUnits
internal import SystemPackage

/// A split virtqueue in guest memory, from the driver's side: descriptor table, available ring, used ring.
///
/// The driver pushes chains of buffers and kicks; the device writes into them and says so in the used ring. One
/// thread at a time. What the device writes is not trusted: a used ring that cannot be is an error.
///
/// A buffer for the device to write is dirty when the device gives it back, and when waiting for it ends without
/// that, where the memory keeps a record (`GuestMemory.startTrackingDirtyPages()`).
public final class SplitQueue {
  /// One buffer of a chain.
  public struct Buffer: Hashable, Sendable {
    /// Where it is; at most 4 GiB less 1.
    public var range: GuestRange
    /// Whether the device writes it, else it reads it.
    public var isWritable: Bool

    /// A buffer from its parts.
    public init(_ range: GuestRange, isWritable: Bool) {
      self.range = range
      self.isWritable = isWritable
    }
  }

  /// What the device gave back.
  public struct Used: Hashable, Sendable {
    /// The chain, as ``SplitQueue/push(_:)`` named it.
    public var head: UInt16
    /// How many bytes the device wrote into it.
    public var byteCount: UInt32
  }

  /// How many descriptors it has.
  public let size: UInt16
  /// Where it begins in guest memory.
  public let start: GPA
  let memory: GuestMemory
  let kick: Event
  let call: Event
  /// The number of the chain that is pushed next.
  private(set) var nextAvailable: UInt16 = 0
  private var nextUsed: UInt16 = 0
  private var free: [UInt16]
  /// A chain that the device has.
  private struct Chain {
    var descriptors: [UInt16]
    /// What the device may write.
    var writable: [GuestRange]
  }

  /// By the first descriptor.
  private var chains: [UInt16: Chain] = [:]

  /// How many chains the device has.
  var pendingCount: Int { chains.count }

  /// Bytes of guest memory for a queue of `size` descriptors.
  public static func byteCount(size: UInt16) -> UInt64 {
    usedOffset(size) + 6 + 8 * UInt64(size)
  }

  private static func availableOffset(_ size: UInt16) -> UInt64 { 16 * UInt64(size) }

  private static func usedOffset(_ size: UInt16) -> UInt64 {
    let end = availableOffset(size) + 6 + 2 * UInt64(size)
    return (end + 3) & ~3
  }

  /// Makes an empty queue at `start`, a multiple of 16; `size` is a power of two, up to 32768.
  ///
  /// Zeroes ``byteCount(size:)`` bytes there, which lie in one region and are the queue's from then on.
  public init(
    in memory: GuestMemory, at start: GPA, size: UInt16
  ) throws(VhostUserError) {
    guard size.nonzeroBitCount == 1 else {
      throw .invalidQueue("\(size) descriptors: expected a power of two, up to 32768")
    }
    guard start.isAligned(to: 16) else {
      throw .invalidQueue("it begins at \(start): expected a multiple of 16")
    }
    let range = GuestRange(start: start, byteCount: SplitQueue.byteCount(size: size))
    try VhostUserError.memory { () throws(GuestMemoryError) in try memory.fill(range, with: 0) }
    kick = try VhostUserError.wrapping { () throws(HostError) in try Event() }
    call = try VhostUserError.wrapping { () throws(HostError) in try Event() }
    self.memory = memory
    self.start = start
    self.size = size
    free = Array((0..<size).reversed())
  }

  private var available: GPA { start + Int(SplitQueue.availableOffset(size)) }
  private var used: GPA { start + Int(SplitQueue.usedOffset(size)) }

  /// Where this process has the three parts.
  func hostAddresses() throws(VhostUserError) -> (
    descriptors: UInt64, available: UInt64, used: UInt64
  ) {
    let range = GuestRange(start: start, byteCount: SplitQueue.byteCount(size: size))
    let base = try VhostUserError.memory { () throws(GuestMemoryError) in
      try memory.snapshot().hostAddress(of: range, writing: true)
    }
    let address = UInt64(UInt(bitPattern: base))
    return (
      address, address + SplitQueue.availableOffset(size), address + SplitQueue.usedOffset(size)
    )
  }

  /// Gives the device a chain of buffers; returns its name. The device may take it at once; ``notify()`` says that
  /// it should. Throws ``VhostUserError/invalidQueue(_:)`` where there are too few free descriptors.
  @discardableResult
  public func push(_ buffers: [Buffer]) throws(VhostUserError) -> UInt16 {
    guard !buffers.isEmpty, buffers.count <= free.count else {
      throw .invalidQueue("\(buffers.count) buffers: there are \(free.count) free descriptors")
    }
    for buffer in buffers where buffer.range.byteCount > UInt64(UInt32.max) {
      throw .invalidQueue("a buffer of \(buffer.range): the largest has 4 GiB less 1")
    }
    let chain = Array(free.suffix(buffers.count).reversed())
    try VhostUserError.memory { () throws(GuestMemoryError) in
      for (place, buffer) in buffers.enumerated() {
        try write(buffer, to: chain[place], next: place + 1 < chain.count ? chain[place + 1] : nil)
      }
      let slot = available + 4 + 2 * Int(nextAvailable & (size - 1))
      try memory.store(chain[0], at: slot)
      // Release: the device sees the chain before the number.
      try memory.atomicStore(nextAvailable &+ 1, at: available + 2)
    }
    nextAvailable &+= 1
    free.removeLast(chain.count)
    chains[chain[0]] = Chain(
      descriptors: chain, writable: buffers.filter(\.isWritable).map(\.range))
    return chain[0]
  }

  private func write(
    _ buffer: Buffer, to index: UInt16, next: UInt16?
  ) throws(GuestMemoryError) {
    let place = start + 16 * Int(index)
    try memory.store(buffer.range.start.rawValue, at: place)
    try memory.store(UInt32(buffer.range.byteCount), at: place + 8)
    let flags: UInt16 = (next == nil ? 0 : 1) | (buffer.isWritable ? 2 : 0)
    try memory.store(flags, at: place + 12)
    try memory.store(next ?? 0, at: place + 14)
  }

  /// Tells the device that there are chains.
  public func notify() throws(VhostUserError) {
    try VhostUserError.wrapping { () throws(HostError) in try kick.signal() }
  }

  /// The next chain that the device has given back, or nil if there is none yet.
  public func pop() throws(VhostUserError) -> Used? {
    let (index, head, byteCount): (UInt16, UInt32, UInt32) = try VhostUserError.memory {
      () throws(GuestMemoryError) in
      // Acquire: what the device wrote before is seen.
      let index: UInt16 = try memory.atomicLoad(at: used + 2)
      guard index != nextUsed else { return (index, 0, 0) }
      let slot = used + 4 + 8 * Int(nextUsed & (size - 1))
      return (index, try memory.load(at: slot), try memory.load(at: slot + 4))
    }
    if index == nextUsed { return nil }
    guard index &- nextUsed <= UInt16(chains.count) else {
      throw malformed(
        "the device gave back \(index &- nextUsed) chains: it had \(chains.count)")
    }
    guard let name = UInt16(exactly: head), let chain = chains.removeValue(forKey: name) else {
      throw malformed("the device gave back chain \(head), which it did not have")
    }
    free += chain.descriptors.reversed()
    nextUsed &+= 1
    markWritten(chain.writable)
    return Used(head: name, byteCount: byteCount)
  }

  /// Nobody knows what the device did with what it has.
  private func malformed(_ what: String) -> VhostUserError {
    markPending()
    return .malformedQueue(what)
  }

  /// Notes what the device has: it may have written it, in part.
  private func markPending() { markWritten(chains.values.flatMap(\.writable)) }

  /// Notes what a device wrote. A buffer as a whole: the device's word that it wrote less is not trusted.
  private func markWritten(_ buffers: [GuestRange]) {
    guard memory.isTrackingDirtyPages else { return }
    let ring = GuestRange(start: used, byteCount: 6 + 8 * UInt64(size))
    for range in buffers + [ring] {
      // Without a record, or the region, there is nothing left to mark.
      do throws(GuestMemoryError) { try memory.markDirty(range) } catch {}
    }
  }

  /// Waits until the device gives a chain back. `peer`: a socket whose hang-up ends it.
  func waitForUsed(peer: Int32, timeout: Int32) throws(VhostUserError) -> Used {
    while true {
      if let used = try pop() { return used }
      do {
        try call.wait(peer: peer, timeout: timeout)
      } catch {
        markPending()
        switch error.errno {
        case .timedOut: throw .noAnswer("none within \(timeout) ms")
        case .brokenPipe: throw .noAnswer("the back end hung up")
        default: throw .host(error)
        }
      }
    }
  }
}
