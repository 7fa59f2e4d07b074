import Foundation
import Testing

@Suite struct BenchCommandTests {
  // The quickest case that there is, and one that meets its bar everywhere.
  private let quick = ["machine", "--filter", "machine.metadata", "--rounds", "2"]

  @Test func `Running is the default, with and without its name, and prints bar and goal`() throws {
    for start in [["bench"], ["bench", "run"]] {
      let run = try physmem(start + quick)
      #expect(run.status == 0)
      #expect(run.errors.isEmpty)
      #expect(run.lines[0].hasPrefix("case "))
      #expect(run.lines[0].contains("bar      goal"))
      #expect(run.lines[1].hasPrefix("machine.metadata "))
      #expect(run.lines[1].contains("≤16.00     ≤8.50"))
      #expect(run.lines[1].hasSuffix("  yes"))
      #expect(run.lines.last == "all bars met")
    }
  }

  @Test func `The JSON object, tables and the page of one run`() throws {
    try withTemporaryFolder { folder in
      let tables = folder.appendingPathComponent("a/tables").path
      let page = folder.appendingPathComponent("page.html").path
      let run = try physmem(["bench"] + quick + ["--json", "--csv", tables, "--html", page])
      #expect(run.status == 0)
      #expect(run.errors.isEmpty)
      let object = try run.json()
      let cases = try #require(object["cases"] as? [[String: Any]])
      #expect((cases[0]["samples"] as? [Double])?.count == 2)
      #expect(cases[0]["goal"] as? Double == 8.5)
      let text = try String(contentsOfFile: tables + "/cases.csv", encoding: .utf8)
      #expect(text.hasPrefix("name,unit,value,"))
      #expect(text.contains("\nmachine.metadata,B,"))
      let html = try String(contentsOfFile: page, encoding: .utf8)
      #expect(html.hasPrefix("<!DOCTYPE html>") && html.hasSuffix("</html>\n"))
      // Nothing temporary is left beside them.
      let names = try FileManager.default.contentsOfDirectory(atPath: folder.path)
      #expect(Set(names) == ["a", "page.html"])
      let inside = try FileManager.default.contentsOfDirectory(atPath: tables)
      #expect(Set(inside) == ["cases.csv", "samples.csv"])
    }
  }

  @Test func `What cannot be written exits with 69 before anything is measured`() throws {
    try withTemporaryFolder { folder in
      let file = try write(["x"], "file", in: folder)
      for (option, path, reason) in [
        ("--csv", file, "\(file): is a file: expected a directory"),
        ("--csv", "\(file)/x", "\(file)/x: cannot be made: "),
        ("--html", folder.path, "\(folder.path): is a directory: expected the name of a file"),
        ("--html", "\(folder.path)/no/x.html", "\(folder.path)/no/x.html: cannot be written: "),
      ] {
        let run = try physmem(["bench"] + quick + [option, path])
        #expect(run.status == 69)
        #expect(run.output.isEmpty)
        #expect(run.errors.hasPrefix("physmem: \(reason)"), "\(run.errors)")
      }
      #expect(try String(contentsOfFile: file, encoding: .utf8) == "x\n")
    }
  }

  @Test func `Wrong usage exits with 64`() throws {
    for arguments in [
      ["bench", "nonsense"], ["bench", "--rounds", "0"], ["bench", "--filter", "nonsense"],
      ["bench", "--csv", "out.csv"],
    ] {
      let run = try physmem(arguments)
      #expect(run.status == 64, "\(arguments)")
      #expect(run.output.isEmpty)
      #expect(run.errors.contains("Error: "))
    }
  }

  @Test func `Help names the subcommands and their options`() throws {
    let bench = try physmem("bench", "--help")
    #expect(bench.status == 0)
    #expect(bench.output.contains("run (default)"))
    let run = try physmem("bench", "run", "--help").output
    for option in ["--json", "--rounds", "--filter", "--csv", "--html"] {
      #expect(run.contains(option))
    }
  }
}
