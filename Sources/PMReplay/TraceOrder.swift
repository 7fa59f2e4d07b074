internal import PMPageAllocator

/// Which records may stand where after the first state: checkpoints after every so many operations
/// and before the last state, states after every so many operations, what is held after the last.
struct TraceOrder {
  private var header = TraceHeader(
    kernel: "", profile: "", seed: 0, checkpointInterval: 0, dumpInterval: 0)
  private var zoneCount = 0
  /// The zone whose checkpoint line comes next; 0 between checkpoints.
  private(set) var checkpointZone = 0
  /// The operations before the last regular checkpoint and the last state after an interval.
  private var lastCheckpoint = -1
  private var lastDump = 0
  private var isFinalCheckpoint = false
  private var sawFinalCheckpoint = false
  private var sawLoaded = false
  private var lacksDump = false
  private(set) var sawLastState = false
  private(set) var sawEnd = false

  mutating func begin(_ header: TraceHeader, zones: Int) {
    self.header = header
    zoneCount = zones
  }

  private func isDue(_ interval: Int, _ done: Int) -> Bool {
    interval > 0 && done % interval == 0
  }

  /// Whether a record other than a checkpoint line may come now.
  private func checkCheckpoints(_ done: Int) throws(LineError) {
    guard checkpointZone == 0 else {
      throw LineError("the checkpoint after \(done) operations lacks zones: expected 'ck \(done)'")
    }
    if isDue(header.checkpointInterval, done), lastCheckpoint != done {
      throw LineError("the checkpoint after \(done) operations is missing: expected 'ck \(done)'")
    }
  }

  /// An operation comes next.
  func checkOperation(_ done: Int) throws(LineError) {
    guard !sawLastState else { throw LineError("an operation after the last state") }
    try checkCheckpoints(done)
    guard !sawFinalCheckpoint else {
      throw LineError("an operation after the checkpoint that the last state follows")
    }
    if isDue(header.dumpInterval, done), lastDump != done {
      throw LineError("the state after \(done) operations is missing: expected 'state mid'")
    }
  }

  /// A checkpoint line comes next; returns the zone that it has to be of.
  mutating func checkpoint(_ done: Int) throws(LineError) -> Int {
    guard !sawLastState else { throw LineError("a checkpoint after the last state") }
    guard !sawFinalCheckpoint else { throw LineError("the checkpoint stands twice") }
    if checkpointZone == 0 {
      // Without an interval the only ones are before the first operation and the last state.
      let interval = header.checkpointInterval
      let isRegular = interval == 0 ? done == 0 : done % interval == 0
      isFinalCheckpoint = !isRegular || lastCheckpoint == done
    }
    return checkpointZone
  }

  /// A checkpoint line was read; true at the end of the group.
  mutating func tookCheckpoint(_ done: Int) -> Bool {
    checkpointZone += 1
    guard checkpointZone == zoneCount else { return false }
    checkpointZone = 0
    if isFinalCheckpoint { sawFinalCheckpoint = true } else { lastCheckpoint = done }
    return true
  }

  /// A state comes next.
  mutating func checkState(
    _ label: TraceState.Label, _ operations: Int, hasMap: Bool, _ done: Int
  ) throws(LineError) {
    guard operations == done else {
      throw LineError("op=\(operations): expected \(done), as many operations stand before")
    }
    guard !sawLastState else { throw LineError("a state after the last one") }
    try checkCheckpoints(done)
    switch label {
    case .begin: throw LineError("a second 'state begin'")
    case .mid:
      guard isDue(header.dumpInterval, done), lastDump != done, !sawFinalCheckpoint else {
        throw LineError("'state mid' does not belong here: expected one per dump= operations")
      }
      lastDump = done
    case .loaded:
      guard header.hasTeardown, !sawLoaded, !sawFinalCheckpoint else {
        throw LineError("'state loaded' does not belong here: expected one, before a teardown")
      }
      sawLoaded = true
    case .end:
      guard hasMap else { throw LineError("map=0: expected the last state with its map") }
      guard header.checkpointInterval == 0 || sawFinalCheckpoint else {
        throw LineError("the checkpoint before the last state is missing: expected 'ck \(done)'")
      }
      lacksDump = isDue(header.dumpInterval, done) && lastDump != done
      sawLastState = true
    }
  }

  func checkHeld() throws(LineError) {
    guard sawLastState else { throw LineError("'held' before the last state") }
  }

  /// The end line, with what it says.
  mutating func end(_ count: Int, isTruncated: Bool, _ done: Int) throws(LineError) {
    guard sawLastState else { throw LineError("'end' before the last state") }
    guard count == done else { throw LineError("ops=\(count): expected \(done), as stand before") }
    sawEnd = true
    if isTruncated { return }
    guard done >= header.operationCount else {
      throw LineError("ops=\(done): expected \(header.operationCount) or more, or truncated=1")
    }
    guard !lacksDump else { throw LineError("the state after \(done) operations is missing") }
    guard sawLoaded == header.hasTeardown else {
      throw LineError("the state before the teardown is missing: expected 'state loaded'")
    }
  }
}
