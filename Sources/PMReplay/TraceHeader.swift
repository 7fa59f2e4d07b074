/// What stands at the start of a trace: which kernel, which run, which settings.
public struct TraceHeader: Hashable, Sendable {
  /// The kernel's release and version, as it prints them.
  public var kernel: String
  /// The profile that generated the operations: A to H or N.
  public var profile: String
  /// The seed of the generator.
  public var seed: Int
  /// Operations that the generator made; a teardown comes on top.
  public var operationCount: Int = 0
  /// Whether everything is freed at the end, after a `loaded` state.
  public var hasTeardown: Bool = false
  /// A line of checkpoints stands after every so many operations; 0 for none.
  public var checkpointInterval: Int
  /// A state stands after every so many operations; 0 for none.
  public var dumpInterval: Int
  /// `watermark_boost_factor`.
  public var watermarkBoostFactor: Int = 15000
  /// `page_group_by_mobility_disabled`.
  public var isMobilityDisabled: Bool = false
  /// The node of the CPU.
  public var node: Int = 0
  /// How many nodes there are.
  public var nodeCount: Int = 1

  static let profiles: Set<String> = ["A", "B", "C", "D", "E", "F", "G", "H", "N"]
}
