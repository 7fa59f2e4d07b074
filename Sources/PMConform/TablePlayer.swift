/// Why a row is not played. The list is closed: these rows depend on something outside the machine,
/// and any other row that cannot be played counts as a mismatch.
public enum NotPlayedReason: String, CaseIterable, Hashable, Sendable {
  /// Lines of the kernel's log depend on who allocates next.
  case kernelLog = "kernel_log"
  /// Memory that the kernel itself cannot see.
  case secretmem
  /// The ring of a packet socket.
  case packetRing = "packet_ring"
  /// Pages with the kernel's own contents.
  case vdsoOrVvar = "vdso_or_vvar"
  /// A page that was declared broken.
  case hwpoison
  /// Other processes got the page before it was looked at.
  case foreignReuse = "foreign_reuse"

  /// Whether a row can have this reason at all: a player cannot hide others behind it.
  public func applies(to row: TruthTable.Row, of table: TruthTable) -> Bool {
    func names(_ words: String...) -> Bool {
      table.columns.indices.contains { column in
        table.kind.inputColumns.contains(table.columns[column])
          && words.contains { row.cells[column].contains($0) }
      }
    }
    switch self {
    case .kernelLog: return table.kind == .freeEvents && names("dmesg")
    case .secretmem: return names("secretmem")
    case .packetRing: return names("packet_ring")
    case .vdsoOrVvar: return names("vdso", "vvar")
    case .hwpoison: return names("hwpoison")
    case .foreignReuse: return table.kind == .kpage && table.host.kernel >= KernelVersion(6, 13)
    }
  }
}

/// What came of a row.
public enum RowOutcome: Hashable, Sendable {
  /// It was played, and its columns have these values. One for each result column; those that the
  /// row marks as not measured may be left out. A value for an input column makes it a result of
  /// this row.
  case played([String: String])
  /// It depends on something outside the machine.
  case notPlayed(NotPlayedReason)
  /// It could not be played, which counts as a mismatch; the text says why.
  case failed(String)
}

/// Performs the rows of one kind of table.
public protocol TablePlayer: Sendable {
  /// Plays the rows in the order of the table and returns what came of each, in that order.
  ///
  /// Rows may build on those before them. The results that the table holds must not be looked at.
  func outcomes(of table: TruthTable) -> [RowOutcome]
}

extension TableKind {
  /// The player of this kind of table; nil where there is none, and then no row matches.
  public var player: (any TablePlayer)? {
    switch self {
    case .memslotErrno: MemslotErrnoPlayer()
    case .truth: TruthPlayer()
    case .kpage: KPagePlayer()
    case .faults: FaultsPlayer()
    case .dirtylog: DirtyLogPlayer()
    case .free, .freeEvents: FreePlayer()
    }
  }
}
