public import PMFrames
public import PMPageAllocator

/// What is put under stress.
public enum StressKind: String, CaseIterable, Codable, Sendable {
  /// Reference counts: gets, puts, try-gets, pins and freezes of shared pages, lookups of pages that go.
  case refcount
  /// The page allocator: blocks of all orders from all CPUs, with canaries in their bytes.
  case alloc
  /// Guest memory whose host mapping changes under the guests.
  case map
  /// Memslots that are added, deleted and moved under the guests.
  case memslot
  /// Dirty logs that are harvested, as a live migration does, while the guests write.
  case dirty
}

/// What the guest's memory (kinds `map`, `memslot` and `dirty`) or the machine's (`refcount`, `alloc`)
/// is made of. Raw values as in the `-s` option of the KVM selftests.
public enum StressBacking: String, CaseIterable, Codable, Sendable {
  /// Private memory in 4 KiB pages.
  case anonymous
  /// Private memory in transparent huge pages.
  case anonymousTHP = "anonymous_thp"
  /// Private memory in huge pages of the default size, 2 MiB.
  case anonymousHugeTLB = "anonymous_hugetlb"
  /// Private memory in 2 MiB pages of the pool.
  case anonymousHugeTLB2MiB = "anonymous_hugetlb_2mb"
  /// Private memory in 1 GiB pages of the pool.
  case anonymousHugeTLB1GiB = "anonymous_hugetlb_1gb"
  /// A memory file, shared.
  case shmem
  /// A memory file in 2 MiB pages of the pool, shared.
  case sharedHugeTLB = "shared_hugetlb"
}

/// Whose guests touch the memory.
public enum StressGuest: String, CaseIterable, Codable, Sendable {
  /// The software guest.
  case software
  /// A real guest of /dev/kvm.
  case kvm
}

/// Faults that are injected.
public struct StressFaults: Hashable, Codable, Sendable {
  /// Allocations that fail, or nil for none; see `AllocationFaults` of PMPageAllocator.
  public var failPageAlloc: AllocationFaults?
  /// A notifier that takes its time: up to this many microseconds between start and end; 0: none.
  public var notifierDelay: Int = 0
  /// A vCPU thread is killed about every so many accesses; 0: never.
  public var killVCPUEvery: Int = 0

  /// No faults.
  public init() {}

  /// What `--faults` stands for: every kind of fault, seldom enough that most work still gets done.
  public static var usual: StressFaults {
    var faults = StressFaults()
    faults.failPageAlloc = AllocationFaults(interval: 97, probability: 50, space: 0, times: -1)
    faults.notifierDelay = 50
    faults.killVCPUEvery = 20_000
    return faults
  }
}

/// How hard, how long, on what.
public struct StressOptions: Hashable, Codable, Sendable {
  /// What is put under stress, in turn.
  public var kinds: [StressKind] = StressKind.allCases
  /// Guests' processors: kinds `map`, `memslot` and `dirty`. 1 or more.
  public var vcpus: Int = 2
  /// Threads of the kinds `refcount` and `alloc`. 1 or more.
  public var threads: Int = 2
  /// Memory under stress.
  public var byteCount: UInt64 = 64 << 20
  /// What it is made of.
  public var backing: StressBacking = .anonymous
  /// Operations per thread and round, or nil: as many as the time allows.
  public var iterations: Int?
  /// How long in all; with `iterations`, at most so long.
  public var seconds: Double = 10
  /// The first round's seed; later rounds have the numbers that follow.
  public var seed: UInt64 = 1
  /// Whose guests.
  public var guest: StressGuest = .software
  /// How KVM treats pages; nil: C, A and A0 in turn. B, as posted, marks pages after their last reference
  /// is gone: stress of it fails once that has happened.
  public var era: KernelModel.KVM?
  /// How the machine lays out its counts.
  public var refcountLayout: RefcountLayout = .packed
  /// Injected faults.
  public var faults: StressFaults = StressFaults()

  /// The defaults.
  public init() {}
}

/// One round: what a worker is given.
public struct StressPlan: Sendable {
  /// What is put under stress.
  public var kind: StressKind
  /// The options of the run.
  public var options: StressOptions
  /// The round's seed: all its random choices come from it.
  public var seed: UInt64
  /// The era of this round.
  public var era: KernelModel.KVM
  /// How long the round lasts once its world is made.
  public var seconds: Double
  /// When the round has to end.
  public var deadline: ContinuousClock.Instant
  /// Operations per thread, or nil.
  public var iterations: Int?
}

extension StressPlan {
  /// The same plan, its time beginning now: when the world is made and the threads can start.
  func begun() -> StressPlan {
    var plan = self
    plan.deadline = StressPlan.deadline(in: seconds)
    return plan
  }

  /// The time in so many seconds.
  static func deadline(in seconds: Double) -> ContinuousClock.Instant {
    .now.advanced(by: .nanoseconds(Int64(min(max(seconds, 0), 1e9) * 1e9)))
  }
}
