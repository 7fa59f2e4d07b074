internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// The events of the mail thread "KVM: x86/mmu: Don't pass FOLL_GET to __kvm_follow_pfn": a driver
/// allocates four pages, KVM takes a reference on the first, the driver frees, others allocate, KVM
/// puts.
struct MailThreadStory {
  /// How the driver allocates, and which `__free_pages` the kernel has.
  enum Variant {
    case nonCompound
    case compound
    case leak
  }

  /// As today, without `__GFP_COMP`.
  var nonCompound: Story
  /// As today, with `__GFP_COMP`.
  var compound: Story
  /// Without `__GFP_COMP`, before the tails were freed.
  var leak: Story
  /// With `__GFP_COMP`, when the head mark was read too late.
  var race: Story

  /// Plays all of them.
  init() throws {
    nonCompound = try MailThreadStory.play(.nonCompound)
    compound = try MailThreadStory.play(.compound)
    leak = try MailThreadStory.play(.leak)
    race = try MailThreadStory.playRace()
  }

  /// In the order of telling.
  var stories: [Story] { [nonCompound, compound, leak, race] }
  /// Expectations that were not met, in all stories.
  var failures: [String] { stories.flatMap(\.failures) }

  /// What the pool of TTM asks for above order 0.
  static let driverGFP: GFP = .highUser.union([.zero, .noMemalloc, .noRetry, .kswapdReclaim])

  // MARK: the thread

  private static func play(_ variant: Variant) throws -> Story {
    var stage = try StoryStage(
      name: variant.name, form: variant == .leak ? .beforeTailFix : .headReadBeforePut)
    let head = try allocateAndReference(
      &stage, gfp: variant == .compound ? driverGFP.union(.comp) : driverGFP, variant)

    stage.cpu.freePages(head, order: 2)
    stage.release("driver")
    let freed = try stage.pages().filter(\.isFree).count
    try stage.record(
      "driver: __free_pages(page, 2)",
      note: freed == 0 ? "nothing is freed" : "\(freed) of 4 pages are freed",
      expect: variant.expected(3))

    let before = try stage.pages()
    let first = try stage.allocate("ownerA", order: 1, gfp: .kernel)
    let second = try stage.allocate("ownerB", order: 0, gfp: .kernel)
    let changed = zip(before, try stage.pages()).filter { $0.word != $1.word }.count
    try stage.record(
      "others: A allocates order 1, B allocates order 0, each writes",
      note: "A: \(first)-\(first + 1), B: \(second); \(changed) of 4 words changed",
      expect: variant.expected(4))

    stage.cpu.putPage(head)
    stage.release("KVM")
    let wasFree = before.filter(\.isFree).map(\.pfn)
    let put = try stage.pages().filter { $0.isFree && !wasFree.contains($0.pfn) }
    let frames = Table.ranges(put.map { Int($0.pfn.rawValue) }, radix: 16)
    let count = put.count == 1 ? "1 page is" : "\(put.count) pages are"
    try stage.record(
      "KVM: put_page(page 0), the last reference",
      note: "\(count) freed: \(frames)", expect: variant.expected(5))

    try settleAccounts(&stage, first, second, lost: variant == .leak ? 3 : 0)
    return stage.story
  }

  /// The first two steps: the driver's block, and KVM's reference on its first page.
  private static func allocateAndReference(
    _ stage: inout StoryStage, gfp: GFP, _ variant: Variant
  ) throws -> PFN {
    let head = try stage.allocate("driver", order: 2, gfp: gfp)
    stage.watch(head)
    try stage.record(
      "driver: alloc_pages(gfp, 2), writes a word into each page",
      note: "pages \(head)-\(head + 3)", expect: variant.expected(1))

    // As hva_to_pfn_remapped() does for a page in a VM_PFNMAP area.
    let taken = (0..<4).filter { stage.cpu.getPageUnlessZero(head + $0) }
    for index in taken { stage.hold("KVM", head + index) }
    stage.expect(taken == [0], "get_page_unless_zero succeeded on pages \(taken), expected [0]")
    let refused = Table.ranges((0..<4).filter { !taken.contains($0) })
    try stage.record(
      "KVM: get_page_unless_zero on each page (hva_to_pfn)",
      note: "page \(Table.ranges(taken)): taken, pages \(refused): refused",
      expect: variant.expected(2))
    return head
  }

