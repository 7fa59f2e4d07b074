import Foundation
import Testing

@Suite struct ConformCommandTests {
  private func table(_ name: String) -> String {
    packageFolder.appendingPathComponent("Tests/PMConformTests/Fixtures/\(name).tsv").path
  }

  private var old: String { table("memslot-errno-6.1") }
  private var new: String { table("memslot-errno-6.18") }

  /// The lines of a table with one result changed.
  private func changed(_ name: String, case row: String, to result: String) throws -> [String] {
    let text = try String(contentsOfFile: table(name), encoding: .utf8)
    var lines = text.split(separator: "\n").map(String.init)
    let index = try #require(lines.firstIndex { $0.hasPrefix(row + "\t") })
    var cells = lines[index].split(separator: "\t", omittingEmptySubsequences: false)
    cells[3] = result[...]
    lines[index] = cells.joined(separator: "\t")
    return lines
  }

  @Test func `Tables that match exit with 0 and print a line, their columns and the sum`() throws {
    let run = try physmem("conform", "kvm", old, new)
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    #expect(
      run.lines[0]
        == "\(old): 1024 of 1024 cells, 593 of 593 rows matched, 0 rows not played; Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode"
    )
    #expect(run.lines[1].hasPrefix("  column "))
    #expect(run.lines.contains { $0.hasPrefix("  result ") && $0.contains(" 593 ") })
    #expect(run.lines.last == "2048 of 2048 cells, 1186 of 1186 rows matched, 0 rows not played")
  }

  @Test func `A mismatch exits with 1 and says what differs where, on standard output`() throws {
    try withTemporaryFolder { folder in
      let lines = try changed("memslot-errno-6.1", case: "overlap.inside", to: "EINVAL")
      let path = try write(lines, "memslot-errno-6.1.tsv", in: folder)
      let run = try physmem("conform", "kvm", path, new)
      #expect(run.status == 1)
      #expect(run.errors.isEmpty)
      let line = try #require(lines.firstIndex { $0.hasPrefix("overlap.inside") }) + 1
      #expect(run.output.contains("  first mismatch at line \(line), column result\n"))
      #expect(run.output.contains("    row:      overlap.inside|slot=0x1,"))
      #expect(run.output.contains("    expected: EINVAL\n    got:      EEXIST\n"))
      #expect(run.lines.last == "2047 of 2048 cells, 1185 of 1186 rows matched, 0 rows not played")
    }
  }

  @Test func `The JSON object has the fields that programs read`() throws {
    let run = try physmem("conform", "kvm", "--json", old, new)
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    let object = try run.json()
    #expect(object["schema_version"] as? Int == 1)
    #expect(object["cells"] as? Int == 2048)
    #expect(object["cells_matched"] as? Int == 2048)
    let files = try #require(object["files"] as? [[String: Any]])
    #expect(files.count == 2)
    for (file, path) in zip(files, [old, new]) {
      #expect(file["file"] as? String == path)
      #expect(file["kind"] as? String == "memslot_errno")
      #expect(file["rows"] as? Int == 593)
      #expect(file["rows_matched"] as? Int == 593)
      #expect(file["not_played"] as? Int == 0)
      #expect((file["not_played_reasons"] as? [String: Int])?.isEmpty == true)
      #expect(file["cells"] as? Int == 1024)
      #expect(file["cells_matched"] as? Int == 1024)
      #expect(file["first_mismatch"] is NSNull)
      let columns = try #require(file["columns"] as? [String: [String: Int]])
      #expect(columns["result"] == ["cells": 593, "matched": 593])
      #expect(columns["slots_before"] == ["cells": 431, "matched": 431])
      #expect(columns.count == 2)
    }
  }

  @Test func `A mismatch in JSON is an object, and exits with 1`() throws {
    try withTemporaryFolder { folder in
      let lines = try changed("memslot-errno-6.18", case: "region2.ok", to: "ENOTTY")
      let path = try write(lines, "x.tsv", in: folder)
      let run = try physmem("conform", "kvm", "--json", path)
      #expect(run.status == 1)
      let files = try #require(try run.json()["files"] as? [[String: Any]])
      #expect(files[0]["rows_matched"] as? Int == 592)
      #expect(files[0]["cells_matched"] as? Int == 1023)
      let mismatch = try #require(files[0]["first_mismatch"] as? [String: Any])
      let line = try #require(lines.firstIndex { $0.hasPrefix("region2.ok") }) + 1
      #expect(mismatch["line"] as? Int == line)
      #expect(mismatch["column"] as? String == "result")
      #expect(mismatch["expected"] as? String == "ENOTTY")
      #expect(mismatch["got"] as? String == "0")
      #expect(mismatch["row"] as? String == "region2.ok|-|flags=0|ENOTTY|")
    }
  }

  @Test func `A malformed table exits with 65 and names file, line and what was expected`() throws {
    try withTemporaryFolder { folder in
      var lines = try changed("memslot-errno-6.1", case: "overlap.inside", to: "EINVAL")
      lines[9] += "\tmore"
      let path = try write(lines, "bad.tsv", in: folder)
      let run = try physmem("conform", "kvm", path)
      #expect(run.status == 65)
      #expect(run.output.isEmpty)
      #expect(
        run.errors == "physmem: \(path):10: 6 cells: expected 5, one for each column\n")
      // Text of tables before it stays; JSON is written whole or not at all.
      let text = try physmem("conform", "kvm", old, path)
      #expect(text.status == 65)
      #expect(text.output.hasPrefix("\(old): 1024 of 1024 cells"))
      let json = try physmem("conform", "kvm", "--json", old, path)
      #expect(json.status == 65)
      #expect(json.output.isEmpty)
    }
  }

  @Test(arguments: ["/nonexistent/x.tsv", "/"]) func `No such table exits with 66`(
    _ path: String
  ) throws {
    let run = try physmem("conform", "kvm", path)
    #expect(run.status == 66)
    #expect(run.output.isEmpty)
    #expect(run.errors.hasPrefix("physmem: \(path): "))
    #expect(run.errors.split(separator: "\n").count == 1)
  }

  @Test func `Wrong usage exits with 64`() throws {
    for run in [
      try physmem("conform", "kvm"), try physmem("conform", "kvm", "--nonsense", "x"),
      try physmem("conform", "nonsense", "x"),
    ] {
      #expect(run.status == 64)
      #expect(run.output.isEmpty)
      #expect(run.errors.contains("Error: "))
    }
  }

  @Test func `Help says what the command does`() throws {
    let help = try physmem("conform", "kvm", "--help")
    #expect(help.status == 0)
    #expect(help.output.contains("--json"))
    #expect(try physmem("--help").output.contains("conform"))
  }
}
