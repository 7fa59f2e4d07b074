internal import PMArena
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// A host process, a virtual machine over its memory, and what guests and the thread that changes the
/// memory tell each other.
final class GuestWorld: @unchecked Sendable {
  // Sendable: constant after init, except what is atomic; the kernel, the process and the VM have locks
  // of their own.

  /// The first guest address of each window, from window 1 on.
  static let windowStart: UInt64 = 0x1_0000_0000
  static let windowDistance: UInt64 = 0x10_0000_0000

  let machine: Machine
  let kernel: HostKernel
  let process: HostProcess
  let vm: VirtualMachine
  let file: HostFile?
  let base: UInt64
  let pageCount: Int
  let regionPages: Int
  let freeBefore: Int64
  let ledger: ReferenceLedger?
  /// The published state of each region.
  let regions: SharedWords<UInt64>
  /// How many accesses each vCPU has begun: every eighth word, so that each has a line of its own.
  let accesses: SharedWords<UInt64>
  /// vCPUs that have work left.
  let running: Atomic<Int>
  /// Whether contents survive that the process gives its pages back, as those of a file do.
  var keepsContents: Bool { file != nil }
  /// CPUs beyond those of the vCPUs: one for the thread that changes things.
  var mutatorCPU: Int { machine.cpuNodes.count - 1 }
  var regionCount: Int { pageCount / regionPages }

