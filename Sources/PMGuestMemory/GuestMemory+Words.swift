public import CPhysmemShim
public import PMUnits
public import Synchronization

// One word each: found, accessed, done. What is not plain memory of one region leaves the hot path.

extension GuestMemory {
  /// Loads a word in the host's byte order.
  ///
  /// One access of the processor where it is aligned; made of bytes where it spans regions; a call where it is a
  /// device's. Relaxed: it orders nothing. Throws as ``read(into:at:)``.
  @inlinable @inline(__always)
  public func load<Word: GuestWord>(
    _ type: Word.Type = Word.self, at address: GPA
  ) throws(GuestMemoryError) -> Word {
    let port = pm_readers_enter()
    let table = published.load(ordering: .acquiring)
    if let entry = RegionTable.entry(of: table, at: address.rawValue) {
      let offset = address.rawValue &- entry.pointee.start
      if offset &+ UInt64(MemoryLayout<Word>.size) <= entry.pointee.byteCount,
        let base = entry.pointee.readBase
      {
        let value = Word.guestLoad(base + Int(truncatingIfNeeded: offset))
        pm_readers_leave(port)
        return value
      }
    }
    pm_readers_leave(port)
    return try loadSlowly(type, at: address)
  }

  /// Stores a word in the host's byte order. As ``load(_:at:)``; throws as ``write(_:at:)``.
  @inlinable @inline(__always)
  public func store<Word: GuestWord>(_ value: Word, at address: GPA) throws(GuestMemoryError) {
    let port = pm_readers_enter()
    let table = published.load(ordering: .acquiring)
    if let entry = RegionTable.entry(of: table, at: address.rawValue) {
      let offset = address.rawValue &- entry.pointee.start
      if offset &+ UInt64(MemoryLayout<Word>.size) <= entry.pointee.byteCount,
        let base = entry.pointee.writeBase
      {
        Word.guestStore(value, base + Int(truncatingIfNeeded: offset))
        if let dirty = entry.pointee.dirty { markDirty(dirty, offset, MemoryLayout<Word>.size) }
        pm_readers_leave(port)
        return
      }
    }
    pm_readers_leave(port)
    try storeSlowly(value, at: address)
  }

  /// Loads a word atomically with respect to every processor. Acquire.
  ///
  /// Memory of one region only, aligned to the word's size. Throws ``GuestMemoryError/unmapped(_:gap:)``,
  /// ``GuestMemoryError/notMemory(_:region:)``, ``GuestMemoryError/unaligned(_:unit:)``.
  @inlinable
  public func atomicLoad<Word: GuestWord>(
    _ type: Word.Type = Word.self, at address: GPA
  ) throws(GuestMemoryError) -> Word {
    try checkAligned(type, address)
    let port = pm_readers_enter()
    let table = published.load(ordering: .acquiring)
    if let entry = RegionTable.entry(of: table, at: address.rawValue),
      let base = entry.pointee.readBase
    {
      // Aligned, and regions of memory begin and end at pages: it is inside.
      let offset = Int(truncatingIfNeeded: address.rawValue &- entry.pointee.start)
      let value = Word.guestAtomicLoad(base + offset)
      pm_readers_leave(port)
      return value
    }
    pm_readers_leave(port)
    throw atomicRefusal(type, address)
  }

  /// Stores a word atomically. Release. As ``atomicLoad(_:at:)``, and throws
  /// ``GuestMemoryError/readOnly(_:region:)``.
  @inlinable
  public func atomicStore<Word: GuestWord>(
    _ value: Word, at address: GPA
  ) throws(GuestMemoryError) {
    try change(Word.self, at: address) { Word.guestAtomicStore(value, $0) }
  }

  /// Stores `desired` if the word is `expected`; returns whether, and what was there. Sequentially
  /// consistent. As ``atomicStore(_:at:)``.
  @inlinable
  public func compareExchange<Word: GuestWord>(
    expected: Word, desired: Word, at address: GPA
  ) throws(GuestMemoryError) -> (exchanged: Bool, original: Word) {
    try change(Word.self, at: address) {
      var original = expected
      let exchanged = Word.guestCompareExchange($0, &original, desired)
      return (exchanged, original)
    }
  }

  /// Adds to a word, wrapping, and returns what was there. Sequentially consistent. As
  /// ``atomicStore(_:at:)``.
  @inlinable
  public func fetchAdd<Word: GuestWord>(
    _ value: Word, at address: GPA
  ) throws(GuestMemoryError) -> Word {
    try change(Word.self, at: address) { Word.guestAdd($0, value) }
  }

