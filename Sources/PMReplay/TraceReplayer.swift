public import PMFrames

/// Performs a trace of a real kernel's allocator and compares everything that it holds.
///
/// The first pass reads the file line by line, performs each operation on a machine in the trace's
/// first state and compares results, counts, free pages, checkpoints and states as they come. The
/// second puts the machine back and performs the operations alone, for the time they take.
public struct TraceReplayer {
  /// What to do beyond the plain comparison.
  public struct Options: Sendable {
    /// Go on after a mismatch and count them all.
    public var keepsGoing: Bool = false
    /// Stop after the operation of this number; what follows it in the file is not read.
    public var until: Int?
    /// Keep the state after the last operation.
    public var keepsFinalState: Bool = false
    /// Make the second pass.
    public var measures: Bool = true
    /// How often the second pass is made; the fastest counts.
    public var passes: Int = 1

    /// How the machine lays out the counts: the outcome does not depend on it.
    public var refcountLayout: RefcountLayout = .packed

    /// The defaults: stop at the first mismatch, measure once.
    public init() {}
  }

  /// Replays a file. Throws where it is no trace or the host lacks memory; a difference between
  /// trace and machine is not an error but part of the report.
  public static func replay(
    _ path: String, options: Options = Options()
  ) throws(TraceError) -> ReplayReport {
    let run = try ReplayRun(path: path, options: options)
    return try run.perform()
  }
}
