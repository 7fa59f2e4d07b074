internal import CPhysmemShim
public import PMUnits
internal import Synchronization

// Ranges of any size. A range is looked at as a whole before a byte of it is copied.

extension GuestMemory {
  /// Fills `buffer` with guest memory from `address` on, across regions that touch.
  ///
  /// Throws ``GuestMemoryError/unmapped(_:gap:)`` before anything is copied if a part lies in no region. Parts
  /// that are devices are read in naturally aligned pieces of up to 8 bytes, in ascending order; what a device
  /// refuses ends the copy there (``GuestMemoryError/refused(_:errno:)``).
  public func read(
    into buffer: UnsafeMutableRawBufferPointer, at address: GPA
  ) throws(GuestMemoryError) {
    guard let destination = buffer.baseAddress, !buffer.isEmpty else { return }
    if readOneRegion(destination, UInt64(buffer.count), at: address.rawValue) { return }
    let range = GuestRange(start: address, byteCount: UInt64(buffer.count))
    try access(range, isWrite: false) { part, memory, handler throws(GuestMemoryError) in
      let target = destination + (part.start - address)
      if let memory {
        pm_guest_copy(target, memory, Int(part.byteCount))
      } else if let handler {
        try handler.read(into: target)
      }
    }
  }

  /// Writes `bytes` into guest memory from `address` on. As ``read(into:at:)``, and throws
  /// ``GuestMemoryError/readOnly(_:region:)`` before anything is written if a part is ROM.
  public func write(
    _ bytes: UnsafeRawBufferPointer, at address: GPA
  ) throws(GuestMemoryError) {
    guard let source = bytes.baseAddress, !bytes.isEmpty else { return }
    if writeOneRegion(source, UInt64(bytes.count), at: address.rawValue) { return }
    let range = GuestRange(start: address, byteCount: UInt64(bytes.count))
    try access(range, isWrite: true) { part, memory, handler throws(GuestMemoryError) in
      let origin = source + (part.start - address)
      if let memory {
        pm_guest_copy(memory, origin, Int(part.byteCount))
      } else if let handler {
        try handler.write(origin)
      }
    }
  }

  /// Writes the same byte to a whole range. As ``write(_:at:)``.
  public func fill(_ range: GuestRange, with byte: UInt8) throws(GuestMemoryError) {
    guard range.byteCount > 0 else { return }
    try access(range, isWrite: true) { part, memory, handler throws(GuestMemoryError) in
      if let memory {
        pm_guest_fill(memory, byte, Int(part.byteCount))
      } else if let handler {
        try handler.fill(byte)
      }
    }
  }

  /// Writes bytes into memory that the guest may only read, or any other, as the host does that sets it up. Devices
  /// are refused with ``GuestMemoryError/notMemory(_:region:)``. Waits for nobody and is recorded nowhere, except
  /// that it does not come between the parts of a merge or a fork.
  public func writeROM(
    _ bytes: UnsafeRawBufferPointer, at address: GPA
  ) throws(GuestMemoryError) {
    guard let source = bytes.baseAddress, !bytes.isEmpty else { return }
    let range = GuestRange(start: address, byteCount: UInt64(bytes.count))
    try state.withLock { state throws(GuestMemoryError) in
      let snapshot = state.snapshot
      if case .fails(let error) = snapshot.table.pointee.coverage(
        range, isWrite: false, objects: snapshot.objects)
      {
        throw error
      }
      let parts = snapshot.parts(of: range)
      for (object, _) in parts where object.kind == .mmio {
        throw .notMemory(range, region: object.range)
      }
      for (object, part) in parts {
        guard let base = object.hostAddress else { continue }
        let offset = part.start - object.range.start
        pm_guest_copy(base + offset, source + (part.start - address), Int(part.byteCount))
        object.dirty?.mark(offset: UInt64(offset), byteCount: part.byteCount)
      }
    }
  }

