import Foundation
import Testing

@testable import PMConform

@Suite struct TruthTableTests {
  private func error(_ bytes: [UInt8], name: String = "x.tsv") -> TableError? {
    do throws(TableError) { _ = try TruthTable.parse(bytes, name: name) } catch { return error }
    return nil
  }

  private func error(_ text: String) -> TableError? { error([UInt8](text.utf8)) }

  private func malformed(_ line: Int, _ message: String) -> TableError {
    .malformed(file: "x.tsv", line: line, message: message)
  }

  @Test func `A table has header lines, columns and rows with their lines`() throws {
    let table = try ConformFixture.table([
      "# Linux 6.1, nested paging", "#no blank", "#", "case|slots_before|operation|result|note",
      "a|-|op|0|", "b|x|op|EINVAL|n",
    ])
    #expect(table.name == "x.tsv")
    #expect(table.header == ["Linux 6.1, nested paging", "no blank", ""])
    #expect(table.columns == ["case", "slots_before", "operation", "result", "note"])
    #expect(table.rows.map(\.line) == [5, 6])
    #expect(table.rows[0].cells == ["a", "-", "op", "0", ""])
    #expect(table.cell(table.rows[1], "result") == "EINVAL")
    #expect(table.cell(table.rows[1], "nothing") == nil)
    #expect(table.kind == .memslotErrno)
  }

  @Test(arguments: TableKind.allCases) func `Columns tell the kind`(_ kind: TableKind) throws {
    let columns = try #require(ConformFixture.columns[kind])
    let row = columns.split(separator: "|").map { _ in "na" }.joined(separator: "|")
    #expect(try ConformFixture.table([columns, row]).kind == kind)
  }

  @Test func `A table that compares hosts is known by its name`() throws {
    let lines = ["case|6.1|6.18", "cap.KVM_CAP_USER_MEMORY2|sys=0,vm=0|sys=1,vm=1"]
    #expect(try ConformFixture.table(lines, name: "memslot-errno-diff.tsv").kind == .memslotErrno)
    #expect(throws: TableError.self) { try ConformFixture.table(lines, name: "other.tsv") }
  }

  @Test func `What is no table is said with its line and what was expected`() {
    let columns = "case\toperation\tresult\n"
    let kinds = "truth, free, free_events, memslot_errno, faults, dirtylog, kpage"
    #expect(error("") == malformed(1, "the file is empty: expected a table"))
    #expect(error("\n") == malformed(1, "a column without a name"))
    #expect(
      error("# only a header\n")
        == malformed(2, "the file ends: expected a line of column names"))
    #expect(error(columns) == malformed(2, "the file ends: expected a row"))
    #expect(
      error("# h\na\tb\n1\t2\n") == malformed(2, "unknown columns: expected those of \(kinds)"))
    #expect(error("case\toperation\tcase\n") == malformed(1, "column 'case' twice"))
    #expect(error("case\t\toperation\n") == malformed(1, "a column without a name"))
    #expect(
      error(columns + "a\tb\n") == malformed(2, "2 cells: expected 3, one for each column"))
    #expect(
      error(columns + "a\tb\tc\n\n") == malformed(3, "1 cells: expected 3, one for each column"))
    #expect(
      error(columns + "a\tb\tc\td\n") == malformed(2, "4 cells: expected 3, one for each column"))
    // A comment between rows is none.
    #expect(
      error(columns + "# x\n") == malformed(2, "1 cells: expected 3, one for each column"))
    // A last line may go without its newline, but not without a cell.
    #expect(error(columns + "a\tb\tc") == nil)
    #expect(
      error(columns + "a\tb") == malformed(2, "2 cells: expected 3, one for each column"))
    #expect(
      error("# h\r\n" + columns) == malformed(1, "the line ends in CR LF: expected LF alone"))
    #expect(error(columns + "a\tb\0\tc\n") == malformed(2, "byte 0x0 at column 4: expected text"))
    #expect(
      error(columns + "a\tb\u{1b}\tc\n") == malformed(2, "byte 0x1b at column 4: expected text"))
  }

  @Test func `Bytes that are no text are said so`() {
    let columns = [UInt8]("case\toperation\tresult\n".utf8)
    #expect(
      error(columns + [65, 9, 0xff, 9, 66, 10])
        == malformed(2, "the line is not UTF-8: expected text"))
    #expect(
      error([35, 32, 0xc3, 10] + columns) == malformed(1, "the line is not UTF-8: expected text"))
    // Also where the second half of a character stands in the next cell.
    #expect(
      error(columns + [0xc3, 9, 0xa4, 9, 66, 10])
        == malformed(2, "the line is not UTF-8: expected text"))
    #expect(
      error([0x1f, 0x8b, 8, 0])
        == malformed(1, "the file is gzip compressed: expected plain text"))
    #expect(error(columns + [UInt8]("\u{e4}\tb\tc\n".utf8)) == nil)
  }

  @Test func `Absurd sizes are refused`() {
    let columns = [UInt8]("case\toperation\tresult\n".utf8)
    let long = [UInt8](repeating: 65, count: TruthTable.longestLine + 1)
    #expect(
      error(columns + long + [10])
        == malformed(2, "the line is longer than \(TruthTable.longestLine) bytes"))
    #expect(error(long + long) != nil)
    let wide = [UInt8](repeating: 9, count: 1000)
    #expect(error(wide + [10]) == malformed(1, "more than 256 cells"))
  }

  @Test func `What cannot be read is no input`() {
    for path in ["/nonexistent/x.tsv", "/"] {
      var found: TableError?
      do throws(TableError) { _ = try TruthTable.read(path) } catch { found = error }
      guard case .noInput(path, _) = found else {
        Issue.record("\(path): \(String(describing: found))")
        continue
      }
    }
    #expect("\(TableError.noInput(file: "f", reason: "r"))" == "f: r")
    #expect("\(TableError.malformed(file: "f", line: 3, message: "m"))" == "f:3: m")
  }

  @Test func `Damaged bytes give a table or an error, and never more rows than lines`() throws {
    var random = ConformRandom("TruthTableTests")
    let whole = try ConformFixture.bytes("memslot-errno-6.1")
    for _ in 0..<300 {
      var bytes = Array(whole.prefix(300 + random.below(6000)))
      for _ in 0..<random.below(6) {
        let place = random.below(bytes.count)
        switch random.below(4) {
        case 0: bytes[place] = UInt8(random.below(256))
        case 1: bytes.remove(at: place)
        case 2: bytes.insert([0, 9, 10, 13, 35, 255][random.below(6)], at: place)
        default:
          let end = min(bytes.count, place + random.below(200))
          bytes.insert(contentsOf: bytes[place..<end], at: random.below(bytes.count))
        }
      }
      do throws(TableError) {
        let table = try TruthTable.parse(bytes, name: "x.tsv")
        #expect(table.rows.count <= bytes.count { $0 == 10 } + 1)
        #expect(table.rows.allSatisfy { $0.cells.count == table.columns.count })
        // What can be read can be played, whatever it says.
        let report = ConformReport(of: table)
        #expect(report.rowsMatched <= report.rows)
      } catch {
        guard case .malformed("x.tsv", let line, let message) = error else {
          Issue.record("\(error)")
          continue
        }
        #expect(line >= 1 && line <= bytes.count { $0 == 10 } + 1)
        #expect(!message.isEmpty)
      }
    }
  }
}
