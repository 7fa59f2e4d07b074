internal import PMFrames

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
