internal import PMGuestMap
internal import PMHostMap
internal import PMUnits

/// The scenarios `BACKING.manualM.fresh` and `….mapped_before_log` of one backing and one M: the same
/// memory, a VM for each, fresh first.
final class DirtyLogScript {
  /// A scenario's name.
  struct Name {
    var backing: String
    var manual: UInt64
    var isFresh: Bool

    init?(_ text: String) {
      let parts = text.split(separator: ".").map(String.init)
      guard parts.count == 3, parts[1].hasPrefix("manual"),
        let manual = UInt64(parts[1].dropFirst("manual".count)),
        ["fresh", "mapped_before_log"].contains(parts[2])
      else { return nil }
      backing = parts[0]
      self.manual = manual
      isFresh = parts[2] == "fresh"
    }
  }

  private struct Step {
    var word: String
    var operation: String
    var cells: [String: String]
  }

  private struct UnknownBacking: Error {
    var name: String
  }

  private let stage: DirtyLogStage
  private let manual: UInt64
  private var steps: [Bool: [Step]] = [:]

  init(_ name: Name, on facts: HostFacts) throws {
    guard let stage = try DirtyLogStage(name.backing, facts) else {
      throw UnknownBacking(name: name.backing)
    }
    self.stage = stage
    manual = name.manual
    for isFresh in [true, false] {
      let vm = try stage.makeVM(manual: manual)
      steps[isFresh] = try play(vm, isFresh: isFresh)
      vm.vm.close(on: &stage.host.cpu)
    }
  }

  /// The step of a row.
  func outcome(isFresh: Bool, step: String, operation: String) -> RowOutcome {
    let word = step.split(separator: " ").first.map(String.init) ?? ""
    let found = steps[isFresh]?.first { $0.word == word && $0.operation == operation }
    guard let found else { return .failed("the scenario has no step \(step): \(operation)") }
    return .played(found.cells)
  }

  private func play(_ vm: MeasuredVM, isFresh: Bool) throws -> [Step] {
    var made: [Step] = []
    func write(_ word: String, _ pages: ClosedRange<UInt64>) {
      made.append(
        Step(
          word: word, operation: "guest writes page \(pages.lowerBound)..\(pages.upperBound)",
          cells: stage.access(pages, isWrite: true, vm)))
    }
    func read(_ word: String, _ pages: ClosedRange<UInt64>) {
      made.append(
        Step(
          word: word, operation: "guest reads page \(pages.lowerBound)..\(pages.upperBound)",
          cells: stage.access(pages, isWrite: false, vm)))
    }
    func get(_ word: String) {
      made.append(Step(word: word, operation: "GET_DIRTY_LOG", cells: stage.get(vm)))
    }
    func clear(_ word: String, _ first: UInt64, _ count: UInt32, _ bits: [UInt64]) {
      made.append(
        Step(
          word: word, operation: "CLEAR_DIRTY_LOG first=\(first) n=\(count)",
          cells: stage.clear(vm, first: first, count: count, bits: bits)))
    }
    if !isFresh {
      _ = stage.set(vm, flags: 0)
      write("p0", 0...7)
      read("p1", 600...603)
    }
    made.append(
      Step(
        word: "log_on", operation: "SET_USER_MEMORY_REGION flags=1",
        cells: stage.set(vm, flags: 1)))
    get("1")
    if manual != 0 { clear("1c", 0, 1024, Array(repeating: .max, count: 16)) }
    get("1d")
    for pages in [0...0, 5...5, 511...512, 1023...1023] as [ClosedRange<UInt64>] {
      write("2", pages)
    }
    read("2r", 100...102)
    get("3")
    get("4")
    write("5", 5...5)
    get("6")
    if manual != 0 {
      clear("7", 0, 64, [1 << 5])
      get("8")
      write("9", 5...5)
      get("10")
      clear("11", 448, 64, [1 << 63])
      get("12")
      clear("13", 192, 64, [1 << 8])
      get("14")
      clear("15", 960, 64, [.max])
      get("16")
    }
    try end(vm, get: get, write: write)
    return made
  }

  /// Steps 17 to 25: the host writes, drops a page; logging off, on, and the slot moved.
  private func end(
    _ vm: MeasuredVM, get: (String) -> Void, write: (String, ClosedRange<UInt64>) -> Void
  ) throws {
    let host = stage.host
    let page = { (index: UInt64) in self.stage.hva + index << 12 }
    try stage.process.fill(page(7)..<(page(7) + 1), 0x77, on: &host.cpu)
    get("17")
    write("18", 9...9)
    if !stage.isHugetlb { try stage.process.discard(page(9)..<page(10), on: &host.cpu) }
    get("19")
    write("20", 11...11)
    _ = stage.set(vm, flags: 0)
    get("21")
    write("22", 12...12)
    _ = stage.set(vm, flags: 1)
    get("23")
    write("24", 13...13)
    _ = stage.set(vm, flags: 1, gpa: 0x5000_0000)
    get("25")
  }
}

/// Scenarios that their rows drive: a read-only slot that logs, memory that the host may not write, two
/// slots over the same memory.
final class DirtyLogDriven {
  private let stage: DirtyLogStage
  private let vm: MeasuredVM
  private let hasTwoSlots: Bool
  private var lastRights: VMAFlags?

  private struct UnknownScenario: Error {
    var name: String
  }

  init(_ family: String, on facts: HostFacts) throws {
    guard let stage = try DirtyLogStage("4k", facts) else { throw UnknownScenario(name: family) }
    self.stage = stage
    hasTwoSlots = family.contains("two_slots")
    vm = try stage.makeVM(manual: 0)
    switch family {
    case "ro_slot+log": _ = stage.set(vm, flags: 3)
    case "rw_slot+log": _ = stage.set(vm, flags: 1)
    case "two_slots_one_hva":
      _ = stage.set(vm, flags: 1)
      _ = stage.set(vm, flags: 1, gpa: MeasuredVM.testedGPA + DirtyLogStage.byteCount, slot: 2)
    default: throw UnknownScenario(name: family)
    }
  }

  func play(scenario: String, step: String, operation: String) throws -> RowOutcome {
    let rights: VMAFlags? =
      scenario.hasSuffix("PROT_READ") ? .read : scenario.hasSuffix("PROT_NONE") ? [] : nil
    if let rights, rights != lastRights {
      let page = stage.hva + 4 << 12
      try stage.process.protect(page..<(page + 4096), rights: rights, on: &stage.host.cpu)
      lastRights = rights
    }
    switch DirtyLogOperation(operation) {
    case .write(let pages): return .played(stage.access(pages, isWrite: true, vm))
    case .read(let pages): return .played(stage.access(pages, isWrite: false, vm))
    case .get:
      let text = (step + " " + operation).lowercased()
      let isSecond = hasTwoSlots && ["slot 2", "slot=2", "slot2"].contains { text.contains($0) }
      return .played(stage.get(vm, slot: isSecond ? 2 : 1))
    case .set(let flags): return .played(stage.set(vm, flags: flags))
    case .clear, nil: return .failed("the scenario has no operation \(operation)")
    }
  }
}
