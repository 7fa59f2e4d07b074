import Testing

@testable import PMConform

@Suite struct ConformReportTests {
  private static let lines = [
    "# Linux 6.1", "case|slot|access|KVM_RUN|exit|detail|value_read|note",
    "anon|rw|read|0|DONE|-|0x0|n1", "anon|rw|write|EFAULT|unset|-|na|not_measured",
    "secretmem|ro|read|0|MMIO|gpa|not_visible|n3",
  ]

  /// What the rows' results are, as a player gives them.
  private static let outcomes: [RowOutcome] = [
    .played(["KVM_RUN": "0", "exit": "DONE", "detail": "-", "value_read": "0x0", "note": "n1"]),
    .played(["KVM_RUN": "EFAULT", "exit": "unset", "detail": "-"]),
    .notPlayed(.secretmem),
  ]

  @Test func `Cells are counted by column, and what was not measured is not compared`() throws {
    let table = try ConformFixture.table(ConformReportTests.lines)
    let report = ConformReport(of: table, outcomes: ConformReportTests.outcomes)
    #expect(report.isMatched)
    #expect(report.rows == 3 && report.rowsMatched == 2 && report.notPlayedCount == 1)
    #expect(report.notPlayed == [.secretmem: 1])
    #expect(report.cells == 8 && report.cellsMatched == 8)
    #expect(
      report.columns.map(\.name) == ["KVM_RUN", "exit", "detail", "value_read", "note"])
    #expect(report.columns.map(\.cells) == [2, 2, 2, 1, 1])
    #expect(report.firstMismatch == nil && report.firstMismatches.isEmpty)
  }

  @Test func `A change of any compared cell is found there and nowhere else`() throws {
    for row in 0..<2 {
      for column in 3..<8 {
        var table = try ConformFixture.table(ConformReportTests.lines)
        let old = table.rows[row].cells[column]
        table.rows[row].cells[column] = old + "x"
        let report = ConformReport(of: table, outcomes: ConformReportTests.outcomes)
        #expect(!report.isMatched)
        #expect(report.rowsMatched == 1)
        #expect(report.cells - report.cellsMatched == 1)
        let mismatch = try #require(report.firstMismatch)
        #expect(mismatch.line == 3 + row)
        #expect(mismatch.column == table.columns[column])
        #expect(mismatch.expected == old + "x")
        // Where nothing was measured the player may have given nothing.
        #expect(mismatch.got == (TruthTable.notMeasured.contains(old) ? "no value" : old))
        #expect(report.firstMismatches == [mismatch])
      }
    }
  }

  @Test func `An input column counts where the player gives a value`() throws {
    var table = try ConformFixture.table(ConformReportTests.lines)
    guard case .played(var values) = ConformReportTests.outcomes[0] else { return }
    values["access"] = "read"
    var outcomes = ConformReportTests.outcomes
    outcomes[0] = .played(values)
    #expect(ConformReport(of: table, outcomes: outcomes).cells == 9)
    table.rows[0].cells[2] = "write"
    let report = ConformReport(of: table, outcomes: outcomes)
    #expect(report.firstMismatch?.column == "access")
    #expect(report.firstMismatch?.got == "read")
    values["weather"] = "fine"
    outcomes[0] = .played(values)
    table.rows[0].cells[2] = "read"
    #expect(ConformReport(of: table, outcomes: outcomes).firstMismatch?.column == "weather")
  }

  @Test func `Rows that fail or are not reached are mismatches`() throws {
    let table = try ConformFixture.table(ConformReportTests.lines)
    var outcomes = ConformReportTests.outcomes
    outcomes[1] = .failed("no such mapping")
    let failed = ConformReport(of: table, outcomes: outcomes)
    #expect(!failed.isMatched && failed.rowsMatched == 1)
    #expect(failed.cells == 8 && failed.cellsMatched == 5)
    #expect(failed.firstMismatch?.got == "no such mapping")
    let short = ConformReport(of: table, outcomes: [outcomes[0]])
    #expect(short.rowsMatched == 1 && short.notPlayedCount == 0)
    #expect(short.firstMismatch?.got == "the row was not reached")
    #expect(short.firstMismatch?.line == 4)
  }

  @Test func `A row without a cell to compare still fails`() throws {
    let table = try ConformFixture.table([
      "scenario|step|operation|result|dirty_pages", "a|1|op|na|na",
    ])
    let report = ConformReport(of: table, outcomes: [.failed("why")])
    #expect(!report.isMatched && report.cells == 0)
    #expect(report.firstMismatch?.column == nil && report.firstMismatch?.got == "why")
    #expect(ConformReport(of: table, outcomes: [.played([:])]).isMatched)
  }

  @Test(arguments: NotPlayedReason.allCases)
  func `A reason covers only the rows it is about`(_ reason: NotPlayedReason) throws {
    let table = try ConformFixture.table(ConformReportTests.lines)
    let outcomes = [RowOutcome](repeating: .notPlayed(reason), count: 3)
    let report = ConformReport(of: table, outcomes: outcomes)
    #expect(report.notPlayedCount == (reason == .secretmem ? 1 : 0))
    #expect(report.isMatched == false)
    if reason != .secretmem {
      #expect(report.firstMismatch?.got == "the reason \(reason.rawValue) does not apply")
    }
  }

  @Test func `Reasons apply to their rows`() throws {
    func applies(_ reason: NotPlayedReason, _ kind: TableKind, _ first: String, _ second: String)
      throws -> Bool
    {
      let columns = try #require(ConformFixture.columns[kind])
      let count = columns.split(separator: "|").count
      let cells = [first, second] + [String](repeating: "na", count: count - 2)
      let name = kind == .kpage ? "kpage-6.18.tsv" : "x.tsv"
      let table = try ConformFixture.table(
        [columns, cells.joined(separator: "|")], name: name)
      return reason.applies(to: table.rows[0], of: table)
    }
    #expect(try applies(.kernelLog, .freeEvents, "F4b", "dmesg_lines"))
    #expect(try !applies(.kernelLog, .freeEvents, "F4b", "2"))
    #expect(try applies(.vdsoOrVvar, .faults, "vdso", "rw"))
    #expect(try applies(.packetRing, .kpage, "packet_ring", "rw"))
    #expect(try applies(.hwpoison, .faults, "seq.hwpoison", "rw"))
    #expect(try applies(.foreignReuse, .kpage, "thp", "rw"))
    #expect(try !applies(.foreignReuse, .faults, "thp", "rw"))
  }

  @Test(arguments: TableKind.allCases) func `Without a player no row matches`(
    _ kind: TableKind
  ) throws {
    guard kind.player == nil else { return }
    let columns = try #require(ConformFixture.columns[kind])
    let row = columns.split(separator: "|").map { _ in "0" }.joined(separator: "|")
    let report = ConformReport(of: try ConformFixture.table([columns, row]))
    #expect(report.rowsMatched == 0 && report.cellsMatched == 0 && report.cells > 0)
    #expect(report.firstMismatch?.got == "no player")
  }
}
