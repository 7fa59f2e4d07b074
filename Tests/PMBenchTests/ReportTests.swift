import Foundation
import Testing

@testable import PMBench

@Suite struct ReportTests {
  @Test func `A report comes back from its text as it was`() throws {
    let report = ReportFixture.full
    let data = try JSONEncoder().encode(report)
    #expect(try BenchmarkReport.parse(data, name: "x") == report)
  }

  @Test func `A case has the fields of PERFORMANCE and its rounds, null where there is nothing`()
    throws
  {
    let data = try JSONEncoder().encode(ReportFixture.full)
    let object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
    #expect(
      Set(object.keys) == [
        "schema_version", "machine", "refcount_layout", "limit_ns", "cases", "measurements", "met",
      ])
    #expect(object["refcount_layout"] as? String == "packed")
    #expect(object["schema_version"] as? Int == 1)
    #expect(object["limit_ns"] as? Double == 4)
    #expect(object["met"] as? Bool == false)
    let cases = try #require(object["cases"] as? [[String: Any]])
    let first = cases[0]
    #expect(
      Set(first.keys) == [
        "name", "unit", "value", "limit", "ratio", "bar", "bar_kind", "met", "goal", "goal_kind",
        "goal_distance", "goal_met", "threads", "runs", "min", "max", "samples", "limit_samples",
      ])
    #expect(first["value"] as? Double == 9)
    #expect(first["ratio"] as? Double == 2)
    #expect(first["bar_kind"] as? String == "ratio")
    #expect(first["met"] as? Bool == true)
    #expect(first["samples"] as? [Double] == [8, 10, 9])
    #expect(first["limit_samples"] as? [Double] == [4, 4, 5])
    #expect(cases[4]["value"] is NSNull)
    #expect(cases[4]["goal"] is NSNull)
    #expect(cases[4]["reason"] as? String == "no \"trace\", none\nat all")
    #expect(cases[4]["met"] as? Bool == false)
  }

  @Test func `Measurements have names in snake case`() throws {
    let data = try JSONEncoder().encode(ReportFixture.full)
    let object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
    let measured = try #require(object["measurements"] as? [String: [[String: Any]]])
    let upper = measured.values.joined().flatMap(\.keys).filter { $0 != $0.lowercased() }
    #expect(upper.isEmpty)
    #expect(measured["contention"]?.first?["limit_ns"] as? Double == 4.5)
    #expect(measured["allocators"]?.first?["get_avg"] as? Int == 21)
    #expect(measured["scaling"]?.first?["ops_per_second"] as? Double == 9.6e7)
  }

  @Test func `The goal's distance is ratio or value over the goal`() {
    let cases = ReportFixture.full.cases
    #expect(cases[0].goalDistance == 2 / 1.5)
    #expect(cases[0].goalMet == false)
    // The bar is a ratio, the goal a time.
    #expect(cases[1].goalDistance == 90.0 / 21)
    #expect(cases[2].goalDistance == 1.5 / 1.95)
    #expect(cases[2].goalMet == false)
    #expect(cases[3].goalDistance == nil)
    #expect(cases[3].goalMet == nil)
    let reached = ReportFixture.result("x", bar: .atLeast(1), goal: .atLeast(2), [2])
    #expect(reached.goalMet == true)
    #expect(reached.goalDistance == 1)
  }

  @Test func `A report from before there were goals and samples is read`() throws {
    let text = """
      {"schema_version":1,"machine":{"cpus":2,"model":"m","kernel":"k","memory":1},"limit_ns":4.4,
       "cases":[{"name":"alloc.pair.o0","unit":"ns","value":10.6,"limit":4.4,"ratio":2.4,"bar":2.5,
       "bar_kind":"ratio","met":true,"threads":1,"runs":9,"min":10,"max":12}],"met":true}
      """
    let report = try BenchmarkReport.parse(Data(text.utf8), name: "x")
    #expect(report.cases[0].value == 10.6)
    #expect(report.cases[0].samples.isEmpty)
    #expect(report.cases[0].goal == nil)
    #expect(report.measurements == nil)
  }

  private func problem(_ data: Data) throws -> String {
    do throws(BenchmarkReportError) {
      _ = try BenchmarkReport.parse(data, name: "r.json")
    } catch {
      return "\(error)"
    }
    Issue.record("was read as a report")
    return ""
  }

  @Test(arguments: [
    ("{\"schema_version\": 1,\n \"met\" 2}", "r.json: line 2, column 8: is no JSON: "),
    ("{\"schema_version\": 1, \"machine\": {", "r.json: line 1, column 35: is no JSON: "),
    ("", "r.json: line 1, column 1: is no JSON: "),
    ("[]", "r.json: is something else: expected an object"),
    ("{\"schema_version\": 1}", "r.json: has no 'machine'"),
  ]) func `A text that is none names its place`(_ text: String, _ start: String) throws {
    let problem = try problem(Data(text.utf8))
    #expect(problem.hasPrefix(start), "\(problem)")
  }

  @Test func `A field that is something else is named by its path`() throws {
    func changed(_ index: Int, _ change: (inout [String: Any]) -> Void) throws -> String {
      try problem(
        try ReportFixture.text { object in
          var cases = object["cases"] as? [[String: Any]] ?? []
          change(&cases[index])
          object["cases"] = cases
        })
    }
    #expect(
      try changed(1) { $0["bar"] = "x" }
        == "r.json: cases[1].bar: is something else: expected a number")
    #expect(
      try changed(2) { $0["samples"] = [1, "x"] as [Any] }
        == "r.json: cases[2].samples[1]: is something else: expected a number")
    #expect(try changed(2) { $0["name"] = nil } == "r.json: cases[2]: has no 'name'")
    #expect(
      try changed(3) { $0["bar_kind"] = "about" }.hasPrefix("r.json: cases[3].bar_kind: "))
    #expect(
      try changed(0) { $0["limit_samples"] = [1] }
        == "r.json: cases[0].limit_samples: 1 limits beside 3 samples: expected as many, or none")
    #expect(
      try changed(1) { $0["name"] = "alloc.pair.o0" }
        == "r.json: cases[1].name: 'alloc.pair.o0' is the name of cases[0] too: expected each name once"
    )
    #expect(
      try problem(try ReportFixture.text { $0["schema_version"] = 2 })
        == "r.json: schema_version: is 2: expected 1")
  }

  @Test func `Goals lie at the bars or beyond them`() {
    for item in BenchmarkCase.all() {
      guard let goal = item.goal else { continue }
      switch (item.bar, goal) {
      case (.ratio(let bar), .ratio(let goal)), (.atMost(let bar), .atMost(let goal)):
        #expect(goal <= bar, "\(item.name)")
      case (.atLeast(let bar), .atLeast(let goal)): #expect(goal >= bar, "\(item.name)")
      default: #expect(item.name == "free.random.o0", "bar and goal differ in kind")
      }
    }
    let without = BenchmarkCase.all().filter { $0.goal == nil }.map(\.name)
    #expect(without == ["guest.read.512"])
  }
}
