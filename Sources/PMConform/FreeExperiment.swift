internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// One experiment of the `__free_pages` tables, played when it is made.
final class FreeExperiment {
  /// Why an experiment could not be played.
  struct Failure: Error {
    var text: String
  }

  /// What an experiment's name asks for.
  struct Name {
    var family: String
    var block: String
    var style: RemapDriver.Style = .remap
    var isWrite = false
    var target = 0
    /// Whether a guest takes part.
    var hasGuest: Bool

    init?(_ text: String) {
      let words = text.split(separator: "_").map(String.init)
      guard let family = words.first else { return nil }
      self.family = family
      hasGuest = ["F3", "F3i", "F4a", "F4c", "F5", "F6"].contains(family)
      isWrite = words.contains("write")
      target = text.contains("_on_tail1_") ? 1 : 0
      let order = words.last.flatMap { $0.hasPrefix("o") ? Int($0.dropFirst()) : nil }
      switch family {
      case "F1", "F2", "F2t", "F3", "F3i", "F5":
        guard let block = Name.block(words) else { return nil }
        self.block = block
        if family == "F3i" { style = .insertPage }
      case "F4a":
        block = Name.block(words) ?? "noncomp_o2"
        guard let style = Name.style(text) else { return nil }
        self.style = style
      case "F4b", "F4c", "F4d":
        block = "noncomp_o\(order ?? 2)"
        if family == "F4c" { isWrite = true }
      case "F6":
        guard words.count > 3, let style = Name.style(text) else { return nil }
        self.style = style
        let kinds = ["order0", "reserved_o0", "reserved", "zeropage", "zero_page"]
        guard let kind = kinds.first(where: { text.contains("_rounds_" + $0) }) else { return nil }
        block = kind == "reserved" ? "reserved_o0" : kind
      default: return nil
      }
      guard PageBlock.parse(block) != nil else { return nil }
    }

    /// The kind of block at the end of a name: `comp_o2`, `order0`, …
    private static func block(_ words: [String]) -> String? {
      for length in [1, 2, 3] where words.count > length {
        let text = words.suffix(length).joined(separator: "_")
        if PageBlock.parse(text) != nil { return text }
      }
      return nil
    }

    private static func style(_ text: String) -> RemapDriver.Style? {
      RemapDriver.Style.allCases.first { text.contains("_" + $0.rawValue + "_") }
    }
  }

  /// By step: the cells of each page that is printed.
  private(set) var states: [String: [Int: [String: String]]] = [:]
  /// By step: what is printed, in order.
  private(set) var events: [String: [String]] = [:]

  let name: Name
  let host: MeasuredHost
  let kernel: HostKernel
  let block: PageBlock
  let watch: PageWatch
  private var freed: [String] = []
  private var mapping: (process: HostProcess, driver: RemapDriver, range: Range<UInt64>)?
  private var vm: MeasuredVM?

  /// A step's key: its number where it begins with one.
  static func key(_ step: String) -> String {
    let number = step.prefix { $0.isNumber }
    return number.isEmpty ? step : String(number)
  }

  init(_ text: String, on facts: HostFacts) throws(Failure) {
    guard let name = Name(text) else { throw Failure(text: "unknown experiment") }
    do {
      host = try MeasuredHost.make(facts)
      kernel = host.kernel
      guard let block = PageBlock(name.block, kernel: kernel, on: &host.cpu) else {
        throw Failure(text: "no memory for the block")
      }
      self.name = name
      self.block = block
      let watched = ["F4a", "F4c"].contains(name.family) ? 1 : name.target
      guard block.pages.indices.contains(watched) else {
        throw Failure(text: "\(name.block) has no page \(watched)")
      }
      watch = PageWatch(block.pages[watched], in: kernel)
      try occupyBuddy()
      let first = block.pages[0]
      let count = block.pages.count
      host.cpu.pageFreeEvent = { [unowned self] pfn, order, refcount in
        let index = pfn - first
        guard index >= 0, index < count else { return }
        freed.append(
          "mm_page_free seq=\(freed.count) idx=\(index) order=\(order) ref_at_free=\(refcount)")
      }
      kernel.observer = watch
      try play()
    } catch let failure as Failure {
      throw failure
    } catch {
      throw Failure(text: "\(error)")
    }
  }

