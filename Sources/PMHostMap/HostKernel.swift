internal import PMArena
public import PMFrames
public import PMPageAllocator
public import PMUnits

/// What all host processes share: the zero pages, the pool of huge pages, the LRU batches, and the
/// rules of the kernel.
///
/// Every operation that may allocate, free or mark a page takes the CPU it runs on, see `CPU` in PMPageAllocator. Two
/// threads with CPUs of their own may use the same host at the same time.
public final class HostKernel: @unchecked Sendable {
  // Sendable: constant after init, except the batches, which are per CPU and touched by the holder of
  // that CPU only; the huge pages, under `poolLock`; identifiers, under `poolLock`; and `observer`,
  // which is set while nothing runs.

  /// The memory that the host runs on.
  public let machine: Machine
  /// Where kernels differ.
  public let behaviour: HostBehaviour
  /// The shared zero page: reserved, count 1.
  public let zeroPage: PFN
  /// The books of who holds what, or nil where they were not asked for.
  public let ledger: ReferenceLedger?
  // Every path asks for it, several times a page; that nothing runs while it is set is all the exclusion it
  // needs, so that the check at run time, which costs more than the question, is left out.
  /// Who watches; nil by default. Set it while nothing runs; the kernel keeps it alive.
  @exclusivity(unchecked)
  public var observer: (any HostObserver)?

  let poolLock = HostMutex()
  var hugeZero: PFN?
  /// Free huge pages, last in first out.
  var freeHugePages: [PFN] = []
  /// All huge pages of the pool, by head.
  var hugePages: Set<PFN> = []
  var nextProcessID = 1
  var nextFileID = 1
  var nextMachineID = 1
  let batches: UnsafeMutablePointer<LRUBatches>

  /// A host on a machine: takes one page for the shared zero page and `hugePageCount` blocks of order 9
  /// for the pool of huge pages. Throws where there is no memory for them.
  public init(
    machine: Machine, behaviour: HostBehaviour = .linux61, hugePageCount: Int = 0,
    ledger: ReferenceLedger? = nil, on cpu: inout CPU
  ) throws(AllocationError) {
    self.machine = machine
    self.behaviour = behaviour
    self.ledger = ledger
    zeroPage = try cpu.allocatePages(gfp: [.kernel, .zero])
    batches = .allocate(capacity: machine.cpuNodes.count)
    batches.initialize(repeating: LRUBatches(), count: machine.cpuNodes.count)
    machine.insertFlags(.reserved, of: zeroPage)
    ledger?.get(zeroPage, .owner("kernel"))
    for _ in 0..<hugePageCount { try addHugePage(on: &cpu) }
  }

  deinit {
    batches.deinitialize(count: machine.cpuNodes.count)
    batches.deallocate()
  }

  /// The counts and states of the frames.
  @inline(__always) public var frames: FrameTable { machine.frames }

  // MARK: pages

  /// Whether a frame has a `struct page`.
  public func hasPage(_ pfn: PFN) -> Bool { machine.hasPage(pfn) }

  /// Whether the page is reserved: so marked, or a hole that has a `struct page` all the same.
  public func isReserved(_ pfn: PFN) -> Bool {
    if machine.zone(of: pfn) == nil { return true }
    return machine.flags(of: pfn).contains(.reserved)
  }

  /// Whether the page is one of the shared zero pages (small or huge).
  func isHugeZero(_ pfn: PFN) -> Bool {
    poolLock.withLock { hugeZero.map { $0 == frames.compoundHead(of: pfn) } ?? false }
  }

  /// The bytes of a frame, or nil where the arena has none (device registers).
  public func bytes(of pfn: PFN) -> UnsafeMutableRawPointer? {
    guard hasPage(pfn) else { return nil }
    return machine.arena.base + Int(pfn.physicalAddress)
  }

  /// Fills a block with zeroes.
  func zero(_ pfn: PFN, order: Int) {
    bytes(of: pfn)?.initializeMemory(as: UInt8.self, repeating: 0, count: 4096 << order)
  }

  /// Whether a page is anonymous (`PageAnon`), by its compound head.
  func isAnonymous(_ pfn: PFN) -> Bool {
    machine.details(of: frames.compoundHead(of: pfn)).mapping & 3 == 1
  }

  func step(_ text: @autoclosure () -> String) {
    if let observer, observer.wantsSteps { observer.step(text()) }
  }

  /// The huge zero page, made at the first use. Mirrors `get_huge_zero_page`.
  func hugeZeroPage(on cpu: inout CPU) -> PFN? {
    if let there = poolLock.withLock({ hugeZero }) { return there }
    guard let made = try? cpu.allocatePages(order: 9, gfp: [.highUser, .comp, .zero]) else {
      return nil
    }
    let kept = poolLock.withLock { () -> PFN in
      if let hugeZero { return hugeZero }
      hugeZero = made
      return made
    }
    if kept == made {
      ledger?.get(made, .owner("kernel"))
    } else {
      cpu.freePages(made, order: 9)
    }
    return kept
  }

  // MARK: identifiers

  func newProcessID() -> Int {
    poolLock.withLock {
      defer { nextProcessID += 1 }
      return nextProcessID
    }
  }

  func newFileID() -> Int {
    poolLock.withLock {
      defer { nextFileID += 1 }
      return nextFileID
    }
  }

  /// A number for a virtual machine, from 1.
  package func newMachineID() -> Int {
    poolLock.withLock {
      defer { nextMachineID += 1 }
      return nextMachineID
    }
  }
}
