internal import CPhysmemShim
public import PMArena
public import PMHostMap
public import PMPageAllocator
public import PMUnits

/// A virtual machine as KVM keeps it: memslots over a process's memory, and the stage-2 tables that map
/// its frames into the guest.
///
/// How pages are looked up, counted and marked depends on the era, which is the machine's
/// `KernelModel.kvm` unless the configuration says otherwise. In every era an entry of the tables holds no
/// reference: only the notifier keeps a frame from changing hands under the guest.
///
/// Locks, in order: `slotsLock` (updates of slots), `readers` (shared by whoever looks at slots, taken
/// exclusively to publish a set: the counterpart of SRCU), the process's mmap lock, `mmuLock` (shared
/// for faults of the TDP MMU, exclusive for everything that drops entries), `notifierLock`.
public final class VirtualMachine: @unchecked Sendable {
  // Sendable: every variable names its lock below; the tables are atomic words under the rules of
  // `Stage2Table`.

  /// Which memory management unit code serves the guest.
  public enum MMU: String, Hashable, Sendable {
    /// Two-dimensional paging with the TDP MMU: lock-free installs, no prefetch.
    case tdp
    /// Shadow paging of a guest that has paging of its own: faults under the lock, no fast page fault,
    /// neighbours prefetched, no eager split.
    case shadow
  }

  /// What the VM's host offers and how its KVM is set up.
  public struct Configuration: Sendable {
    /// Limits and capabilities.
    public var capabilities: VMCapabilities
    /// Which MMU code.
    public var mmu: MMU
    /// Levels of the tables: 4 or 5.
    public var levels: Int
    /// The highest level of a leaf: 3 (1 GiB) with TDP, 2 with shadow paging.
    public var maxLeafLevel: Int
    /// Whether huge leaves are split when logging begins (`eager_page_split`).
    public var splitsEagerly: Bool
    /// Whether remapped pages may be mapped for long without a notifier (6.13: `allow_unsafe_mappings`).
    public var allowsUnsafeMappings: Bool
    /// The era, or nil for the machine's.
    public var era: KernelModel.KVM?

    /// A configuration from its parts; the defaults are Linux 6.1 with TDP.
    public init(
      capabilities: VMCapabilities = .linux61(fiveLevel: true, physicalAddressBits: 40),
      mmu: MMU = .tdp, levels: Int = 4, maxLeafLevel: Int? = nil, splitsEagerly: Bool = true,
      allowsUnsafeMappings: Bool = false, era: KernelModel.KVM? = nil
    ) {
      self.capabilities = capabilities
      self.mmu = mmu
      self.levels = levels
      self.maxLeafLevel = maxLeafLevel ?? (mmu == .tdp ? 3 : 2)
      self.splitsEagerly = splitsEagerly
      self.allowsUnsafeMappings = allowsUnsafeMappings
      self.era = era
    }
  }

  /// The host.
  public let kernel: HostKernel
  /// The process whose memory the slots show. Calls on behalf of another one are refused by the kernel
  /// with EIO; here the type leaves no room for them.
  public let process: HostProcess
  /// How pages are looked up, counted and marked.
  public let era: KernelModel.KVM
  /// What the host offers.
  public let configuration: Configuration
  /// A number for people, from 1.
  public let id: Int
  /// Lets every vCPU drop its cached translations and waits for it.
  let gate = FlushGate()
  /// The tables, one per address space.
  let tables: [Stage2Table]

  let slotsLock = HostMutex()
  let readers = ReadWriteLock()
  let mmuLock = ReadWriteLock()
  let notifierLock = HostMutex()
  let notifierIdle = HostCondition()

  /// The slots as readers see them; replaced under `readers` held exclusively.
  var slots: MemslotSets
  /// Manual protection and rings; under `slotsLock`, read under `readers`.
  var settings = DirtyLogSettings()
  /// Invalidations between their start and their end; under `notifierLock`.
  var activeInvalidations = 0
  /// Those among them that hit a slot; under `mmuLock`.
  var invalidationsInProgress = 0
  /// What they cover: user addresses up to 6.1, guest frames from 6.8 on; under `mmuLock`.
  var invalidRange: Range<UInt64>?
  /// The caches that an invalidation has to reach; under `notifierLock`.
  var pfnCaches: [PFNCache] = []
  /// Whether any vCPU was made; under `slotsLock`.
  var hasVCPU = false
  /// Completed invalidations (word 0), drops of all roots (word 1), faults that ended with an entry
  /// (word 2): atomic.
  let counters: UnsafeMutablePointer<Int64>
  /// Leaves zaps out: the bug that property 3 finds. Set while nothing runs.
  public var omitsZaps = false
  /// Looks at each frame that the guest reaches whether somebody owns it. Costs a look at the lists per
  /// miss of the translation cache. Set while nothing runs.
  public var checksAccesses = false
  /// How many findings are kept.
  static let findingLimit = 10_000
  /// What was found by ``checksAccesses``; under `notifierLock`.
  var accessFindings: [GuestFinding] = []