  /// Allocates until the block's buddy is in use, so that what is freed of the block merges with nothing
  /// else.
  private func occupyBuddy() throws {
    let order: Int
    switch block.kind {
    case .compound(let n), .plain(let n), .split(let n): order = n
    case .vmalloc, .zeroPage, .device: return
    }
    guard order < Order.max else { return }
    let buddy = PFN(block.pages[0].rawValue ^ (1 << UInt32(order)))
    for _ in 0..<4096 {
      if host.machine.whereabouts(of: buddy) == .used { return }
      try host.cpu.allocatePages(order: order, gfp: .user)
    }
    throw Failure(text: "the buddy of the block stays free")
  }

  // MARK: what is printed

  private var printed: [Int] {
    block.pages.count <= 4
      ? Array(block.pages.indices)
      : [0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 255, 256, 511].filter { $0 < block.pages.count }
  }

  private func printState(_ step: String) {
    var cells: [Int: [String: String]] = [:]
    for index in printed { cells[index] = state(block.pages[index]) }
    states[step] = cells
  }

  private func state(_ pfn: PFN) -> [String: String] {
    let frames = kernel.frames
    let isBuddy = frames.buddyOrder(pfn) != nil
    var cells = [
      "ref": "\(frames.refcount(pfn))",
      "href": "\(frames.refcount(frames.compoundHead(of: pfn)))",
      "flags": kernel.flagLetters(pfn), "PageBuddy": isBuddy ? "1" : "0",
      "buddy_head_off": "na", "buddy_order": "none",
      // The page type of a free block's head stands in the same field.
      "raw_mapcount": isBuddy ? "-129" : "\(host.machine.details(of: pfn).mapcount)",
    ]
    if case .free(let head, let order) = host.machine.whereabouts(of: pfn) {
      cells["buddy_head_off"] = "\(head - pfn)"
      cells["buddy_order"] = "\(order)"
    }
    return cells
  }

  private func printEvents(_ step: String) {
    let first = watch.first ?? (0, 0)
    let after = watch.afterwards ?? (0, 0)
    events[step, default: []].append(
      "summary n_release=\(watch.releases) ref_at_release=\(first.own) "
        + "href_at_release=\(first.head) ref_after_act=\(after.own) "
        + "href_after_act=\(after.head) n_free_events=\(freed.count)")
    events[step, default: []] += freed
  }

  // MARK: what is done

  private func play() throws {
    if name.hasGuest, name.family != "F4a", name.family != "F6" { try mapAndRun() }
    if name.family != "F6" { printState("0") }
    switch name.family {
    case "F1":
      free()
      finish(["1"], drain: "2")
    case "F2": hold(block.pages[0], lastDrains: true)
    case "F2t":
      guard block.pages.count > 1 else { throw Failure(text: "\(name.block) has no tail") }
      hold(block.pages[1], lastDrains: false)
    case "F3": try faultAndFree(first: "1", drain: "2", zaps: true)
    case "F3i":
      printState("1")
      try faultAndFree(first: "2", drain: nil, zaps: false)
      zap()
      finish(["3"], drain: "4")
    case "F4a": try raisedTail()
    case "F4b":
      guard block.pages.count > 1 else { throw Failure(text: "\(name.block) has no tail") }
      kernel.frames.setRefcount(block.pages[1], 1)
      printState("1")
      free()
      finish(["2"], drain: "3")
      host.cpu.putPage(block.pages[1])
      finish(["4"], drain: "5")
    case "F4c": try ownerDrops()
    case "F4d":
      for page in block.pages.dropFirst() { kernel.frames.setRefcount(page, 1) }
      host.cpu.getPage(block.pages[0])
      printState("1")
      free()
      finish(["2"], drain: "3")
      host.cpu.putPage(block.pages[0])
      finish(["4"], drain: nil)
    case "F5":
      access(0)
      printState("1")
      zap()
      printState("2")
      free()
      printEvents("3")
      host.cpu.drainLocalPages()
      printState("3")
    case "F6": try rounds()
    default: throw Failure(text: "unknown experiment")
    }
  }

  private func free() { host.cpu.freePages(block.pages[0], order: block.freeOrder) }

  /// Prints state and events of steps, then drains and prints again.
  private func finish(_ steps: [String], drain: String?) {
    for step in steps {
      printState(step)
      printEvents(step)
    }
    if let drain {
      host.cpu.drainLocalPages()
      printState(drain)
    }
  }

  private func hold(_ page: PFN, lastDrains: Bool) {
    host.cpu.getPage(page)
    printState("1")
    free()
    if lastDrains {
      finish(["2"], drain: "3")
      host.cpu.putPage(page)
      finish(["4"], drain: "5")
    } else {
      finish(["2"], drain: nil)
      host.cpu.putPage(page)
      finish(["3"], drain: "4")
    }
  }

