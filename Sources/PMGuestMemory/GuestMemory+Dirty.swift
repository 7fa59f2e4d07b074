internal import CPhysmemShim
internal import PMArena
public import PMUnits
internal import Synchronization

extension GuestMemory {
  /// Whether a record of dirty pages is kept.
  public var isTrackingDirtyPages: Bool { state.withLock { $0.isTracking } }

  /// Begins to record which 4 KiB pages of RAM and files are written by this interface, or marked. All are clean.
  ///
  /// Costs 32 KiB of address space per GiB. Writes that were under way may be missing, as if they came before.
  /// Throws ``GuestMemoryError/alreadyTracking``, or what the host says, and records nothing then.
  public func startTrackingDirtyPages() throws(GuestMemoryError) {
    try state.withLock { state throws(GuestMemoryError) in
      guard !state.isTracking else { throw .alreadyTracking }
      var objects: [RegionObject] = []
      for object in state.snapshot.objects { objects.append(try GuestMemory.recorded(object)) }
      publish(objects, in: &state)
      state.isTracking = true
    }
  }

  /// Ends the record and forgets it. Throws ``GuestMemoryError/notTracking``, ``GuestMemoryError/harvestOpen``.
  public func stopTrackingDirtyPages() throws(GuestMemoryError) {
    try state.withLock { state throws(GuestMemoryError) in
      guard state.isTracking else { throw .notTracking }
      guard !state.isHarvestOpen else { throw .harvestOpen }
      publish(state.snapshot.objects.map { $0.recording(nil) }, in: &state)
      state.isTracking = false
    }
  }

  /// Marks the pages that contain the range: for writes through a host address and by guests, after they were
  /// made. Parts that are not recorded, as devices, are passed over.
  ///
  /// Throws ``GuestMemoryError/notTracking``, ``GuestMemoryError/unmapped(_:gap:)``.
  public func markDirty(_ range: GuestRange) throws(GuestMemoryError) {
    guard range.byteCount > 0 else { return }
    if markOneRegion(range.byteCount, at: range.start.rawValue) { return }
    let snapshot = snapshot()
    if case .fails(let error) = snapshot.table.pointee.coverage(
      range, isWrite: false, objects: snapshot.objects)
    {
      throw error
    }
    let parts = snapshot.parts(of: range)
    guard parts.contains(where: { $0.object.dirty != nil }) || isTrackingDirtyPages else {
      throw .notTracking
    }
    for (object, part) in parts {
      let offset = UInt64(part.start - object.range.start)
      object.dirty?.mark(offset: offset, byteCount: part.byteCount)
    }
  }

  /// What nearly every mark is: of memory of one region that is recorded. False, and nothing marked, if it is not.
  @inline(__always)
  private func markOneRegion(_ count: UInt64, at address: UInt64) -> Bool {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    let table = published.load(ordering: .acquiring)
    guard let entry = RegionTable.entry(of: table, at: address), let dirty = entry.pointee.dirty
    else { return false }
    let offset = address &- entry.pointee.start
    guard count <= entry.pointee.byteCount &- offset else { return false }
    DirtyPages.mark(dirty, offset: offset, byteCount: count)
    return true
  }

  /// Takes the pages that were written since the last harvest out of the record, and holds them until the
  /// harvest is committed or aborted.
  ///
  /// A page that is written while this looks is in this harvest or in the next, or in both; whoever copies it after
  /// this returns has the bytes of every write that is in this one.
  /// Throws ``GuestMemoryError/notTracking``, ``GuestMemoryError/harvestOpen``: one harvest at a time.
  public func beginHarvest() throws(GuestMemoryError) -> DirtyHarvest {
    let parts = try state.withLock { state throws(GuestMemoryError) -> [DirtyHarvest.Part] in
      guard state.isTracking else { throw .notTracking }
      guard !state.isHarvestOpen else { throw .harvestOpen }
      state.isHarvestOpen = true
      return state.snapshot.objects.compactMap { object in
        guard let dirty = object.dirty else { return nil }
        return DirtyHarvest.Part(range: object.range, dirty: dirty, held: dirty.take())
      }
    }
    return DirtyHarvest(memory: self, parts: parts)
  }

  func endHarvest() { state.withLock { $0.isHarvestOpen = false } }

  /// The object with a clean record of its own, if it is one to be recorded.
  static func recorded(_ object: RegionObject) throws(GuestMemoryError) -> RegionObject {
    guard object.isRecordable else { return object }
    do throws(HostError) {
      return object.recording(try DirtyPages(pageCount: (object.range.byteCount + 4095) >> 12))
    } catch { throw .arena(.host(error)) }
  }
}

/// Dirty pages taken out of the record and not yet given up: copy them, then ``commit()``; or ``abort()``, and they
/// are dirty again, together with what was written meanwhile. A harvest that goes out of scope aborts, so that a
/// copy that fails by an error loses no page.
///
/// One thread at a time. While it is open no region can be removed.
public struct DirtyHarvest: ~Copyable, Sendable {
  struct Part: Sendable {
    let range: GuestRange
    let dirty: DirtyPages
    let held: [HeldWord]
  }

  private let memory: GuestMemory
  private let parts: [Part]
  private var isCommitted = false

  init(memory: GuestMemory, parts: [Part]) {
    self.memory = memory
    self.parts = parts
  }

  /// How many pages it holds.
  public var pageCount: Int {
    parts.reduce(0) { $0 + $1.held.reduce(0) { $0 + $1.bits.nonzeroBitCount } }
  }

  /// Calls `body` for each run of dirty pages within one region, in ascending order.
  public func forEachRun<Failure: Error>(
    _ body: (GuestRange) throws(Failure) -> Void
  ) throws(Failure) {
    for part in parts {
      var run: (first: Int, count: Int)?
      for word in part.held {
        var bits = word.bits
        while bits != 0 {
          let low = bits.trailingZeroBitCount
          let count = (~(bits >> UInt64(low))).trailingZeroBitCount
          bits = low + count == 64 ? 0 : bits & (UInt64.max << UInt64(low + count))
          let first = word.index * 64 + low
          if let open = run, open.first + open.count == first {
            run = (open.first, open.count + count)
          } else {
            if let open = run { try body(range(of: open, in: part)) }
            run = (first, count)
          }
        }
      }
      if let open = run { try body(range(of: open, in: part)) }
    }
  }

  /// The runs of dirty pages, in ascending order.
  public var runs: [GuestRange] {
    var runs: [GuestRange] = []
    forEachRun { runs.append($0) }
    return runs
  }

  private func range(of run: (first: Int, count: Int), in part: Part) -> GuestRange {
    let start = UInt64(run.first) << 12
    let end = min(start + UInt64(run.count) << 12, part.range.byteCount)
    return GuestRange(start: part.range.start + Int(start), byteCount: end - start)
  }

  /// Gives the pages up: they were copied.
  public consuming func commit() { isCommitted = true }

  /// Puts the pages back among those written meanwhile.
  public consuming func abort() {}

  deinit {
    if !isCommitted {
      for part in parts { part.dirty.putBack(part.held) }
    }
    memory.endHarvest()
  }
}
