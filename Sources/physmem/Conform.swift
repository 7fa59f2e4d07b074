internal import ArgumentParser
internal import PMConform

/// `physmem conform`.
struct Conform: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Performs what a real kernel was measured to do and compares cell by cell.",
    subcommands: [ConformKVM.self])
}

/// `physmem conform kvm`.
struct ConformKVM: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "kvm",
    abstract: "Performs the rows of tables measured on KVM and compares cell by cell.",
    discussion: """
      What a table measured follows from its columns, on which kernel and host from its header and \
      its name. Cells that were not measured are not compared. Rows that depend on something outside \
      the machine are not played and counted apart; any other row that cannot be played is a mismatch.
      """)

  @Argument(help: "Tables: tab-separated text with header lines that begin with '#'.")
  var tables: [String]

  @Flag(help: "Print one JSON object.")
  var json = false

  func run() throws {
    var reports: [ConformReport] = []
    for path in tables {
      let table: TruthTable
      do throws(TableError) {
        table = try TruthTable.read(path)
      } catch {
        Output.error("\(error)")
        switch error {
        case .noInput: throw ExitCode.noInput
        case .malformed: throw ExitCode.malformedInput
        }
      }
      let report = ConformReport(of: table)
      reports.append(report)
      if !json { print(report) }
    }
    if json {
      try Output.json(ConformJSON(reports))
    } else {
      let (cells, matched) = (reports.sum(\.cells), reports.sum(\.cellsMatched))
      let (rows, rowsMatched) = (reports.sum(\.rows), reports.sum(\.rowsMatched))
      Output.line(
        "\(matched) of \(cells) cells, \(rowsMatched) of \(rows) rows matched, \(reports.sum(\.notPlayedCount)) rows not played"
      )
    }
    guard reports.allSatisfy(\.isMatched) else { throw ExitCode.mismatch }
  }

  private func print(_ report: ConformReport) {
    Output.line(
      "\(report.file): \(report.cellsMatched) of \(report.cells) cells, \(report.rowsMatched) of \(report.rows) rows matched, \(report.notPlayedCount) rows not played; \(report.host)"
    )
    for reason in NotPlayedReason.allCases {
      guard let count = report.notPlayed[reason] else { continue }
      Output.line("  not played, \(reason.rawValue): \(count)")
    }
    let width = (["column"] + report.columns.map(\.name)).map(\.count).max() ?? 0
    let widths = [width + 2, 9, 9]
    Output.line(Table.row(["  column", "cells", "matched"], widths: widths))
    for column in report.columns {
      Output.line(
        Table.row(
          ["  \(column.name)", "\(column.cells)", "\(column.matched)"], widths: widths))
    }
    for mismatch in report.firstMismatches {
      let place = mismatch.column.map { ", column \($0)" } ?? ""
      Output.line("  first mismatch at line \(mismatch.line)\(place)")
      Output.line("    row:      \(mismatch.row)")
      Output.line("    expected: \(mismatch.expected)")
      Output.line("    got:      \(mismatch.got)")
    }
  }
}

extension [ConformReport] {
  fileprivate func sum(_ value: (ConformReport) -> Int) -> Int { reduce(0) { $0 + value($1) } }
}

/// The object that `conform --json` prints.
struct ConformJSON: Encodable {
  struct Column: Encodable {
    var cells: Int
    var matched: Int
  }

  struct Mismatch: Encodable {
    var mismatch: ConformReport.Mismatch

    enum CodingKeys: String, CodingKey {
      case line, column, expected, got, row
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(mismatch.line, forKey: .line)
      // A column that is not there is null and not left out.
      try container.encode(mismatch.column, forKey: .column)
      try container.encode(mismatch.expected, forKey: .expected)
      try container.encode(mismatch.got, forKey: .got)
      try container.encode(mismatch.row, forKey: .row)
    }
  }

  struct File: Encodable {
    var report: ConformReport

    enum CodingKeys: String, CodingKey {
      case file, kind, host, rows, cells, columns
      case rowsMatched = "rows_matched"
      case notPlayed = "not_played"
      case notPlayedReasons = "not_played_reasons"
      case cellsMatched = "cells_matched"
      case firstMismatch = "first_mismatch"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(report.file, forKey: .file)
      try container.encode(report.kind.rawValue, forKey: .kind)
      try container.encode("\(report.host)", forKey: .host)
      try container.encode(report.rows, forKey: .rows)
      try container.encode(report.rowsMatched, forKey: .rowsMatched)
      try container.encode(report.notPlayedCount, forKey: .notPlayed)
      let reasons = report.notPlayed.map { ($0.key.rawValue, $0.value) }
      try container.encode(
        Dictionary(uniqueKeysWithValues: reasons), forKey: .notPlayedReasons)
      try container.encode(report.cells, forKey: .cells)
      try container.encode(report.cellsMatched, forKey: .cellsMatched)
      let columns = report.columns.map { ($0.name, Column(cells: $0.cells, matched: $0.matched)) }
      try container.encode(Dictionary(uniqueKeysWithValues: columns), forKey: .columns)
      try container.encode(report.firstMismatch.map(Mismatch.init), forKey: .firstMismatch)
    }
  }

  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case files, rows, cells
    case rowsMatched = "rows_matched"
    case notPlayed = "not_played"
    case cellsMatched = "cells_matched"
  }

  var schemaVersion = 1
  var files: [File]
  var rows: Int
  var rowsMatched: Int
  var notPlayed: Int
  var cells: Int
  var cellsMatched: Int

  init(_ reports: [ConformReport]) {
    files = reports.map(File.init)
    rows = reports.sum(\.rows)
    rowsMatched = reports.sum(\.rowsMatched)
    notPlayed = reports.sum(\.notPlayedCount)
    cells = reports.sum(\.cells)
    cellsMatched = reports.sum(\.cellsMatched)
  }
}
