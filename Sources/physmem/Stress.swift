public import ArgumentParser
internal import Dispatch
internal import Foundation
internal import PMFrames
public import PMPageAllocator
public import PMStress
internal import PMUnits
internal import Synchronization

/// `physmem stress`.
struct Stress: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Real threads on real memory, every invariant checked while they run and at the end.",
    discussion: """
      Rounds of a few seconds, each in a world of its own that has to come back whole: every page free, \
      every count what the threads say they hold, every list in order, the bytes of every page its \
      owner's, and for guests KVM's three properties: counts intact, no access after free, no stale \
      translation. A failure prints its seed, its step and the command that repeats its round.

      Exit codes: 0 nothing found, 1 something was found, 4 skipped (the machine lacks what it takes), \
      69 the same with --require, 130 or 143 interrupted, with a report of what was done.

      With --guest kvm the guests of map, memslot and dirty are vCPUs of a real machine of /dev/kvm on real \
      memory: shmem and shared_hugetlb are frames of a machine's arena, the others private memory of this \
      process. A killed vCPU's thread ends in the middle of its work, and another goes on with the vCPU. \
      What cannot be had from the host's kernel (--era, --delay-notifier) is ignored, which is said.
      """)

  /// What users write for the kinds.
  enum Target: String, CaseIterable, ExpressibleByArgument {
    case refcount, alloc, map, memslot, dirty, all
    var kinds: [StressKind] { StressKind(rawValue: rawValue).map { [$0] } ?? StressKind.allCases }
  }

  /// What the report is printed as.
  enum Format: String, CaseIterable, ExpressibleByArgument { case text, json, ktap }

  @Argument(
    help: "What is put under stress: \(Target.allCases.map(\.rawValue).joined(separator: ", ")).")
  var targets: [Target]

  @Option(name: [.customShort("v"), .long], help: "vCPUs (map, memslot, dirty).")
  var vcpus = 2

  @Option(name: [.customShort("t"), .long], help: "Threads (refcount, alloc).")
  var threads = 2

  @Option(name: [.customShort("b"), .long], help: "Memory under stress, as 64M or 1G.")
  var bytes = "64M"

  @Option(
    name: [.customShort("s"), .long],
    help: "What the memory is: \(StressBacking.allCases.map(\.rawValue).joined(separator: ", ")).")
  var backing: StressBacking = .anonymous

  @Option(
    name: [.customShort("i"), .long],
    help: "Operations per thread, in one round per kind; without it, as many as the time allows.")
  var iterations: Int?

  @Option(help: "How long in all; 10 without -i, no limit with it.")
  var seconds: Double?

  @Option(help: "The first round's seed; another one each time if none is given.")
  var seed: UInt64?

  @Option(help: "Whose guests: software or kvm (map, memslot, dirty).")
  var guest: StressGuest = .software

  @Option(
    help: """
      How KVM treats pages: A0, A, B or C. A0, A and C in turn if none is given; B, as posted, marks pages after \
      their last reference is gone, which stress finds.
      """)
  var era: KernelModel.KVM?

  @Option(help: RefcountLayout.help)
  var refcountLayout: RefcountLayout = .packed

  @Flag(help: "Inject faults of every kind, seldom.")
  var faults = false

  @Option(
    help:
      "Let allocations fail: INTERVAL,PROBABILITY,SPACE,TIMES as in the kernel's fail_page_alloc.")
  var failPageAlloc: AllocationFaults?

  @Option(help: "Let a notifier take up to so many microseconds.")
  var delayNotifier: Int?

  @Option(help: "Kill a vCPU's thread about every so many accesses.")
  var killVcpu: Int?

  @Option(help: "The report's form: text, json or ktap.")
  var format: Format?

  @Flag(help: "Print one JSON object: --format json.")
  var json = false

  @Flag(help: "Exit with 69 instead of 4 where the machine lacks what it takes.")
  var require = false

  @Flag(help: "No progress line.")
  var quiet = false

  func validate() throws {
    if targets.isEmpty { throw ValidationError("name what to put under stress, or 'all'.") }
    if json, let format, format != .json {
      throw ValidationError("--json and --format \(format.rawValue) contradict each other.")
    }
    if let problem = try options().problem { throw ValidationError("\(problem).") }
  }

  private func options() throws -> StressOptions {
    guard let size = ByteCount(bytes) else {
      throw ValidationError("--bytes \(bytes): expected a size as 64M or 1G.")
    }
    var options = StressOptions()
    options.kinds = StressKind.allCases.filter { kind in
      targets.contains { $0.kinds.contains(kind) }
    }
    options.vcpus = vcpus
    options.threads = threads
    options.byteCount = size.rawValue
    options.backing = backing
    options.iterations = iterations
    options.seconds = seconds ?? (iterations == nil ? 10 : StressOptions.noLimit)
    options.guest = guest
    options.era = era
    options.refcountLayout = refcountLayout
    options.faults = faults ? .usual : StressFaults()
    if let failPageAlloc { options.faults.failPageAlloc = failPageAlloc }
    if let delayNotifier { options.faults.notifierDelay = delayNotifier }
    if let killVcpu { options.faults.killVCPUEvery = killVcpu }
    return options
  }

  func run() throws {
    var options = try options()
    options.seed = seed ?? UInt64.random(in: 1...999_999_999)
    for text in options.ignored { Output.error("ignored with --guest kvm: \(text)") }
    let control = StressControl()
    let signals = StressSignals(control)
    let line = quiet || isatty(2) == 0 ? nil : StressProgress(options, control)
    let report = StressRunner(options, control: control).run { seconds, kind in
      line?.enter(kind)
    }
    line?.end()
    switch json ? .json : format ?? .text {
    case .json: try Output.json(report)
    case .ktap: Output.line(report.ktap)
    case .text: Output.line("\(report)")
    }
    if let signal = signals.first { throw ExitCode(128 + signal) }
    if !report.isSound { throw ExitCode.mismatch }
    if report.isSkipped {
      Output.error("skipped: \(report.kinds.compactMap(\.skipped).first ?? "")")
      throw require ? ExitCode.unavailable : ExitCode(4)
    }
  }
}

