internal import Foundation

/// A table of measurements: header lines, column names, rows.
///
/// The first lines begin with `#` and explain the columns; the next names them; every further line is
/// a row. Columns are separated by one tab.
public struct TruthTable: Sendable {
  /// A measured row.
  public struct Row: Hashable, Sendable {
    /// Its line in the file, from 1.
    public var line: Int
    /// A cell per column.
    public var cells: [String]

    /// A row from its parts.
    public init(line: Int, cells: [String]) {
      self.line = line
      self.cells = cells
    }
  }

  /// The file as it was named.
  public var name: String
  /// The header lines without `#` and the blank after it.
  public var header: [String]
  /// The names of the columns, each one once.
  public var columns: [String]
  /// The rows in the order of the file.
  public var rows: [Row]
  /// What was measured.
  public var kind: TableKind
  /// On which host.
  public var host: HostFacts

  /// The place of a column; nil where there is none of this name.
  public func index(of column: String) -> Int? { columns.firstIndex(of: column) }

  /// The cell of a row by column; nil where there is none of this name.
  public func cell(_ row: Row, _ column: String) -> String? {
    index(of: column).map { row.cells[$0] }
  }

  /// Cells with these contents say that nothing was measured, and are not compared.
  public static let notMeasured: Set<String> = ["na", "not_measured", "not_visible"]

  // MARK: reading

  /// Longer lines than this (in bytes) are not part of the format.
  public static let longestLine: Int = 1 << 20
  /// Longer files than this (in bytes) are not read.
  public static let longestFile: Int = 1 << 28
  /// More columns than this are not part of the format.
  static let mostColumns = 256

  /// Reads a file.
  public static func read(_ path: String) throws(TableError) -> TruthTable {
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
      throw .noInput(file: path, reason: "no such file")
    }
    guard !isDirectory.boolValue else {
      throw .noInput(file: path, reason: "is a directory: expected a table")
    }
    var bytes: [UInt8] = []
    do {
      let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
      defer { try? file.close() }
      while bytes.count <= longestFile, let piece = try file.read(upToCount: 1 << 20),
        !piece.isEmpty
      {
        bytes.append(contentsOf: piece)
      }
    } catch {
      throw .noInput(file: path, reason: "cannot be read: \(error.localizedDescription)")
    }
    guard bytes.count <= longestFile else {
      throw .noInput(file: path, reason: "is longer than \(longestFile) bytes: expected a table")
    }
    return try parse(bytes, name: path)
  }

  /// Reads a table from its bytes; `name` stands for it in errors, and may tell what the header does
  /// not. Any bytes give a table or an error.
  public static func parse(_ bytes: [UInt8], name: String) throws(TableError) -> TruthTable {
    var parser = TableParser(bytes: bytes, name: name)
    return try parser.parse()
  }
}

/// Takes the bytes of a table apart.
struct TableParser {
  let bytes: [UInt8]
  let name: String
  private var line = 0
  private var position = 0

  init(bytes: [UInt8], name: String) {
    self.bytes = bytes
    self.name = name
  }

  mutating func parse() throws(TableError) -> TruthTable {
    guard !bytes.isEmpty else { throw error("the file is empty: expected a table", line: 1) }
    if bytes.starts(with: [0x1f, 0x8b]) {
      throw error("the file is gzip compressed: expected plain text", line: 1)
    }
    var header: [String] = []
    var columns: [String]?
    var rows: [TruthTable.Row] = []
    while let range = try nextLine() {
      if columns == nil, bytes[range].first == UInt8(ascii: "#") {
        header.append(try text(range.dropFirst(bytes[range].dropFirst().first == 32 ? 2 : 1)))
        continue
      }
      let cells = try cells(range)
      if let columns {
        guard cells.count == columns.count else {
          throw error("\(cells.count) cells: expected \(columns.count), one for each column")
        }
        rows.append(TruthTable.Row(line: line, cells: cells))
      } else {
        try check(columns: cells)
        columns = cells
      }
    }
    guard let columns else {
      throw error("the file ends: expected a line of column names", line: endLine)
    }
    guard let kind = TableKind(columns: columns, name: name) else {
      let kinds = TableKind.allCases.map(\.rawValue).joined(separator: ", ")
      throw error("unknown columns: expected those of \(kinds)", line: header.count + 1)
    }
    guard !rows.isEmpty else { throw error("the file ends: expected a row", line: endLine) }
    return TruthTable(
      name: name, header: header, columns: columns, rows: rows, kind: kind,
      host: HostFacts(header: header, name: name))
  }

  /// The line in which the file ends: the one behind the last newline, if any.
  private var endLine: Int { bytes.last == 10 ? line + 1 : line }

  private func error(_ message: String, line: Int? = nil) -> TableError {
    .malformed(file: name, line: line ?? self.line, message: message)
  }

  /// The next line without its end; nil at the end of the file.
  private mutating func nextLine() throws(TableError) -> Range<Int>? {
    guard position < bytes.count else { return nil }
    line += 1
    let start = position
    let limit = min(bytes.count, start + TruthTable.longestLine + 1)
    // A last line may go without its newline: if it was cut off, its cells will not be all there.
    let newline = bytes[start..<limit].firstIndex(of: 10)
    guard newline != nil || limit == bytes.count else {
      throw error("the line is longer than \(TruthTable.longestLine) bytes")
    }
    let end = newline ?? limit
    position = min(bytes.count, end + 1)
    for index in start..<end {
      let byte = bytes[index]
      if byte == 13, index + 1 == end { throw error("the line ends in CR LF: expected LF alone") }
      guard byte >= 32 || byte == 9, byte != 127 else {
        let hex = String(byte, radix: 16)
        throw error("byte 0x\(hex) at column \(index - start + 1): expected text")
      }
    }
    return start..<end
  }

  private func text(_ range: Range<Int>) throws(TableError) -> String {
    guard let text = String(validating: bytes[range], as: UTF8.self) else {
      throw error("the line is not UTF-8: expected text")
    }
    return text
  }

  private func cells(_ range: Range<Int>) throws(TableError) -> [String] {
    var cells: [String] = []
    var start = range.lowerBound
    for index in range where bytes[index] == 9 {
      cells.append(try text(start..<index))
      start = index + 1
      guard cells.count < TruthTable.mostColumns else {
        throw error("more than \(TruthTable.mostColumns) cells")
      }
    }
    cells.append(try text(start..<range.upperBound))
    return cells
  }

  private func check(columns: [String]) throws(TableError) {
    var known = Set<String>()
    for column in columns {
      guard !column.isEmpty else { throw error("a column without a name") }
      guard known.insert(column).inserted else {
        throw error("column '\(column.prefix(60))' twice")
      }
    }
  }
}
