internal import CPhysmemShim
internal import PMFrames
public import PMUnits

/// Why a range of frames could not be taken.
public enum ContiguousError: Error, Hashable, Sendable {
  /// The range is empty, leaves its zone, or crosses a hole.
  case invalidRange(PFN, count: Int)
  /// A frame of the range is not free: in use, or on another CPU's lists.
  case busy(PFN)
}

extension ContiguousError: CustomStringConvertible {
  /// One line that says what was in the way.
  public var description: String {
    switch self {
    case .invalidRange(let pfn, let count):
      "\(count) frames from \(pfn): expected a non-empty range within one zone"
    case .busy(let pfn): "frame \(pfn) is not free"
    }
  }
}

extension CPU {
  /// Takes a given range of frames that are all free; each gets a count of 1.
  ///
  /// The pageblocks that the range touches are isolated meanwhile and are movable afterwards. This
  /// CPU's lists are drained first; other CPUs' lists are theirs, and a frame on one of them is busy.
  /// On an error nothing is taken. Mirrors `alloc_contig_range`, Linux 6.1, for memory that needs no
  /// migration.
  public mutating func allocateContiguous(
    _ first: PFN, count: Int
  ) throws(ContiguousError) {
    let range = try checkedRange(first, count)
    let zone = zone(of: first.rawValue)
    let blocks = stride(from: range.lowerBound & ~511, to: range.upperBound, by: 512)
    let pageset = core.pagesets + Int(zone.pointee.index)
    // The lock is held for one block of the highest order at a time, however long the range: nobody
    // else takes a free page out of an isolated pageblock meanwhile.
    for block in blocks { withLock(of: zone) { core.isolate(zone, pageset, block) } }
    core.drainAll(zone)
    for piece in CPU.pieces(of: range) {
      guard let busy = withLock(of: zone, { core.firstBusy(zone, piece) }) else { continue }
      endIsolation(of: blocks, zone, pageset)
      throw .busy(PFN(busy))
    }
    for piece in CPU.pieces(of: range) {
      let taken = withLock(of: zone) { core.takeRange(zone, piece) }
      // What the outermost blocks have beyond the range goes back page by page.
      for index in taken where !range.contains(index) { freePages(PFN(index), order: 0) }
    }
    endIsolation(of: blocks, zone, pageset)
  }

  /// A range cut where blocks of the highest order begin: no free block reaches across.
  private static func pieces(of range: Range<UInt32>) -> [Range<UInt32>] {
    stride(from: range.lowerBound & ~1023, to: range.upperBound, by: 1024).map { start in
      max(start, range.lowerBound)..<min(start + 1024, range.upperBound)
    }
  }

  private func endIsolation(
    of blocks: StrideTo<UInt32>, _ zone: UnsafeMutablePointer<pm_zone>,
    _ pageset: UnsafeMutablePointer<pm_pageset>
  ) {
    for block in blocks { withLock(of: zone) { core.endIsolation(zone, pageset, block) } }
  }

  /// Drops a reference to each frame of a range and frees it. A warning tells once where a count was
  /// not 1. Mirrors `free_contig_range`.
  public mutating func freeContiguous(_ first: PFN, count: Int) {
    for offset in 0..<max(count, 0) {
      let pfn = first + offset
      if machine.frames.refcount(pfn) != 1 {
        machine.findings.warnOnce("free_contig_range: pages still in use", pfn: pfn)
      }
      freePages(pfn, order: 0)
    }
  }

  private mutating func checkedRange(
    _ first: PFN, _ count: Int
  ) throws(ContiguousError) -> Range<UInt32> {
    guard count > 0, count <= Int(PFN.max.rawValue) - Int(first.rawValue),
      let segment = core.segment(containing: first.rawValue)
    else { throw .invalidRange(first, count: count) }
    let end = first.rawValue + UInt32(count)
    guard end <= segment.pointee.start + segment.pointee.count else {
      throw .invalidRange(first, count: count)
    }
    return first.rawValue..<end
  }