/// Ends the run at SIGINT or SIGTERM, and remembers which.
///
/// Both are blocked in the calling thread, and so in all that it starts: to be made before any other. A
/// thread waits for the first one; a second one ends the process at once.
private final class StressSignals: Sendable {
  private let seen = Atomic<Int32>(0)

  init(_ control: StressControl) {
    var signals = sigset_t()
    sigemptyset(&signals)
    sigaddset(&signals, SIGINT)
    sigaddset(&signals, SIGTERM)
    pthread_sigmask(SIG_BLOCK, &signals, nil)
    let waited = signals
    Thread { [self] in
      var signals = waited
      var number: Int32 = 0
      guard sigwait(&signals, &number) == 0 else { return }
      seen.store(number, ordering: .relaxed)
      control.interrupt()
      pthread_sigmask(SIG_UNBLOCK, &signals, nil)
      while true { pause() }
    }.start()
  }

  /// The signal that ended the run, or nil.
  var first: Int32? {
    let number = seen.load(ordering: .relaxed)
    return number == 0 ? nil : number
  }
}

/// A line on the terminal that is written over and over.
private struct StressProgress {
  private let phase: Phase
  private let timer: any DispatchSourceTimer

  private final class Phase: Sendable { let kind = Mutex<StressKind?>(nil) }

  init(_ options: StressOptions, _ control: StressControl) {
    let start = ContinuousClock.now
    let phase = Phase()
    let limit = options.seconds < StressOptions.noLimit ? " of \(Int(options.seconds))" : ""
    self.phase = phase
    timer = DispatchSource.makeTimerSource(queue: .global())
    timer.schedule(deadline: .now() + 0.5, repeating: 0.5)
    timer.setEventHandler {
      let name = phase.kind.withLock { $0?.rawValue } ?? ""
      let gone = start.duration(to: .now).components.seconds
      let text =
        "stress \(name): \(gone)\(limit) s, \(control.operations / 1_000_000) million steps"
      try? FileHandle.standardError.write(contentsOf: Data("\r\u{1b}[K\(text)".utf8))
    }
    timer.resume()
  }

  func enter(_ kind: StressKind) { phase.kind.withLock { $0 = kind } }

  func end() {
    timer.cancel()
    try? FileHandle.standardError.write(contentsOf: Data("\r\u{1b}[K".utf8))
  }
}

extension StressBacking: ExpressibleByArgument {}
extension StressGuest: ExpressibleByArgument {}
extension KernelModel.KVM: ExpressibleByArgument {}

extension AllocationFaults: ExpressibleByArgument {
  /// Reads the kernel's four numbers.
  public init?(argument: String) {
    let numbers = argument.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) }
    guard numbers.count == 4, !numbers.contains(nil) else { return nil }
    let values = numbers.compactMap(\.self)
    self.init(interval: values[0], probability: values[1], space: values[2], times: values[3])
  }
}
