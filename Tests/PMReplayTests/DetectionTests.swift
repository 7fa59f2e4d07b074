import PMReplay
import Testing

/// The check can fail: whatever a trace holds, a single changed value is reported where it stands.
@Suite struct DetectionTests {
  private func expectMismatch(_ change: Change, in trace: TraceText) throws {
    var trace = trace
    let index = try change.apply(&trace)
    let outcome = try trace.replay()
    guard case .mismatch(let report) = outcome, let mismatch = report.firstMismatch else {
      Issue.record("expected a mismatch of '\(change.expected)', found: \(outcome.summary)")
      return
    }
    #expect(mismatch.what.contains(change.expected), "\(mismatch)")
    if let index { #expect(mismatch.line == index + 1, "\(mismatch)") }
    #expect(mismatch.expected != mismatch.got)
    // The line or state is compared to its end; nothing after it is.
    #expect(report.mismatches >= 1)
    #expect(!mismatch.text.isEmpty)
    #expect(report.seconds == 0, "operations that do not agree are not measured")
  }

  @Test(arguments: operationChanges)
  func `A changed value of an operation is a mismatch there`(_ change: Change) throws {
    try expectMismatch(change, in: Fixture.everything.trace)
  }

  @Test(arguments: checkpointChanges)
  func `A changed value of a checkpoint is a mismatch there`(_ change: Change) throws {
    try expectMismatch(change, in: Fixture.everything.trace)
  }

  @Test(arguments: stateChanges)
  func `A changed value of a state is a mismatch at its end`(_ change: Change) throws {
    var trace = try Fixture.everything.trace
    let index = try #require(try change.apply(&trace))
    let end = try trace.index("endstate", after: index)
    try expectMismatch(
      Change(change.name, change.expected) { trace in
        _ = try change.apply(&trace)
        return end
      }, in: Fixture.everything.trace)
  }

  @Test(arguments: firstStateChanges)
  func `A changed value of the first state shows at the next checkpoint or state`(
    _ change: Change
  ) throws {
    try expectMismatch(change, in: Fixture.everything.trace)
  }

  @Test(arguments: heldChanges)
  func `A changed value of what is held is a mismatch there`(_ change: Change) throws {
    try expectMismatch(change, in: Fixture.everything.trace)
  }

  @Test func `A changed watermark boost factor of the header shows`() throws {
    try expectMismatch(
      .text(
        "boost factor", in: ["sysctl watermark_boost_factor"], "15000", "0", "boost"
      ).anywhere, in: Fixture.everything.trace)
  }

  @Test func `A changed reference count on a per-CPU list of a hazard trace shows`() throws {
    let trace = try Fixture.hazards.trace
    let index = try #require(
      trace.lines.indices.first { index in
        trace.lines[index].hasPrefix("pl ") && trace.lines[index].contains("!")
      })
    try expectMismatch(
      Change("!", "per-CPU list") { trace in
        let field = try #require(
          trace.lines[index].split(separator: " ").first { $0.contains("!") }.map(String.init))
        try trace.replace(index, field, "\(field.prefix { $0 != "!" })!77")
        return try trace.index("endstate", after: index)
      }, in: trace)
  }

  @Test func `Going on counts every mismatch`() throws {
    var trace = TraceMaker.small
    for name in ["fh", "ph", "bh"] {
      let index = try trace.index("ck 20 ")
      try trace.set(name, "1", index)
    }
    var options = TraceReplayer.Options.comparing
    options.keepsGoing = true
    guard case .mismatch(let report) = try trace.replay(options) else {
      Issue.record("no mismatch")
      return
    }
    #expect(report.mismatches == 3)
    #expect(report.firstMismatch?.what == "checkpoint, zone 0.0, fh")
    #expect(report.operations == TraceMaker.small.lines.count { $0.hasPrefix("op ") })
  }

  @Test func `A trace that frees what is free stops with a mismatch, going on or not`() throws {
    // The count of a free block's head goes below 0, which is "not the last": pieces of a listed
    // block would be put on lists again.
    for keepsGoing in [false, true] {
      var trace = TraceMaker.small
      let first = try trace.index("op ", "__free_pages", "order=3 ")
      let index = try trace.index("op ", after: first)
      let number = trace.lines[index].split(separator: " ")[1]
      var fields = trace.lines[first].split(separator: " ")
      fields[1] = number
      trace.lines[index] = fields.joined(separator: " ")
      var options = TraceReplayer.Options.comparing
      options.keepsGoing = keepsGoing
      let outcome = try trace.replay(options)
      guard case .mismatch(let report) = outcome, let mismatch = report.firstMismatch else {
        Issue.record("\(outcome.summary)")
        return
      }
      #expect(mismatch.what.hasPrefix("freed page "))
      #expect(mismatch.got == "free already")
      #expect(mismatch.line == index + 1)
    }
  }
}

extension Change {
  /// The same, showing on whatever line.
  fileprivate var anywhere: Change {
    Change(name, expected) { trace in
      _ = try apply(&trace)
      return nil
    }
  }
}
