internal import Foundation
internal import PMArena
internal import PMFrames
internal import PMPageAllocator
internal import PMRealGuest

/// Plays rounds of stress until the time is over or something is found.
///
/// Each round has a world of its own, made and given back, so that what a round loses shows at its end.
/// The calling thread waits; rounds run on threads of their own.
public struct StressRunner: Sendable {
  /// How long a round lasts at most where the time of a run is shared by several, in seconds.
  static let longestRound = 5.0

  /// What to do.
  public var options: StressOptions
  /// Shared with whoever wants to end the run.
  public let control: StressControl

  /// A runner; options are taken as they are, see ``StressOptions/problem``.
  public init(_ options: StressOptions, control: StressControl = StressControl()) {
    self.options = options
    self.control = control
  }

  /// Runs. `progress` is called between rounds with the seconds gone and the kind that comes next.
  public func run(progress: (Double, StressKind) -> Void = { _, _ in }) -> StressReport {
    var report = StressReport(options: options)
    report.kinds = options.kinds.map { StressReport.KindReport(kind: $0) }
    let start = ContinuousClock.now
    func elapsed() -> Double { start.duration(to: .now).seconds }
    var round = 0
    var nextSample = 0.0
    while !control.shouldStop, round == 0 || elapsed() < options.seconds {
      let index = round % options.kinds.count
      if options.iterations != nil, round >= options.kinds.count { break }
      if report.kinds.allSatisfy({ $0.skipped != nil }) { break }
      let kind = options.kinds[index]
      progress(elapsed(), kind)
      let plan = self.plan(round, kind, left: options.seconds - elapsed())
      let before = control.failures.count
      let began = ContinuousClock.now
      let outcome = StressRunner.play(plan, control)
      report.kinds[index].seconds += began.duration(to: .now).seconds
      report.kinds[index].skipped = outcome.skipped
      if outcome.skipped == nil { report.kinds[index].rounds += 1 }
      report.kinds[index].operations.merge(outcome.operations, uniquingKeysWith: +)
      report.kinds[index].failures += control.failures.count - before
      round += 1
      if elapsed() >= nextSample || control.shouldStop {
        report.residence.append(
          .init(seconds: elapsed(), residentKiB: StressRunner.residentKiB()))
        nextSample += max(options.seconds / 100, 0.1)
      }
    }
    report.seconds = elapsed()
    report.isInterrupted = control.wasInterrupted
    report.failures = control.failures
    report.repeats = control.failures.map { options.command(for: $0) }
    return report
  }

  private func plan(_ round: Int, _ kind: StressKind, left: Double) -> StressPlan {
    let isAlone = options.iterations != nil
    let share = options.seconds / Double(options.kinds.count * 2)
    let time = isAlone ? left : min(left, min(StressRunner.longestRound, max(share, 0.2)))
    let seed = options.seed &+ UInt64(round)
    // Not B: as posted it marks pages after their last reference is gone, and stress finds that.
    let eras: [KernelModel.KVM] = [.c, .a, .a0]
    return StressPlan(
      kind: kind, options: options, seed: seed,
      era: options.era ?? eras[Int(seed / 3 % UInt64(eras.count))],
      seconds: time, deadline: StressPlan.deadline(in: time),
      iterations: options.iterations)
  }

  private static func play(_ plan: StressPlan, _ control: StressControl) -> StressOutcome {
    if plan.options.guest == .kvm, plan.kind.hasGuests {
      return RealStress.run(plan, control: control)
    }
    if let reason = plan.options.backing.softwareLimit(for: plan.kind) {
      return StressOutcome(skipped: reason)
    }
    do {
      switch plan.kind {
      case .refcount: return try RefcountStress.run(plan, control: control)
      case .alloc: return try AllocStress.run(plan, control: control)
      case .map: return try MapStress.run(plan, control: control)
      case .memslot: return try MemslotStress.run(plan, control: control)
      case .dirty: return try DirtyStress.run(plan, control: control)
      }
    } catch let error as MachineError {
      // The host could not give the memory: nothing was tried.
      return StressOutcome(skipped: "\(error)")
    } catch {
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil,
          message: "the round could not be set up: \(error)"))
      return StressOutcome()
    }
  }

  /// The resident set of this process, without what the C library keeps for later.
  static func residentKiB() -> Int {
    Host.trimHeap()
    let text = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8)) ?? ""
    let pages = text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
    return pages * 4
  }
}