  /// Copies within guest memory, as through a buffer of 64 KiB: the ranges may overlap only if `source` lies
  /// above. Throws as ``read(into:at:)`` and ``write(_:at:)``, having copied what comes before.
  public func copy(
    from source: GPA, to destination: GPA, byteCount: UInt64
  ) throws(GuestMemoryError) {
    let size = Int(min(byteCount, 65536))
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
    defer { buffer.deallocate() }
    var done: UInt64 = 0
    while done < byteCount {
      let count = min(UInt64(size), byteCount - done)
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(count)])
      try read(into: part, at: GPA(source.rawValue &+ done))
      try write(UnsafeRawBufferPointer(part), at: GPA(destination.rawValue &+ done))
      done += count
    }
  }

  // MARK: -

  /// What nearly every read is: of memory of one region. False, and nothing read, if it is not.
  @inline(__always)
  private func readOneRegion(
    _ destination: UnsafeMutableRawPointer, _ count: UInt64, at address: UInt64
  ) -> Bool {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    let table = published.load(ordering: .acquiring)
    guard let entry = RegionTable.entry(of: table, at: address),
      let base = entry.pointee.readBase
    else { return false }
    let offset = address &- entry.pointee.start
    guard count <= entry.pointee.byteCount &- offset else { return false }
    pm_guest_copy(destination, base + Int(offset), Int(count))
    return true
  }

  /// The same for a write.
  @inline(__always)
  private func writeOneRegion(
    _ source: UnsafeRawPointer, _ count: UInt64, at address: UInt64
  ) -> Bool {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    let table = published.load(ordering: .acquiring)
    guard let entry = RegionTable.entry(of: table, at: address),
      let base = entry.pointee.writeBase
    else { return false }
    let offset = address &- entry.pointee.start
    guard count <= entry.pointee.byteCount &- offset else { return false }
    pm_guest_copy(base + Int(offset), source, Int(count))
    if let dirty = entry.pointee.dirty { DirtyPages.mark(dirty, offset: offset, byteCount: count) }
    return true
  }

  /// Calls `body` for each part of a range, in ascending order: with memory, inside of the access; or with a device,
  /// outside of any.
  private func access(
    _ range: GuestRange, isWrite: Bool,
    _ body: (
      _ part: GuestRange, _ memory: UnsafeMutableRawPointer?, _ device: DeviceAccess?
    ) throws(GuestMemoryError) -> Void
  ) throws(GuestMemoryError) {
    while true {
      switch accessMemory(range, isWrite: isWrite, body) {
      case .memory: return
      case .fails(let error): throw error
      case .frozen: waitForThaw()
      case .devices: return try accessDevices(range, isWrite: isWrite, body)
      }
    }
  }

  /// Does it if it is memory throughout, else says what it is.
  private func accessMemory(
    _ range: GuestRange, isWrite: Bool,
    _ body: (GuestRange, UnsafeMutableRawPointer?, DeviceAccess?) throws(GuestMemoryError) -> Void
  ) -> Coverage {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    let table = published.load(ordering: .acquiring)
    guard let first = RegionTable.entry(of: table, at: range.start.rawValue) else {
      return coverage(range, isWrite: isWrite, of: table)
    }
    var entry = first
    if range.byteCount > entry.pointee.byteCount - (range.start.rawValue - entry.pointee.start)
      || (isWrite ? entry.pointee.writeBase : entry.pointee.readBase) == nil
    {
      let coverage = coverage(range, isWrite: isWrite, of: table)
      guard case .memory = coverage, let index = table.pointee.index(at: range.start.rawValue)
      else { return coverage }
      entry = UnsafePointer(table.pointee.entries + index)
    }
    var rest = range
    while true {
      let offset = rest.start.rawValue - entry.pointee.start
      let count = min(rest.byteCount, entry.pointee.byteCount - offset)
      guard let base = isWrite ? entry.pointee.writeBase : entry.pointee.readBase else {
        return .fails(.unmapped(range, gap: rest))
      }
      let part = GuestRange(start: rest.start, byteCount: count)
      do { try body(part, base + Int(offset), nil) } catch { return .fails(error) }
      if isWrite, let dirty = entry.pointee.dirty {
        DirtyPages.mark(dirty, offset: offset, byteCount: count)
      }
      rest = GuestRange(start: rest.start + Int(count), byteCount: rest.byteCount - count)
      if rest.byteCount == 0 { return .memory }
      entry += 1
    }
  }

  private func coverage(
    _ range: GuestRange, isWrite: Bool, of table: UnsafePointer<RegionTable>
  ) -> Coverage {
    table.pointee.owner._withUnsafeGuaranteedRef {
      table.pointee.coverage(range, isWrite: isWrite, objects: $0.objects)
    }
  }

  /// Does it part by part. Regions that were removed meanwhile are missed then, not before.
  private func accessDevices(
    _ range: GuestRange, isWrite: Bool,
    _ body: (GuestRange, UnsafeMutableRawPointer?, DeviceAccess?) throws(GuestMemoryError) -> Void
  ) throws(GuestMemoryError) {
    for (object, part) in snapshot().parts(of: range) {
      if let handler = object.handler {
        try body(
          part, nil, DeviceAccess(handler: handler, part: part, region: object.range))
      } else {
        try access(part, isWrite: isWrite, body)
      }
    }
  }
}

/// The access to a part of a device's region.
struct DeviceAccess {
  let handler: any MMIOHandler
  let part: GuestRange
  let region: GuestRange

  func read(into target: UnsafeMutableRawPointer) throws(GuestMemoryError) {
    try forEachPiece { offset, place, count throws(MMIORefusal) in
      let value = try handler.read(offset: offset, byteCount: count).littleEndian
      withUnsafeBytes(of: value) {
        (target + place).copyMemory(from: $0.baseAddress!, byteCount: count)
      }
    }
  }

  func write(_ source: UnsafeRawPointer) throws(GuestMemoryError) {
    try forEachPiece { offset, place, count throws(MMIORefusal) in
      var value: UInt64 = 0
      withUnsafeMutableBytes(of: &value) {
        $0.baseAddress!.copyMemory(from: source + place, byteCount: count)
      }
      try handler.write(offset: offset, byteCount: count, value: UInt64(littleEndian: value))
    }
  }

  func fill(_ byte: UInt8) throws(GuestMemoryError) {
    let value = UInt64(byte) &* 0x0101_0101_0101_0101
    try forEachPiece { offset, _, count throws(MMIORefusal) in
      let mask = count == 8 ? UInt64.max : (1 << UInt64(count * 8)) - 1
      try handler.write(offset: offset, byteCount: count, value: value & mask)
    }
  }

  /// Naturally aligned pieces of up to 8 bytes.
  private func forEachPiece(
    _ body: (_ offset: UInt64, _ place: Int, _ count: Int) throws(MMIORefusal) -> Void
  ) throws(GuestMemoryError) {
    var place: UInt64 = 0
    while place < part.byteCount {
      let offset = part.start.rawValue - region.start.rawValue + place
      let alignment = offset == 0 ? 8 : offset & (~offset + 1)
      var count = min(alignment, 8)
      while count > part.byteCount - place { count >>= 1 }
      do { try body(offset, Int(place), Int(count)) } catch {
        throw .refused(
          GuestRange(start: part.start + Int(place), byteCount: count), errno: error.errno)
      }
      place += count
    }
  }
}