  /// Where a range is in this process: valid until its region is removed, which the caller keeps from happening, or
  /// keeps a ``snapshot()``, whose function of this name has the rules and errors.
  @inlinable @inline(__always)
  public func hostAddress(
    of range: GuestRange, writing: Bool
  ) throws(GuestMemoryError) -> UnsafeMutableRawPointer {
    let port = pm_readers_enter()
    let table = published.load(ordering: .acquiring)
    if let entry = RegionTable.entry(of: table, at: range.start.rawValue) {
      let offset = range.start.rawValue &- entry.pointee.start
      if range.byteCount &- 1 < entry.pointee.byteCount &- offset,
        let base = writing ? entry.pointee.writeBase : entry.pointee.readBase
      {
        pm_readers_leave(port)
        return base + Int(truncatingIfNeeded: offset)
      }
    }
    pm_readers_leave(port)
    return try snapshot().hostAddress(of: range, writing: writing)
  }

  /// Does `body` with the address of an aligned word that may be written, and marks its page.
  @inlinable @inline(__always)
  func change<Word: GuestWord, Result>(
    _ type: Word.Type, at address: GPA, _ body: (UnsafeMutableRawPointer) -> Result
  ) throws(GuestMemoryError) -> Result {
    try checkAligned(type, address)
    while true {
      let port = pm_readers_enter()
      let table = published.load(ordering: .acquiring)
      if let entry = RegionTable.entry(of: table, at: address.rawValue),
        let base = entry.pointee.writeBase
      {
        let offset = address.rawValue &- entry.pointee.start
        let result = body(base + Int(truncatingIfNeeded: offset))
        if let dirty = entry.pointee.dirty { markDirty(dirty, offset, MemoryLayout<Word>.size) }
        pm_readers_leave(port)
        return result
      }
      pm_readers_leave(port)
      if let error = writeRefusal(type, address) { throw error }
    }
  }

  /// Marks the pages of a word that was stored. The order of both is the mark's.
  @usableFromInline @inline(__always)
  func markDirty(_ dirty: UnsafeMutablePointer<UInt64>, _ offset: UInt64, _ byteCount: Int) {
    let first = offset &>> 12
    let last = (offset &+ UInt64(byteCount) &- 1) &>> 12
    _ = pm_dirty_mark_seq_cst(dirty + Int(first &>> 6), 1 &<< (first & 63))
    if first != last { _ = pm_dirty_mark_seq_cst(dirty + Int(last &>> 6), 1 &<< (last & 63)) }
  }

  @inlinable @inline(__always)
  func checkAligned<Word: GuestWord>(_ type: Word.Type, _ address: GPA) throws(GuestMemoryError) {
    let size = UInt64(MemoryLayout<Word>.size)
    guard address.isAligned(to: size) else {
      throw .unaligned(GuestRange(start: address, byteCount: size), unit: ByteCount(size))
    }
  }

  // MARK: cold

  @usableFromInline @inline(never)
  func loadSlowly<Word: GuestWord>(
    _ type: Word.Type, at address: GPA
  ) throws(GuestMemoryError) -> Word {
    var value: Word = 0
    try withUnsafeMutableBytes(of: &value) { buffer throws(GuestMemoryError) in
      try read(into: buffer, at: address)
    }
    return value
  }

  @usableFromInline @inline(never)
  func storeSlowly<Word: GuestWord>(
    _ value: Word, at address: GPA
  ) throws(GuestMemoryError) {
    try withUnsafeBytes(of: value) { buffer throws(GuestMemoryError) in
      try write(buffer, at: address)
    }
  }

  @usableFromInline @inline(never)
  func atomicRefusal<Word: GuestWord>(_ type: Word.Type, _ address: GPA) -> GuestMemoryError {
    let range = GuestRange(start: address, byteCount: UInt64(MemoryLayout<Word>.size))
    guard range.isAddressable, let object = snapshot().object(at: address) else {
      return .unmapped(range, gap: range)
    }
    // It may have become memory since; the refusal was right when it was made.
    return .notMemory(range, region: object.range)
  }

  /// Why a word cannot be written, or nil, after a wait, if it is to be tried again.
  @usableFromInline @inline(never)
  func writeRefusal<Word: GuestWord>(_ type: Word.Type, _ address: GPA) -> GuestMemoryError? {
    let range = GuestRange(start: address, byteCount: UInt64(MemoryLayout<Word>.size))
    let snapshot = snapshot()
    guard range.isAddressable, let object = snapshot.object(at: address) else {
      return .unmapped(range, gap: range)
    }
    if object.kind == .mmio { return .notMemory(range, region: object.range) }
    if object.kind == .rom { return .readOnly(range, region: object.range) }
    waitForThaw()
    return nil
  }
}
