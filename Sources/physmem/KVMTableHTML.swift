internal import PMConform
internal import PMPageAllocator
internal import PMUnits

/// The truth table as one page of HTML without anything from elsewhere: a table per section, a column per
/// era, the path of each cell behind it.
struct KVMTableHTML {
  /// The eras.
  let tables: [KVMTable]

  /// The page.
  var page: String {
    let head = """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8"/>
      <title>KVM and the pages it maps</title>
      <style>
      \(KVMTableHTML.style)
      </style>
      </head>
      <body>
      <h1>KVM and the pages it maps</h1>
      """
    let sections = KVMTableRow.sections(KVMTableRow.rows(of: tables))
    return ([head, legend] + sections.map(section) + ["</body>", "</html>"])
      .joined(separator: "\n")
  }

  private static let style = """
    body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
    table { border-collapse: collapse; margin-bottom: 2em; }
    th, td { border: 1px solid #bbb; padding: .3em .5em; text-align: left; vertical-align: top; }
    td.ok { background: #e3f4e3; }
    td.efault { background: #f8dcdc; }
    td.mmio { background: #fdf1cf; }
    td.emulated { background: #e2eaf8; }
    td.eintr { background: #eee; }
    td.freed { background: #e89a9a; }
    td.leaks { background: #f4cfa0; }
    details { font-size: 12px; }
    summary { cursor: pointer; font: 13px ui-monospace, monospace; }
    details table { margin: .5em 0; }
    details td, details th { border: 0; padding: 0 .6em 0 0; background: none; }
    """

  private var legend: String {
    let eras = tables.map {
      "<li><b>\($0.era.rawValue)</b>: \(KVMTableHTML.escaped(KVMEra.title($0.era)))</li>"
    }
    return """
      <p>Each cell is one access of a guest to one page on a fresh machine. It shows how the access
      ended; what the counting refcount has more than before, while the entry is made and after the fault;
      KVM's own marks at the fault | at the zap (A accessed, D dirty); size and right of the stage-2 entry,
      and 59 where era B's bit says that the page is counted. Click a cell for its path.</p>
      <ul>
      \(eras.joined(separator: "\n"))
      </ul>
      """
  }

  private func section(_ title: String, _ rows: [KVMTableRow]) -> String {
    let eras = tables.map { "<th>\($0.era.rawValue)</th>" }.joined()
    let body = rows.map { row in
      let place = row.area.title
      let cells = row.cells.map { $0.map(cell) ?? "<td></td>" }.joined(separator: "\n")
      return """
        <tr><td>\(row.number)</td><td>\(KVMTableHTML.escaped(row.kind.title))</td>\
        <td>\(KVMTableHTML.escaped(place))</td><td>\(row.access)</td>
        \(cells)</tr>
        """
    }
    return """
      <h2>\(KVMTableHTML.escaped(title))</h2>
      <table>
      <tr><th>row</th><th>page</th><th>place</th><th>access</th>\(eras)</tr>
      \(body.joined(separator: "\n"))
      </table>
      """
  }

  private func cell(_ cell: KVMCell) -> String {
    let text =
      cell.entry == nil
      ? cell.outcome.rawValue
      : "\(cell.outcome.rawValue) \(cell.count) "
        + "\(cell.faultMarks.letters)|\(cell.zapMarks.letters) \(KVMTableText.entry(cell))"
    let kind =
      cell.isFreedByFault ? "freed" : cell.after > 0 ? "leaks" : cell.outcome.rawValue.lowercased()
    var before: [String] = []
    let steps = cell.steps.map { step in
      let holders = step.holders == before ? "" : step.holders.joined(separator: ", ")
      before = step.holders
      let cells = [
        step.pfn.map { "\($0)" } ?? "-", step.ownCount.map { "\($0)" } ?? "-",
        step.headCount.map { "\($0)" } ?? "-", step.text, holders,
      ]
      return "<tr>"
        + cells.map { "<td>\(KVMTableHTML.escaped($0))</td>" }.joined() + "</tr>"
    }
    let findings = cell.findings.map { "<p>The kernel says: \(KVMTableHTML.escaped($0))</p>" }
    return """
      <td class="\(kind)"><details><summary>\(KVMTableHTML.escaped(text))</summary>
      <p>\(KVMTableHTML.escaped(KVMTableText.sentence(cell)))</p>
      <table><tr><th>frame</th><th>own</th><th>head</th><th>step</th><th>held by</th></tr>
      \(steps.joined(separator: "\n"))</table>\(findings.joined())</details></td>
      """
  }

  private static func escaped(_ text: String) -> String {
    text.reduce(into: "") { result, character in
      switch character {
      case "&": result += "&amp;"
      case "<": result += "&lt;"
      case ">": result += "&gt;"
      case "\"": result += "&quot;"
      default: result.append(character)
      }
    }
  }
}
