internal import PMArena
internal import PMUnits

/// What a merge did.
public struct MergeResult: Hashable, Sendable {
  /// Pages that were looked at.
  public var scannedPages: Int = 0
  /// Pages of zeroes that the host got back.
  public var zeroPages: Int = 0
  /// Pages whose bytes are now shared with others.
  public var mergedPages: Int = 0
  /// Bytes that the host got back, less what the shared pages take.
  public var freedByteCount: UInt64 = 0
}

extension GuestMemory {
  /// Lets equal pages of RAM and ROM share memory, as KSM does: each is copied again when it is written.
  ///
  /// Pages of zeroes go back to the host wherever they are. Others are shared only where memory is private to
  /// this process (private backings, and all after a ``fork()``), in pages of 4 KiB, and up to
  /// `maxMappings` runs, each of which takes one of the process's mappings (`vm.max_map_count`). Pages that
  /// share already are not looked at again.
  ///
  /// Writes by this interface wait; writes by host addresses, guests and other processes must be stopped, or they
  /// may be lost. Reads go on. Throws what the host says, with what was merged before.
  public func mergePages(maxMappings: Int = 8192) throws(GuestMemoryError) -> MergeResult {
    try withWritersStopped { state throws(GuestMemoryError) -> MergeResult in
      var merge = PageMerge()
      for object in state.snapshot.objects {
        guard let bytes = object.bytes, !bytes.isForeignFile, object.kind != .mmio else { continue }
        try merge.scan(object, bytes)
      }
      try merge.share(maxMappings: maxMappings)
      return merge.result
    }
  }
}

/// One pass over pages that nobody writes.
private struct PageMerge {
  struct Page {
    let object: RegionObject
    let offset: UInt64
    let address: UnsafeRawPointer
  }

  var result = MergeResult()
  /// Pages with the same bytes, by the first of them; in the order in which they were found.
  private var groups: [[Page]] = []
  private var groupsOfHash: [UInt64: [Int]] = [:]

  /// Gives zero pages back, and finds the group of each other page.
  mutating func scan(_ object: RegionObject, _ bytes: GuestBytes) throws(GuestMemoryError) {
    let (pageSize, canShare) = bytes.withArena { arena in
      (arena.backing.pageSize.rawValue, arena.isPrivate && !arena.backing.isHuge)
    }
    guard let base = object.hostAddress else { return }
    let present = try GuestMemoryError.wrapping { () throws(ArenaError) in
      try bytes.withArena { arena throws(ArenaError) in
        try arena.presentPages(object.offset..<object.offset + object.range.byteCount)
      }
    }
    var zeroes: Range<UInt64>?
    for offset in stride(from: 0, to: object.range.byteCount, by: Int(pageSize)) {
      guard present[Int(offset >> 18)] & 1 << (offset >> 12 & 63) != 0 else { continue }
      let address = UnsafeRawPointer(base) + Int(offset)
      result.scannedPages += 1
      let parts = stride(from: 0, to: Int(pageSize), by: 4096)
      if parts.allSatisfy({ Arena.isZero(address + $0) }) {
        result.zeroPages += 1
        result.freedByteCount += pageSize
        if let open = zeroes, open.upperBound == offset {
          zeroes = open.lowerBound..<offset + pageSize
        } else {
          if let open = zeroes { try object.discard(open) }
          zeroes = offset..<offset + pageSize
        }
      } else if canShare {
        add(Page(object: object, offset: offset, address: address))
      }
    }
    if let open = zeroes { try object.discard(open) }
  }

  private mutating func add(_ page: Page) {
    let hash = PageMerge.hash(page.address)
    for index in groupsOfHash[hash] ?? []
    where UnsafeRawBufferPointer(start: page.address, count: 4096)
      .elementsEqual(UnsafeRawBufferPointer(start: groups[index][0].address, count: 4096))
    {
      groups[index].append(page)
      return
    }
    groupsOfHash[hash, default: []].append(groups.count)
    groups.append([page])
  }

  /// A hash of 4 KiB: equal bytes are equal, and others seldom are.
  private static func hash(_ page: UnsafeRawPointer) -> UInt64 {
    let words = UnsafeBufferPointer(start: page.assumingMemoryBound(to: UInt64.self), count: 512)
    var hash: UInt64 = 0x9e37_79b9_7f4a_7c15
    for word in words {
      hash = (hash ^ word) &* 0xff51_afd7_ed55_8ccd
      hash ^= hash >> 32
    }
    return hash
  }

  /// Puts one copy of each group into a file of its own, and maps it wherever the group's pages are.
  mutating func share(maxMappings: Int) throws(GuestMemoryError) {
    let shared = groups.filter { $0.count > 1 }
    guard !shared.isEmpty else { return }
    // Sorted by place, so that pages that follow one another in guest and file are one mapping.
    var places: [(page: Page, slot: UInt64)] = []
    for (slot, group) in shared.enumerated() {
      for page in group { places.append((page, UInt64(slot) << 12)) }
    }
    places.sort {
      ($0.page.object.range.start.rawValue, $0.page.offset)
        < ($1.page.object.range.start.rawValue, $1.page.offset)
    }
    let result = try GuestMemoryError.wrapping { () throws(ArenaError) in
      let store = try Arena(ArenaConfiguration(byteCount: .kib(4 * UInt64(shared.count))))
      for (slot, group) in shared.enumerated() {
        try store.write(
          UnsafeRawBufferPointer(start: group[0].address, count: 4096), at: UInt64(slot) << 12)
      }
      return try PageMerge.map(places, from: store, maxMappings: maxMappings)
    }
    self.result.mergedPages += result
    let freed = UInt64(result) << 12
    self.result.freedByteCount += freed - min(freed, UInt64(shared.count) << 12)
  }

  /// Maps runs of pages; returns how many pages.
  private static func map(
    _ places: [(page: Page, slot: UInt64)], from store: borrowing Arena, maxMappings: Int
  ) throws(ArenaError) -> Int {
    var index = 0
    var mapped = 0
    var mappings = 0
    while index < places.count, mappings < maxMappings {
      let (first, slot) = places[index]
      var count = 1
      while index + count < places.count {
        let next = places[index + count]
        let distance = UInt64(count) << 12
        guard next.page.object === first.object, next.page.offset == first.offset + distance,
          next.slot == slot + distance
        else { break }
        count += 1
      }
      let start = first.object.offset + first.offset
      guard let bytes = first.object.bytes else { break }
      try bytes.withArena { arena throws(ArenaError) in
        try arena.share(start..<start + UInt64(count) << 12, from: store, at: slot)
      }
      index += count
      mapped += count
      mappings += 1
    }
    return mapped
  }
}
