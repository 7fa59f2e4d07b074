import Foundation
import Testing

@Suite struct StressCommandTests {
  @Test func `A sound run says what it did and ends with 0`() throws {
    let run = try physmem(
      "stress", "alloc", "refcount", "-i", "2000", "-t", "2", "-b", "8M", "--seed", "7")
    #expect(run.status == 0)
    #expect(run.output.contains("refcount: 1 rounds"))
    #expect(run.output.contains("alloc: 1 rounds"))
    #expect(run.output.contains("seed 7: nothing found"))
    #expect(run.errors == "")
  }

  @Test func `The JSON object has options, kinds, operations and the resident set`() throws {
    let run = try physmem(
      "stress", "all", "-i", "300", "-v", "1", "-b", "8M", "--seed", "3", "--era", "C", "--json")
    #expect(run.status == 0)
    let object = try run.json()
    #expect(object["schema_version"] as? Int == 1)
    #expect((object["failures"] as? [Any])?.count == 0)
    #expect(object["interrupted"] as? Bool == false)
    let kinds = try #require(object["kinds"] as? [[String: Any]])
    #expect(
      kinds.compactMap { $0["kind"] as? String } == [
        "refcount", "alloc", "map", "memslot", "dirty",
      ])
    for kind in kinds {
      #expect(kind["rounds"] as? Int == 1)
      let operations = try #require(kind["operations"] as? [String: Int])
      #expect(operations.values.reduce(0, +) > 0)
    }
    let residence = try #require(object["residence"] as? [[String: Any]])
    #expect(residence.allSatisfy { ($0["resident_kib"] as? Int ?? 0) > 0 })
  }

  @Test func `KTAP has a version, a plan and a line per kind`() throws {
    let run = try physmem(
      "stress", "alloc", "memslot", "-i", "300", "-b", "8M", "--format", "ktap")
    #expect(run.status == 0)
    #expect(run.lines.first == "KTAP version 1")
    #expect(run.lines.dropFirst().first == "1..2")
    #expect(run.lines.contains("ok 1 stress.alloc"))
    #expect(run.lines.contains("ok 2 stress.memslot"))
  }

  @Test func `What the machine lacks is skipped with 4, or 69 where it is required`() throws {
    let arguments = ["stress", "map", "-s", "anonymous_hugetlb_1gb", "-i", "10"]
    let run = try physmem(arguments)
    #expect(run.status == 4)
    #expect(run.errors.contains("skipped: "))
    #expect(try physmem(arguments + ["--require"]).status == 69)
    let ktap = try physmem(arguments + ["--format", "ktap"])
    #expect(ktap.output.contains("ok 1 stress.map # SKIP "))
  }

  @Test(arguments: [
    ([], "Missing expected argument"), (["everything"], "everything"),
    (["map", "-v", "0"], "0 vCPUs: expected 1 to 256"), (["map", "-b", "12Q"], "12Q"),
    (["map", "-b", "4K"], "expected 1 MiB to 1 TiB"), (["map", "-s", "paper"], "paper"),
    (["alloc", "--fail-page-alloc", "1,2,3"], "1,2,3"),
    (["alloc", "--fail-page-alloc", "0,2,3,4"], "interval 0: expected 1 or more"),
    (["map", "--era", "D"], "D"), (["map", "--json", "--format", "ktap"], "contradict"),
    (["map", "--seconds", "0"], "expected more than 0"),
  ])
  func `Wrong options are named and end with 64`(_ options: [String], _ word: String) throws {
    let run = try physmem(["stress"] + options)
    #expect(run.status == 64)
    #expect(run.errors.contains(word), "\(run.errors)")
    #expect(run.output == "")
  }

  @Test(arguments: [(SIGINT, Int32(130)), (SIGTERM, Int32(143))])
  func `A signal ends the run with a report of what was done`(
    _ signal: Int32, _ status: Int32
  ) throws {
    try withTemporaryFolder { folder in
      let file = folder.appendingPathComponent("report")
      try Data().write(to: file)
      let output = try FileHandle(forWritingTo: file)
      let process = Process()
      process.executableURL = try command()
      process.arguments = ["stress", "refcount", "--seconds", "300", "--json", "--seed", "5"]
      process.standardOutput = output
      process.standardError = FileHandle.nullDevice
      process.standardInput = FileHandle.nullDevice
      try process.run()
      let pid = process.processIdentifier
      // Before the command takes the signal over, the signal would just kill it.
      while process.isRunning, !blocks(signal, pid) { sched_yield() }
      kill(pid, signal)
      process.waitUntilExit()
      try output.close()
      #expect(process.terminationReason == .exit)
      #expect(process.terminationStatus == status)
      let text = try String(contentsOf: file, encoding: .utf8)
      let run = CommandRun(status: process.terminationStatus, output: text, errors: "")
      let object = try run.json()
      #expect(object["interrupted"] as? Bool == true)
      #expect((object["failures"] as? [Any])?.count == 0)
    }
  }

  /// Whether a process has blocked a signal in its first thread, by the mask in its status file.
  private func blocks(_ signal: Int32, _ pid: Int32) -> Bool {
    let text = (try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)) ?? ""
    let line = text.split(separator: "\n").first { $0.hasPrefix("SigBlk:") } ?? ""
    let mask = UInt64(line.dropFirst(7).trimmingCharacters(in: .whitespaces), radix: 16) ?? 0
    return mask >> UInt64(signal - 1) & 1 == 1
  }
}
