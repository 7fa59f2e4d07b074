import Foundation
import Testing

@Suite struct BenchCommandTests {
  /// A report of cases with rounds, without limits unless given.
  private func report(
    _ cases: [(name: String, samples: [Double])], model: String = "m"
  ) -> String {
    let texts = cases.map { name, samples in
      let value = samples.sorted()[samples.count / 2]
      return """
        {"name":"\(name)","unit":"ns","value":\(value),"limit":null,"ratio":null,"bar":100,
        "bar_kind":"at_most","met":true,"threads":1,"runs":\(samples.count),
        "min":\(samples.min() ?? 0),"max":\(samples.max() ?? 0),"samples":\(samples)}
        """
    }
    return """
      {"schema_version":1,"machine":{"cpus":2,"model":"\(model)","kernel":"k","memory":1},
      "cases":[\(texts.joined(separator: ","))],"met":true}
      """
  }

  private let steady: [Double] = [10, 10.1, 9.9, 10.05, 9.95, 10.02, 9.98, 10.03, 9.97]

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
      // The object is a report that can be compared.
      let saved = try write([run.output], "r.json", in: folder)
      #expect(try physmem("bench", "compare", saved, saved).status == 0)
    }
  }

  @Test func `What is measured beside the cases stands in the object, the tables and the text`()
    throws
  {
    try withTemporaryFolder { folder in
      let measure = ["bench", "--measure-only", "--measure", "latency", "--quick"]
      let run = try physmem(measure + ["--json", "--csv", folder.path])
      #expect(run.status == 0)
      #expect(run.errors.isEmpty)
      let object = try run.json()
      #expect((object["cases"] as? [Any])?.isEmpty == true)
      let measured = try #require(object["measurements"] as? [String: [[String: Any]]])
      #expect(measured["latency"]?.contains { $0["name"] as? String == "refcount.pair" } == true)
      #expect(measured["contention"]?.isEmpty == true)
      let text = try String(
        contentsOf: folder.appendingPathComponent("latency.csv"), encoding: .utf8)
      #expect(text.hasPrefix("name,count,mean,p50,"))
      #expect(text.contains("\nrefcount.pair,"))
      let lines = try physmem(measure)
      #expect(lines.status == 0)
      #expect(lines.output.contains("latency, ns"))
      #expect(!lines.output.contains("bars"))
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
      ["bench", "--csv", "out.csv"], ["bench", "--measure", "nonsense"],
      ["bench", "--measure", ""],
      ["bench", "--measure-only"], ["bench", "--quick"], ["bench", "compare"],
      ["bench", "compare", "a"],
      ["bench", "compare", "a", "b", "--threshold", "-1"],
      ["bench", "compare", "a", "b", "--threshold", "nan"],
    ] {
      let run = try physmem(arguments)
      #expect(run.status == 64, "\(arguments)")
      #expect(run.output.isEmpty)
      #expect(run.errors.contains("Error: "))
    }
  }

  @Test func `A regression exits with 1 and is named; its threshold can be moved`() throws {
    try withTemporaryFolder { folder in
      let old = try write([report([("a.b", steady), ("a.c", steady)])], "old", in: folder)
      let worse = steady.map { $0 * 1.2 }
      let new = try write([report([("a.b", steady), ("a.c", worse)])], "new", in: folder)
      let run = try physmem("bench", "compare", old, new)
      #expect(run.status == 1)
      #expect(run.errors.isEmpty)
      #expect(run.lines[1].contains("a.b") && run.lines[1].hasSuffix("no change"))
      #expect(run.lines[2].contains("a.c") && run.lines[2].contains("+20.0 %"))
      #expect(run.lines[2].hasSuffix("REGRESSION"))
      #expect(
        run.lines.last
          == "0 faster, 1 slower, 1 no change, 0 cannot tell; 1 slower by 5 % or more")
      #expect(try physmem("bench", "compare", "--threshold", "30", old, new).status == 0)
      #expect(try physmem("bench", "compare", new, old).status == 0)
      // One more report from before that is as slow as the one after: no change that all pairs show.
      let more = try physmem("bench", "compare", old, new, "--also-before", new)
      #expect(more.status == 0)
      #expect(
        more.lines.contains("cannot tell: a.c: the reports of one side differ as the sides do"))
      #expect(try physmem("bench", "compare", old, old).status == 0)
    }
  }

  @Test func `The JSON object of a comparison`() throws {
    try withTemporaryFolder { folder in
      let old = try write(
        [report([("a.b", steady), ("a.c", steady)], model: "x")], "old", in: folder)
      let new = try write(
        [report([("a.b", steady.map { $0 * 1.2 }), ("a.d", steady)], model: "y")], "new", in: folder
      )
      let run = try physmem("bench", "compare", "--json", old, new)
      #expect(run.status == 1)
      let object = try run.json()
      #expect(object["schema_version"] as? Int == 1)
      #expect(object["threshold_percent"] as? Double == 5)
      #expect(object["before"] as? [String] == [old])
      #expect(object["after"] as? [String] == [new])
      #expect(object["regressions"] as? [String] == ["a.b"])
      #expect(object["only_before"] as? [String] == ["a.c"])
      #expect(object["only_after"] as? [String] == ["a.d"])
      #expect(object["machine_differences"] as? [String] == ["processor: x before, y after"])
      let cases = try #require(object["cases"] as? [[String: Any]])
      #expect(cases.count == 1)
      #expect(cases[0]["verdict"] as? String == "slower")
      #expect(cases[0]["regression"] as? Bool == true)
      #expect(cases[0]["compared"] as? String == "ns")
      #expect(cases[0]["rounds_before"] as? Int == 9)
      let change = try #require(cases[0]["change_percent"] as? Double)
      #expect(abs(change - 20) < 0.001)
    }
  }

  @Test func `Cases of one side and other machines are said in text`() throws {
    try withTemporaryFolder { folder in
      let old = try write([report([("a.b", steady), ("a.c", steady)])], "old", in: folder)
      let new = try write(
        [report([("a.b", steady), ("a.d", steady)], model: "y")], "new", in: folder)
      let run = try physmem("bench", "compare", old, new)
      #expect(run.status == 0)
      #expect(run.lines[0] == "the machines differ: processor: m before, y after")
      #expect(run.lines.contains("only before: a.c"))
      #expect(run.lines.contains("only after: a.d"))
    }
  }

  @Test func `Files that are no reports exit with 65 or 66 and name file and place`() throws {
    try withTemporaryFolder { folder in
      let good = try write([report([("a.b", steady)])], "good", in: folder)
      let other = try write([report([("x.y", steady)])], "other", in: folder)
      let text = try write(["{", " nonsense"], "text", in: folder)
      let bad = try write(
        [report([("a.b", steady)]).replacing("\"bar\":100", with: "\"bar\":true")], "bad",
        in: folder)
      for (first, second, status, message) in [
        (text, good, 65 as Int32, "\(text): line 2, column 2: is no JSON: "),
        (good, bad, 65, "\(bad): cases[0].bar: is something else: expected a number"),
        (good, other, 65, "\(good) and \(other) have no case in common"),
        ("\(folder.path)/none", good, 66, "\(folder.path)/none: no such file"),
        (good, folder.path, 66, "\(folder.path): is a directory: "),
      ] {
        let run = try physmem("bench", "compare", first, second)
        #expect(run.status == status)
        #expect(run.output.isEmpty)
        #expect(run.errors.hasPrefix("physmem: \(message)"), "\(run.errors)")
        #expect(run.errors.split(separator: "\n").count == 1)
      }
    }
  }

  @Test func `Help names the subcommands and their options`() throws {
    let bench = try physmem("bench", "--help")
    #expect(bench.status == 0)
    #expect(bench.output.contains("run (default)") && bench.output.contains("compare"))
    let run = try physmem("bench", "run", "--help").output
    for option in ["--json", "--rounds", "--filter", "--csv", "--html", "--measure", "--quick"] {
      #expect(run.contains(option))
    }
    #expect(try physmem("bench", "compare", "--help").output.contains("--threshold"))
  }
}
