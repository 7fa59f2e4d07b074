internal import ArgumentParser
internal import PMPageAllocator

/// `physmem demo`.
struct Demo: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows on real memory who holds a page, who frees it, and what a guest sees then.",
    discussion: """
      A driver allocates four pages, KVM takes a reference on the first, the driver frees, others \
      allocate, KVM puts: without and with __GFP_COMP, and under the older forms of __free_pages. \
      All values are read from a small machine, and each step is checked; exit code 1 if one is not \
      as it must be.
      """)

  @Flag(help: "Print one JSON object.")
  var json = false

  func run() throws {
    let thread: MailThreadStory
    do {
      thread = try MailThreadStory()
    } catch let error as MachineError {
      Output.error("\(error)")
      throw ExitCode.unavailable
    } catch let error as AllocationError {
      Output.error("a page that must be there was not: \(error)")
      throw ExitCode.mismatch
    }
    if json {
      try Output.json(DemoJSON(stories: thread.stories, expectationsMet: thread.failures.isEmpty))
    } else {
      for line in StoryText(thread: thread).lines { Output.line(line) }
    }
    for failure in thread.failures { Output.error(failure) }
    if !thread.failures.isEmpty { throw ExitCode.mismatch }
  }
}

/// The object that `demo --json` prints.
struct DemoJSON: Encodable {
  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case stories
    case expectationsMet = "expectations_met"
  }

  var schemaVersion = 1
  var stories: [Story]
  var expectationsMet: Bool
}
