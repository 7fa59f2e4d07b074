
/// What stands at the start of a trace: which kernel, which run, which settings.
public struct TraceHeader: Hashable, Sendable {
  /// The kernel's release and version, as it prints them.
  public var kernel: String
  /// The profile that generated the operations: A to H or N.
  public var profile: String
  /// The seed of the generator.
  public var seed: Int
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

/// Reads the header line by line, in the format's order.
struct TraceHeaderParser {
  private enum Stage: Int, Comparable {
    case magic, kernel, param, const, migratetypes, settings, cpus, task, distances
    static func < (lhs: Stage, rhs: Stage) -> Bool { lhs.rawValue < rhs.rawValue }
  }
  private var stage: Stage = .magic
  private(set) var header = TraceHeader(
    kernel: "", profile: "", seed: 0, checkpointInterval: 0, dumpInterval: 0)

  /// Whether a state may follow.
  var isComplete: Bool { stage >= .task }

  /// Takes one line; its first word is given.
  mutating func take(_ word: String, _ scanner: inout TraceScanner) throws(LineError) {
    switch (stage, word) {
    case (.magic, "physmem-trace"):
      let version = scanner.text(try scanner.field())
      guard version == "1" else { throw LineError("version \(version): expected 1") }
      stage = .kernel
    case (.magic, _): throw LineError("found '\(word)': expected 'physmem-trace 1'")
    case (.kernel, "kernel"):
      header.kernel = scanner.text(scanner.position..<scanner.bytes.count)
      stage = .param
      return
    case (.param, "note"): return
    case (.param, "param"):
      try takeParam(&scanner)
      stage = .const
    case (.const, "const"):
      try takeConst(&scanner)
      stage = .migratetypes
    case (.migratetypes, "migratetypes"):
      for expected in ["0=UNMOVABLE", "1=MOVABLE", "2=RECLAIMABLE", "3=HIGHATOMIC", "4=ISOLATE"] {
        let found = scanner.text(try scanner.field())
        guard found == expected else { throw LineError("found '\(found)': expected '\(expected)'") }
      }
      stage = .settings
    case (.settings, "sysctl"): try takeSysctl(&scanner)
    case (.settings, "static_key"): try takeStaticKey(&scanner)
    case (.settings, "cpus"):
      try takeCPUs(&scanner)
      stage = .cpus
    case (.cpus, "task"):
      stage = .task
      return
    case (.task, "distance"), (.distances, "distance"):
      stage = .distances
      return
    default: throw LineError("'\(word)' does not belong here in the header")
    }
    try scanner.expectEnd()
  }

  private mutating func takeParam(_ scanner: inout TraceScanner) throws(LineError) {
    header.profile = scanner.text(try scanner.value("profile"))
    guard TraceHeader.profiles.contains(header.profile) else {
      throw LineError("unknown profile '\(header.profile)': expected A to H or N")
    }
    header.seed = try scanner.decimal("seed")
    _ = try scanner.decimal("ops", 0...Int(Int32.max))
    header.checkpointInterval = try scanner.decimal("checkpoint", 0...Int(Int32.max))
    header.dumpInterval = try scanner.decimal("dump", 0...Int(Int32.max))
    _ = try scanner.decimal("teardown", 0...1)
  }

  /// The constants that the format's lists and the emulation are built on; another kernel's
  /// configuration is refused rather than misread.
  private func takeConst(_ scanner: inout TraceScanner) throws(LineError) {
    let expected: [String: Int] = [
      "page_shift": 12, "max_order": 11, "pageblock_order": 9, "migrate_types": 5, "pcptypes": 3,
      "nr_pcp_lists": 14, "nr_loworder_pcp_lists": 12, "max_nr_zones": 5, "costly_order": 3,
      "pcp_batch_scale_max": 5,
    ]
    var seen: Set<String> = []
    while !scanner.isAtEnd {
      let field = try scanner.field()
      guard let (key, value) = scanner.split(field, at: UInt8(ascii: "=")) else {
        throw LineError("found '\(scanner.text(field))': expected NAME=VALUE")
      }
      let name = scanner.text(key)
      guard let wanted = expected[name] else { continue }
      let number = try scanner.decimal(value)
      guard number == wanted else { throw LineError("\(name)=\(number): expected \(wanted)") }
      seen.insert(name)
    }
    if let missing = expected.keys.sorted().first(where: { !seen.contains($0) }) {
      throw LineError("'\(missing)=' is missing")
    }
  }

  private mutating func takeSysctl(_ scanner: inout TraceScanner) throws(LineError) {
    let name = scanner.text(try scanner.field())
    let value = try scanner.field()
    switch name {
    case "watermark_boost_factor":
      header.watermarkBoostFactor = try scanner.decimal(value)
      guard (0...1_000_000_000).contains(header.watermarkBoostFactor) else {
        throw LineError("\(name) \(header.watermarkBoostFactor): expected 0 to 1000000000")
      }
    case "page_group_by_mobility_disabled":
      header.isMobilityDisabled = try scanner.decimal(value) != 0
    default: break
    }
  }

  /// Switches that would change which page is chosen have to be off.
  private func takeStaticKey(_ scanner: inout TraceScanner) throws(LineError) {
    let name = scanner.text(try scanner.field())
    let value = scanner.text(try scanner.field())
    guard ["0", "1", "absent"].contains(value) else {
      throw LineError("static_key \(name) '\(value)': expected 0, 1 or absent")
    }
    let offOnly: Set<String> = [
      "deferred_pages", "page_alloc_shuffle_key", "cpusets_enabled_key", "page_reporting_enabled",
    ]
    if value == "1", offOnly.contains(name) {
      throw LineError("static_key \(name) 1: such a kernel is not modelled, expected 0")
    }
  }

  private mutating func takeCPUs(_ scanner: inout TraceScanner) throws(LineError) {
    _ = try scanner.decimal("online", 1...1)
    _ = try scanner.decimal("this", 0...0)
    header.node = try scanner.decimal("numa_node", 0...1023)
    header.nodeCount = try scanner.decimal("nodes", 1...1024)
    _ = try scanner.decimal("totalram")
    _ = try scanner.decimal("totalreserve")
    guard header.node < header.nodeCount else {
      throw LineError("numa_node=\(header.node): expected less than nodes=\(header.nodeCount)")
    }
  }
}
