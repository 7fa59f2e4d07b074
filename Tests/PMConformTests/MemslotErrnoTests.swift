import Testing

@testable import PMConform

@Suite struct MemslotErrnoTests {
  @Test(arguments: ["memslot-errno-6.1", "memslot-errno-6.18"])
  func `Every measured result is ours`(_ name: String) throws {
    let report = ConformReport(of: try ConformFixture.table(name))
    #expect(report.isMatched, "\(String(describing: report.firstMismatch))")
    #expect(report.rows == 593 && report.rowsMatched == 593 && report.notPlayedCount == 0)
    #expect(report.cells == 1024 && report.cellsMatched == 1024)
    #expect(report.columns.map(\.name) == ["slots_before", "result"])
  }

  @Test func `A change of any result is found, in its row alone`() throws {
    let whole = try ConformFixture.table("memslot-errno-6.1")
    let outcomes = MemslotErrnoPlayer().outcomes(of: whole)
    let result = try #require(whole.index(of: "result"))
    for index in whole.rows.indices {
      var table = whole
      let old = table.rows[index].cells[result]
      table.rows[index].cells[result] = old == "EINVAL" ? "0" : "EINVAL"
      let report = ConformReport(of: table, outcomes: outcomes)
      #expect(report.cells - report.cellsMatched == 1)
      #expect(report.rowsMatched == 592)
      #expect(report.firstMismatch?.line == table.rows[index].line)
      #expect(report.firstMismatch?.column == "result")
      #expect(report.firstMismatch?.got == old)
    }
  }

  @Test func `A change of a result before is found too`() throws {
    var table = try ConformFixture.table("memslot-errno-6.1")
    let column = try #require(table.index(of: "slots_before"))
    let index = try #require(table.rows.lastIndex { $0.cells[column].contains("=>0 ;") })
    table.rows[index].cells[column].replace("=>0 ;", with: "=>EEXIST ;")
    let report = ConformReport(of: table)
    #expect(report.rowsMatched == 592)
    #expect(report.firstMismatch?.line == table.rows[index].line)
    #expect(report.firstMismatch?.column == "slots_before")
  }

  @Test func `The player does not look at the results`() throws {
    let whole = try ConformFixture.table("memslot-errno-6.18")
    let result = try #require(whole.index(of: "result"))
    var blank = whole
    for index in blank.rows.indices { blank.rows[index].cells[result] = "?" }
    #expect(MemslotErrnoPlayer().outcomes(of: blank) == MemslotErrnoPlayer().outcomes(of: whole))
  }

  @Test func `Any part of the table in its order gives the same results`() throws {
    let whole = try ConformFixture.table("memslot-errno-6.1")
    for part in 0..<3 {
      var table = whole
      table.rows = whole.rows.enumerated().filter { $0.offset % 3 == part }.map(\.element)
      let report = ConformReport(of: table)
      // Without the row that enables it, manual protection changes no result.
      #expect(report.isMatched, "\(String(describing: report.firstMismatch))")
    }
  }

  @Test func `Hosts differ where their facts do`() throws {
    let rows = [
      "case|slots_before|operation|result|note",
      "cap.KVM_CAP_GUEST_MEMFD|-|KVM_CHECK_EXTENSION|?|",
      "create.below|-|slot=0x1,flags=0x0,gpa=0x0,size=0x1000,hva=0x7fffffffe000|?|",
      "create.above|-|slot=0x1,flags=0x0,gpa=0x0,size=0x2000,hva=0x7fffffffe000|?|",
      "create.five|-|slot=0x1,flags=0x0,gpa=0x0,size=0x1000,hva=0xffffffffffe000|?|",
      "create.six|-|slot=0x1,flags=0x0,gpa=0x0,size=0x1000,hva=0xfffffffffff000|?|",
      "create.gpa|-|slot=0x1,flags=0x0,gpa=0x10000000000,size=0x1000,hva=H+0x0|?|",
      "create.smm|-|slot=0x10001,flags=0x0,gpa=0x0,size=0x1000,hva=H+0x0|?|",
      "create_guest_memfd.ok|-|size=0x4000,flags=0|?|",
      "create_guest_memfd.odd|-|size=0x4001,flags=0|?|",
    ]
    func results(_ header: String) throws -> [String] {
      let table = try ConformFixture.table([header] + rows)
      return MemslotErrnoPlayer().outcomes(of: table).map {
        if case .played(let values) = $0 { values["result"] ?? "-" } else { "failed" }
      }
    }
    let (no, yes) = ("sys=0,vm=0", "sys=1,vm=1")
    #expect(
      try results("# Linux 6.1") == [
        no, "0", "0", "0", "EINVAL", "EINVAL", "0", "ENOTTY", "ENOTTY",
      ])
    #expect(
      try results("# Linux 6.1, no5lvl") == [
        no, "0", "EINVAL", "EINVAL", "EINVAL", "EINVAL", "0", "ENOTTY", "ENOTTY",
      ])
    #expect(
      try results("# Linux 6.1, npt=0") == [
        no, "0", "0", "0", "EINVAL", "0", "0", "ENOTTY", "ENOTTY",
      ])
    #expect(
      try results("# Linux 6.18") == [
        yes, "0", "EINVAL", "EINVAL", "EINVAL", "0", "EINVAL", "0", "EINVAL",
      ])
  }

  @Test func `A table that compares hosts has a result column for each`() throws {
    let table = try ConformFixture.table(
      [
        "case|slots_before|operation|6.1|6.1-4level|result_6.18|note",
        "cap.KVM_CAP_USER_MEMORY2|-|KVM_CHECK_EXTENSION|sys=0,vm=0|sys=0,vm=0|sys=1,vm=1|",
        "create.hva|-|slot=0x1,flags=0x0,gpa=0x0,size=0x2000,hva=0x7fffffffe000|0|EINVAL|EINVAL|",
        "region2.ok|-|flags=0|ENOTTY|ENOTTY|0|",
        "region2.guest_memfd_badfd|-|flags=4,fd=-1|ENOTTY|ENOTTY|EBADF|",
      ], name: "memslot-errno-diff.tsv")
    let report = ConformReport(of: table)
    #expect(report.isMatched, "\(String(describing: report.firstMismatch))")
    #expect(report.cells == 12)
  }

  @Test(arguments: [
    "slot=0x1,flags=0x0,gpa=0x0,size=0x1000", "slot=0x100000000,flags=0,gpa=0,size=0,hva=0",
    "slot=0x1,flags=0x0,gpa=0x0,size=0x1000,hva=H+z", "dance", "",
    "slot=0x1,flags=0x0,gpa=0x1ffffffffffffffff,size=0,hva=0",
  ])
  func `An operation that is none fails and says so`(_ operation: String) throws {
    let table = try ConformFixture.table([
      "case|slots_before|operation|result|note", "create.x|-|\(operation)|0|",
      "create.y|\(operation)=>0|slot=0,flags=0,gpa=0,size=0x1000,hva=0x10000|0|",
      "getlog.z|-|\(operation.replacing("slot", with: "s"))|0|",
      "clearlog.z|-|\(operation)|0|", "enable_manual_protect2.z|-|\(operation)|0|",
    ])
    let report = ConformReport(of: table)
    #expect(report.rowsMatched == 0)
    #expect(report.firstMismatch?.got.hasPrefix("unknown operation '") == true)
  }
}
