internal import PMArena
internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A small machine with a graphics driver, a process that runs a guest, and a ledger of references, on
/// which a chapter happens. Counts, places, words and holders are read from it each time.
final class KVMStoryStage {
  /// What came of a guest's access.
  struct Access {
    var word: String?
    var error: KernelErrno?
    var note: String
  }

  let era: KernelModel.KVM
  let machine: Machine
  let kernel: HostKernel
  let vm: VirtualMachine
  private let ledger = ReferenceLedger()
  private let process: HostProcess
  private let vcpu: VCPU
  private let object: TTMBufferObject
  private let log: KVMStoryLog
  private var cpu: CPU
  private var block: [PFN] = []
  private let title: String
  private var steps: [KVMStoryStep] = []
  private var failures: [String] = []
  private static let gpa: UInt64 = 0x4000_0000

  init(_ era: KernelModel.KVM, title: String) throws {
    self.era = era
    var description = MachineDescription(memory: StoryStage.memory)
    description.model = KernelModel(kvm: era)
    machine = try Machine(description)
    var cpu = try machine.claimCPU(0)
    kernel = try HostKernel(machine: machine, ledger: ledger, on: &cpu)
    self.cpu = cpu
    process = HostProcess(kernel: kernel)
    object = TTMBufferObject(pool: TTMPool(machine: machine), pageCount: 4)
    vm = try VirtualMachine(process: process)
    vm.checksAccesses = true
    vcpu = try VCPU(vm)
    log = KVMStoryLog(machine, ledger)
    self.title = title
    kernel.observer = log
    self.cpu.pageFreeEvent = { [log] first, order, _ in log.freed(first, order) }
  }

  // MARK: what happens

  /// The first two steps: the block, and its way into the guest.
  func open() throws {
    block = try object.populate(on: &cpu).pages
    log.begin(block)
    ledger.get(block[0], .owner("driver"))
    for index in 0..<4 { try store("driver-\(index)", index) }
    record(
      "the driver (TTM): alloc_pages(order 2) without __GFP_COMP, writes its words",
      "frames \(block[0])-\(block[3])")
    expect(
      block.map { machine.frames.refcount($0) } == [1, 0, 0, 0], "the counts are 1, 0, 0, 0")
    let address = try process.map(
      .init(byteCount: 0x4000, isShared: true, backing: .driver(object)), on: &cpu)
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 0, guestPhysicalAddress: KVMStoryStage.gpa, memorySize: 0x4000,
        userspaceAddress: address), on: &cpu)
    record(
      "the process: mmap of the buffer object, a memslot over it",
      "gfn \(gfn(0))-\(gfn(3)); nothing is mapped yet")
  }

  /// Reads eight bytes of a page of the block.
  func read(_ index: Int) -> Access {
    describe(vcpu.read(gpa(index), byteCount: 8, on: &cpu), isRead: true)
  }

  /// Writes eight bytes to a page of the block.
  func write(_ index: Int, _ word: String) -> Access {
    describe(
      vcpu.write(gpa(index), byteCount: 8, value: KVMStoryStage.word(word), on: &cpu),
      isRead: false)
  }

  /// Somebody else allocates and writes a word into each page.
  func allocateOther(order: Int) throws -> PFN {
    let first = try cpu.allocatePages(order: order, gfp: .highUser)
    ledger.get(first, .owner("other"))
    for index in 0..<(1 << order) {
      try machine.arena.storeWord(
        KVMStoryStage.word("other-\(index)"), at: (first + index).physicalAddress)
    }
    return first
  }

  /// The driver takes the block out of all processes.
  func unmap() { object.mappings.unmap(on: &cpu) }

  /// The driver frees the block.
  func free() { free(on: &cpu) }

  private func free(on cpu: inout CPU) {
    ledger.put(block[0], .owner("driver"))
    object.free(on: &cpu)
  }

  /// Whether the driver frees the block when a fault is about to put its reference.
  var freesAtRelease = false {
    didSet {
      log.atRelease =
        freesAtRelease
        ? { [unowned self] cpu in
          log.atRelease = nil
          free(on: &cpu)
        } : nil
    }
  }

  /// Blocks freed since the last record, in order.
  var frees: [(first: PFN, order: Int)] { log.frees }

  // MARK: what there is to see

  func gfn(_ index: Int) -> GFN { GFN(guestPhysicalAddress: gpa(index)) }

  private func gpa(_ index: Int) -> UInt64 { KVMStoryStage.gpa + UInt64(index) << 12 }

  func frame(_ index: Int) -> PFN { block[index] }

  /// The counts that a page had in the last step.
  func counts(_ index: Int) -> [Int32] { steps.last?.frames[index].counts ?? [] }

  /// Whether a page is on a list after the last step.
  func isFree(_ index: Int) -> Bool { steps.last?.frames[index].isFree ?? false }

  /// The word in a page of the block, as text.
  func word(_ index: Int) throws -> String {
    KVMStoryStage.text(try machine.arena.loadWord(at: block[index].physicalAddress))
  }

  /// Pages of the block that the guest has an entry for.
  var mappedCount: Int { (0..<4).filter { vm.translation(gfn($0)) != nil }.count }

  /// Pages of the block that are on a list.
  var freedCount: Int {
    block.filter {
      switch machine.whereabouts(of: $0) {
      case .free, .perCPU: true
      case .used, .hole: false
      }
    }.count
  }

  /// What the modelled kernel reported.
  var reports: [String] { machine.findings.findings.map(\.description) }

  private func describe(_ access: GuestAccess, isRead: Bool) -> Access {
    switch access {
    case .done(let value):
      let word = KVMStoryStage.text(value)
      return Access(word: word, error: nil, note: isRead ? "it reads '\(word)'" : "done")
    case .failed(let error, _):
      return Access(word: nil, error: error, note: "KVM_RUN returns \(error); no entry")
    case .mmio: return Access(word: nil, error: nil, note: "KVM_EXIT_MMIO")
    case .interrupted, .dirtyRingFull: return Access(word: nil, error: .eintr, note: "KVM_RUN ends")
    }
  }

  // MARK: words

  private func store(_ word: String, _ index: Int) throws {
    try machine.arena.storeWord(
      KVMStoryStage.word(word), at: block[index].physicalAddress)
  }

  private static func word(_ text: String) -> UInt64 {
    var word: UInt64 = 0
    withUnsafeMutableBytes(of: &word) { $0.copyBytes(from: Array(text.utf8.prefix(8))) }
    return word
  }

  static func text(_ word: UInt64) -> String {
    let bytes = withUnsafeBytes(of: word) { Array($0) }
    let shown = bytes.prefix { $0 != 0 }
    guard !shown.isEmpty, shown.allSatisfy({ (0x20..<0x7f).contains($0) }) else {
      return "0x" + String(word, radix: 16)
    }
    return String(decoding: shown, as: UTF8.self)
  }

  // MARK: recording

  /// Records what was done since the last record.
  func record(_ action: String, _ note: String) {
    let frames = block.enumerated().map { index, pfn in
      KVMStoryFrame(
        pfn: pfn, counts: log.counts(index), place: machine.whereabouts(of: pfn),
        word: (try? machine.arena.loadWord(at: pfn.physicalAddress)) ?? 0,
        heldDuring: log.heldDuring(index), held: log.holders(pfn))
    }
    steps.append(KVMStoryStep(action: action, note: note, frames: frames, path: log.texts))
    log.begin(block)
  }

  /// Looks at the three properties after the last step.
  func noteProperties() { steps[steps.count - 1].verdict = vm.verdict() }

  /// Checks what the story says.
  func expect(_ isMet: Bool, _ what: String) {
    guard !isMet else { return }
    failures.append(
      "era \(era.rawValue), '\(title)', step \(steps.count): expected that \(what)")
  }

  /// The chapter as it is now.
  func finish() -> KVMStoryChapter {
    KVMStoryChapter(
      title: title, steps: steps, verdict: vm.verdict(),
      unmatchedPuts: ledger.unmatchedPuts.map { "\($0.holder) put frame \($0.pfn)" },
      unmatchedCounts: block.compactMap { pfn in
        let (count, noted) = (machine.frames.refcount(pfn), ledger.count(of: pfn))
        guard Int(count) != noted else { return nil }
        return "frame \(pfn) has a count of \(count), the ledger knows \(noted)"
      }, failures: failures)
  }
}

