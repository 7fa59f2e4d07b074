import Testing

/// Lines that are missing, stand twice, or in another order.
@Suite struct StructureTests {
  /// A few lines of every kind of record, always the same ones.
  private func samples(_ trace: TraceText, perKind count: Int) -> [Int] {
    let kinds = Dictionary(grouping: trace.lines.indices) { index -> String in
      let fields = trace.lines[index].split(separator: " ")
      switch fields[0] {
      case "op": return "op \(fields[2])"
      case "state", "endstate": return "\(fields[0]) \(fields[1])"
      case "zonelist": return "zonelist \(fields[2])"
      default: return String(fields[0])
      }
    }
    var generator = SeededGenerator(6)
    return kinds.sorted { $0.key < $1.key }.flatMap { kind in
      kind.value.shuffled(using: &generator).prefix(count)
    }
  }

  private func kind(_ line: String) -> Substring { line.prefix { $0 != " " } }

  private func expectFailure(
    _ trace: TraceText, _ what: String, _ index: Int, _ line: String
  ) throws {
    let outcome = try trace.replay()
    switch outcome {
    case .malformed, .mismatch: break
    case .same, .other:
      Issue.record("\(what) line \(index + 1): \(outcome.summary): \(line.prefix(90))")
    }
  }

  private static let traces: [(String, Int)] = [
    ("made", runsLongTests ? 60 : 8), ("real", runsLongTests ? 10 : 1),
  ]

  private func trace(_ name: String) throws -> TraceText {
    name == "made" ? TraceMaker.small : try Fixture.everything.trace
  }

  /// Settings that do not bear on which page is chosen: replay does not need them. A comment is the
  /// only other line that may be missing.
  private static let freeSettings: Set<String> = [
    "watermark_scale_factor", "lowmem_reserve_ratio", "gfp_allowed_mask", "min_free_kbytes",
    "user_min_free_kbytes", "node_reclaim_mode", "percpu_pagelist_high_fraction", "init_on_alloc",
    "init_on_free", "memcg_kmem_enabled_key", "vm_numa_stat_key", "_page_poisoning_enabled",
    "hugetlb_optimize_vmemmap_key",
  ]

  private func isFreeSetting(_ line: String) -> Bool {
    let fields = line.split(separator: " ").map(String.init)
    return ["sysctl", "static_key"].contains(fields[0]) && Self.freeSettings.contains(fields[1])
  }

  @Test(arguments: traces)
  func `A missing line does not pass`(_ name: String, _ count: Int) throws {
    let original = try trace(name)
    for index in samples(original, perKind: count) {
      let line = original.lines[index]
      if line.hasPrefix("#") || isFreeSetting(line) { continue }
      var trace = original
      trace.lines.remove(at: index)
      try expectFailure(trace, "without", index, line)
    }
  }

  @Test(arguments: traces)
  func `A line that stands twice does not pass`(_ name: String, _ count: Int) throws {
    let original = try trace(name)
    for index in samples(original, perKind: count) where !original.lines[index].hasPrefix("#") {
      var trace = original
      trace.lines.insert(original.lines[index], at: index)
      try expectFailure(trace, "twice", index, original.lines[index])
    }
  }

  /// Pairs whose order says nothing: settings, held blocks (the generator's own order), comments.
  private func isUnordered(_ first: String, _ second: String) -> Bool {
    if first.hasPrefix("#") || second.hasPrefix("#") { return true }
    return kind(first) == kind(second)
      && ["sysctl", "static_key", "held"].contains(String(kind(first)))
  }

  @Test(arguments: traces)
  func `Two neighbouring lines in the wrong order do not pass`(
    _ name: String, _ count: Int
  ) throws {
    let original = try trace(name)
    for index in samples(original, perKind: count) where index + 1 < original.lines.count {
      let (first, second) = (original.lines[index], original.lines[index + 1])
      var trace = original
      trace.lines.swapAt(index, index + 1)
      if isUnordered(first, second) {
        let outcome = try trace.replay()
        #expect(outcome.isSame, "\(first) | \(second): \(outcome.summary)")
      } else {
        try expectFailure(trace, "swapped", index, first)
      }
    }
  }

  @Test func `A whole checkpoint or state that is missing or too many does not pass`() throws {
    let original = TraceMaker.small
    func range(_ first: String, _ last: String, after: Int = -1) throws -> ClosedRange<Int> {
      let start = try original.index(first, after: after)
      return start...(try original.index(last, after: start - 1))
    }
    let end = try original.index("state end")
    let groups = [
      try range("ck 0 0.0", "ck 0 0.1"), try range("ck 10 0.0", "ck 10 0.1"),
      (end - 2)...(end - 1), try range("state mid", "endstate mid"),
      try range("state end", "endstate end"), try range("state begin", "endstate begin"),
    ]
    for group in groups {
      let start = group.lowerBound
      var trace = original
      trace.lines.removeSubrange(group)
      try expectFailure(trace, "without the group at", start, original.lines[start])
      trace = original
      trace.lines.insert(contentsOf: original.lines[group], at: start)
      try expectFailure(trace, "twice the group at", start, original.lines[start])
    }
  }
}
