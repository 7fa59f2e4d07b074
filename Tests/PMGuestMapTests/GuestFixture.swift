import PMArena
import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// Notes what a host and its VMs do to pages, and lets a test act in the middle of it.
final class Recorder: HostObserver {
  var wantsSteps: Bool { true }
  /// Heads that were marked accessed, in order.
  var accessed: [PFN] = []
  /// Frames given to `kvm_set_pfn_accessed` and `kvm_set_pfn_dirty`.
  var setAccessed: [PFN] = []
  var setDirty: [PFN] = []
  /// All sentences.
  var steps: [String] = []
  var onRelease: ((PFN, inout CPU) -> Void)?
  var onLock: ((GFN, inout CPU) -> Void)?
  var onStep: ((String) -> Void)?
  var onAccessed: ((PFN) -> Void)?

  func markedAccessed(_ head: PFN) {
    accessed.append(head)
    onAccessed?(head)
  }
  func setPFNAccessed(_ pfn: PFN) { setAccessed.append(pfn) }
  func setPFNDirty(_ pfn: PFN) { setDirty.append(pfn) }
  func releasing(_ pfn: PFN, on cpu: inout CPU) { onRelease?(pfn, &cpu) }
  func beforeLock(_ gfn: GFN, on cpu: inout CPU) { onLock?(gfn, &cpu) }
  func step(_ text: String) {
    steps.append(text)
    onStep?(text)
  }

  func clear() {
    accessed = []
    setAccessed = []
    setDirty = []
    steps = []
  }
}

/// A free of a block as the trace event has it.
struct FreeEvent: Hashable {
  var pfn: PFN
  var order: Int
  var refcount: Int32
}

/// A host with one process, a VM of one era over its memory, and one vCPU.
final class GuestFixture {
  static let eras: [KernelModel.KVM] = [.a, .b, .c]

  let machine: Machine
  let kernel: HostKernel
  let process: HostProcess
  let vm: VirtualMachine
  let vcpu: VCPU
  let recorder = Recorder()
  let ledger = ReferenceLedger()
  /// The CPU of the test, and one that acts in between.
  var cpu: CPU
  var other: CPU
  private(set) var frees: [FreeEvent] = []
  private var nextSlot: UInt32 = 0
  private var kept: [HostProcess] = []

  init(
    _ era: KernelModel.KVM, memory: ByteCount = .mib(32), behaviour: HostBehaviour = .linux61,
    hugePages: Int = 0, configuration: VirtualMachine.Configuration = .init(),
    ring: UInt64? = nil
  ) throws {
    var description = MachineDescription(memory: memory, cpus: 2)
    description.model.kvm = era
    machine = try Machine(description)
    cpu = try machine.claimCPU(0)
    other = try machine.claimCPU(1)
    kernel = try HostKernel(
      machine: machine, behaviour: behaviour, hugePageCount: hugePages, ledger: ledger, on: &cpu)
    process = HostProcess(kernel: kernel)
    vm = try VirtualMachine(process: process, configuration: configuration)
    if let ring { try vm.enableDirtyRing(byteCount: ring) }
    vcpu = try VCPU(vm)
    kernel.observer = recorder
  }

  // MARK: host

  /// Collects the frees of both CPUs from now on.
  func watchFrees() {
    frees = []
    let note: (PFN, Int, Int32) -> Void = { [unowned self] pfn, order, refcount in
      frees.append(FreeEvent(pfn: pfn, order: order, refcount: refcount))
    }
    cpu.pageFreeEvent = note
    other.pageFreeEvent = note
  }

  func allocate(order: Int = 0, compound: Bool = false) throws -> PFN {
    try cpu.allocatePages(order: order, gfp: compound ? [.highUser, .comp] : .highUser)
  }

  /// Maps a driver's frames, shared.
  func map(
    _ pages: [PFN], _ style: RemapDriver.Style, rights: VMAFlags = [.read, .write],
    isShared: Bool = true
  ) throws -> (driver: RemapDriver, hva: UInt64) {
    let driver = RemapDriver(pages: pages, style: style)
    let hva = try process.map(
      HostProcess.MapRequest(
        byteCount: UInt64(pages.count) << 12, rights: rights, isShared: isShared,
        backing: .driver(driver)), on: &cpu)
    return (driver, hva)
  }

  /// Maps private anonymous memory.
  func mapAnonymous(
    pages: Int, rights: VMAFlags = [.read, .write], extra: VMAFlags = []
  ) throws -> UInt64 {
    try process.map(
      HostProcess.MapRequest(byteCount: UInt64(pages) << 12, rights: rights, extra: extra),
      on: &cpu)
  }

