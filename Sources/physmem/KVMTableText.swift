internal import PMConform
internal import PMPageAllocator
internal import PMUnits

/// The truth table on a terminal.
struct KVMTableText {
  /// One era in full, or several side by side.
  let tables: [KVMTable]

  /// The whole text.
  var lines: [String] {
    let rows = KVMTableRow.rows(of: tables)
    let body = tables.count == 1 ? inFull(rows, tables[0]) : sideBySide(rows)
    return introduction + body
  }

  private var introduction: [String] {
    let title =
      tables.count == 1
      ? "Era \(tables[0].era.rawValue): \(KVMEra.title(tables[0].era))"
      : tables.map { "\($0.era.rawValue): \(KVMEra.title($0.era))" }.joined(separator: "\n")
    return [
      title, "",
      "count: what the counting refcount (that of the compound head) has more than before, while the",
      "entry is made -> after the fault.  marks: KVM's own, at the fault | at the zap; A accessed, D dirty.",
      "entry: size and right of the SPTE, 59 where era B's bit says that the page is counted.",
    ]
  }

  // MARK: one era

  private static let fullWidths = [4, 17, 7, 6, 9, 8, 6, 6, 8, 10, 40]

  private func inFull(_ rows: [KVMTableRow], _ table: KVMTable) -> [String] {
    let titles = [
      "row", "page", "VMA", "access", "outcome", "count", "fault", "zap", "entry", "path", "",
    ]
    var lines: [String] = []
    for (section, rows) in KVMTableRow.sections(rows) {
      lines += ["", section]
      if section == KVMTableRow.kinds {
        lines.append(trimmed(Table.row(titles, widths: KVMTableText.fullWidths)))
      }
      for row in rows {
        guard let cell = row.cells[0] else { continue }
        let area = section == KVMTableRow.kinds ? row.area.rawValue : ""
        lines.append(
          trimmed(
            Table.row(
              [
                row.number, row.kind.rawValue, area, row.access, cell.outcome.rawValue,
                cell.count, cell.entry == nil ? "-" : cell.faultMarks.letters,
                cell.entry == nil ? "-" : cell.zapMarks.letters, KVMTableText.entry(cell),
                cell.path, cell.notes.joined(separator: "; "),
              ], widths: KVMTableText.fullWidths)))
      }
    }
    return lines
  }

  // MARK: several eras

  private static let sideWidths = [3, 16, 5, 5, 16, 16, 16, 16]

  private func sideBySide(_ rows: [KVMTableRow]) -> [String] {
    var lines: [String] = [
      "! freed by KVM's put.  * the guest reaches a free frame.  c the host copies the page first.",
      "f not reachable by any driver; the experiment forced it.",
    ]
    for (section, rows) in KVMTableRow.sections(rows) {
      lines += ["", section]
      if section == KVMTableRow.kinds {
        let titles = ["row", "page", "VMA", "r/w"] + tables.map { "era \($0.era.rawValue)" }
        lines.append(trimmed(Table.row(titles, widths: KVMTableText.sideWidths)))
      }
      for row in rows {
        let area = section == KVMTableRow.kinds ? row.area.rawValue : ""
        let cells = row.cells.map { $0.map(KVMTableText.brief) ?? "" }
        lines.append(
          trimmed(
            Table.row(
              [row.number, row.kind.rawValue, area, row.access] + cells,
              widths: KVMTableText.sideWidths)))
      }
    }
    return lines
  }

  // MARK: cells

  /// The entry with bit 59, as `4K W 59`.
  static func entry(_ cell: KVMCell) -> String {
    guard let entry = cell.entry else { return "-" }
    return entry.text + (entry.isRefcounted ? " 59" : "")
  }

  /// A cell in a few letters, as `+1->0 A|AD 4KW`.
  static func brief(_ cell: KVMCell) -> String {
    var signs = ""
    if cell.isFreedByFault { signs += "!" }
    if cell.reachesFreeFrame { signs += "*" }
    if cell.changesPage { signs += "c" }
    if cell.forced != nil { signs += "f" }
    guard let entry = cell.entry else { return cell.outcome.rawValue + signs }
    let marks = "\(cell.faultMarks.letters)|\(cell.zapMarks.letters)"
    let bit = entry.isRefcounted ? "59" : ""
    return "\(cell.count) \(marks) \(entry.text.filter { $0 != " " })\(bit)\(signs)"
  }