  private func withLock<Result>(
    of zone: UnsafeMutablePointer<pm_zone>, _ body: () -> Result
  ) -> Result {
    core.lock(zone)
    defer { core.unlock(zone) }
    return body()
  }
}

// pre (all): the zone's lock is held.
extension Core {
  /// Takes a pageblock out of use: its free pages move to the ISOLATE lists and no longer count as
  /// free. Mirrors `set_migratetype_isolate`.
  func isolate(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ block: UInt32
  ) {
    guard pageblockType(block) != 4 else { return }
    setPageblockType(block, 4)
    zone.pointee.nr_isolate_pageblock += 1
    splitAcross(zone, block, type: 4)
    let moved = movePageblock(zone, block, to: 4).free
    if moved > 0 { addFreePages(zone, pageset, -Int32(moved)) }
  }

  /// Puts an isolated pageblock back into use as movable memory. Mirrors
  /// `unset_migratetype_isolate`.
  func endIsolation(
    _ zone: UnsafeMutablePointer<pm_zone>, _ pageset: UnsafeMutablePointer<pm_pageset>,
    _ block: UInt32
  ) {
    guard pageblockType(block) == 4 else { return }
    setPageblockType(block, 1)
    zone.pointee.nr_isolate_pageblock -= 1
    if block & 511 == 0, freeBlockOrder(block) == 9, contains(zone, block ^ 512),
      freeBlockOrder(block ^ 512) == 9, pageblockType(block ^ 512) != 4
    {
      // A whole free pageblock is freed anew, so that it merges with its neighbour.
      guard deleteBlock(zone, block, order: 9) else { return }
      freeBlock(zone, pageset, block, order: 9, type: 1, toTail: false)
      return
    }
    let moved = movePageblock(zone, block, to: 1).free
    if moved > 0 { addFreePages(zone, pageset, Int32(moved)) }
  }

  /// Splits a free block of order 10 that covers the pageblock, so that only its half is isolated.
  private func splitAcross(_ zone: UnsafeMutablePointer<pm_zone>, _ block: UInt32, type: UInt8) {
    let head = block & ~1023
    guard contains(zone, head), freeBlockOrder(head) == 10 else { return }
    guard deleteBlock(zone, head, order: 10) else { return }
    for half in [head, head + 512] {
      // The isolated half is counted out right after; the other keeps its pageblock's type.
      let own = half == block ? UInt8(1) : pageblockType(half)
      addBlock(zone, half, order: 9, type: own, toBack: true)
    }
  }

  /// The first frame of a range that is in no free block, or nil.
  func firstBusy(_ zone: UnsafeMutablePointer<pm_zone>, _ range: Range<UInt32>) -> UInt32? {
    var cursor = range.lowerBound
    while cursor < range.upperBound {
      guard let (head, order) = freeBlock(containing: cursor, zone) else { return cursor }
      cursor = head + 1 << order
    }
    return nil
  }

  private func freeBlock(
    containing index: UInt32, _ zone: UnsafeMutablePointer<pm_zone>
  ) -> (head: UInt32, order: UInt32)? {
    for order in UInt32(0)...10 {
      let head = index & ~(1 << order - 1)
      if contains(zone, head), freeBlockOrder(head) == order { return (head, order) }
    }
    return nil
  }

  /// Removes the free blocks that cover a range and gives every frame of them a count of 1; returns
  /// all these frames. The pageblocks are isolated, so nothing counts as free here any more. Mirrors
  /// `isolate_freepages_range`.
  func takeRange(_ zone: UnsafeMutablePointer<pm_zone>, _ range: Range<UInt32>) -> [UInt32] {
    var taken: [UInt32] = []
    var cursor = range.lowerBound
    while cursor < range.upperBound {
      guard let (head, order) = freeBlock(containing: cursor, zone),
        deleteBlock(zone, head, order: order)
      else { return taken }
      // The counts of a block's other frames are not what the allocator leaves there.
      markUnusual(head, order: order)
      for index in head..<(head + 1 << order) {
        setState(index, FrameState.touched)
        pm_refcount_store_relaxed(counts[index], 1)
        taken.append(index)
      }
      cursor = head + 1 << order
    }
    return taken
  }
}
