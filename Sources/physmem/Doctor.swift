internal import ArgumentParser

/// `physmem doctor`.
struct Doctor: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows what this machine offers, and the commands that would get more of it.",
    discussion: "Changes nothing. The exit code is 0 whatever is found.")

  @Flag(help: "Print one JSON object.")
  var json = false

  func run() throws {
    let checks = HostCheck.all()
    if json {
      try Output.json(DoctorJSON(checks: checks))
      return
    }
    let widths = [7, checks.map(\.title.count).max() ?? 0, 0]
    for check in checks {
      Output.line(Table.row([check.status.rawValue, check.title, check.value], widths: widths))
      guard let remedy = check.remedy else { continue }
      Output.line(Table.row(["", "", "  $ \(remedy)"], widths: widths))
    }
    let counts = HostCheck.Status.allCases.map { status in
      "\(checks.filter { $0.status == status }.count) \(status.rawValue)"
    }
    Output.line(counts.joined(separator: ", "))
  }
}

/// The object that `doctor --json` prints.
struct DoctorJSON: Encodable {
  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case checks
  }

  var schemaVersion = 1
  var checks: [HostCheck]
}

/// One thing that the host has or has not.
struct HostCheck: Encodable {
  /// How good it is.
  enum Status: String, Encodable, CaseIterable {
    case ok
    case limited
    case missing
  }

  /// The stable name.
  var name: String
  /// How good it is.
  var status: Status
  /// What was found, for people.
  var value: String
  /// The command that would make it better, where one would.
  var remedy: String?

  /// The name for people.
  var title: String { name.replacing("_", with: " ") }

  enum CodingKeys: String, CodingKey {
    case name, status, value, remedy
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(name, forKey: .name)
    try container.encode(status, forKey: .status)
    try container.encode(value, forKey: .value)
    // With a null where there is none.
    try container.encode(remedy, forKey: .remedy)
  }
}