  private func trimmed(_ line: String) -> String {
    var line = Substring(line)
    while line.last == " " { line.removeLast() }
    return String(line)
  }

  // MARK: one cell

  /// What a cell came to, in a sentence.
  static func sentence(_ cell: KVMCell) -> String {
    var parts = [cell.outcome.rawValue]
    if cell.entry != nil {
      parts += [
        "count \(cell.count)", "marks at the fault \(cell.faultMarks.letters)",
        "at the zap \(cell.zapMarks.letters)", "entry \(entry(cell))", "found by \(cell.path)",
      ]
    }
    return (parts + cell.notes).joined(separator: "; ")
  }

  /// The path of a cell, step by step with the counts.
  static func explanation(of cell: KVMCell) -> [String] {
    let widths = [6, 4, 5]
    var lines = [
      "Era \(cell.era.rawValue), row \(cell.row): the guest \(cell.access.rawValue)s. "
        + "Page: \(cell.kind.title). Place: \(cell.area.title).",
      "-> \(sentence(cell))", "",
      Table.row(
        ["frame", "own", "head", "what happened, and who holds the page"], widths: widths + [0]),
    ]
    var before: [String] = []
    for step in cell.steps {
      let counts = Table.row(
        [
          step.pfn.map { "\($0)" } ?? "-", step.ownCount.map { "\($0)" } ?? "-",
          step.headCount.map { "\($0)" } ?? "-",
        ], widths: widths)
      lines.append("\(counts) \(step.text)")
      if step.holders != before {
        let holders = step.holders.isEmpty ? "nobody" : step.holders.joined(separator: ", ")
        lines.append(Table.row(["", "", ""], widths: widths) + "   held by " + holders)
      }
      before = step.holders
    }
    lines += cell.findings.map { "the kernel says: \($0)" }
    return lines
  }
}

/// A line of the table: a page, a place and an access in all eras; reads and writes that come to the same
/// share one.
struct KVMTableRow {
  /// The section of the first two areas.
  static let kinds = "Page kinds"

  var kind: KVMPageKind
  var area: KVMArea
  var access: String
  var number: String
  /// One per era.
  var cells: [KVMCell?]

  /// All lines: kinds first, then variants.
  static func rows(of tables: [KVMTable]) -> [KVMTableRow] {
    guard let cells = tables.first?.cells else { return [] }
    var rows: [KVMTableRow] = []
    for cell in cells where cell.access == .read {
      func row(_ access: KVMAccess) -> KVMTableRow {
        KVMTableRow(
          kind: cell.kind, area: cell.area, access: access.rawValue,
          number: cell.kind.row(access),
          cells: tables.map { $0[cell.kind, cell.area, access] })
      }
      let (read, write) = (row(.read), row(.write))
      let isSame = zip(read.cells, write.cells).allSatisfy { $0?.summary == $1?.summary }
      if isSame, read.number == write.number {
        var both = read
        both.access = "both"
        rows.append(both)
      } else {
        rows += [read, write]
      }
    }
    return rows
  }

  /// The lines by section: the kinds, then each variant.
  static func sections(_ rows: [KVMTableRow]) -> [(title: String, rows: [KVMTableRow])] {
    var sections: [(title: String, rows: [KVMTableRow])] = []
    for row in rows {
      let isColumn = KVMArea.columns.contains(row.area)
      let title = isColumn ? kinds : "\(row.area.rawValue): \(row.area.title)"
      if sections.last?.title != title { sections.append((title, [])) }
      sections[sections.count - 1].rows.append(row)
    }
    return sections
  }
}

extension KVMCell {
  /// All that the table prints of it, to compare.
  var summary: String {
    KVMTableText.brief(self) + path + notes.joined()
  }
}
