internal import ArgumentParser
internal import Foundation

/// The command.
@main
struct Physmem: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "physmem",
    abstract: "The physical memory of a Linux machine: the page allocator exact to the PFN.",
    discussion: """
      Exit codes: 0 all expectations met, 1 a comparison failed, 4 skipped, 64 usage, \
      65 malformed input, 66 no such input, 69 a required resource is missing.
      """,
    version: "0.1.0",
    subcommands: [
      Replay.self, Conform.self, KVM.self, Stress.self, Bench.self, Serve.self, Peek.self,
      Demo.self, Doctor.self,
    ])
}

/// The command's exit codes beyond success, as DESIGN states them.
extension ExitCode {
  /// An expectation or comparison failed.
  static let mismatch: ExitCode = ExitCode(1)
  /// Malformed input.
  static let malformedInput: ExitCode = ExitCode(65)
  /// No such input.
  static let noInput: ExitCode = ExitCode(66)
  /// A required resource is missing.
  static let unavailable: ExitCode = ExitCode(69)
}

/// Writes lines to standard output or standard error. A closed pipe ends the command quietly.
enum Output {
  static func line(_ text: String = "") { write(text + "\n", to: .standardOutput) }

  static func error(_ text: String) { write("physmem: \(text)\n", to: .standardError) }

  private static func write(_ text: String, to handle: FileHandle) {
    try? handle.write(contentsOf: Data(text.utf8))
  }

  /// One JSON object in stable key order.
  static func json(_ value: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
    try line(String(decoding: encoder.encode(value), as: UTF8.self))
  }
}
