internal import PMPageAllocator
internal import PMUnits

/// Plays the tables of the `__free_pages` experiments: the state of every page after each step, and what
/// the kernel did.
///
/// Each experiment is played once, in a machine of its own, with the block's buddy in use. Rows of the
/// kernel's log are not played.
public struct FreePlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Plays every row, of either table.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    var experiments: [String: Result<FreeExperiment, FreeExperiment.Failure>] = [:]
    var places: [String: Int] = [:]
    return table.rows.map { row in
      func cell(_ name: String) -> String { table.cell(row, name) ?? "" }
      let name = cell("experiment")
      let step = cell("step")
      if table.kind == .freeEvents, step.hasPrefix("dmesg") { return .notPlayed(.kernelLog) }
      let played =
        experiments[name]
        ?? Result { () throws(FreeExperiment.Failure) in
          try FreeExperiment(name, on: table.host)
        }
      experiments[name] = played
      let experiment: FreeExperiment
      switch played {
      case .failure(let failure): return .failed("\(name): \(failure.text)")
      case .success(let made): experiment = made
      }
      let key = FreeExperiment.key(step)
      guard table.kind == .free else {
        let place = places[name + key, default: 0]
        places[name + key] = place + 1
        guard let events = experiment.events[key], events.indices.contains(place) else {
          return .played(["event": "nothing more"])
        }
        return .played(["event": events[place]])
      }
      guard let index = Int(cell("idx")), let cells = experiment.states[key]?[index] else {
        return .failed("the experiment has no step \(step) of page \(cell("idx"))")
      }
      return .played(cells)
    }
  }
}