  /// A and B give back what is theirs; then only leaked pages may be missing.
  private static func settleAccounts(
    _ stage: inout StoryStage, _ first: PFN, _ second: PFN, lost: Int64
  ) throws {
    stage.cpu.freePages(first, order: 1)
    stage.cpu.freePages(second, order: 0)
    stage.story.freePagesAfter = stage.machine.freePageCount
    stage.story.findings = stage.machine.findings.findings.map { "\($0)" }
    stage.expect(
      stage.story.leakedPages == lost,
      "\(stage.story.leakedPages) pages are missing at the end, expected \(lost)")
    stage.expect(stage.story.findings.isEmpty, "findings: \(stage.story.findings)")
    let violations = stage.machine.invariantViolations()
    stage.expect(violations.isEmpty, "invariants: \(violations)")
  }

  // MARK: the race

  /// `__free_pages` that reads the head mark after the decrement, with KVM's put between the two.
  private static func playRace() throws -> Story {
    var stage = try StoryStage(name: "race", form: .headReadAfterPut, cpus: 2)
    let head = try allocateAndReference(&stage, gfp: driverGFP.union(.comp), .compound)

    let machine = stage.machine
    stage.cpu.betweenPutAndHeadRead = { page in
      // Should the CPU not be there, the put is missing and the expectations below say so.
      guard var other = try? machine.claimCPU(1) else { return }
      other.putPage(page)
    }
    stage.cpu.freePages(head, order: 2)
    stage.cpu.betweenPutAndHeadRead = nil
    stage.release("driver")
    stage.release("KVM")
    let twice = try stage.pages().filter { $0.places.count > 1 }.count
    try stage.record(
      "driver: __free_pages(page, 2), KVM puts on CPU 1 before the head mark is read",
      note: "\(twice) of 4 pages are on two lists", expect: expectedRace(3))

    // Two ways on from here: the lists are drained and an allocation notices, or they are not.
    let snapshot = machine.snapshot()
    try drainAndAllocate(&stage)
    machine.restore(snapshot)

    let whole: PFN
    do {
      var other = try machine.claimCPU(1)
      whole = try other.allocatePages(order: 2, gfp: .kernel)
    }
    try stage.settle("ownerA", whole, order: 2)
    let part = try stage.allocate("ownerB", order: 1, gfp: .kernel)
    let shared = try stage.pages().filter { $0.owners == ["ownerA", "ownerB"] }.count
    try stage.record(
      "others: A allocates order 2 on CPU 1, B allocates order 1 on CPU 0, each writes",
      note: "A: \(whole)-\(whole + 3), B: \(part)-\(part + 1); \(shared) pages have two owners",
      expect: expectedRace(4))
    return stage.story
  }

  /// Empties the lists of both CPUs and allocates until the kernel notices.
  private static func drainAndAllocate(_ stage: inout StoryStage) throws {
    stage.cpu.drainLocalPages()
    do {
      var other = try stage.machine.claimCPU(1)
      other.drainLocalPages()
    }
    for _ in 0..<8 where stage.machine.findings.total == 0 {
      try stage.cpu.allocatePages(order: 2, gfp: .kernel)
    }
    let findings = stage.machine.findings.findings
    stage.story.findings = findings.map { "\($0)" }
    let isNoticed = findings.contains { finding in
      if case .badPage(let page) = finding { page.reason == "nonzero mapcount" } else { false }
    }
    stage.expect(isNoticed, "expected a bad page, nonzero mapcount; got \(findings)")
  }
}
