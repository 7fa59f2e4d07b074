internal import PMConform
internal import PMPageAllocator
internal import PMUnits

/// The object that `kvm table --json` prints.
struct KVMTableJSON: Encodable {
  struct Era: Encodable {
    var name: String
    var cells: [Cell]

    init(era: KernelModel.KVM, cells: [KVMCell]) {
      name = era.rawValue
      self.cells = cells.map(Cell.init)
    }

    enum CodingKeys: String, CodingKey {
      case name = "era"
      case cells
    }
  }

  struct Cell: Encodable {
    var cell: KVMCell

    enum CodingKeys: String, CodingKey {
      case row, page, vma, access, outcome, during, after, level, writable, bit59, path, freed
      case forced, findings, steps
      case faultMarks = "marks_at_fault"
      case zapMarks = "marks_at_zap"
      case hostWritable = "host_writable"
      case copied = "page_copied"
      case reachesFreeFrame = "guest_reaches_free_frame"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(cell.row, forKey: .row)
      try container.encode(cell.kind.rawValue, forKey: .page)
      try container.encode(cell.area.rawValue, forKey: .vma)
      try container.encode(cell.access.rawValue, forKey: .access)
      try container.encode(cell.outcome.rawValue, forKey: .outcome)
      // What there is not is null and not left out.
      try container.encode(cell.during, forKey: .during)
      try container.encode(cell.after, forKey: .after)
      try container.encode(cell.faultMarks.letters, forKey: .faultMarks)
      try container.encode(cell.zapMarks.letters, forKey: .zapMarks)
      try container.encode(cell.entry?.level, forKey: .level)
      try container.encode(cell.entry?.isWritable, forKey: .writable)
      try container.encode(cell.entry?.isHostWritable, forKey: .hostWritable)
      try container.encode(cell.entry?.isRefcounted, forKey: .bit59)
      try container.encode(cell.path, forKey: .path)
      try container.encode(cell.isFreedByFault, forKey: .freed)
      try container.encode(cell.reachesFreeFrame, forKey: .reachesFreeFrame)
      try container.encode(cell.changesPage, forKey: .copied)
      try container.encode(cell.forced, forKey: .forced)
      try container.encode(cell.findings, forKey: .findings)
      try container.encode(cell.steps.map(Step.init), forKey: .steps)
    }
  }

  struct Step: Encodable {
    var step: KVMCell.Step

    enum CodingKeys: String, CodingKey {
      case text, pfn, holders
      case ownCount = "own_count"
      case headCount = "head_count"
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(step.text, forKey: .text)
      try container.encode(step.pfn?.rawValue, forKey: .pfn)
      try container.encode(step.ownCount, forKey: .ownCount)
      try container.encode(step.headCount, forKey: .headCount)
      try container.encode(step.holders, forKey: .holders)
    }
  }

  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case eras
  }

  var schemaVersion = 1
  var eras: [Era]
}