  /// A world with as many regions as there are pages for, at most `regionLimit`; `ring` gives vCPUs dirty
  /// rings of so many bytes.
  init(_ plan: StressPlan, regionLimit: Int = 4096, ring: UInt64? = nil) throws {
    let backing = plan.options.backing
    let least = backing.isHuge || backing == .anonymousTHP ? 512 : 16
    let asked = Int((plan.options.byteCount + 4095) >> 12)
    regionPages = (max(asked / regionLimit, least) + least - 1) / least * least
    // Whole regions, and whole huge pages, at least two of each.
    let unit = regionPages % 512 == 0 ? regionPages : regionPages * 512
    pageCount = max((asked + unit - 1) / unit, regionPages < 512 ? 1 : 2) * unit
    let byteCount = UInt64(pageCount) << 12
    var description = MachineDescription(
      memory: ByteCount(byteCount * 2 + (64 << 20)), cpus: plan.options.vcpus + 1)
    description.model.kvm = plan.era
    description.refcountLayout = plan.options.refcountLayout
    machine = try Machine(description)
    var cpu = try machine.claimCPU(machine.cpuNodes.count - 1)
    ledger = plan.seed & 1 == 1 ? ReferenceLedger() : nil
    kernel = try HostKernel(
      machine: machine, hugePageCount: backing.isHuge ? pageCount / 512 + 2 : 0, ledger: ledger,
      on: &cpu)
    if backing == .anonymousTHP { try GuestWorld.makeHugeZeroPage(kernel, &cpu) }
    kernel.drainLRUBatches(on: &cpu)
    cpu.drainLocalPages()
    freeBefore = machine.freePageCount
    process = HostProcess(kernel: kernel)
    let host = kernel
    file = backing.fileKind.map { HostFile(kernel: host, kind: $0, byteCount: byteCount) }
    base = try process.map(
      GuestWorld.request(byteCount, backing, file, address: nil), on: &cpu)
    vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: .linux618, era: plan.era))
    if let ring { try vm.enableDirtyRing(byteCount: ring) }
    regions = SharedWords(
      count: pageCount / regionPages,
      repeating: GuestRegion(rights: .write, place: 1).rawValue)
    accesses = SharedWords(count: plan.options.vcpus * 8, repeating: 0)
    running = Atomic(plan.options.vcpus)
  }

  deinit {
    regions.deallocate()
    accesses.deallocate()
  }

  /// Accesses of all vCPUs so far.
  var accessCount: UInt64 {
    (0..<(accesses.count / 8)).reduce(0) {
      $0 &+ accesses.place($1 * 8).pointee.load(ordering: .relaxed)
    }
  }

  /// The huge zero page stays once it is made; made now, it is not missed later.
  private static func makeHugeZeroPage(_ kernel: HostKernel, _ cpu: inout CPU) throws {
    let process = HostProcess(kernel: kernel)
    let address = try process.map(.init(byteCount: 2 << 20, extra: .hugePage), on: &cpu)
    _ = try process.read32(address, on: &cpu)
    process.exit(on: &cpu)
  }

  /// What the process asks for to have `byteCount` bytes of a backing.
  static func request(
    _ byteCount: UInt64, _ backing: StressBacking, _ file: HostFile?, address: UInt64?,
    pageOffset: UInt64 = 0
  ) -> HostProcess.MapRequest {
    var request = HostProcess.MapRequest(byteCount: byteCount, address: address)
    if let file {
      request.isShared = true
      request.backing = .file(file)
      request.pageOffset = pageOffset
    } else {
      request.extra =
        backing.isHuge ? .hugetlb : backing == .anonymousTHP ? .hugePage : .noHugePage
    }
    return request
  }

  // MARK: places

  /// The process's addresses of a region.
  func addresses(_ region: Int) -> Range<UInt64> {
    let start = base + UInt64(region * regionPages) << 12
    return start..<(start + UInt64(regionPages) << 12)
  }

  /// The guest address of a page in a window.
  func guestAddress(_ page: Int, place: Int) -> UInt64 {
    GuestWorld.windowStart + UInt64(place - 1) * GuestWorld.windowDistance + UInt64(page) << 12
  }

  /// Publishes what one thread changes about a region, before and after.
  func change(
    _ region: Int, _ body: (inout GuestRegion) throws(KernelErrno) -> Void
  ) throws(KernelErrno) {
    let word = regions.place(region)
    var state = GuestRegion(rawValue: word.pointee.load(ordering: .relaxed)).changing
    word.pointee.store(state.rawValue, ordering: .sequentiallyConsistent)
    defer { word.pointee.store(state.settled.rawValue, ordering: .sequentiallyConsistent) }
    try body(&state)
  }

  /// The state of a region as it is published now.
  @inline(__always)
  func region(_ index: Int) -> GuestRegion {
    GuestRegion(
      rawValue: regions.place(index).pointee.load(ordering: .sequentiallyConsistent))
  }

  /// A slot over whole regions.
  func slot(
    _ id: UInt32, regions range: Range<Int>, place: Int, flags: MemslotFlags
  ) -> MemoryRegion {
    MemoryRegion(
      slot: id, flags: flags.rawValue,
      guestPhysicalAddress: guestAddress(range.lowerBound * regionPages, place: place),
      memorySize: UInt64(range.count * regionPages) << 12,
      userspaceAddress: addresses(range.lowerBound).lowerBound)
  }

  // MARK: the end

  /// Looks at the three properties, ends VM and process, and gives everything back. At rest.
  func settle(on cpu: inout CPU) -> [String] {
    let verdict = vm.verdict()
    var found = verdict.countViolations.map { "property 1: \($0)" }
    found += verdict.accessesAfterFree.map { "property 2: \($0)" }
    found += verdict.staleTranslations.map { "property 3: \($0)" }
    if vm.invalidationsInProgressCount != 0 {
      found.append("\(vm.invalidationsInProgressCount) invalidations have not ended")
    }
    vm.close(on: &cpu)
    process.exit(on: &cpu)
    file?.discard(on: &cpu)
    // The other CPUs' batches were emptied by their threads.
    kernel.drainLRUBatches(on: &cpu)
    return Array(found.prefix(8))
  }

  /// What the books say is still held although everything was given back: only what stood there before.
  func settleLedger() -> [String] {
    guard let ledger else { return [] }
    var found = ledger.unmatchedPuts.prefix(3).map {
      "property 1: a put of frame \($0.pfn) by \($0.holder) without its get"
    }
    for pfn in ledger.pages {
      for entry in ledger.holders(of: pfn) {
        switch entry.holder {
        case .owner, .hugetlb: continue
        default: found.append("frame \(pfn) is still held: \(entry.count) by \(entry.holder)")
        }
      }
    }
    return Array(found.prefix(8))
  }
}

extension StressBacking {
  /// Whether the emulated process's pages come from the pool of huge pages.
  var isHuge: Bool {
    switch self {
    case .anonymousHugeTLB, .anonymousHugeTLB2MiB, .sharedHugeTLB: true
    case .anonymous, .anonymousTHP, .anonymousHugeTLB1GiB, .shmem: false
    }
  }

  /// The kind of the file that stands behind the memory, or nil for anonymous memory.
  var fileKind: HostFile.Kind? {
    switch self {
    case .shmem: .tmpfs
    case .sharedHugeTLB: .hugetlb
    case .anonymous, .anonymousTHP, .anonymousHugeTLB, .anonymousHugeTLB2MiB,
      .anonymousHugeTLB1GiB:
      nil
    }
  }
}
