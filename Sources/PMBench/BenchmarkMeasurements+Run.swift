public import PMUnits

extension BenchmarkMeasurements {
  /// How much is measured.
  public struct Options: Sendable {
    /// Seconds that a point of a sweep is measured, about; figures that are counted rather than timed
    /// (the allocators' repetitions, the backings, the real KVM) take the time they take.
    public var seconds: Double
    /// Whether all is cut down to a look: under ten seconds for all groups, coarse figures.
    public var quick: Bool
    /// Threads of a sweep, at most; never more than the CPUs that the process may run on.
    public var maximumThreads: Int
    /// Memory under the allocators, the backings and the real KVM's slots: a multiple of 2 MiB. A quick
    /// look works on a sixteenth of it.
    public var memory: ByteCount

    /// 1 GiB, and half a second per point or, where `quick` is set, a twentieth of a second, unless told
    /// otherwise.
    public init(
      seconds: Double? = nil, quick: Bool = false, maximumThreads: Int = .max,
      memory: ByteCount = .gib(1)
    ) {
      self.seconds = seconds ?? (quick ? 0.05 : 0.5)
      self.quick = quick
      self.maximumThreads = maximumThreads
      self.memory = memory
    }

    /// What is wrong with the options, or nil.
    public var problem: String? {
      if !(seconds > 0) || seconds > 3600 {
        return "\(seconds) seconds per point: expected more than 0, at most 3600"
      }
      if maximumThreads < 1 { return "\(maximumThreads) threads: expected 1 or more" }
      if memory.rawValue % (2 << 20) != 0 || memory < .mib(32) || memory > .tib(1) {
        return "\(memory) of memory: expected 32 MiB to 1 TiB by 2 MiB"
      }
      return nil
    }
  }

  /// Measures these groups, in the order of ``Group``.
  ///
  /// What the machine lacks goes to ``skipped`` with what to do about it; nothing throws. The calling
  /// thread waits and stays where it is; all work is done by threads of their own, each pinned to a CPU
  /// that this process may use, and everything they held is given back before this returns. To be called
  /// by one thread at a time. `progress` is called by the calling thread with what comes next. pre:
  /// ``Options/problem`` is nil.
  public static func run(
    groups: [Group] = Group.allCases, options: Options = Options(),
    progress: (String) -> Void = { _ in }
  ) -> BenchmarkMeasurements {
    if let problem = options.problem { preconditionFailure(problem) }
    var measured = BenchmarkMeasurements()
    let crew = BenchmarkCrew()
    for group in Group.allCases where groups.contains(group) {
      do {
        switch group {
        case .contention: try measured.measureContention(options, crew, progress)
        case .latency: try measured.measureLatency(options, crew, progress)
        case .scaling: try measured.measureScaling(options, crew, progress)
        case .allocators: measured.measureAllocators(options, crew, progress)
        case .backings: measured.measureBackings(options, crew, progress)
        case .kvm: measured.measureKVM(options, crew, progress)
        }
      } catch {
        measured.skip(group.rawValue, "\(error)")
      }
    }
    return measured
  }

  /// Notes that something could not be measured.
  mutating func skip(_ name: String, _ reason: String) {
    skipped.append(Skip(name: name, reason: reason))
  }
}

extension BenchmarkMeasurements.Options {
  /// Memory that is worked on: a multiple of 2 MiB.
  var workedByteCount: UInt64 {
    quick ? max((memory.rawValue >> 25) << 21, 16 << 20) : memory.rawValue
  }

  /// The numbers of threads of a sweep.
  func threadCounts(_ crew: BenchmarkCrew) -> [Int] {
    BenchmarkCrew.threadCounts(upTo: min(maximumThreads, crew.cpus.count))
  }
}
