internal import PMUnits

/// Reads the header line by line, in the format's order.
struct TraceHeaderParser {
  /// What is expected next.
  private enum Stage: String {
    case magic = "'physmem-trace 1'"
    case kernel = "'kernel'"
    case note = "'note'"
    case param = "'param'"
    case const = "'const'"
    case migratetypes = "'migratetypes'"
    case sysctls = "'sysctl' or 'static_key'"
    case staticKeys = "'static_key' or 'cpus'"
    case task = "'task'"
    case distances = "'distance'"
    case complete = "'state begin'"
  }
  private var stage: Stage = .magic
  private var names: Set<String> = []
  private var distances = 0
  private(set) var header = TraceHeader(
    kernel: "", profile: "", seed: 0, checkpointInterval: 0, dumpInterval: 0)

  /// Whether a state may follow.
  var isComplete: Bool { stage == .complete }

  /// What has to come next, for messages.
  var expectation: String { stage.rawValue }

  /// Settings without which the operations cannot be judged.
  private static let neededSettings = [
    "watermark_boost_factor", "page_group_by_mobility_disabled", "deferred_pages",
    "page_alloc_shuffle_key", "cpusets_enabled_key", "page_reporting_enabled",
  ]

  /// Takes one line; its first word is given.
  mutating func take(_ word: String, _ scanner: inout TraceScanner) throws(LineError) {
    switch (stage, word) {
    case (.magic, "physmem-trace"):
      let version = scanner.shown(try scanner.field())
      guard version == "1" else { throw LineError("version \(version): expected 1") }
      stage = .kernel
    case (.kernel, "kernel"):
      header.kernel = scanner.text(scanner.position..<scanner.bytes.count)
      stage = .note
      return
    case (.note, "note"):
      stage = .param
      return
    case (.param, "param"):
      try takeParam(&scanner)
      stage = .const
    case (.const, "const"):
      try takeConst(&scanner)
      stage = .migratetypes
    case (.migratetypes, "migratetypes"):
      for expected in ["0=UNMOVABLE", "1=MOVABLE", "2=RECLAIMABLE", "3=HIGHATOMIC", "4=ISOLATE"] {
        let found = scanner.shown(try scanner.field())
        guard found == expected else { throw LineError("found '\(found)': expected '\(expected)'") }
      }
      stage = .sysctls
    case (.sysctls, "sysctl"): try takeSysctl(&scanner)
    case (.sysctls, "static_key"), (.staticKeys, "static_key"):
      try takeStaticKey(&scanner)
      stage = .staticKeys
    case (.staticKeys, "cpus"):
      try takeCPUs(&scanner)
      stage = .task
    case (.task, "task"):
      try takeTask(&scanner)
      stage = .distances
    case (.distances, "distance"): try takeDistances(&scanner)
    default: throw LineError("found '\(word.prefix(60))': expected \(expectation)")
    }
    try scanner.expectEnd()
  }

  private mutating func takeParam(_ scanner: inout TraceScanner) throws(LineError) {
    header.profile = scanner.shown(try scanner.value("profile"))
    guard TraceHeader.profiles.contains(header.profile) else {
      throw LineError("unknown profile '\(header.profile)': expected A to H or N")
    }
    header.seed = try scanner.decimal("seed")
    header.operationCount = try scanner.decimal("ops", 0...Int(Int32.max))
    header.checkpointInterval = try scanner.decimal("checkpoint", 0...Int(Int32.max))
    header.dumpInterval = try scanner.decimal("dump", 0...Int(Int32.max))
    header.hasTeardown = try scanner.decimal("teardown", 0...1) == 1
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
        throw LineError("found '\(scanner.shown(field))': expected NAME=VALUE")
      }
      let name = scanner.text(key)
      guard seen.insert(name).inserted else { throw LineError("'\(name)=' stands twice") }
      guard let wanted = expected[name] else { continue }
      let number = try scanner.decimal(value)
      guard number == wanted else { throw LineError("\(name)=\(number): expected \(wanted)") }
    }
    if let missing = expected.keys.sorted().first(where: { !seen.contains($0) }) {
      throw LineError("'\(missing)=' is missing")
    }
  }

  private mutating func takeName(_ scanner: inout TraceScanner) throws(LineError) -> String {
    let name = scanner.text(try scanner.field())
    guard names.insert(name).inserted else { throw LineError("\(name.prefix(60)) stands twice") }
    return name
  }

  private mutating func takeSysctl(_ scanner: inout TraceScanner) throws(LineError) {
    let name = try takeName(&scanner)
    let value = try scanner.field()
    switch name {
    case "watermark_boost_factor":
      header.watermarkBoostFactor = try scanner.decimal(value)
      guard (0...1_000_000_000).contains(header.watermarkBoostFactor) else {
        throw LineError("\(name) \(header.watermarkBoostFactor): expected 0 to 1000000000")
      }
    case "page_group_by_mobility_disabled":
      let number = try scanner.decimal(value)
      guard number == 0 || number == 1 else {
        throw LineError("\(name) \(number): expected 0 or 1")
      }
      header.isMobilityDisabled = number == 1
    case "gfp_allowed_mask":
      let mask = try scanner.decimal(value)
      guard mask == Int(GFP.allowedMask) else {
        throw LineError("\(name) \(mask): expected \(GFP.allowedMask), as after boot")
      }
    default:
      for part in scanner.parts(value, separator: UInt8(ascii: ",")) {
        _ = try scanner.decimal(part)
      }
    }
  }

  /// Switches that would change which page is chosen have to be off.
  private mutating func takeStaticKey(_ scanner: inout TraceScanner) throws(LineError) {
    let name = try takeName(&scanner)
    let value = scanner.shown(try scanner.field())
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
    if let missing = TraceHeaderParser.neededSettings.first(where: { !names.contains($0) }) {
      throw LineError("found 'cpus': expected the setting '\(missing)' before")
    }
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

  /// Only an ordinary task is modelled: `PF_MEMALLOC`, a real-time priority or a memory policy would
  /// open other reserves or other nodes.
  private func takeTask(_ scanner: inout TraceScanner) throws(LineError) {
    let flags = try scanner.prefixedHexadecimal(scanner.value("flags"))
    guard flags & 0x800 == 0 else { throw LineError("flags: expected a task without PF_MEMALLOC") }
    _ = try scanner.decimal("prio", 100...139)
    _ = try scanner.decimal("mempolicy", 0...0)
    _ = try scanner.decimal("in_task", 1...1)
  }

  private mutating func takeDistances(_ scanner: inout TraceScanner) throws(LineError) {
    _ = try scanner.decimal("node", distances...distances)
    try scanner.expect(":")
    for _ in 0..<header.nodeCount {
      let distance = try scanner.decimal(scanner.field())
      guard (1...255).contains(distance) else {
        throw LineError("distance \(distance): expected 1 to 255")
      }
    }
    distances += 1
    if distances == header.nodeCount { stage = .complete }
  }
}
