internal import PMArena
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// A small machine on which a story happens, and the list of who says to hold what.
///
/// The allocator does not know owners, so the stage keeps them; counts, marks, lists and words are
/// read from the machine each time.
struct StoryStage: ~Copyable {
  /// Memory of the machine.
  static let memory = ByteCount.mib(64)

  /// The machine.
  let machine: Machine
  /// The CPU on which everything happens unless a step says otherwise.
  var cpu: CPU
  /// What was recorded.
  var story: Story
  private var base = PFN(0)
  private var holdings: [(owner: String, pfn: PFN, order: Int)] = []

  init(name: String, form: KernelModel.FreePages, cpus: Int = 1) throws(MachineError) {
    var description = MachineDescription(memory: StoryStage.memory, cpus: cpus)
    description.model = KernelModel(freePages: form)
    let machine = try Machine(description)
    cpu = try machine.claimCPU(0)
    self.machine = machine
    story = Story(name: name, form: form, freePagesBefore: machine.freePageCount)
  }

  // MARK: who holds what

  /// Says that `owner` holds 2^order pages from now on.
  mutating func hold(_ owner: String, _ pfn: PFN, order: Int = 0) {
    holdings.append((owner, pfn, order))
  }

  /// Says that `owner` holds nothing any more.
  mutating func release(_ owner: String) { holdings.removeAll { $0.owner == owner } }

  private func holders(of pfn: PFN) -> [String] {
    // A reference is counted on the compound head, and so holds every page behind it.
    let head = machine.frames.compoundHead(of: pfn)
    return holdings.filter { holding in
      [pfn, head].contains { $0 >= holding.pfn && $0 - holding.pfn < 1 << holding.order }
    }.map(\.owner)
  }

  // MARK: actions

  /// Allocates on CPU 0 and writes a word into each page.
  mutating func allocate(_ owner: String, order: Int, gfp: GFP) throws -> PFN {
    let pfn = try cpu.allocatePages(order: order, gfp: gfp)
    try settle(owner, pfn, order: order)
    return pfn
  }

  /// Makes `owner` the holder of a new block and has it write a word into each page.
  mutating func settle(_ owner: String, _ pfn: PFN, order: Int) throws {
    hold(owner, pfn, order: order)
    for index in 0..<(1 << order) {
      try machine.arena.storeWord(
        StoryStage.word("\(owner)-\(index)"), at: (pfn + index).physicalAddress)
    }
  }

  /// Eight characters as the bytes of a word.
  private static func word(_ text: String) -> UInt64 {
    var word: UInt64 = 0
    withUnsafeMutableBytes(of: &word) { $0.copyBytes(from: Array(text.utf8.prefix(8))) }
    return word
  }

  // MARK: recording

  /// Names the block whose pages are shown.
  mutating func watch(_ pfn: PFN) { base = pfn }

  /// The four pages as they are now.
  func pages() throws -> [StoryPage] {
    let state = machine.state(withMaps: false)
    return try (0..<4).map { index in
      let pfn = base + index
      let places = places(of: pfn, state)
      let isListed = places != [.used]
      var owners = holders(of: pfn)
      if isListed { owners.append("allocator") }
      if owners.isEmpty { owners = ["nobody"] }
      return StoryPage(
        pfn: pfn, refcount: machine.frames.refcount(pfn), mark: mark(pfn), places: places,
        owners: owners, word: try machine.arena.loadWord(at: pfn.physicalAddress))
    }
  }

  /// The machine's answer, and every other per-CPU block that contains the page: after a double free
  /// there are several, of which the machine names one.
  private func places(of pfn: PFN, _ state: MachineState) -> [Machine.Whereabouts] {
    var places = [machine.whereabouts(of: pfn)]
    for zone in state.zones {
      for (cpu, pageset) in zone.pagesets.enumerated() {
        // Lists 0 to 11 hold orders 0 to 3, three migratetypes each; the last two hold order 9.
        for (slot, blocks) in pageset.lists.enumerated() {
          let order = slot < 12 ? slot / 3 : 9
          for head in blocks.map({ PFN($0.pfn) }) where head <= pfn && pfn - head < 1 << order {
            let place = Machine.Whereabouts.perCPU(cpu: cpu, head: head, order: order)
            if !places.contains(place) { places.append(place) }
          }
        }
      }
    }
    return places
  }

  private func mark(_ pfn: PFN) -> String {
    if machine.flags(of: pfn).contains(.head) { return "head" }
    return machine.frames.isCompoundTail(pfn) ? "tail" : "none"
  }

  /// Records the step and checks it: one line per page as ``StoryPage/summary(base:)`` gives it.
  mutating func record(_ action: String, note: String, expect expected: [String]) throws {
    let step = StoryStep(action: action, note: note, pages: try pages())
    story.steps.append(step)
    for (page, wanted) in zip(step.pages, expected) {
      let got = page.summary(base: base)
      let place = "step \(story.steps.count), page \(page.pfn)"
      expect(got == wanted, "\(place): expected '\(wanted)', got '\(got)'")
    }
  }

  /// Checks something beside the pages.
  mutating func expect(_ isMet: Bool, _ what: String) {
    if !isMet { story.failures.append("\(story.name), \(what)") }
  }
}
