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
/// Memory is found by one comparison for the largest region of all, else by a table of buckets, equal parts of the
/// span from the first region to the last, that tells between which indices the region is: where regions are
/// spread evenly that is one.
@usableFromInline
struct RegionTable {
  @usableFromInline let largest: RegionEntry
  /// The first region's address.
  @usableFromInline let base: UInt64
  /// The binary logarithm of a bucket's size.
  @usableFromInline let shift: UInt64
  @usableFromInline let bucketCount: UInt64
  /// For each bucket, and one more, the last region that begins at or before the bucket's first byte.
  @usableFromInline let buckets: UnsafeMutablePointer<UInt16>
  @usableFromInline let starts: UnsafeMutablePointer<UInt64>
  @usableFromInline let entries: UnsafeMutablePointer<RegionEntry>
  @usableFromInline let count: Int
  /// Whether writers have to wait.
  let isFrozen: Bool
  /// The snapshot that owns this table.
  let owner: Unmanaged<RegionSnapshot>

  /// The most regions there can be: indices are 16 bits.
  static let maxCount = 4096
  private static let maxBucketCount: UInt64 = 16384

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
    // What lies below the first region wraps around to beyond the last bucket.
    let bucket = (address &- base) &>> shift
    guard bucket < bucketCount else { return nil }
    var low = Int(buckets[Int(truncatingIfNeeded: bucket)])
    var high = Int(buckets[Int(truncatingIfNeeded: bucket &+ 1)])
    while low < high {
      let middle = (low &+ high &+ 1) &>> 1
      if starts[middle] <= address { low = middle } else { high = middle &- 1 }
    }
    return address &- starts[low] < entries[low].byteCount ? low : nil
  }

  /// Lays the table out. pre: `objects` are sorted and disjoint, and live as long as the table.
  init(_ objects: [RegionObject], isFrozen: Bool, owner: Unmanaged<RegionSnapshot>) {
    count = objects.count
    self.isFrozen = isFrozen
    self.owner = owner
    starts = .allocate(capacity: max(count, 1))
    entries = .allocate(capacity: max(count, 1))
    var largest = RegionEntry(start: 0, byteCount: 0, readBase: nil, writeBase: nil, dirty: nil)
    for (index, object) in objects.enumerated() {
      let host = object.hostAddress
      let entry = RegionEntry(
        start: object.range.start.rawValue, byteCount: object.range.byteCount, readBase: host,
        writeBase: object.kind.isWritable && !isFrozen ? host : nil, dirty: object.dirty?.words)
      (starts + index).initialize(to: entry.start)
      (entries + index).initialize(to: entry)
      if host != nil, entry.byteCount > largest.byteCount { largest = entry }
    }
    self.largest = largest
    base = objects.first?.range.start.rawValue ?? 0
    let span = (objects.last?.range.end ?? 0) - base
    var shift: UInt64 = 3
    let wanted = min(UInt64(count) * 4, RegionTable.maxBucketCount)
    while span >> shift > wanted { shift += 1 }
    self.shift = shift
    bucketCount = span == 0 ? 0 : (span - 1) >> shift + 1
    buckets = .allocate(capacity: Int(bucketCount) + 1)
    var index = 0
    for bucket in 0...Int(bucketCount) {
      let first = base + UInt64(bucket) << shift
      while index + 1 < count, starts[index + 1] <= first { index += 1 }
      (buckets + bucket).initialize(to: UInt16(index))
    }
  }

  func deallocate() {
    starts.deallocate()
    entries.deallocate()
    buckets.deallocate()
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
      let gap = GuestRange(start: GPA(end), byteCount: range.end - end)
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
      guard index < count, starts[index] == objects[index - 1].range.end else {
        return .fails(.unmapped(range, gap: gap(in: range, from: objects[index - 1].range.end)))
      }
    }
    return isWrite && isFrozen ? .frozen : coverage
  }

  /// The part of a range without a region that begins at an address without one.
  private func gap(in range: GuestRange, from start: UInt64) -> GuestRange {
    var end = range.end
    for index in 0..<count where starts[index] > start {
      end = min(end, starts[index])
      break
    }
    return GuestRange(start: GPA(start), byteCount: end - start)
  }
}
