internal import ArgumentParser
internal import PMGuestMap
internal import PMPageAllocator
internal import PMUnits

/// `physmem kvm story`.
struct KVMStoryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "story",
    abstract: "A driver's block without __GFP_COMP in a guest, in each era, with real bytes.",
    discussion: """
      All values are read from a small machine with a software guest, and what is told is checked; \
      exit code 1 if an expectation is not met.
      """)

  @Option(help: "A0, A, B or C; without it, all four.")
  var era: String?

  @Flag(help: "Say who holds each page at each step, and what does not match at the end.")
  var ledger = false

  @Flag(help: "Print one JSON object.")
  var json = false

  func validate() throws { _ = try KVMEra.parse(era) }

  func run() throws {
    let stories: [KVMStory]
    do {
      stories = try KVMEra.parse(era).map { try KVMStory($0) }
    } catch let error as MachineError {
      Output.error("\(error)")
      throw ExitCode.unavailable
    } catch {
      Output.error("a page that must be there was not: \(error)")
      throw ExitCode.mismatch
    }
    let failures = stories.flatMap(\.failures)
    if json {
      try Output.json(KVMStoryJSON(stories: stories, expectationsMet: failures.isEmpty))
    } else {
      for line in KVMStoryText(stories: stories, withLedger: ledger).lines { Output.line(line) }
    }
    for failure in failures { Output.error(failure) }
    if !failures.isEmpty { throw ExitCode.mismatch }
  }
}

/// The object that `kvm story --json` prints.
struct KVMStoryJSON: Encodable {
  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case stories
    case expectationsMet = "expectations_met"
  }

  var schemaVersion = 1
  var stories: [KVMStory]
  var expectationsMet: Bool
}

extension KVMStoryFrame: Encodable {
  enum CodingKeys: String, CodingKey {
    case pfn, counts, `where`, word, held
    case heldDuring = "held_while_entry_is_made"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(pfn.rawValue, forKey: .pfn)
    try container.encode(counts, forKey: .counts)
    try container.encode(place.sentence, forKey: .where)
    try container.encode(KVMStoryStage.text(word), forKey: .word)
    try container.encode(heldDuring, forKey: .heldDuring)
    try container.encode(held, forKey: .held)
  }
}

extension KVMStoryStep: Encodable {
  enum CodingKeys: String, CodingKey {
    case action = "step"
    case note, frames, path, properties
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(action, forKey: .action)
    try container.encode(note, forKey: .note)
    try container.encode(frames, forKey: .frames)
    try container.encode(path, forKey: .path)
    if let verdict {
      try container.encode(KVMVerdictJSON(verdict: verdict), forKey: .properties)
    }
  }
}

/// The three properties, each with what speaks against it.
struct KVMVerdictJSON: Encodable {
  var verdict: GuestVerdict

  enum CodingKeys: String, CodingKey {
    case countViolations = "count_violations"
    case accessesAfterFree = "accesses_after_free"
    case staleTranslations = "stale_translations"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(verdict.countViolations, forKey: .countViolations)
    try container.encode(
      verdict.accessesAfterFree.map(\.description), forKey: .accessesAfterFree)
    try container.encode(
      verdict.staleTranslations.map(\.description), forKey: .staleTranslations)
  }
}

extension KVMStoryChapter: Encodable {
  enum CodingKeys: String, CodingKey {
    case title, steps, properties
    case unmatchedPuts = "unmatched_puts"
    case unmatchedCounts = "unmatched_counts"
    case failures = "failed_expectations"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(title, forKey: .title)
    try container.encode(steps, forKey: .steps)
    try container.encode(KVMVerdictJSON(verdict: verdict), forKey: .properties)
    try container.encode(unmatchedPuts, forKey: .unmatchedPuts)
    try container.encode(unmatchedCounts, forKey: .unmatchedCounts)
    try container.encode(failures, forKey: .failures)
  }
}

extension KVMStory: Encodable {
  enum CodingKeys: String, CodingKey {
    case era, chapters
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(era.rawValue, forKey: .era)
    try container.encode(chapters, forKey: .chapters)
  }
}