extension StressKind {
  /// Whether guests take part.
  public var hasGuests: Bool { self == .map || self == .memslot || self == .dirty }
}

extension StressBacking {
  /// Why software guests cannot have such memory, or nil.
  func softwareLimit(for kind: StressKind) -> String? {
    guard kind.hasGuests, self == .anonymousHugeTLB1GiB else { return nil }
    return
      "the emulated host has huge pages of 2 MiB only: use --guest kvm, or anonymous_hugetlb_2mb"
  }
}

extension StressOptions {
  /// As many seconds as a run without a limit of its time has.
  public static let noLimit: Double = 1e8

  /// What is wrong with the options, or nil.
  public var problem: String? {
    if kinds.isEmpty { return "no kind of stress: expected one or more" }
    if !(1...256).contains(vcpus) { return "\(vcpus) vCPUs: expected 1 to 256" }
    if !(1...256).contains(threads) { return "\(threads) threads: expected 1 to 256" }
    if byteCount < 1 << 20 || byteCount > 1 << 40 {
      return "\(byteCount) bytes: expected 1 MiB to 1 TiB"
    }
    if let iterations, iterations < 1 { return "\(iterations) iterations: expected 1 or more" }
    if !(seconds > 0) { return "\(seconds) seconds: expected more than 0" }
    if let fail = faults.failPageAlloc {
      if fail.interval < 1 { return "interval \(fail.interval): expected 1 or more" }
      if !(0...100).contains(fail.probability) {
        return "probability \(fail.probability): expected 0 to 100 percent"
      }
    }
    return nil
  }

  /// The options that were given and that real guests cannot heed, as on the command line, each with the
  /// reason.
  public var ignored: [String] {
    guard guest == .kvm, kinds.contains(where: \.hasGuests) else { return [] }
    var found: [String] = []
    if era != nil { found.append("--era: the host's kernel has its own") }
    if faults.notifierDelay > 0 {
      found.append("--delay-notifier: the notifiers are the host's kernel's")
    }
    if faults.failPageAlloc != nil, !backing.isShared {
      found.append("--fail-page-alloc: private memory is the host's, only shmem's is a machine's")
    }
    return found
  }

  /// The command that repeats the round of a failure.
  public func command(for failure: StressFailure) -> String {
    var words = ["physmem", "stress", failure.kind.rawValue, "--seed", "\(failure.seed)"]
    words += ["-v", "\(vcpus)", "-t", "\(threads)", "-b", "\(byteCount)", "-s", backing.rawValue]
    if let iterations { words += ["-i", "\(iterations)"] }
    if seconds < StressOptions.noLimit { words += ["--seconds", "\(seconds)"] }
    if guest != .software { words += ["--guest", guest.rawValue] }
    if let era { words += ["--era", era.rawValue] }
    if refcountLayout != .packed { words += ["--refcount-layout", refcountLayout.rawValue] }
    if let fail = faults.failPageAlloc {
      words += [
        "--fail-page-alloc",
        "\(fail.interval),\(fail.probability),\(fail.space),\(fail.times)",
      ]
    }
    if faults.notifierDelay > 0 { words += ["--delay-notifier", "\(faults.notifierDelay)"] }
    if faults.killVCPUEvery > 0 { words += ["--kill-vcpu", "\(faults.killVCPUEvery)"] }
    return words.joined(separator: " ")
  }
}
