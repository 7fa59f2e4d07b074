import Foundation
import Testing

@testable import PMBench

@Suite struct TablesTests {
  private func text(_ path: String) throws -> [String] {
    let files = BenchmarkTables(ReportFixture.full).files
    let file = try #require(files.first { $0.path == path })
    #expect(file.text.hasSuffix("\n"))
    return file.text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
      .map(String.init)
  }

  @Test func `Scaling has will-it-scale's columns, first row and names of files`() throws {
    #expect(
      try text("scaling/alloc-pair-o0.csv") == [
        "tasks,processes,processes_idle,threads,threads_idle,linear", "0,0,100,0,100,0",
        "1,-1,100.00,96000000,50.00,96000000", "2,-1,100.00,192000000,25.00,192000000",
      ])
    #expect(try text("scaling/alloc-pair-o0.title") == ["alloc.pair.o0"])
  }

  @Test func `Allocators have LLFree's columns in its units`() throws {
    #expect(
      try text("allocators/bulk.csv") == [
        "alloc,x,order,iteration,memory,get_min,get_avg,get_max,put_min,put_avg,put_max,init,total,allocs",
        "physmem,2,0,1,1.5,20,21,22,30,31,32,0.005,7.5,196608",
      ])
  }

  @Test func `Cases have a line each, and quote what has to be`() throws {
    let lines = try text("cases.csv")
    #expect(
      lines[0]
        == "name,unit,value,limit,ratio,bar,bar_kind,met,goal,goal_kind,goal_distance,goal_met,threads,runs,min,max,reason"
    )
    #expect(
      lines[3]
        == "alloc.scaling.pair,x,1.5,,,1.85,at_least,false,1.95,at_least,0.7692307692307693,false,1,1,1.5,1.5,"
    )
    #expect(
      lines[5...].joined(separator: "\n")
        == "replay.ops,Mops/s,,,,3,at_least,false,,,,,1,0,,,\"no \"\"trace\"\", none\nat all\"")
  }

  @Test func `Samples have a line per round`() throws {
    let lines = try text("samples.csv")
    #expect(lines[0] == "name,unit,round,value,limit")
    #expect(lines[1] == "alloc.pair.o0,ns,0,8,4")
    #expect(lines[7] == "alloc.scaling.pair,x,0,1.5,")
    #expect(lines.count == 1 + 3 + 3 + 1 + 2)
  }

  @Test func `What has a comma, a quotation mark or a line end is quoted`() {
    #expect(BenchmarkTables.quoted("a b") == "a b")
    #expect(BenchmarkTables.quoted("a,b") == "\"a,b\"")
    #expect(BenchmarkTables.quoted("a\"b") == "\"a\"\"b\"")
    #expect(BenchmarkTables.quoted("a\r\nb") == "\"a\r\nb\"")
    #expect(BenchmarkTables.fileName("../a/b.c\0") == "---a-b-c-")
  }

  @Test func `The other tables`() throws {
    #expect(try text("contention.csv").count == 7)
    #expect(try text("contention.csv")[1] == "1,1,packed,5,4.5,250000000")
    #expect(try text("latency.csv")[1] == "refcount.pair<x>,1001,25.5,24,30,40,90,90000,90112")
    #expect(try text("latency-bins.csv")[4] == "refcount.pair<x>,90112,1")
    #expect(try text("backings.csv")[1] == "anonymous,268435456,1600.5,4096,80,127")
    #expect(
      try text("kvm.csv")[1...] == [
        "kvm.slot.add,us,20,3.5,1073741824", "kvm.fault,ns,755,,268435456",
      ])
    #expect(try text("skipped.csv")[1] == "jemalloc,not installed: apt-get install <lib>")
  }

  @Test func `A report without measurements and rounds has its cases only`() {
    let report = BenchmarkReport(
      [ReportFixture.result("a.b", [], reason: "x")], machine: ReportFixture.machine)
    #expect(BenchmarkTables(report).files.map(\.path) == ["cases.csv"])
  }
}
