/// What the comparison of one table showed.
public struct ConformReport: Hashable, Sendable {
  /// How a column fared.
  public struct Column: Hashable, Sendable {
    /// Its name.
    public var name: String
    /// Cells compared.
    public var cells: Int = 0
    /// Those that were equal.
    public var matched: Int = 0
  }

  /// A cell that differed, or a row that could not be played.
  public struct Mismatch: Hashable, Sendable {
    /// The line of the file.
    public var line: Int
    /// The column; nil where the row as a whole could not be played.
    public var column: String?
    /// The cell of the table; empty for a row as a whole.
    public var expected: String
    /// Ours.
    public var got: String
    /// The row with a `|` between its cells.
    public var row: String
  }

  /// The file as it was named.
  public var file: String
  /// What was measured.
  public var kind: TableKind
  /// On which host.
  public var host: HostFacts
  /// Rows of the table.
  public var rows: Int = 0
  /// Rows that were played and of which every compared cell was equal.
  public var rowsMatched: Int = 0
  /// Rows that were not played, by reason.
  public var notPlayed: [NotPlayedReason: Int] = [:]
  /// The columns that were compared, in the order of the table.
  public var columns: [Column] = []
  /// The first mismatch of the file.
  public var firstMismatch: Mismatch?
  /// The first mismatch of each column that has one, in the order of the file.
  public var firstMismatches: [Mismatch] = []

  /// Rows that were not played.
  public var notPlayedCount: Int { notPlayed.values.reduce(0, +) }
  /// Cells compared.
  public var cells: Int { columns.reduce(0) { $0 + $1.cells } }
  /// Those that were equal.
  public var cellsMatched: Int { columns.reduce(0) { $0 + $1.matched } }
  /// Whether every row matched, apart from those that were not played.
  public var isMatched: Bool { rowsMatched + notPlayedCount == rows }

  /// Performs a table and compares it.
  public init(of table: TruthTable) {
    let outcomes = table.kind.player?.outcomes(of: table)
    self.init(of: table, outcomes: outcomes ?? [], missing: outcomes == nil ? "no player" : nil)
  }

  /// Compares a table with what came of its rows; a row without an outcome counts as a mismatch,
  /// `missing` says why.
  public init(of table: TruthTable, outcomes: [RowOutcome], missing: String? = nil) {
    file = table.name
    kind = table.kind
    host = table.host
    rows = table.rows.count
    var counts = table.columns.map { Column(name: $0) }
    for (index, row) in table.rows.enumerated() {
      var outcome =
        index < outcomes.count ? outcomes[index] : .failed(missing ?? "the row was not reached")
      if case .notPlayed(let reason) = outcome {
        if reason.applies(to: row, of: table) {
          notPlayed[reason, default: 0] += 1
          continue
        }
        outcome = .failed("the reason \(reason.rawValue) does not apply")
      }
      if compare(row, of: table, with: outcome, &counts) { rowsMatched += 1 }
    }
    columns = counts.filter { $0.cells > 0 }
  }

  /// Compares a row and says whether it matched.
  private mutating func compare(
    _ row: TruthTable.Row, of table: TruthTable, with outcome: RowOutcome, _ counts: inout [Column]
  ) -> Bool {
    var got: [String: String] = [:]
    var failure: String?
    switch outcome {
    case .played(let values): got = values
    case .failed(let why): failure = why
    case .notPlayed: return true
    }
    var isMatched = failure == nil
    var hasCells = false
    for (index, column) in table.columns.enumerated() {
      let expected = row.cells[index]
      let isResult = got[column] != nil || !table.kind.inputColumns.contains(column)
      guard isResult, !TruthTable.notMeasured.contains(expected) else { continue }
      hasCells = true
      counts[index].cells += 1
      if failure == nil, got[column] == expected {
        counts[index].matched += 1
      } else {
        isMatched = false
        note(row, column, expected, failure ?? got[column] ?? "no value")
      }
    }
    for column in got.keys.sorted() where table.index(of: column) == nil {
      isMatched = false
      note(row, column, "", "a value for a column that the table does not have")
    }
    if let failure, !hasCells { note(row, nil, "", failure) }
    return isMatched
  }

  private mutating func note(
    _ row: TruthTable.Row, _ column: String?, _ expected: String, _ got: String
  ) {
    let mismatch = Mismatch(
      line: row.line, column: column, expected: expected, got: got,
      row: row.cells.joined(separator: "|"))
    firstMismatch = firstMismatch ?? mismatch
    if !firstMismatches.contains(where: { $0.column == column }) {
      firstMismatches.append(mismatch)
    }
  }
}
