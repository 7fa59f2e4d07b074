internal import ArgumentParser
internal import PMRealGuest

/// `physmem kvm lockstep`.
struct KVMLockstep: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "lockstep",
    abstract: "Runs a software guest and a real one over the same memory and compares everything.",
    discussion: """
      Random accesses in slots, at page borders, in holes and in read-only slots, between random \
      changes of the host process's memory and of the slots. Compared are values, errors, exits, the \
      errors of all calls, dirty logs bit by bit, and at checkpoints all mapped memory. Exit codes: \
      0 equal, 1 a difference, 4 no usable /dev/kvm.
      """)

  @Option(help: "Accesses and changes to make.")
  var steps = 100_000

  @Option(help: "The seed of the run; another one each time if none is given.")
  var seed: UInt64?

  @Flag(help: "Print one JSON object.")
  var json = false

  func validate() throws {
    guard steps >= 0 else { throw ValidationError("--steps \(steps): expected 0 or more.") }
  }

  func run() throws {
    if let reason = RealVM.unavailability() {
      Output.error("skipped: \(reason)")
      throw ExitCode(4)
    }
    let report: RealLockstep.Report
    do throws(RealGuestError) {
      report = try RealLockstep.run(
        seed: seed ?? UInt64.random(in: 1...999_999_999), steps: steps)
    } catch {
      Output.error("\(error)")
      throw ExitCode.unavailable
    }
    if json { try Output.json(report) } else { Output.line("\(report)") }
    if report.mismatches > 0 { throw ExitCode.mismatch }
  }
}
