internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Watches one page of an experiment: notes every step with its counts, and which marks are KVM's own.
///
/// GUP marks what it returns; KVM's own marks are those after the entry was made, since all lookups are
/// before it.
final class KVMWatch: HostObserver {
  private enum Phase {
    case lookup
    case end
    case zap
  }

  let wantsSteps = true
  private(set) var steps: [KVMCell.Step] = []
  private(set) var faultMarks = KVMCell.Marks()
  private(set) var zapMarks = KVMCell.Marks()
  private(set) var path = "-"
  /// Whether the page went to the allocator while the fault ran.
  private(set) var isFreed = false
  /// Frame and count of its head when the entry was made, and what others than KVM hold of it.
  private(set) var atInstall: (pfn: PFN, head: Int32, others: Int)?

  private let kernel: HostKernel
  private let process: HostProcess
  private let address: UInt64
  private var phase = Phase.lookup

  init(_ process: HostProcess, at address: UInt64) {
    kernel = process.kernel
    self.process = process
    self.address = address
  }

  /// The frame that the process maps there, if it has a page.
  private var page: PFN? {
    process.frame(at: address).flatMap { kernel.hasPage($0) ? $0 : nil }
  }

  private func isWatched(_ head: PFN) -> Bool {
    guard let pfn = atInstall?.pfn, kernel.hasPage(pfn) else { return false }
    return kernel.frames.compoundHead(of: pfn) == head
  }

  /// Adds a step of the experiment's own.
  func note(_ text: String) {
    let pfn = process.frame(at: address)
    let counts = page.map {
      (own: kernel.frames.refcount($0), head: kernel.frames.pageCount($0))
    }
    let holders = page.flatMap { page in
      kernel.ledger?.holders(of: kernel.frames.compoundHead(of: page)).map {
        $0.count == 1 ? "\($0.holder)" : "\($0.holder) x\($0.count)"
      }
    }
    steps.append(
      KVMCell.Step(
        text: text, pfn: pfn, ownCount: counts?.own, headCount: counts?.head,
        holders: holders ?? []))
  }

  func step(_ text: String) {
    note(text)
    // The last lookup that found a frame before the entry was made is the one that counts.
    if phase == .lookup {
      if text.hasPrefix("fast GUP: frame") { path = "fast GUP" }
      if text.hasPrefix("slow GUP: frame") { path = "slow GUP" }
      if text.hasPrefix("remapped area") { path = "remapped" }
      if text.hasPrefix("emulation") { path = "emulation" }
    }
    guard text.hasPrefix("entry of gfn") else { return }
    phase = .end
    // Two lookups know of GUP; what came without it, the area's entry gave.
    if path == "-" { path = "remapped" }
    guard let pfn = process.frame(at: address) else { return }
    guard kernel.hasPage(pfn) else {
      atInstall = (pfn, 0, 0)
      return
    }
    let head = kernel.frames.compoundHead(of: pfn)
    let held = kernel.ledger?.holders(of: head) ?? []
    let others = held.filter { holding in
      if case .guestFault = holding.holder { false } else { true }
    }
    atInstall = (pfn, kernel.frames.refcount(head), others.reduce(0) { $0 + $1.count })
    // What is dirty from here on, KVM has marked.
    kernel.machine.removeFlags(.dirty, of: head)
  }

  func markedAccessed(_ head: PFN) {
    guard isWatched(head) else { return }
    switch phase {
    case .lookup: break
    case .end: faultMarks.accessed = true
    case .zap: zapMarks.accessed = true
    }
  }

  /// A block was freed: `mm_page_free`.
  func freed(_ first: PFN, order: Int) {
    guard let page, page >= first, page - first < 1 << order else { return }
    isFreed = true
    note("mm_page_free: frame \(first), order \(order)")
  }

  private var isDirty: Bool {
    guard let pfn = atInstall?.pfn, kernel.hasPage(pfn) else { return false }
    return kernel.machine.flags(of: kernel.frames.compoundHead(of: pfn)).contains(.dirty)
  }

  /// Ends the fault: what is marked from now on, the zap marks.
  func beginZap() {
    if phase == .end { faultMarks.dirty = isDirty }
    phase = .zap
    if let pfn = atInstall?.pfn, kernel.hasPage(pfn) {
      kernel.machine.removeFlags(.dirty, of: kernel.frames.compoundHead(of: pfn))
    }
  }

  /// Ends the zap.
  func endZap() { zapMarks.dirty = isDirty }
}
