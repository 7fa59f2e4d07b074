/// What a table measured; its columns tell.
public enum TableKind: String, CaseIterable, Hashable, Sendable {
  /// Pages through a fault, stage by stage, with their reference counts.
  case truth
  /// Pages through `__free_pages`, step by step.
  case free
  /// What the kernel did in those steps.
  case freeEvents = "free_events"
  /// Results of the ioctls on slots and dirty logs.
  case memslotErrno = "memslot_errno"
  /// Single guest accesses to mappings of many kinds.
  case faults
  /// Dirty logs, call by call.
  case dirtylog
  /// Pages through a fault, as /proc shows them.
  case kpage

  /// The columns by which a table is known.
  private var marks: Set<String> {
    switch self {
    case .truth: ["kind", "vma", "access", "teardown"]
    case .free: ["experiment", "step", "idx", "ref"]
    case .freeEvents: ["experiment", "step", "event"]
    case .memslotErrno: ["case", "operation"]
    case .faults: ["case", "slot", "access", "KVM_RUN"]
    case .dirtylog: ["scenario", "step", "operation"]
    case .kpage: ["backing", "slot", "access"]
    }
  }

  /// The columns that say what is done: they are compared only where a player gives a value for them.
  /// All others are results.
  public var inputColumns: Set<String> {
    switch self {
    case .truth: ["kind", "vma", "vma_prot", "pos", "idx", "slot", "access", "teardown"]
    case .free: ["experiment", "step", "idx"]
    case .freeEvents: ["experiment", "step"]
    case .memslotErrno: ["case", "slots_before", "operation", "note"]
    case .faults: ["case", "slot", "access"]
    case .dirtylog: ["scenario", "step", "operation"]
    case .kpage: ["backing", "slot", "access"]
    }
  }

  /// The kind of a table with these columns; nil where no kind has them all. A table that compares
  /// hosts has a column per host, so that only its name may tell.
  init?(columns: [String], name: String) {
    let columns = Set(columns)
    if let kind = TableKind.allCases.first(where: { $0.marks.isSubset(of: columns) }) {
      self = kind
    } else if columns.contains("case"), name.contains("memslot-errno") {
      self = .memslotErrno
    } else {
      return nil
    }
  }
}
