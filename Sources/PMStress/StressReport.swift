/// What a run of stress did and found.
public struct StressReport: Codable, Sendable {
  /// The work on one kind.
  public struct KindReport: Codable, Sendable {
    /// What was put under stress.
    public var kind: StressKind
    /// Rounds, each with a world of its own.
    public var rounds: Int = 0
    /// Time spent, in seconds.
    public var seconds: Double = 0
    /// Operations by name.
    public var operations: [String: Int] = [:]
    /// Why a round could not be played, or nil.
    public var skipped: String?
    /// Failures of this kind.
    public var failures: Int = 0

    enum CodingKeys: String, CodingKey { case kind, rounds, seconds, operations, skipped, failures }
  }

  /// The resident set at a time.
  public struct Residence: Codable, Sendable {
    /// Seconds since the run began.
    public var seconds: Double
    /// KiB of this process in the host's memory, between two rounds.
    public var residentKiB: Int

    enum CodingKeys: String, CodingKey {
      case seconds
      case residentKiB = "resident_kib"
    }
  }

  /// The version of this form.
  public var schemaVersion: Int = 1
  /// What was asked for.
  public var options: StressOptions
  /// Each kind's work.
  public var kinds: [KindReport] = []
  /// What was found; empty on a sound engine.
  public var failures: [StressFailure] = []
  /// For each failure the command that repeats its round.
  public var repeats: [String] = []
  /// The resident set, sampled between rounds, at most about a hundred times.
  public var residence: [Residence] = []
  /// Time spent, in seconds.
  public var seconds: Double = 0
  /// Whether the run was ended from outside.
  public var isInterrupted: Bool = false

  enum CodingKeys: String, CodingKey {
    case options, kinds, failures, repeats, residence, seconds
    case schemaVersion = "schema_version"
    case isInterrupted = "interrupted"
  }

  init(options: StressOptions) { self.options = options }

  /// Operations of all kinds together.
  public var operations: Int { kinds.reduce(0) { $0 + $1.operations.values.reduce(0, +) } }
  /// Whether nothing was found.
  public var isSound: Bool { failures.isEmpty }
  /// Whether no round of any kind could be played.
  public var isSkipped: Bool {
    !kinds.isEmpty && kinds.allSatisfy { $0.rounds == 0 && $0.skipped != nil }
  }
}

extension StressReport: CustomStringConvertible {
  /// Some lines for people.
  public var description: String {
    var lines: [String] = []
    for kind in kinds {
      if let reason = kind.skipped { lines.append("\(kind.kind.rawValue): skipped: \(reason)") }
      guard kind.rounds > 0 else { continue }
      let total = kind.operations.values.reduce(0, +)
      let rate = kind.seconds > 0 ? Double(total) / kind.seconds / 1e6 : 0
      lines.append(
        "\(kind.kind.rawValue): \(kind.rounds) rounds, \(total) operations, "
          + "\((rate * 100).rounded() / 100) million a second, \(kind.failures) failures")
      let parts = kind.operations.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
      lines.append("  " + parts.joined(separator: ", "))
    }
    for (failure, command) in zip(failures, repeats) {
      let place = [
        failure.thread.map { "thread \($0)" }, failure.step.map { "step \($0)" },
      ].compactMap(\.self).joined(separator: ", ")
      lines.append(
        "FAILED \(failure.kind.rawValue), seed \(failure.seed)"
          + (place.isEmpty ? ", at rest" : ", \(place)") + ": \(failure.message)")
      lines.append("  again: \(command)")
    }
    if let first = residence.first, let last = residence.last {
      lines.append(
        "resident: \(first.residentKiB) KiB after \(Int(first.seconds)) s, "
          + "\(last.residentKiB) KiB after \(Int(last.seconds)) s")
    }
    lines.append(
      "\(operations) operations in \((seconds * 10).rounded() / 10) s, seed \(options.seed): "
        + (isInterrupted ? "interrupted, " : "")
        + (isSound ? "nothing found" : "\(failures.count) found"))
    return lines.joined(separator: "\n")
  }

  /// The report as a KTAP document, a test per kind: version line, plan, results, diagnostics. As the
  /// kernel's selftests print.
  public var ktap: String {
    var lines = ["KTAP version 1", "1..\(kinds.count)"]
    for (index, kind) in kinds.enumerated() {
      for (failure, command) in zip(failures, repeats) where failure.kind == kind.kind {
        lines.append("# seed \(failure.seed): \(failure.message)")
        lines.append("# again: \(command)")
      }
      let isGood = kind.failures == 0
      let skip = kind.rounds == 0 ? " # SKIP \(kind.skipped ?? "no time left")" : ""
      let total = kind.operations.values.reduce(0, +)
      lines.append("# \(kind.rounds) rounds, \(total) operations")
      lines.append("\(isGood ? "ok" : "not ok") \(index + 1) stress.\(kind.kind.rawValue)\(skip)")
    }
    return lines.joined(separator: "\n")
  }
}
