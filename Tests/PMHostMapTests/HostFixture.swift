import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

/// Notes every invalidation, and lets a test look at its moments.
final class RangeNotifier: MMUNotifier, @unchecked Sendable {
  // Sendable: one thread uses it.
  enum Event: Hashable {
    case start(Range<UInt64>)
    case end(Range<UInt64>)
    case release
  }
  var events: [Event] = []
  var onStart: ((Range<UInt64>) -> Void)?
  var onEnd: ((Range<UInt64>) -> Void)?
  var isYoung = false

  func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU) {
    events.append(.start(range))
    onStart?(range)
  }
  func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU) {
    events.append(.end(range))
    onEnd?(range)
  }
  func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool {
    defer { isYoung = false }
    return isYoung
  }
  func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool { isYoung }
  func release(on cpu: inout CPU) { events.append(.release) }

  /// The ranges whose invalidation has begun, in order.
  var starts: [Range<UInt64>] {
    events.compactMap { if case .start(let range) = $0 { range } else { nil } }
  }
  /// Whether every start has its end.
  var isBalanced: Bool {
    var open: [Range<UInt64>: Int] = [:]
    for event in events {
      switch event {
      case .start(let range): open[range, default: 0] += 1
      case .end(let range):
        open[range, default: 0] -= 1
        if open[range, default: 0] < 0 { return false }
      case .release: break
      }
    }
    return open.values.allSatisfy { $0 == 0 }
  }
}

/// Collects what the host tells of its marks and steps.
final class HostRecorder: HostObserver {
  var wantsSteps: Bool { true }
  var accessed: [PFN] = []
  var steps: [String] = []
  func markedAccessed(_ head: PFN) { accessed.append(head) }
  func step(_ text: String) { steps.append(text) }
}

/// A host with one process, which is watched.
final class HostFixture {
  let machine: Machine
  let kernel: HostKernel
  let process: HostProcess
  let notifier = RangeNotifier()
  let recorder = HostRecorder()
  let ledger = ReferenceLedger()
  var cpu: CPU
  /// A CPU that acts in between.
  var other: CPU

  init(
    _ behaviour: HostBehaviour = .linux61, memory: ByteCount = .mib(16), hugePages: Int = 0
  ) throws {
    machine = try Machine(MachineDescription(memory: memory, cpus: 2))
    cpu = try machine.claimCPU(0)
    other = try machine.claimCPU(1)
    kernel = try HostKernel(
      machine: machine, behaviour: behaviour, hugePageCount: hugePages, ledger: ledger, on: &cpu)
    process = HostProcess(kernel: kernel)
    process.register(notifier)
    kernel.observer = recorder
  }

  static func withHugePages() throws -> HostFixture {
    try HostFixture(HostBehaviour(transparentHugePages: .always), memory: .mib(32))
  }

  // MARK: areas

  func map(
    pages: Int, rights: VMAFlags = [.read, .write], isShared: Bool = false,
    backing: Backing = .anonymous, pageOffset: UInt64 = 0, extra: VMAFlags = []
  ) throws -> UInt64 {
    try process.map(
      HostProcess.MapRequest(
        byteCount: UInt64(pages) << 12, rights: rights, isShared: isShared, backing: backing,
        pageOffset: pageOffset, extra: extra), on: &cpu)
  }

  func file(_ kind: HostFile.Kind, pages: Int) -> HostFile {
    HostFile(kernel: kernel, kind: kind, byteCount: UInt64(pages) << 12)
  }

  func map(_ file: HostFile, pages: Int, isShared: Bool, rights: VMAFlags = [.read, .write])
    throws -> UInt64
  {
    try map(pages: pages, rights: rights, isShared: isShared, backing: .file(file))
  }

  func driver(_ pages: [PFN], _ style: RemapDriver.Style, isShared: Bool = true) throws
    -> (driver: RemapDriver, hva: UInt64)
  {
    let driver = RemapDriver(pages: pages, style: style)
    return (
      driver, try map(pages: pages.count, isShared: isShared, backing: .driver(driver))
    )
  }

  func unmap(_ hva: UInt64, pages: Int) throws {
    try process.unmap(hva..<(hva + UInt64(pages) << 12), on: &cpu)
  }

  func read(_ hva: UInt64) throws -> UInt32 { try process.read32(hva, on: &cpu) }
  func write(_ hva: UInt64, _ value: UInt32 = 7) throws {
    try process.write32(hva, value, on: &cpu)
  }

  func range(_ hva: UInt64, pages: Int) -> Range<UInt64> { hva..<(hva + UInt64(pages) << 12) }

  // MARK: pages

  func allocate(order: Int = 0, compound: Bool = false) throws -> PFN {
    try cpu.allocatePages(order: order, gfp: compound ? [.highUser, .comp] : .highUser)
  }

  func frame(_ hva: UInt64) throws -> PFN { try #require(process.frame(at: hva)) }
  func entry(_ hva: UInt64) throws -> HostEntry { try #require(process.entry(at: hva)).entry }
  func level(_ hva: UInt64) -> Int? { process.entry(at: hva)?.level }
  func count(_ pfn: PFN) -> Int32 { machine.frames.pageCount(pfn) }
  func flags(_ pfn: PFN) -> PageFlags { machine.flags(of: pfn) }
  func has(_ pfn: PFN, _ flags: PageFlags) -> Bool { machine.flags(of: pfn).contains(flags) }
  func drain() { kernel.drainLRUBatches(on: &cpu) }
}