  /// Maps a driver of the test, shared.
  func map(_ driver: any HostDriver, pages: Int) throws -> UInt64 {
    try process.map(
      HostProcess.MapRequest(
        byteCount: UInt64(pages) << 12, isShared: true, backing: .driver(driver)), on: &cpu)
  }

  /// A private remapped page that the process has written: its own copy, in a VM_PFNMAP area.
  func mapCopied() throws -> UInt64 {
    let hva = try map([allocate()], .remap, isShared: false).hva
    try process.write32(hva, 7, on: &cpu)
    return hva
  }

  /// Keeps a child alive for the length of the test.
  func keep(_ child: HostProcess) { kept.append(child) }

  func count(_ pfn: PFN) -> Int32 { machine.frames.pageCount(pfn) }
  func refcounts(_ first: PFN, _ count: Int) -> [Int32] {
    (0..<count).map { machine.frames.refcount(first + $0) }
  }

  /// Which of the two marks a frame has itself.
  func marks(_ pfn: PFN) -> Marks {
    let flags = machine.flags(of: pfn)
    var marks: Marks = []
    if flags.contains(.referenced) { marks.insert(.referenced) }
    if flags.contains(.dirty) { marks.insert(.dirty) }
    return marks
  }

  // MARK: guest

  /// Sets a slot and returns its number.
  @discardableResult
  func setSlot(
    _ gfn: UInt64, pages: Int, hva: UInt64, flags: MemslotFlags = [], addressSpace: UInt32 = 0
  ) throws -> UInt32 {
    let slot = nextSlot | addressSpace << 16
    nextSlot += 1
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: slot, flags: flags.rawValue, guestPhysicalAddress: gfn << 12,
        memorySize: UInt64(pages) << 12, userspaceAddress: hva), on: &cpu)
    return slot
  }

  @discardableResult
  func read(_ gfn: UInt64, offset: UInt64 = 0) -> GuestAccess {
    vcpu.read(gfn << 12 + offset, byteCount: 4, on: &cpu)
  }

  @discardableResult
  func write(_ gfn: UInt64, _ value: UInt64 = 0x5a5a, offset: UInt64 = 0) -> GuestAccess {
    vcpu.write(gfn << 12 + offset, byteCount: 4, value: value, on: &cpu)
  }

  /// One fault without the guest's tries after it.
  func fault(_ gfn: UInt64, isWrite: Bool = false) -> FaultOutcome {
    vm.handleFault(GFN(gfn), isWrite: isWrite, vcpu: vcpu, on: &cpu)
  }

  func leaf(_ gfn: UInt64) -> SPTE? { vm.translation(GFN(gfn))?.spte }
  func level(_ gfn: UInt64) -> Int? { vm.translation(GFN(gfn))?.level }

  /// An invalidation that changes nothing in the host.
  func notify(_ hva: UInt64, pages: Int = 1) {
    let range = hva..<(hva + UInt64(pages) << 12)
    vm.invalidateRangeStart(range, on: &cpu)
    vm.invalidateRangeEnd(range, on: &cpu)
  }

  /// The kernel's error for an access, or nil.
  static func errno(_ access: GuestAccess) -> KernelErrno? {
    if case .failed(let errno, _) = access { errno } else { nil }
  }

  static func isDone(_ access: GuestAccess) -> Bool {
    if case .done = access { true } else { false }
  }
}

/// The two marks that KVM makes.
struct Marks: OptionSet, Hashable, CustomStringConvertible {
  let rawValue: Int
  static let referenced: Marks = Marks(rawValue: 1)
  static let dirty: Marks = Marks(rawValue: 2)
  static let both: Marks = [.referenced, .dirty]
  var description: String {
    isEmpty ? "none" : (contains(.referenced) ? "R" : "") + (contains(.dirty) ? "D" : "")
  }
}

/// Calls a body with the observer's moments, for notifiers of a test.
final class WatchingNotifier: MMUNotifier, @unchecked Sendable {
  // Sendable: one thread uses it.
  var ranges: [Range<UInt64>] = []
  var open = 0
  var onStart: ((Range<UInt64>) -> Void)?

  func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU) {
    ranges.append(range)
    open += 1
    onStart?(range)
  }
  func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU) { open -= 1 }
  func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool { false }
  func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool { false }
  func release(on cpu: inout CPU) {}
}
