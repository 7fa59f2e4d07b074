public import PMFrames

/// Something to be timed: `run` performs `operations` operations; `before` and `after` are not timed.
public struct Workload {
  /// Operations in one `run`.
  public var operations: Int
  /// Puts the data in place.
  public var before: () -> Void
  /// What is timed.
  public var run: () -> Void
  /// Cleans up.
  public var after: () -> Void

  /// A workload from its parts.
  public init(
    operations: Int, before: @escaping () -> Void = {}, after: @escaping () -> Void = {},
    run: @escaping () -> Void
  ) {
    self.operations = operations
    self.before = before
    self.run = run
    self.after = after
  }
}

/// What a case is made of, once its data stands.
public enum Subject {
  /// One thread: the subject beside its limit.
  case single(Workload, limit: Workload)
  /// Two threads at once, beside two threads of the limit.
  case paired([Workload], limit: [Workload])
  /// Throughput of two threads over that of one.
  case scaling(one: Workload, two: [Workload])
  /// Values that are found rather than timed over many operations: value and limit per round.
  case figure(() throws -> (value: Double, limit: Double?))
}

/// A benchmark case of PERFORMANCE.md.
public struct BenchmarkCase {
  /// What a bar is compared with.
  public enum Bar: Hashable, Sendable {
    /// The median of the ratios to the limit may be at most this.
    case ratio(Double)
    /// The median value may be at most this.
    case atMost(Double)
    /// The median value has to be at least this.
    case atLeast(Double)

    /// How a bar is compared, by the names that reports use.
    public enum Kind: String, Hashable, Codable, Sendable, CaseIterable {
      /// The ratio to the limit, at most.
      case ratio
      /// The value, at most.
      case atMost = "at_most"
      /// The value, at least.
      case atLeast = "at_least"
    }

    /// How it is compared.
    public var kind: Kind {
      switch self {
      case .ratio: .ratio
      case .atMost: .atMost
      case .atLeast: .atLeast
      }
    }

    /// The number that is compared with.
    public var number: Double {
      switch self {
      case .ratio(let number), .atMost(let number), .atLeast(let number): number
      }
    }
  }

  /// The name in PERFORMANCE.md, as `alloc.pair.o0`.
  public let name: String
  /// `ns`, `us`, `x`, `B` or `Mops/s`.
  public let unit: String
  /// What has to be reached.
  public let bar: Bar
  /// What is to be reached beyond the bar; nil where the bar itself is the goal.
  public let goal: Bar?
  /// Threads at work.
  public let threads: Int
  /// One line for people.
  public let summary: String
  /// Makes the data and the workloads; throws where the machine lacks what it takes.
  public let prepare: () throws -> Subject

  init(
    _ name: String, _ summary: String, unit: String = "ns", bar: Bar, goal: Bar? = nil,
    threads: Int = 1, prepare: @escaping () throws -> Subject
  ) {
    self.name = name
    self.summary = summary
    self.unit = unit
    self.bar = bar
    self.goal = goal
    self.threads = threads
    self.prepare = prepare
  }

  /// All cases, or those whose name starts with one of these; their machines lay out counts so. Bars are
  /// meant for packed counts.
  public static func all(
    _ groups: [String] = [], refcountLayout: RefcountLayout = .packed
  ) -> [BenchmarkCase] {
    let machines = BenchmarkMachines(refcountLayout: refcountLayout)
    let cases =
      refcountCases(machines) + allocatorCases(machines) + stage2Cases + guestCases(machines)
      + guestMemoryCases + guestMapCases(machines) + machineCases(machines)
    return groups.isEmpty
      ? cases : cases.filter { item in groups.contains { item.name.hasPrefix($0 + ".") } }
  }
}
