import Foundation
import Testing

@testable import PMConform

/// The tables of real KVM, cell by cell.
@Suite struct MeasuredTablesTests {
  private func report(_ path: String) throws -> ConformReport {
    ConformReport(of: try TruthTable.read(path))
  }

  private func check(_ report: ConformReport) {
    for mismatch in report.firstMismatches {
      Issue.record(
        """
        \(report.file):\(mismatch.line), \(mismatch.column ?? "row"): expected \
        \(mismatch.expected), got \(mismatch.got); \(mismatch.row)
        """)
    }
    #expect(report.isMatched)
    #expect(report.cells > 0)
  }

  @Test(arguments: [
    "truth-6.1", "truth-6.18", "kpage-6.1", "faults-6.1", "faults-6.18", "dirtylog-6.1",
    "dirtylog-6.18", "free-events-6.1", "memslot-errno-6.1", "memslot-errno-6.18",
  ])
  func `Every cell of a bundled table is what the engine does`(_ name: String) throws {
    let url = try #require(
      Bundle.module.url(forResource: "Fixtures/\(name)", withExtension: "tsv"))
    check(try report(url.path))
  }

  @Test
  func
    `Shadow paging differs from nested paging in the small pages it prefetches, and in nothing else`()
    throws
  {
    let url = try #require(
      Bundle.module.url(forResource: "Fixtures/truth-6.1", withExtension: "tsv"))
    let text = try String(contentsOf: url, encoding: .utf8)
    // Rows of the measuring module, as the tables' description says.
    let lines = text.split(separator: "\n").filter { !$0.hasPrefix("user:") }.map(String.init)
    let header = "# Linux 6.1, kvm-amd npt=0, shadow paging, 64-bit guest"
    let bytes = Array(([header] + lines.dropFirst()).joined(separator: "\n").utf8)
    let table = try TruthTable.parse(bytes, name: "truth-6.1-shadow.tsv")
    let report = ConformReport(of: table)
    for column in report.columns where column.name != "pages_4k" {
      #expect(column.cells == column.matched, "column \(column.name)")
    }
    let pages = try #require(report.columns.first { $0.name == "pages_4k" })
    #expect(pages.matched < pages.cells, "nothing was prefetched")
  }

  @Test func `Free blocks differ only where they merged with neighbours outside the experiment`()
    throws
  {
    let path = "../shared/kvm-truth/free-6.1.tsv"
    guard FileManager.default.fileExists(atPath: path) else {
      print("SKIPPED: \(path) is not there; a clone alone does not have it")
      return
    }
    let report = try report(path)
    #expect(Double(report.cellsMatched) >= 0.997 * Double(report.cells))
    for column in report.columns
    where !["PageBuddy", "buddy_head_off", "buddy_order", "raw_mapcount"].contains(column.name) {
      #expect(column.cells == column.matched, "column \(column.name)")
    }
  }
}
