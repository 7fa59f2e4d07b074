internal import PMExport
public import PMGuestMemory
public import PMUnits

/// A small driver of a virtio-blk device behind vhost-user: one request at a time, from and to guest memory.
///
/// Uses the first queue of the device, with 16 descriptors. One thread at a time.
public struct VirtioBlock: ~Copyable {
  /// The connection.
  public let frontEnd: VhostUserFrontEnd
  private let memory: GuestMemory
  private let queue: SplitQueue
  private let header: GPA
  private let timeout: Int32

  /// Sizes of disks and requests are in sectors.
  public static let sectorByteCount: UInt64 = 512
  private static let queueSize: UInt16 = 16
  /// The queue, a header of 16 bytes, a status of one.
  private static var headerOffset: UInt64 {
    (SplitQueue.byteCount(size: queueSize) + 15) & ~15
  }

  /// Bytes of guest memory that the driver needs for itself.
  public static var byteCount: UInt64 { headerOffset + 17 }

  private enum Operation: UInt32 {
    case read = 0
    case write = 1
  }

  /// Offers the memory to the back end and starts the queue, which takes ``byteCount`` bytes at `start` (a multiple
  /// of 16, all in one region). A request may take `timeout` milliseconds.
  public init(
    _ frontEnd: consuming VhostUserFrontEnd, memory: GuestMemory, queueAt start: GPA,
    timeout: Int32 = 10_000
  ) throws(VhostUserError) {
    let queue = try SplitQueue(in: memory, at: start, size: VirtioBlock.queueSize)
    try frontEnd.addRegions(of: memory)
    try frontEnd.start(queue, index: 0)
    self.frontEnd = frontEnd
    self.memory = memory
    self.queue = queue
    self.timeout = timeout
    header = start + Int(VirtioBlock.headerOffset)
  }

  /// How many sectors the disk has.
  public func sectorCount() throws(VhostUserError) -> UInt64 {
    try frontEnd.configuration(byteCount: 8).word(UInt64.self, at: 0)
  }

  /// Reads sectors of the disk from `sector` on into guest memory; the range is a multiple of 512 bytes.
  public func read(sector: UInt64, into range: GuestRange) throws(VhostUserError) {
    try perform(.read, sector, .init(range, isWritable: true))
  }

  /// Writes guest memory to the disk.
  public func write(sector: UInt64, from range: GuestRange) throws(VhostUserError) {
    try perform(.write, sector, .init(range, isWritable: false))
  }

  private func perform(
    _ operation: Operation, _ sector: UInt64, _ buffer: SplitQueue.Buffer
  ) throws(VhostUserError) {
    guard buffer.range.byteCount > 0,
      buffer.range.byteCount % VirtioBlock.sectorByteCount == 0
    else { throw .invalidQueue("\(buffer.range): expected a multiple of 512 bytes") }
    // The one header is the device's until it answers: what comes late is taken back first, and as long as
    // nothing comes, no further request may write over it.
    while try queue.pop() != nil {}
    guard queue.pendingCount == 0 else {
      throw .noAnswer("an earlier request is still with the device")
    }
    let status = header + 16
    try VhostUserError.memory { () throws(GuestMemoryError) in
      try memory.store(operation.rawValue, at: header)
      try memory.store(UInt32(0), at: header + 4)
      try memory.store(sector, at: header + 8)
      // None that a device answers with.
      try memory.store(UInt8.max, at: status)
    }
    let head = try queue.push([
      .init(GuestRange(start: header, byteCount: 16), isWritable: false), buffer,
      .init(GuestRange(start: status, byteCount: 1), isWritable: true),
    ])
    try queue.notify()
    let used = try queue.waitForUsed(peer: frontEnd.descriptor, timeout: timeout)
    guard used.head == head else {
      throw .malformedQueue("the device gave back chain \(used.head): expected \(head)")
    }
    let answer: UInt8 = try VhostUserError.memory { () throws(GuestMemoryError) in
      try memory.load(at: status)
    }
    guard answer == 0 else { throw .deviceFailed(status: answer) }
  }
}