  private func mapAndRun() throws {
    let process = HostProcess(kernel: kernel)
    let driver = RemapDriver(pages: block.pages, style: name.style)
    let byteCount = UInt64(block.pages.count) << 12
    let address = try process.map(
      .init(byteCount: byteCount, isShared: true, backing: .driver(driver)), on: &host.cpu)
    mapping = (process, driver, address..<(address + byteCount))
    let made = try MeasuredVM(host.facts, process: process, on: &host.cpu)
    vm = made
    _ = made.set(
      slot: 1, gpa: MeasuredVM.testedGPA, byteCount: byteCount, hva: address, on: &host.cpu)
    made.warmUp(on: &host.cpu)
  }

  private func zap() { mapping?.driver.mappings.unmap(on: &host.cpu) }

  /// One guest access; returns what KVM_RUN gave.
  @discardableResult
  private func access(_ index: Int) -> String {
    guard let vm else { return "na" }
    let made = vm.access(
      MeasuredVM.testedGPA + UInt64(index) << 12, write: name.isWrite ? 0x1234_5678 : nil,
      on: &host.cpu)
    let run = host.facts.describe(made)
    return "\(run.error) \(run.exit)"
  }

  private func clearWatch() {
    watch.clear()
    freed = []
  }

  /// The owner frees while the fault's reference is held.
  private func faultAndFree(first: String, drain: String?, zaps: Bool) throws {
    clearWatch()
    let head = block.pages[0]
    let order = block.freeOrder
    watch.atFirstRelease = { cpu in cpu.freePages(head, order: order) }
    events["run"] = [access(name.target)]
    watch.atFirstRelease = nil
    if zaps { zap() }
    finish([first], drain: drain)
  }

  private func raisedTail() throws {
    kernel.frames.setRefcount(block.pages[1], 1)
    guard block.pages.count > 2 else { throw Failure(text: "the block is too small") }
    let isRaised = kernel.frames.getPageUnlessZero(block.pages[2])
    events["get_page_unless_zero"] = ["idx=2 ret=\(isRaised ? 1 : 0)"]
    try mapAndRun()
    guard let mapping, let vm else { throw Failure(text: "no mapping") }
    if name.style == .insertPage {
      events["vm_insert_page"] = mapping.driver.insertionErrors.enumerated().map { index, error in
        "idx=\(index) \(error.map { "\($0)" } ?? "0")"
      }
    }
    printState("1")
    clearWatch()
    events["run_tail1"] = [access(1)]
    printEvents("run_tail1")
    printState("2")
    events["run_tail2(ref0)"] = [access(2)]
    zap()
    printState("3")
    vm.vm.close(on: &host.cpu)
    printState("4")
    printEvents("4")
    try mapping.process.unmap(mapping.range, on: &host.cpu)
    kernel.frames.decrement(block.pages[1])
    printState("5")
    free()
    printEvents("6")
    host.cpu.drainLocalPages()
    printState("7")
  }

  /// The owner drops its reference to a raised tail while KVM holds one of its own.
  private func ownerDrops() throws {
    let tail = block.pages[1]
    kernel.frames.setRefcount(tail, 1)
    let frames = kernel.frames
    clearWatch()
    watch.atFirstRelease = { _ in frames.decrement(tail) }
    events["run"] = [access(1)]
    watch.atFirstRelease = nil
    zap()
    finish(["1"], drain: "2")
    free()
    finish(["3"], drain: "4")
  }

  /// Four accesses with a zap by mprotect after each.
  private func rounds() throws {
    let page = block.pages[0]
    var counts = ["alloc=\(kernel.frames.refcount(page))"]
    func note(_ name: String) { counts.append("\(name)=\(kernel.frames.refcount(page))") }
    try mapAndRun()
    guard let mapping, let vm else { throw Failure(text: "no mapping") }
    note("mmapped")
    for round in 1...4 {
      access(0)
      try mapping.process.protect(mapping.range, rights: [], on: &host.cpu)
      try mapping.process.protect(mapping.range, rights: [.read, .write], on: &host.cpu)
      note("round\(round)")
    }
    zap()
    note("after_unmap_mapping_range")
    vm.vm.close(on: &host.cpu)
    note("after_vm_close")
    events["refcounts"] = [counts.joined(separator: " ")]
  }
}
