internal import CPhysmemShim
internal import PMArena
internal import PMUnits
internal import Synchronization

/// A region with what it keeps alive. Never changes; a region of which something changes gets a new object that
/// shares the rest.
final class RegionObject: Sendable {
  let range: GuestRange
  let kind: RegionKind
  let hostNode: Int?
  /// The owner of the bytes; nil for devices.
  let bytes: GuestBytes?
  /// Where in the owner's arena the region begins.
  let offset: UInt64
  let handler: (any MMIOHandler)?
  /// Which pages were written, where that is recorded.
  let dirty: DirtyPages?
  /// Offsets in the region that are in the balloon.
  let ballooned: Guarded<RangeSet<UInt64>>

  init(
    range: GuestRange, kind: RegionKind, hostNode: Int?, bytes: GuestBytes?, offset: UInt64,
    handler: (any MMIOHandler)?, dirty: DirtyPages? = nil,
    ballooned: Guarded<RangeSet<UInt64>> = Guarded(RangeSet())
  ) {
    self.range = range
    self.kind = kind
    self.hostNode = hostNode
    self.bytes = bytes
    self.offset = offset
    self.handler = handler
    self.dirty = dirty
    self.ballooned = ballooned
  }

  /// The same region with another record of dirty pages, or none.
  func recording(_ dirty: DirtyPages?) -> RegionObject {
    RegionObject(
      range: range, kind: kind, hostNode: hostNode, bytes: bytes, offset: offset,
      handler: handler, dirty: dirty, ballooned: ballooned)
  }

  /// The same region with other bytes, not recorded.
  func moved(to bytes: GuestBytes?) -> RegionObject {
    RegionObject(
      range: range, kind: kind, hostNode: hostNode, bytes: bytes, offset: offset,
      handler: handler, ballooned: Guarded(ballooned.withLock { $0 }))
  }

  /// Whether writes to it are to be recorded where a record is kept.
  var isRecordable: Bool { kind == .ram || kind == .pmem }

  /// The first byte in this process; nil for devices.
  var hostAddress: UnsafeMutableRawPointer? {
    bytes?.withArena { $0.base + Int(offset) }
  }

  /// What there is to know for others.
  var description: GuestRegion {
    guard let bytes else {
      return GuestRegion(
        range: range, kind: kind, backing: nil, pageSize: .kib(4), hostNode: nil,
        fileDescriptor: nil, fileOffset: 0, base: 0)
    }
    return bytes.withArena { arena in
      GuestRegion(
        range: range, kind: kind, backing: arena.backing, pageSize: arena.backing.pageSize,
        hostNode: hostNode, fileDescriptor: arena.fileDescriptor,
        fileOffset: arena.fileOffset + offset, base: UInt(bitPattern: arena.base) + UInt(offset))
    }
  }
}

/// A bit for each 4 KiB page of a region: whether it was written.
///
/// Threads set bits and take them out at any time, atomically.
final class DirtyPages: @unchecked Sendable {
  // Sendable: the words are only accessed by the atomic operations of pm_dirty.h.
  private let mapping: TableMapping
  let words: UnsafeMutablePointer<UInt64>
  let wordCount: Int

  init(pageCount: UInt64) throws(HostError) {
    wordCount = Int((pageCount + 63) / 64)
    mapping = try TableMapping(byteCount: wordCount * 8)
    words = mapping.base.bindMemory(to: UInt64.self, capacity: wordCount)
  }

  /// Marks the pages that contain `byteCount` bytes (1 or more) from `offset` in the region. Fully ordered
  /// after what the caller wrote.
  func mark(offset: UInt64, byteCount: UInt64) {
    DirtyPages.mark(words, offset: offset, byteCount: byteCount)
  }

  /// The same for words of a record that is alive.
  static func mark(_ words: UnsafeMutablePointer<UInt64>, offset: UInt64, byteCount: UInt64) {
    let first = offset >> 12
    let last = (offset + byteCount - 1) >> 12
    for word in first >> 6...last >> 6 {
      let lowest = word == first >> 6 ? first & 63 : 0
      let highest = word == last >> 6 ? last & 63 : 63
      let bits = (UInt64.max << lowest) & (UInt64.max >> (63 - highest))
      _ = pm_dirty_mark_seq_cst(words + Int(word), bits)
    }
  }

  /// Takes all bits out.
  func take() -> [HeldWord] {
    var held: [HeldWord] = []
    var index = pm_dirty_next_relaxed(words, 0, wordCount)
    while index < wordCount {
      let bits = pm_dirty_take_seq_cst(words + index)
      if bits != 0 { held.append(HeldWord(index: index, bits: bits)) }
      index = pm_dirty_next_relaxed(words, index + 1, wordCount)
    }
    // Pages are read after their bits are gone, on processors too whose exchange does not order what follows.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return held
  }

  /// Puts bits back among those set meanwhile.
  func putBack(_ held: [HeldWord]) {
    for word in held { _ = pm_dirty_mark_seq_cst(words + word.index, word.bits) }
  }
}

/// Bits taken out of a record of dirty pages.
struct HeldWord: Sendable {
  var index: Int
  var bits: UInt64
}
