/// What the replay of one trace showed.
public struct ReplayReport: Sendable {
  /// The file as it was named.
  public var file: String
  /// Operations performed.
  public var operations: Int = 0
  /// Groups of checkpoint lines compared, one group per moment.
  public var checkpoints: Int = 0
  /// States compared, the first one included.
  public var states: Int = 0
  /// Single values compared.
  public var compared: Int = 0
  /// Single values that differed.
  public var mismatches: Int = 0
  /// The first of them.
  public var firstMismatch: ReplayMismatch?
  /// Findings that the modelled kernel reported on the way; part of a hazard trace, not a mismatch.
  public var findings: Int = 0
  /// Seconds that the operations alone took, in a second pass without comparison.
  public var seconds: Double = 0
  /// The state after the last operation in the format of traces, if it was asked for.
  public var finalState: [String]?

  /// Operations per second of that pass; 0 where none was made.
  public var operationsPerSecond: Double {
    seconds > 0 ? Double(operations) / seconds : 0
  }
}

/// A value that differed, with what is needed to work on it.
public struct ReplayMismatch: Sendable {
  /// The operation after or at which it showed; for states and checkpoints the operations done.
  public var operation: Int
  /// The line of the file.
  public var line: Int
  /// What was compared, as `result`, `refcount of 1f3a0`, `ck 0.1 fh`.
  public var what: String
  /// The value of the trace.
  public var expected: String
  /// Ours.
  public var got: String
  /// The line of the trace, cut where it is long.
  public var text: String
  /// Our lists around the page or of the zone.
  public var context: [String]
}
