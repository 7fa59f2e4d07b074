internal import PMArena
public import PMPageAllocator
public import PMUnits

// Memory back to the host: what the guest gave up, and what its allocator has free.

extension GuestMemory {
  /// Bytes in the balloon.
  public var balloonedByteCount: UInt64 {
    snapshot().objects.reduce(0) { sum, object in
      sum
        + object.ballooned.withLock { set in
          set.ranges.reduce(0) { $0 + ($1.upperBound - $1.lowerBound) }
        }
    }
  }

  /// Bytes that the host has given to the memory of all regions so far, see `Arena.residentByteCount()`: those of
  /// whole arenas, also where a region has a part only. Throws what the host says.
  public func residentByteCount() throws(GuestMemoryError) -> UInt64 {
    var seen: Set<ObjectIdentifier> = []
    var sum: UInt64 = 0
    for object in snapshot().objects {
      guard let bytes = object.bytes else { continue }
      let owner = bytes.machine.map { ObjectIdentifier($0) } ?? ObjectIdentifier(bytes)
      guard seen.insert(owner).inserted else { continue }
      sum += try GuestMemoryError.wrapping { () throws(ArenaError) in
        try bytes.withArena { arena throws(ArenaError) in try arena.residentByteCount() }
      }
    }
    return sum
  }

  /// Puts a range of RAM into the balloon: the host gets its pages now, and they read as zero.
  ///
  /// The device's side of virtio-balloon: the guest has given the pages up before. It may use them again without
  /// asking; they come back zeroed as they are touched. What is in the balloon already is given back once more.
  /// Throws ``GuestMemoryError/unaligned(_:unit:)`` unless the range consists of whole pages of its regions,
  /// and as ``write(_:at:)``, with nothing given; where the host refuses a part, what comes before it is given.
  public func inflateBalloon(_ range: GuestRange) throws(GuestMemoryError) {
    try discard(range) { object, offsets in
      object.ballooned.withLock { $0.insert(contentsOf: offsets) }
    }
  }

  /// Takes a range of RAM out of the balloon. Its pages come back as they are touched. As
  /// ``inflateBalloon(_:)``; what is not in the balloon is passed over.
  public func deflateBalloon(_ range: GuestRange) throws(GuestMemoryError) {
    guard range.byteCount > 0 else { return }
    try state.withLock { state throws(GuestMemoryError) in
      for (object, part) in try GuestMemory.pages(of: range, in: state.snapshot) {
        object.ballooned.withLock {
          $0.remove(contentsOf: GuestMemory.offsets(of: part, in: object))
        }
      }
    }
  }

  /// Gives the pages of a range of RAM back to the host; they read as zero. As ``inflateBalloon(_:)``, without
  /// counting them as ballooned.
  public func discard(_ range: GuestRange) throws(GuestMemoryError) {
    try discard(range) { _, _ in }
  }

  private func discard(
    _ range: GuestRange, _ done: (RegionObject, Range<UInt64>) -> Void
  ) throws(GuestMemoryError) {
    guard range.byteCount > 0 else { return }
    // Under the lock, because a merge or a fork must not see half of it.
    try state.withLock { state throws(GuestMemoryError) in
      for (object, part) in try GuestMemory.pages(of: range, in: state.snapshot) {
        let offsets = GuestMemory.offsets(of: part, in: object)
        try object.discard(offsets)
        object.dirty?.mark(offset: offsets.lowerBound, byteCount: part.byteCount)
        done(object, offsets)
      }
    }
  }

  /// The parts of a range, if it is RAM throughout, in whole pages, that nobody else's file holds.
  private static func pages(
    of range: GuestRange, in snapshot: RegionSnapshot
  ) throws(GuestMemoryError) -> [(object: RegionObject, part: GuestRange)] {
    if case .fails(let error) = snapshot.table.pointee.coverage(
      range, isWrite: true, objects: snapshot.objects)
    {
      throw error
    }
    let parts = snapshot.parts(of: range)
    for (object, part) in parts {
      guard let bytes = object.bytes else { throw .notMemory(range, region: object.range) }
      guard !bytes.isForeignFile else { throw .foreignFile(region: object.range) }
      let unit = bytes.withArena { $0.backing.pageSize }
      guard (part.start.rawValue | part.byteCount) % unit.rawValue == 0 else {
        throw .unaligned(range, unit: unit)
      }
    }
    return parts
  }

  private static func offsets(of part: GuestRange, in object: RegionObject) -> Range<UInt64> {
    let start = UInt64(part.start - object.range.start)
    return start..<start + part.byteCount
  }

  /// Gives the host the pages of blocks that the machine's allocator has free, of at least
  /// 2^`minOrder` frames, up to `maxByteCount`; returns how many bytes. They stay free, and read as zero.
  ///
  /// Mirrors free page reporting (mm/page_reporting.c, Linux 6.1) by its outcome: blocks are taken out of the
  /// free lists through this CPU, given back, and freed again, which puts them to the front of their lists. Meanwhile
  /// allocations on other CPUs may fail that would not have; `maxByteCount` bounds by how much.
  /// Throws ``GuestMemoryError/otherMachine`` if the CPU's machine is not this memory's, and what the host
  /// says; all blocks are free again then too.
  public func reportFreePages(
    minOrder: Int = Order.pageblock, maxByteCount: UInt64 = .max, on cpu: inout CPU
  ) throws(GuestMemoryError) -> UInt64 {
    precondition((0...Order.max).contains(minOrder), "order \(minOrder)")
    let machine = cpu.machine
    guard snapshot().objects.contains(where: { $0.bytes?.machine === machine }) else {
      throw .otherMachine
    }
    var blocks: [(pfn: PFN, order: Int)] = []
    defer { for block in blocks.reversed() { cpu.freePages(block.pfn, order: block.order) } }
    var taken: UInt64 = 0
    for order in stride(from: Order.max, through: minOrder, by: -1) {
      let size = UInt64(4096) << UInt64(order)
      while maxByteCount - taken >= size {
        let gfp: GFP = [.highmem, .movable, .noRetry, .noWarn, .noMemalloc]
        guard let pfn = try? cpu.allocatePages(order: order, gfp: gfp) else { break }
        blocks.append((pfn, order))
        taken += size
      }
    }
    var reported: UInt64 = 0
    for block in blocks {
      let range = GuestRange(
        start: GPA(block.pfn.physicalAddress), byteCount: UInt64(4096) << UInt64(block.order))
      // A huge page of the host that the block does not fill cannot be given back.
      do { try discard(range) } catch .unaligned { continue }
      reported += range.byteCount
    }
    return reported
  }
}

extension RegionObject {
  /// Gives the pages of a range of offsets in the region back to the host.
  func discard(_ offsets: Range<UInt64>) throws(GuestMemoryError) {
    guard let bytes else { return }
    try GuestMemoryError.wrapping { () throws(ArenaError) in
      try bytes.withArena { arena throws(ArenaError) in
        try arena.discard(offset + offsets.lowerBound..<offset + offsets.upperBound)
      }
    }
  }
}
