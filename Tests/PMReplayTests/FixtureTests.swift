import Foundation
import PMFrames
import PMReplay
import Testing

@Suite struct FixtureTests {
  @Test(arguments: [
    (Fixture.everything, 2000, 2002), (.hazards, 8000, 162), (.singlePages, 20000, 202),
  ])
  func `A real kernel's trace replays without a mismatch`(
    _ fixture: Fixture, _ operations: Int, _ checkpoints: Int
  ) throws {
    let report = try TraceReplayer.replay(fixture.path)
    #expect(report.mismatches == 0)
    #expect(report.firstMismatch == nil)
    #expect(report.operations == operations)
    #expect(report.checkpoints == checkpoints)
    #expect(report.states == 6)
    #expect(report.compared > 100_000)
    #expect(report.seconds > 0)
    #expect(report.operationsPerSecond > 0)
    #expect(report.file == fixture.path)
    #expect(report.finalState == nil)
  }

  @Test(arguments: [Fixture.everything, .hazards])
  func `Counts on lines of their own change nothing`(_ fixture: Fixture) throws {
    let packed = try TraceReplayer.replay(fixture.path, options: .comparing)
    var options = TraceReplayer.Options.comparing
    options.refcountLayout = .strided
    let strided = try TraceReplayer.replay(fixture.path, options: options)
    #expect(strided.mismatches == 0)
    #expect(strided.compared == packed.compared)
    #expect(strided.findings == packed.findings)
  }

  @Test func `All traces of the oracle replay without a mismatch`() throws {
    // Beside a checkout, not in it: a clone alone has the fixtures.
    let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("shared/oracle/traces")
    guard let names = try? FileManager.default.contentsOfDirectory(atPath: folder.path) else {
      try Test.cancel("SKIPPED: there are no traces at ../shared/oracle/traces")
    }
    var operations = 0
    var mismatches = 0
    for name in names.sorted() where name.hasSuffix(".trace.gz") {
      let report = try TraceReplayer.replay(
        folder.appendingPathComponent(name).path, options: .comparing)
      #expect(report.mismatches == 0, "\(name): \(report.firstMismatch?.what ?? "")")
      #expect(report.compared > 100_000, "\(name)")
      operations += report.operations
      mismatches += report.mismatches
    }
    #expect(operations == 241_981)
    #expect(mismatches == 0)
  }

  @Test(arguments: [Fixture.everything, .hazards])
  func `Two replays of a trace end in equal states`(_ fixture: Fixture) throws {
    var options = TraceReplayer.Options()
    options.keepsFinalState = true
    let first = try TraceReplayer.replay(fixture.path, options: options)
    // Without the second pass, which has to leave the first one's state alone.
    options.measures = false
    let second = try TraceReplayer.replay(fixture.path, options: options)
    let state = try #require(first.finalState)
    #expect(state == second.finalState)
    #expect(first.compared == second.compared)
    #expect(first.findings == second.findings)
    #expect(state.first?.hasPrefix("state end op=") == true)
  }

  @Test func `The state after the last operation is written as the kernel wrote it`() throws {
    var options = TraceReplayer.Options.comparing
    options.keepsFinalState = true
    let report = try TraceReplayer.replay(Fixture.everything.path, options: options)
    let trace = try Fixture.everything.trace
    let start = try trace.index("state end")
    let end = try trace.index("endstate end")
    // Maps may be cut into lines elsewhere.
    func withoutMaps(_ lines: some Sequence<String>) -> [String] {
      lines.filter { !$0.hasPrefix("map ") }
    }
    #expect(withoutMaps(report.finalState ?? []) == withoutMaps(trace.lines[start...end]))
  }

  @Test(arguments: [0, 1, 499, 500, 1234, 1999])
  func `A replay can stop after an operation`(_ last: Int) throws {
    var options = TraceReplayer.Options()
    options.until = last
    options.keepsFinalState = true
    let report = try TraceReplayer.replay(Fixture.everything.path, options: options)
    #expect(report.operations == last + 1)
    #expect(report.mismatches == 0)
    #expect(report.finalState?.first == "state mid op=\(last + 1) map=1")
  }

  @Test func `Plain text replays like gzip`() throws {
    let trace = try Fixture.everything.trace
    guard case .same(let report) = try trace.replay() else {
      Issue.record("the plain text does not replay")
      return
    }
    let packed = try TraceReplayer.replay(Fixture.everything.path, options: .comparing)
    #expect(report.compared == packed.compared)
  }

  @Test func `A made trace with every operation replays without a mismatch`() throws {
    let outcome = try TraceMaker.small.replay()
    #expect(outcome.isSame, "\(outcome.summary)")
  }

  @Test func `Comments and a second gzip member change nothing`() throws {
    var trace = TraceMaker.small
    trace.lines.insert("# anything at all", at: 0)
    trace.lines.insert("#", at: trace.lines.count / 2)
    trace.lines.append("# the end")
    #expect(try trace.replay().isSame)
    let bytes = Array(trace.text.utf8)
    let halves = try gzip(Array(bytes[..<1000])) + gzip(Array(bytes[1000...]))
    #expect(try TraceText.replay(halves).isSame)
  }
}
