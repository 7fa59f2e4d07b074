internal import CPhysmemShim
internal import PMFrames
public import PMPageAllocator
internal import PMUnits
public import Synchronization

/// The physical memory of a guest: regions of memory and devices in one address space.
///
/// Reads, writes, loads and stores find their region in a table that is published by one pointer and never changes;
/// they take no lock and count no reference. Adding and removing regions publish another table; the old one is
/// given back once no access uses it any more. ``snapshot()`` keeps one for as long as the caller likes.
///
/// All methods may be called from any thread at any time. Bytes that others write meanwhile (guests, devices,
/// other processes) arrive in any mixture; words that are aligned are never torn. Nothing here orders accesses but
/// the atomic ones.
///
/// Not to be called from a signal handler that may interrupt an access of its own thread.
///
/// Writes come to a halt while memory is merged or forked; reads never.
public final class GuestMemory: @unchecked Sendable {
  // Sendable: `state` covers everything but `published`, which is atomic; what it points to is owned by
  // the snapshot in `state`, and given up only after every reader that may have seen it has left.
  @usableFromInline let published: Atomic<UnsafePointer<RegionTable>>
  let state: Guarded<GuestMemoryState>

  /// Memory without regions.
  public convenience init() { self.init([]) }

  /// The memory of a machine, and what is added later: a region of RAM for each run of its frames, at their
  /// physical addresses. Holes of less than 4 MiB between frames count as memory. `hostNode` is what the regions
  /// say of themselves; where the memory is, the machine's description says.
  public convenience init(_ machine: Machine, hostNode: Int? = nil) {
    let bytes = GuestBytes(machine)
    self.init(
      GuestMemory.runs(of: machine).map { run in
        RegionObject(
          range: run, kind: .ram, hostNode: hostNode, bytes: bytes, offset: run.start.rawValue,
          handler: nil)
      })
  }

  init(_ objects: [RegionObject]) {
    let snapshot = RegionSnapshot(objects, generation: 0)
    published = Atomic(snapshot.table)
    state = Guarded(GuestMemoryState(snapshot: snapshot))
  }

  /// The runs of a machine's frames.
  private static func runs(of machine: Machine) -> [GuestRange] {
    let count = machine.frames.frameCount
    var runs: [GuestRange] = []
    var frame = 0
    while frame < count {
      let next = min((frame | 1023) + 1, count)
      // Zones begin and end with such blocks, except that frame 0 and the end of memory cut one.
      let ends = [frame, next - 1]
      if ends.contains(where: { machine.zone(of: PFN(UInt32($0))) != nil }) {
        let byteCount = UInt64(next - frame) << 12
        if let last = runs.last, last.end == UInt64(frame) << 12 {
          runs[runs.count - 1].byteCount += byteCount
        } else {
          runs.append(GuestRange(start: GPA(UInt64(frame) << 12), byteCount: byteCount))
        }
      }
      frame = next
    }
    return runs
  }

  /// The machine whose frames are here, or nil where all memory was added as regions. After a ``fork()`` the
  /// copy has a machine of its own.
  public var machine: Machine? {
    snapshot().objects.lazy.compactMap { $0.bytes?.machine }.first
  }

  /// The regions as they are now. Lock-free.
  public func snapshot() -> RegionSnapshot {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    // The table's owner lives as long as a reader is inside; the reference counts from here on.
    return published.load(ordering: .acquiring).pointee.owner.takeUnretainedValue()
  }

  /// How many regions have been added and removed so far. Lock-free; acquire.
  ///
  /// For who keeps host addresses of guest memory, as an emulator's TLB or a device's rings: as long as the number
  /// is the one that was read before an address was taken, no region has come or gone since. It has grown when
  /// ``add(_:)`` and ``removeRegion(at:)`` return; it keeps no region alive: ``snapshot()`` does.
  public var generation: UInt64 {
    let port = pm_readers_enter()
    defer { pm_readers_leave(port) }
    return published.load(ordering: .acquiring).pointee.generation
  }

  /// Publishes other objects, and waits until nobody reads those of before. `changesRegions`: whether there are
  /// other regions, not the same ones with other records. pre: the state is locked, the objects are sorted and
  /// disjoint, and the calling thread is in no access.
  func publish(
    _ objects: [RegionObject], changesRegions: Bool = false, isFrozen: Bool = false,
    in state: inout GuestMemoryState
  ) {
    let old = state.snapshot
    state.snapshot = RegionSnapshot(
      objects, generation: old.generation + (changesRegions ? 1 : 0), isFrozen: isFrozen)
    published.store(state.snapshot.table, ordering: .sequentiallyConsistent)
    pm_readers_wait()
    withExtendedLifetime(old) {}
  }

  /// Does `body` while no write by this interface is under way, and none begins.
  func withWritersStopped<Result, Failure: Error>(
    _ body: (inout GuestMemoryState) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try state.withLock { state throws(Failure) in
      publish(state.snapshot.objects, isFrozen: true, in: &state)
      defer { publish(state.snapshot.objects, in: &state) }
      return try body(&state)
    }
  }

  /// Waits until writes may go on. To be called outside of an access.
  func waitForThaw() { state.withLock { _ in } }
}

/// What changes of guest memory are made under.
struct GuestMemoryState {
  /// The owner of the table that is published.
  var snapshot: RegionSnapshot
  var isTracking = false
  var isHarvestOpen = false
}
