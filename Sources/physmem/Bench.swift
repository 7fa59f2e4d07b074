internal import ArgumentParser

/// `physmem bench`.
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Times counts, allocator and guest mapping, each beside its limit in the same run.",
    discussion: """
      Without a subcommand it runs: `physmem bench alloc --json` is `physmem bench run alloc --json`. \
      `physmem bench run --help` has the options.
      """,
    subcommands: [BenchRun.self, BenchCompare.self], defaultSubcommand: BenchRun.self)
}
