internal import PMPageAllocator
internal import PMUnits

/// The same random work on a software guest and on a real one, compared step by step.
///
/// Two emulated machines begin alike. On one a software guest makes all accesses. On the other a real
/// guest does, coupled by ``MirroredVM``; the emulation there only resolves faults. Between accesses
/// both emulated processes map, unmap, protect and discard memory, and slots come, move, change and
/// go. Compared are the value or the error or the exit of each access, the error of each call, dirty
/// logs bit by bit; and at checkpoints the emulated page tables, the emulated machines' translations,
/// and the bytes of every page that is mapped or cached.
public enum RealLockstep {
  /// What to do.
  public struct Options: Sendable {
    /// What the run is made from: the same seed makes the same run.
    public var seed: UInt64
    /// Accesses and changes together.
    public var steps: Int
    /// An error to make on purpose, once the run is under way; nil for none.
    public var mistake: Mistake?

    /// Options from their parts.
    public init(seed: UInt64, steps: Int, mistake: Mistake? = nil) {
      self.seed = seed
      self.steps = steps
      self.mistake = mistake
    }
  }

  /// An error made on purpose, which the comparison has to find.
  public enum Mistake: Hashable, Sendable {
    /// One of the mirror.
    case mirror(MirroredVM.Mistake)
    /// The software guest's machine drops no translations.
    case staleSoftwareGuest
    /// Now and then the real machine's dirty log is not read along with the emulated ones.
    case skipsRealDirtyLog
  }

  /// What came of it.
  public struct Report: Equatable, Sendable, Encodable {
    /// The seed.
    public var seed: UInt64
    /// Accesses and changes made.
    public var steps = 0
    /// Accesses among them.
    public var accesses = 0
    /// Accesses that were device memory, in the view of the software guest.
    public var deviceAccesses = 0
    /// Accesses that failed, in the view of the software guest.
    public var failedAccesses = 0
    /// Changes of the process's memory among the steps.
    public var mappingChanges = 0
    /// Calls about slots and dirty logs among the steps.
    public var slotCalls = 0
    /// Dirty logs that were compared.
    public var dirtyLogs = 0
    /// Dirty pages that these had.
    public var dirtyPages = 0
    /// Times that both memories were compared.
    public var checkpoints = 0
    /// Entries that became writable without a notification: none, as nothing is mapped that makes
    /// such entries.
    public var silentUpgrades = 0
    /// Differences; the run ends with the step that had the first.
    public var mismatches = 0
    /// The first difference, in words; nil where there is none.
    public var firstMismatch: String?
    /// How long the run took, in seconds.
    public var seconds = 0.0

    init(seed: UInt64) { self.seed = seed }
  }

  /// Makes a run. Whether one can be made is what ``RealVM/unavailability()`` says: it throws what
  /// the real machine throws, and ``RealGuestError/invalid(_:)`` where an emulated one cannot be made.
  public static func run(seed: UInt64, steps: Int) throws(RealGuestError) -> Report {
    try run(Options(seed: seed, steps: steps))
  }

  /// Makes a run with more to choose.
  public static func run(_ options: Options) throws(RealGuestError) -> Report {
    let clock = ContinuousClock()
    let start = clock.now
    let configuration = try RealVM.modelConfiguration()
    var world: LockstepWorld
    do {
      world = try LockstepWorld(options, configuration)
    } catch let error as RealGuestError { throw error } catch {
      throw .invalid("the emulated machines: \(error)")
    }
    try world.run()
    var report = world.report
    let passed = clock.now - start
    report.seconds =
      Double(passed.components.seconds) + Double(passed.components.attoseconds) / 1e18
    return report
  }
}

extension RealLockstep.Report: CustomStringConvertible {
  /// A few lines.
  public var description: String {
    let rate = seconds > 0 ? Int(Double(steps) / seconds) : 0
    var text = """
      seed \(seed): \(steps) steps, \(rate) a second; \(accesses) accesses (\(deviceAccesses) device \
      memory, \(failedAccesses) failed), \(mappingChanges) mapping changes, \(slotCalls) slot calls, \
      \(dirtyLogs) dirty logs with \(dirtyPages) pages, \(checkpoints) comparisons of memory; \
      \(mismatches) mismatches
      """
    if let firstMismatch { text += "\nfirst mismatch after \(steps) steps: \(firstMismatch)" }
    return text
  }
}

/// A small generator whose whole state is its seed (SplitMix64).
struct LockstepRandom {
  private var numbers: SplitMix64

  init(seed: UInt64) { numbers = SplitMix64(seed: seed) }

  mutating func next() -> UInt64 {
    numbers.next()
  }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
  mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }
  mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }
}