/// Follows the counts of a few frames from step to step of the engine.
final class KVMStoryLog: HostObserver {
  let wantsSteps = true
  private(set) var texts: [String] = []
  private let machine: Machine
  private let ledger: ReferenceLedger
  private var block: [PFN] = []
  private var samples: [[Int32]] = []
  private var during: [[String]] = []
  /// Blocks that went to the allocator.
  private(set) var frees: [(first: PFN, order: Int)] = []
  /// Run when a fault is about to put its reference.
  var atRelease: ((inout CPU) -> Void)?

  init(_ machine: Machine, _ ledger: ReferenceLedger) {
    self.machine = machine
    self.ledger = ledger
  }

  /// Starts anew with the counts of now.
  func begin(_ block: [PFN]) {
    self.block = block
    texts = []
    frees = []
    samples = block.map { [machine.frames.refcount($0)] }
    during = block.map { _ in [] }
  }

  func step(_ text: String) {
    texts.append(text)
    sample()
    if text.hasPrefix("entry of gfn") { during = block.map(holders) }
  }

  func releasing(_ pfn: PFN, on cpu: inout CPU) {
    sample()
    atRelease?(&cpu)
    sample()
  }

  /// `mm_page_free`.
  func freed(_ first: PFN, _ order: Int) { frees.append((first, order)) }

  private func sample() {
    for (index, pfn) in block.enumerated() {
      let count = machine.frames.refcount(pfn)
      if samples[index].last != count { samples[index].append(count) }
    }
  }

  /// The counts of a frame since the start, changes only.
  func counts(_ index: Int) -> [Int32] {
    sample()
    return samples[index]
  }

  /// Who held a frame when an entry was made.
  func heldDuring(_ index: Int) -> [String] { during[index] }

  /// Who holds a frame.
  func holders(_ pfn: PFN) -> [String] {
    ledger.holders(of: machine.frames.compoundHead(of: pfn)).map {
      $0.count == 1 ? "\($0.holder)" : "\($0.holder) x\($0.count)"
    }
  }
}
