internal import PMUnits

/// What an access needs of a region: 40 bytes.
@usableFromInline
struct RegionEntry {
  @usableFromInline let start: UInt64
  @usableFromInline let byteCount: UInt64
  /// Where this process has the region; nil where loads are calls.
  @usableFromInline let readBase: UnsafeMutableRawPointer?
  /// The same; nil where stores are calls, refused, or have to wait.
  @usableFromInline let writeBase: UnsafeMutableRawPointer?
  /// The record of dirty pages, where one is kept.
  @usableFromInline let dirty: UnsafeMutablePointer<UInt64>?
}

/// The regions as accesses read them: published by one pointer, never changed, sorted by address.
///
/// Memory is found by one comparison for the largest region of all, else by a ``RegionIndex``.
@usableFromInline
struct RegionTable {
  @usableFromInline let largest: RegionEntry
  @usableFromInline let lookup: RegionIndex
  @usableFromInline let entries: UnsafeMutablePointer<RegionEntry>
  @usableFromInline let count: Int
  /// See ``RegionSnapshot/generation``.
  let generation: UInt64
  /// Whether writers have to wait.
  let isFrozen: Bool
  /// The snapshot that owns this table.
  let owner: Unmanaged<RegionSnapshot>

  /// The most regions there can be: indices, and what they are with, are 15 bits.
  static let maxCount = 4096

  /// The entry of the region that contains an address.
  @inlinable @inline(__always)
  static func entry(
    of table: UnsafePointer<RegionTable>, at address: UInt64
  ) -> UnsafePointer<RegionEntry>? {
    if address &- table.pointee.largest.start < table.pointee.largest.byteCount {
      return UnsafeRawPointer(table).assumingMemoryBound(to: RegionEntry.self)
    }
    guard let index = table.pointee.index(at: address) else { return nil }
    return UnsafePointer(table.pointee.entries + index)
  }

  /// The index of the region that contains an address.
  @inlinable @inline(__always)
  func index(at address: UInt64) -> Int? {
    let index = lookup.candidate(at: address)
    return address &- entries[index].start < entries[index].byteCount ? index : nil
  }

  /// Lays the table out. pre: `objects` are sorted and disjoint, and live as long as the table.
  init(
    _ objects: [RegionObject], generation: UInt64, isFrozen: Bool,
    owner: Unmanaged<RegionSnapshot>
  ) {
    count = objects.count
    self.generation = generation
    self.isFrozen = isFrozen
    self.owner = owner
    // One more, which contains nothing, for tables without regions.
    entries = .allocate(capacity: count + 1)
    let nothing = RegionEntry(start: 0, byteCount: 0, readBase: nil, writeBase: nil, dirty: nil)
    (entries + count).initialize(to: nothing)
    var largest = nothing
    for (index, object) in objects.enumerated() {
      let host = object.hostAddress
      let entry = RegionEntry(
        start: object.range.start.rawValue, byteCount: object.range.byteCount, readBase: host,
        writeBase: object.kind.isWritable && !isFrozen ? host : nil, dirty: object.dirty?.words)
      (entries + index).initialize(to: entry)
      if host != nil, entry.byteCount > largest.byteCount { largest = entry }
    }
    self.largest = largest
    lookup = RegionIndex(objects.map(\.range))
  }

  func deallocate() {
    lookup.deallocate()
    entries.deallocate()
  }
}

/// What a range of addresses is made of.
enum Coverage {
  /// Memory throughout, that can be accessed as asked.
  case memory
  /// There are devices in it.
  case devices
  /// A writer has to wait, and look again.
  case frozen
  case fails(GuestMemoryError)
}

extension RegionTable {
  /// Looks at a whole range before anything of it is accessed.
  func coverage(_ range: GuestRange, isWrite: Bool, objects: [RegionObject]) -> Coverage {
    guard range.isAddressable else {
      let end = max(range.start.rawValue, GPA.limit.rawValue)
      // An empty range has no part beyond the limit, wherever it begins.
      let gap = GuestRange(start: GPA(end), byteCount: range.end - min(end, range.end))
      return .fails(.unmapped(range, gap: gap))
    }
    guard var index = index(at: range.start.rawValue) else {
      return .fails(.unmapped(range, gap: gap(in: range, from: range.start.rawValue)))
    }
    var coverage = Coverage.memory
    while true {
      let object = objects[index]
      if isWrite, object.kind == .rom { return .fails(.readOnly(range, region: object.range)) }
      if object.kind == .mmio { coverage = .devices }
      if object.range.end >= range.end { break }
      index += 1
      guard index < count, entries[index].start == objects[index - 1].range.end else {
        return .fails(.unmapped(range, gap: gap(in: range, from: objects[index - 1].range.end)))
      }
    }
    return isWrite && isFrozen ? .frozen : coverage
  }

  /// The part of a range without a region that begins at an address without one.
  private func gap(in range: GuestRange, from start: UInt64) -> GuestRange {
    var end = range.end
    for index in 0..<count where entries[index].start > start {
      end = min(end, entries[index].start)
      break
    }
    return GuestRange(start: GPA(start), byteCount: end - start)
  }
}
