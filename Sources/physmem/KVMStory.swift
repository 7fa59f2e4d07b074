internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// One page of the block as a step left it.
struct KVMStoryFrame {
  /// The frame.
  var pfn: PFN
  /// Its own count: at the start of the step, at every change on the way, at its end.
  var counts: [Int32]
  /// Where it is.
  var place: Machine.Whereabouts
  /// The word at its physical address.
  var word: UInt64
  /// Who holds it by the ledger while the guest's entry was made; empty where none was.
  var heldDuring: [String]
  /// Who holds it by the ledger after the step.
  var held: [String]

  /// As `0>1>0`.
  var countText: String { counts.map { "\($0)" }.joined(separator: ">") }
  /// Whether it is on a list of the allocator.
  var isFree: Bool {
    switch place {
    case .free, .perCPU: true
    case .used, .hole: false
    }
  }
  /// `used`, or the list.
  var placeText: String {
    switch place {
    case .used: "used"
    case .hole: "hole"
    case .free: "free"
    case .perCPU(let cpu, _, _): "pcp\(cpu)"
    }
  }
}

/// What somebody did, and what came of it.
struct KVMStoryStep {
  var action: String
  var note: String
  var frames: [KVMStoryFrame]
  /// What the engine said on the way.
  var path: [String]
  /// The three properties after it, where the chapter stops to look.
  var verdict: GuestVerdict?
}

/// One run of events in one era.
struct KVMStoryChapter {
  var title: String
  var steps: [KVMStoryStep]
  /// The three properties at the end.
  var verdict: GuestVerdict
  /// Puts of the ledger without a get.
  var unmatchedPuts: [String]
  /// Frames whose count is not what the ledger's holders add up to.
  var unmatchedCounts: [String]
  /// Expectations that were not met.
  var failures: [String]
}

/// The mail thread's question in one era: a block of amdgpu's TTM, without `__GFP_COMP`, mapped into a
/// guest, head and tail, and freed by its owner; the same with KVM's zap left out; and the free that meets
/// the reference of a fault.
struct KVMStory {
  let era: KernelModel.KVM
  let chapters: [KVMStoryChapter]

  /// Expectations that were not met.
  var failures: [String] { chapters.flatMap(\.failures) }

  /// Plays all chapters.
  init(_ era: KernelModel.KVM) throws {
    self.era = era
    var chapters = [try KVMStory.playBlock(era), try KVMStory.playWithoutZap(era)]
    // Later eras hold no reference that a free could meet.
    if era == .a0 || era == .a { chapters.append(try KVMStory.playFreeInFault(era)) }
    self.chapters = chapters
  }

  private static func name(_ gfn: GFN) -> String { "gfn \(gfn)" }

  // MARK: the block

  /// Mapped, used, freed as it should be.
  private static func playBlock(_ era: KernelModel.KVM) throws -> KVMStoryChapter {
    let stage = try KVMStoryStage(era, title: "The owner unmaps the block, then frees it")
    try stage.open()
    let (head, tail) = (stage.gfn(0), stage.gfn(1))
    let inFault: [Int32] = era == .c ? [1] : [1, 2, 1]

    let first = stage.read(0)
    stage.record("the guest reads \(name(head)), the head", first.note)
    stage.expect(first.word == "driver-0", "the guest reads 'driver-0' from the head")
    stage.expect(stage.counts(0) == inFault, "the head's count goes \(inFault)")

    let second = stage.read(1)
    stage.record("the guest reads \(name(tail)), a tail", second.note)
    switch era {
    case .a0:
      stage.expect(second.word == "driver-1", "the guest reads 'driver-1' from the tail")
      stage.expect(stage.counts(1) == [0, 1, 0], "the tail's count goes 0>1>0")
      stage.expect(stage.isFree(1), "KVM's put frees the tail under its owner")
    case .a:
      stage.expect(second.error == .efault, "the tail gives EFAULT")
      stage.expect(stage.counts(1) == [0], "the tail's count stays 0")
    case .b, .c:
      stage.expect(second.word == "driver-1", "the guest reads 'driver-1' from the tail")
      stage.expect(stage.counts(1) == [0], "the tail's count stays 0")
    }

    if era != .a0 {
      let written = stage.write(1, "guest-1!")
      let seen = try stage.word(1)
      stage.record(
        "the guest writes \(name(tail))",
        written.error == nil ? "the driver reads '\(seen)' in its page" : written.note)
      stage.expect(
        era == .a ? written.error == .efault && seen == "driver-1" : seen == "guest-1!",
        era == .a ? "the write gives EFAULT" : "the driver sees the guest's word")
    }
    try playOther(stage, era)
    return try finish(stage, era)
  }

  /// Somebody else allocates a page, and the guest looks again.
  private static func playOther(_ stage: KVMStoryStage, _ era: KernelModel.KVM) throws {
    let tail = stage.gfn(1)
    let frame = try stage.allocateOther(order: 0)
    let isTail = frame == stage.frame(1)
    stage.record(
      "somebody else: alloc_pages(order 0), writes its word",
      "gets frame \(frame)" + (isTail ? ", the tail that the driver still has" : ""))
    stage.expect(isTail == (era == .a0), "only in era A0 the tail changes hands")

    let again = stage.read(1)
    stage.record("the guest reads \(name(tail)) again", again.note)
    switch era {
    case .a0: stage.expect(again.word == "other-0", "the guest reads the other owner's word")
    case .a: stage.expect(again.error == .efault, "the tail gives EFAULT")
    case .b, .c: stage.expect(again.word == "guest-1!", "the guest reads its own word")
    }
    guard era == .a0 else { return }
    _ = stage.write(1, "guest-1!")
    let seen = try stage.word(1)
    stage.record(
      "the guest writes \(name(tail))", "the other owner reads '\(seen)' in its own page")
    stage.expect(seen == "guest-1!", "the guest's word is in the other owner's page")
  }