  /// A VM over a process's memory, without slots. Throws where the host cannot map its tables.
  public init(
    process: HostProcess, configuration: Configuration = Configuration()
  ) throws(HostError) {
    self.process = process
    kernel = process.kernel
    era = configuration.era ?? kernel.machine.model.kvm
    self.configuration = configuration
    id = kernel.newMachineID()
    slots = MemslotSets(addressSpaceCount: configuration.capabilities.addressSpaceCount)
    var made: [Stage2Table] = []
    for _ in 0..<configuration.capabilities.addressSpaceCount {
      made.append(try Stage2Table(levels: configuration.levels))
    }
    tables = made
    counters = .allocate(capacity: 3)
    counters.initialize(repeating: 0, count: 3)
    process.register(self)
  }

  deinit { counters.deallocate() }

  /// Ends the VM: every entry is dropped with the marks of its era, the notifier is removed. To be
  /// called once, while no vCPU runs.
  public func close(on cpu: inout CPU) {
    process.unregister(self)
    dropAll(on: &cpu)
  }

  // MARK: what differs between the eras

  /// Whether an invalidation is recorded by guest frames (6.8 and later).
  var recordsGuestFrames: Bool { era == .c }
  /// Whether a huge leaf is split in place for a smaller one (6.13) instead of zapped.
  var splitsInPlace: Bool { era == .c }

  func step(_ text: @autoclosure () -> String) {
    if let observer = kernel.observer, observer.wantsSteps { observer.step(text()) }
  }

  // MARK: counters

  /// Completed invalidations that hit a slot (`mmu_invalidate_seq`).
  public var invalidationSequence: Int64 { pm_counter_load_seq_cst(counters) }

  /// How often all roots were dropped.
  var rootGeneration: Int64 { pm_counter_load_seq_cst(counters + 1) }

  /// Faults that ended with an entry made or changed (`pf_fixed`).
  public var fixedFaultCount: Int64 { pm_counter_load_seq_cst(counters + 2) }

  func noteFixedFault() { _ = pm_counter_add_seq_cst(counters + 2, 1) }

  /// Present leaves of all tables (`pages_4k`, `pages_2m`, `pages_1g`).
  public var leafCounts: Stage2Table.LeafCounts {
    var sum = Stage2Table.LeafCounts()
    for table in tables {
      let counts = table.leafCounts
      sum.pages4K += counts.pages4K
      sum.pages2M += counts.pages2M
      sum.pages1G += counts.pages1G
    }
    return sum
  }

  /// Invalidations that hit a slot and have not ended (`mmu_invalidate_in_progress`).
  public var invalidationsInProgressCount: Int {
    mmuLock.lockShared()
    defer { mmuLock.unlock() }
    return invalidationsInProgress
  }

  /// The leaf that maps a guest frame, and its level; nil where there is none.
  public func translation(_ gfn: GFN, addressSpace: Int = 0) -> (spte: SPTE, level: Int)? {
    guard tables.indices.contains(addressSpace) else { return nil }
    mmuLock.lockShared()
    defer { mmuLock.unlock() }
    return tables[addressSpace].lookup(gfn)
  }
}

/// What a VM found wrong about the guest's view of memory.
public enum GuestFinding: Hashable, Sendable {
  /// The guest reached a frame that nobody owns: free, on a list of the allocator.
  case accessAfterFree(gfn: GFN, pfn: PFN)
  /// An entry maps another frame than the process's page table has, or one where that has none.
  case staleTranslation(gfn: GFN, pfn: PFN, host: PFN?)
}

extension GuestFinding: CustomStringConvertible {
  /// One line.
  public var description: String {
    switch self {
    case .accessAfterFree(let gfn, let pfn):
      "access after free: gfn \(gfn) reaches frame \(pfn), which is free"
    case .staleTranslation(let gfn, let pfn, let host):
      "stale translation: gfn \(gfn) maps frame \(pfn), the host maps "
        + (host.map { "frame \($0)" } ?? "nothing")
    }
  }
}
