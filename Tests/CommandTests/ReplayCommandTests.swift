import Foundation
import Testing

@Suite struct ReplayCommandTests {
  private let everything = fixture("G-m96-s107")
  private let hazards = fixture("H-m512-s110")

  /// The fixture with the hash of the checkpoint after some operations changed.
  private func mismatching(_ operations: Int...) throws -> [String] {
    var lines = try unpacked("G-m96-s107")
    for operation in operations {
      let index = try #require(lines.firstIndex { $0.hasPrefix("ck \(operation) 0.1") })
      let field = try #require(lines[index].split(separator: " ").first { $0.hasPrefix("fh=") })
      lines[index] = lines[index].replacingOccurrences(of: field, with: "fh=1")
    }
    return lines
  }

  // MARK: text

  @Test func `A trace without mismatches exits with 0 and prints a line and the sum`() throws {
    let run = try physmem("replay", everything)
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    #expect(run.lines.count == 2)
    #expect(
      run.lines[0].hasPrefix(
        "\(everything): 2000 operations, 2002 checkpoints, 6 states, 298069 values compared, 0 mismatches, 0 findings, "
      ))
    #expect(run.lines[0].hasSuffix(" million ops/s"))
    #expect(run.lines[1] == "2000 operations, 0 mismatches")
  }

  @Test func `Counts on lines of their own replay alike, and an unknown layout is refused`() throws
  {
    let run = try physmem("replay", "--refcount-layout", "strided", everything, hazards)
    #expect(run.status == 0)
    #expect(run.lines.last == "10000 operations, 0 mismatches")
    let refused = try physmem("replay", "--refcount-layout", "wide", everything)
    #expect(refused.status == 64)
    #expect(refused.errors.contains("'wide'"))
  }

  @Test func `Several traces are summed up`() throws {
    let run = try physmem("replay", everything, hazards)
    #expect(run.status == 0)
    #expect(run.lines.count == 3)
    #expect(run.lines[2] == "10000 operations, 0 mismatches")
  }

  @Test func `A mismatch exits with 1 and says what differs where, on standard output`() throws {
    try withTemporaryFolder { folder in
      let lines = try mismatching(700, 900)
      let path = try write(lines, "bad.trace", in: folder)
      let run = try physmem("replay", path)
      #expect(run.status == 1)
      #expect(run.errors.isEmpty)
      let line = try #require(lines.firstIndex { $0.hasPrefix("ck 700 0.1") }) + 1
      #expect(
        run.output.contains(
          "  first mismatch at operation 699, line \(line): checkpoint, zone 0.1, fh\n"))
      #expect(run.output.contains("    expected: 1\n    got:      "))
      #expect(run.lines.last == "700 operations, 1 mismatches")
    }
  }

  @Test func `Going on counts all mismatches of all files`() throws {
    try withTemporaryFolder { folder in
      let path = try write(mismatching(700, 900), "bad.trace", in: folder)
      let run = try physmem("replay", "--keep-going", path, everything, path)
      #expect(run.status == 1)
      #expect(run.lines.last == "6000 operations, 4 mismatches")
      // A mismatch of one file does not stop the next without it either.
      let stopping = try physmem("replay", path, everything)
      #expect(stopping.status == 1)
      #expect(stopping.lines.last == "2700 operations, 1 mismatches")
    }
  }

  // MARK: JSON

  @Test func `The JSON object has exactly the fields that programs read`() throws {
    let run = try physmem("replay", "--json", everything, hazards)
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    let object = try run.json()
    #expect(Set(object.keys) == ["schema_version", "files", "ops", "mismatches"])
    #expect(object["schema_version"] as? Int == 1)
    #expect(object["ops"] as? Int == 10000)
    #expect(object["mismatches"] as? Int == 0)
    let files = try #require(object["files"] as? [[String: Any]])
    #expect(files.count == 2)
    for (file, path) in zip(files, [everything, hazards]) {
      #expect(
        Set(file.keys) == [
          "file", "ops", "checkpoints", "states", "compared", "mismatches", "first_mismatch",
          "seconds", "ops_per_second",
        ])
      #expect(file["file"] as? String == path)
      #expect(file["states"] as? Int == 6)
      #expect(file["mismatches"] as? Int == 0)
      #expect(file["first_mismatch"] is NSNull)
      let seconds = try #require(file["seconds"] as? Double)
      let operations = try #require(file["ops"] as? Int)
      let rate = try #require(file["ops_per_second"] as? Double)
      #expect(seconds > 0 && seconds < 10)
      #expect(abs(rate * seconds / Double(operations) - 1) < 1e-9)
      #expect(try #require(file["compared"] as? Int) > 100_000)
    }
    #expect(files[0]["checkpoints"] as? Int == 2002)
    #expect(run.output.hasSuffix("}\n"))
  }

  @Test func `A mismatch in JSON is an object, and exits with 1`() throws {
    try withTemporaryFolder { folder in
      let lines = try mismatching(700)
      let path = try write(lines, "bad.trace", in: folder)
      let run = try physmem("replay", "--json", path)
      #expect(run.status == 1)
      let files = try #require(try run.json()["files"] as? [[String: Any]])
      let mismatch = try #require(files[0]["first_mismatch"] as? [String: Any])
      #expect(mismatch["op"] as? Int == 699)
      #expect(
        mismatch["line"] as? Int == (lines.firstIndex { $0.hasPrefix("ck 700 0.1") } ?? 0) + 1)
      #expect(mismatch["what"] as? String == "checkpoint, zone 0.1, fh")
      #expect(mismatch["expected"] as? String == "1")
      #expect(files[0]["mismatches"] as? Int == 1)
      #expect(files[0]["seconds"] as? Double == 0)
      #expect(files[0]["ops_per_second"] as? Double == 0)
    }
  }

  // MARK: what goes wrong

  @Test func `A malformed trace exits with 65 and names file, line and what was expected`() throws {
    try withTemporaryFolder { folder in
      var lines = try unpacked("G-m96-s107")
      let index = try #require(lines.firstIndex { $0.hasPrefix("op 5 ") })
      lines[index] = "op 5 free_all -> void d=0"
      let path = try write(lines, "bad.trace", in: folder)
      let run = try physmem("replay", path)
      #expect(run.status == 65)
      #expect(run.output.isEmpty)
      #expect(run.errors == "physmem: \(path):\(index + 1): unknown operation 'free_all'\n")
    }
  }

  @Test func `What was printed of earlier traces stays when one is malformed`() throws {
    try withTemporaryFolder { folder in
      let bad = try write(["physmem-trace 2"], "bad.trace", in: folder)
      let run = try physmem("replay", everything, bad, hazards)
      #expect(run.status == 65)
      #expect(run.lines.count == 1)
      #expect(run.lines[0].hasPrefix("\(everything): 2000 operations"))
      #expect(run.errors == "physmem: \(bad):1: version 2: expected 1\n")
    }
  }

  @Test func `JSON is written whole or not at all`() throws {
    try withTemporaryFolder { folder in
      let bad = try write(["physmem-trace 2"], "bad.trace", in: folder)
      for (paths, status) in [([everything, bad], Int32(65)), ([everything, "/nonexistent"], 66)] {
        let run = try physmem("replay", "--json", paths[0], paths[1])
        #expect(run.status == status)
        #expect(run.output.isEmpty)
        #expect(run.errors.hasPrefix("physmem: \(paths[1])"))
      }
    }
  }

  @Test(arguments: ["/nonexistent/x.trace", "/"])
  func `No such trace exits with 66`(_ path: String) throws {
    let run = try physmem("replay", path)
    #expect(run.status == 66)
    #expect(run.output.isEmpty)
    #expect(run.errors.hasPrefix("physmem: \(path): "))
    #expect(run.errors.split(separator: "\n").count == 1)
  }

  @Test(arguments: [
    ["replay"], ["replay", "--nonsense", "x"], ["replay", "--until", "-1", "x"],
    ["replay", "--until", "many", "x"], ["replay", "--json", "--dump-state", "x"], ["nonsense"],
  ])
  func `Wrong usage exits with 64`(_ arguments: [String]) throws {
    let run =
      switch arguments.count {
      case 1: try physmem(arguments[0])
      case 3: try physmem(arguments[0], arguments[1], arguments[2])
      default: try physmem(arguments[0], arguments[1], arguments[2], arguments.last ?? "")
      }
    #expect(run.status == 64)
    #expect(run.output.isEmpty)
    #expect(run.errors.contains("Error: "))
  }

  // MARK: parts

  @Test func `A replay stops after the operation that was asked for`() throws {
    let run = try physmem("replay", "--until", "41", everything)
    #expect(run.status == 0)
    #expect(run.lines.last == "42 operations, 0 mismatches")
    let all = try physmem("replay", "--until", "999999", everything)
    #expect(all.lines.last == "2000 operations, 0 mismatches")
  }

  @Test(arguments: ["0", "999", "1999"])
  func `A dumped state can be the first state of another trace`(_ last: String) throws {
    let run = try physmem("replay", "--until", last, "--dump-state", everything)
    #expect(run.status == 0)
    let lines = run.output.split(separator: "\n").map(String.init)
    let start = try #require(lines.firstIndex { $0.hasPrefix("state ") })
    let end = try #require(lines.firstIndex { $0.hasPrefix("endstate ") })
    let state = lines[start...end].dropFirst().dropLast()
    let header = try unpacked("G-m96-s107").prefix { !$0.hasPrefix("state ") }
      .map { $0.hasPrefix("param ") ? Self.emptyParameters : $0 }
    let held = try #require(state.last?.split(separator: " ").last)
    #expect(held.hasPrefix("held="))
    let trace =
      header + ["state begin op=0 map=1"] + state + ["endstate begin", "state end op=0 map=1"]
      + state + ["endstate end", "end ops=0 truncated=0"]
    try withTemporaryFolder { folder in
      let path = try write(trace, "state.trace", in: folder)
      let again = try physmem("replay", "--dump-state", path)
      #expect(again.status == 0, "\(again.errors)")
      #expect(again.lines.last == "0 operations, 0 mismatches")
      let dumped = again.output.split(separator: "\n").map(String.init)
      let first = try #require(dumped.firstIndex { $0.hasPrefix("state ") })
      #expect(Array(dumped[(first + 1)...].prefix(state.count)) == Array(state))
    }
  }

  /// Profile H, whose held lines need not name every page: this trace has none.
  private static let emptyParameters =
    "param profile=H seed=0 ops=0 checkpoint=0 dump=0 teardown=0"

  // MARK: the command

  @Test func `Help and version go to standard output and exit with 0`() throws {
    let help = try physmem("--help")
    #expect(help.status == 0)
    #expect(help.output.contains("USAGE: physmem"))
    #expect(help.output.contains("replay"))
    #expect(help.errors.isEmpty)
    let replay = try physmem("replay", "--help")
    #expect(replay.status == 0)
    for option in ["--json", "--keep-going", "--until", "--dump-state"] {
      #expect(replay.output.contains(option))
    }
    let version = try physmem("--version")
    #expect(version.status == 0)
    #expect(version.errors.isEmpty)
    let parts = version.output.split(separator: "\n")
    #expect(parts.count == 1)
    #expect(parts[0].split(separator: ".").allSatisfy { Int($0) != nil })
  }
}