  private static func finish(
    _ stage: KVMStoryStage, _ era: KernelModel.KVM
  ) throws -> KVMStoryChapter {
    stage.unmap()
    stage.record(
      "the driver: unmap_mapping_range()", "\(stage.mappedCount) entries are left in the guest")
    stage.expect(stage.mappedCount == 0, "the notifier drops every entry")
    stage.free()
    let freed = stage.freedCount
    stage.record(
      "the driver: __free_pages(page, 2)",
      "\(freed) of 4 pages are free" + stage.reports.map { "; the kernel says: \($0)" }.joined())
    stage.expect(
      era == .a0 ? freed < 4 : freed == 4,
      era == .a0 ? "the block with a page in use cannot be freed" : "all four pages are free")
    let chapter = stage.finish()
    let verdict = chapter.verdict
    stage.expect(
      verdict.countsIntact == (era != .a0), "counts are intact in every era but A0")
    stage.expect(
      verdict.noAccessAfterFree == (era != .a0), "no access after free in any era but A0")
    stage.expect(verdict.noStaleTranslation, "no stale translation")
    return stage.finish()
  }

  // MARK: the zap left out

  /// The same with a KVM that leaves its zap out: what only the notifier keeps apart.
  private static func playWithoutZap(_ era: KernelModel.KVM) throws -> KVMStoryChapter {
    let stage = try KVMStoryStage(era, title: "The same, but KVM leaves its zap out")
    try stage.open()
    stage.vm.omitsZaps = true
    // Where tails cannot be had, or only by losing them, the head shows it.
    let index = era == .b || era == .c ? 1 : 0
    let gfn = stage.gfn(index)
    let before = stage.read(index)
    stage.record("the guest reads \(name(gfn))", before.note)
    stage.expect(before.word == "driver-\(index)", "the guest reads the driver's word")

    stage.unmap()
    let stale = stage.vm.verdict()
    stage.record(
      "the driver: unmap_mapping_range()", "\(stage.mappedCount) entry is left in the guest")
    stage.noteProperties()
    stage.expect(!stale.noStaleTranslation, "the entry that stayed is stale: property 3")
    stage.expect(
      stale.countsIntact && stale.noAccessAfterFree, "properties 1 and 2 still hold")

    stage.free()
    stage.record("the driver: __free_pages(page, 2)", "\(stage.freedCount) of 4 pages are free")
    stage.expect(stage.freedCount == 4, "all four pages are free")
    let after = stage.read(index)
    stage.record("the guest reads \(name(gfn)) again", after.note)
    stage.expect(!stage.vm.verdict().noAccessAfterFree, "that is an access after free: property 2")

    let frame = try stage.allocateOther(order: 2)
    stage.record("somebody else: alloc_pages(order 2), writes its words", "gets frame \(frame)")
    stage.expect(frame == stage.frame(0), "the allocator hands the same block out")
    let last = stage.read(index)
    stage.record("the guest reads \(name(gfn)) again", last.note)
    stage.expect(last.word == "other-\(index)", "the guest reads the other owner's word")
    let verdict = stage.vm.verdict()
    stage.expect(
      verdict.countsIntact && !verdict.noAccessAfterFree && !verdict.noStaleTranslation,
      "property 1 holds, 2 and 3 do not")
    return stage.finish()
  }

  // MARK: the free that meets a reference

  /// The mail's `__free_pages` while KVM holds the head: nothing leaks and nothing is freed twice, but what
  /// nobody unmapped the guest still reaches.
  private static func playFreeInFault(_ era: KernelModel.KVM) throws -> KVMStoryChapter {
    let stage = try KVMStoryStage(
      era, title: "The owner frees the block without unmapping it, while a fault holds the head")
    try stage.open()
    stage.freesAtRelease = true
    let access = stage.read(0)
    let frees = stage.frees
    stage.record(
      "the guest reads \(name(stage.gfn(0))); before KVM's put, the driver: __free_pages(page, 2)",
      "freed: " + frees.map { "\($0.first) order \($0.order)" }.joined(separator: ", ")
        + "; \(access.note)")
    let expected = [(2, 1), (1, 0), (0, 0)].map { (stage.frame($0.0), $0.1) }
    stage.expect(
      frees.map { [Int($0.first.rawValue), $0.order] }
        == expected.map { [Int($0.0.rawValue), $0.1] },
      "the tails are freed by __free_pages as orders 1 and 0, the head by KVM's put")
    stage.expect(stage.counts(0) == [1, 2, 1, 0], "the head's count goes 1>2>1>0")
    stage.expect(stage.freedCount == 4, "all four pages are free, once")

    let frame = try stage.allocateOther(order: 0)
    stage.record("somebody else: alloc_pages(order 0), writes its word", "gets frame \(frame)")
    stage.expect(frame == stage.frame(0), "the allocator hands the head out")
    let again = stage.read(0)
    stage.record("the guest reads \(name(stage.gfn(0))) again", again.note)
    stage.expect(again.word == "other-0", "the guest reads the other owner's word")
    let verdict = stage.vm.verdict()
    stage.expect(verdict.countsIntact, "counts are intact")
    stage.expect(!verdict.noAccessAfterFree, "the guest reached a free frame")
    stage.expect(verdict.noStaleTranslation, "host and guest map the same, as nobody unmapped")
    return stage.finish()
  }
}
