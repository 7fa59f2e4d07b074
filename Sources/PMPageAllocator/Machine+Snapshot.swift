internal import PMArena
internal import PMFrames

extension Machine {
  /// A second machine with the same memory, counts, zones and lists as this one has now. Each side's pages
  /// are copied when one is written, see `Arena.fork()`; the state per frame is copied at once, where
  /// a frame was ever touched. The CPUs of this machine must be at rest; those of the new one are free to
  /// claim. Findings stay behind.
  ///
  /// Throws what the host says; this machine is then as it was, or private already.
  public func fork() throws(MachineError) -> Machine {
    let memory: Arena
    do { memory = try arena.fork() } catch { throw .arena(error) }
    let copy = try Machine(copying: self, memory: memory)
    let from = frames.storage
    let to = copy.frames.storage
    guard let source = from.baseAddress, let target = to.baseAddress, from.count == to.count else {
      fatalError("a machine of the same shape has tables of another size")
    }
    // Most of a large machine was never touched: its state is zero in both, and stays untouched.
    for offset in stride(from: 0, to: from.count, by: 4096)
    where !Arena.isZero(source + offset) || !Arena.isZero(target + offset) {
      (target + offset).copyMemory(from: source + offset, byteCount: 4096)
    }
    copy.records.storage.copyMemory(from: records.storage, byteCount: records.changingByteCount)
    copy.details.replaceAll(details.all)
    copy.frames.adviseHugePages()
    return copy
  }
}

/// A copy of a machine's allocator state: lists, counts, frame states, counters. The bytes of the
/// memory itself are not part of it.
public struct MachineSnapshot: Sendable {
  let table: [UInt8]
  let records: [UInt8]
  let details: [UInt32: PageDetails]
  /// Which machine it can be restored to.
  let owner: ObjectIdentifier

  /// How many bytes the copy takes.
  public var byteCount: Int { table.count + records.count }
}

extension Machine {
  /// Copies the allocator's state. The CPUs must be at rest. Costs 14 bytes per frame, 74
  /// where counts are strided.
  public func snapshot() -> MachineSnapshot {
    MachineSnapshot(
      table: Array(UnsafeRawBufferPointer(frames.storage)),
      records: Array(
        UnsafeRawBufferPointer(start: records.storage, count: records.changingByteCount)),
      details: details.all, owner: ObjectIdentifier(self))
  }

  /// Puts the allocator's state back to that of a snapshot of this machine, and stops the process
  /// where the snapshot is of another. The CPUs must be at rest. Findings stay.
  public func restore(_ snapshot: MachineSnapshot) {
    guard snapshot.owner == ObjectIdentifier(self) else {
      fatalError("a snapshot can be restored to the machine it was taken of, and to no other")
    }
    frames.storage.copyBytes(from: snapshot.table)
    UnsafeMutableRawBufferPointer(start: records.storage, count: records.changingByteCount)
      .copyBytes(from: snapshot.records)
    details.replaceAll(snapshot.details)
  }
}
