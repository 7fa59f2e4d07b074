internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Plays the tables of dirty logging: bitmaps with and without manual protection over several backings,
/// read-only slots, shared memory, rings.
///
/// A scenario of `BACKING.manualM.STATE` is played as a whole; its rows pick their step by the word at its
/// beginning and by the operation. The other scenarios are driven by their rows.
public struct DirtyLogPlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Plays every row.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    var scripts: [String: DirtyLogScript] = [:]
    var driven: [String: DirtyLogDriven] = [:]
    var rings: [String: DirtyRingScript] = [:]
    return table.rows.map { row in
      func cell(_ name: String) -> String { table.cell(row, name) ?? "" }
      let scenario = cell("scenario")
      do {
        if scenario == "ring" || scenario == "ring_acq_rel" {
          let ring = try rings[scenario] ?? DirtyRingScript(table.host)
          rings[scenario] = ring
          return try ring.play(step: cell("step"), operation: cell("operation"))
        }
        if let name = DirtyLogScript.Name(scenario) {
          let key = "\(name.backing).\(name.manual)"
          let script = try scripts[key] ?? DirtyLogScript(name, on: table.host)
          scripts[key] = script
          return script.outcome(
            isFresh: name.isFresh, step: cell("step"), operation: cell("operation"))
        }
        // Scenarios of one family share a VM: what stands before the comma.
        let family = String(scenario.split(separator: ",").first ?? "")
        let run = try driven[family] ?? DirtyLogDriven(family, on: table.host)
        driven[family] = run
        return try run.play(
          scenario: scenario, step: cell("step"), operation: cell("operation"))
      } catch {
        return .failed("\(error)")
      }
    }
  }
}

/// An operation as the tables write it.
enum DirtyLogOperation {
  case write(ClosedRange<UInt64>)
  case read(ClosedRange<UInt64>)
  case get
  case clear(first: UInt64, count: UInt32)
  case set(flags: UInt32)

  init?(_ text: String) {
    let words = text.split(separator: " ").map(String.init)
    func number(_ prefix: String) -> UInt64? {
      words.first { $0.hasPrefix(prefix) }.flatMap { UInt64($0.dropFirst(prefix.count)) }
    }
    if words.count >= 4, words[0] == "guest", words[2] == "page" {
      let ends = words[3].split(separator: ".").compactMap { UInt64($0) }
      guard ends.count == 2, ends[0] <= ends[1], ends[1] < 1 << 20 else { return nil }
      self = words[1].hasPrefix("write") ? .write(ends[0]...ends[1]) : .read(ends[0]...ends[1])
    } else if words.first == "GET_DIRTY_LOG" {
      self = .get
    } else if words.first == "CLEAR_DIRTY_LOG", let first = number("first="),
      let count = number("n="), count < 1 << 31
    {
      self = .clear(first: first, count: UInt32(count))
    } else if words.first == "SET_USER_MEMORY_REGION", let flags = number("flags="),
      flags < 1 << 32
    {
      self = .set(flags: UInt32(flags))
    } else {
      return nil
    }
  }
}

/// The backing of 1024 pages and the VM over it, with the operations of these tables.
final class DirtyLogStage {
  static let pageCount: UInt64 = 1024
  static let byteCount: UInt64 = pageCount << 12

  let facts: HostFacts
  let host: MeasuredHost
  let process: HostProcess
  let hva: UInt64
  let isHugetlb: Bool

  init?(_ backing: String, _ facts: HostFacts) throws {
    self.facts = facts
    host = try MeasuredHost.make(facts)
    process = HostProcess(kernel: host.kernel)
    var request = HostProcess.MapRequest(byteCount: DirtyLogStage.byteCount)
    isHugetlb = backing == "hugetlb"
    switch backing {
    case "4k": request.extra = .noHugePage
    case "thp": request.extra = .hugePage
    case "hugetlb": request.extra = .hugetlb
    default: return nil
    }
    hva = try process.map(request, on: &host.cpu)
    try process.fill(hva..<(hva + DirtyLogStage.byteCount), 0x11, on: &host.cpu)
  }

  func makeVM(manual: UInt64, ringByteCount: UInt64? = nil) throws -> MeasuredVM {
    let made = try MeasuredVM(
      facts, process: process, ringByteCount: ringByteCount, on: &host.cpu)
    if manual != 0 { try made.vm.enableManualDirtyLogProtect(manual) }
    return made
  }

  /// Pages from 1024 on belong to slot 2, whose guest addresses are 4 MiB higher.
  private func gpa(_ page: UInt64, base: UInt64) -> UInt64 { base + page << 12 }

  /// Accesses a range of pages; the result is that of the last.
  func access(
    _ pages: ClosedRange<UInt64>, isWrite: Bool, _ vm: MeasuredVM,
    base: UInt64 = MeasuredVM.testedGPA
  ) -> [String: String] {
    var run = ("0", "DONE")
    for page in pages {
      let value = isWrite ? UInt32(truncatingIfNeeded: 0x1234 + page) : nil
      let made = vm.access(gpa(page, base: base), write: value, on: &host.cpu)
      run = facts.describe(made)
    }
    return counts(vm).merging(["result": "\(run.0)/\(run.1)"]) { $1 }
  }

  func counts(_ vm: MeasuredVM) -> [String: String] {
    let counts = vm.vm.leafCounts
    return ["pages_4k": "\(counts.pages4K)", "pages_2m": "\(counts.pages2M)"]
  }

  func get(_ vm: MeasuredVM, slot: UInt32 = 1) -> [String: String] {
    var words = [UInt64](repeating: 0, count: Int(DirtyLogStage.pageCount / 64))
    let error = words.withUnsafeMutableBufferPointer { buffer in
      let view = buffer
      return result { () throws(KernelErrno) in
        try vm.vm.getDirtyLog(slot: slot, into: view, on: &host.cpu)
      }
    }
    var cells = counts(vm)
    cells["result"] = error
    if error == "0" { cells["dirty_pages"] = DirtyLogStage.runs(words) }
    return cells
  }

  func clear(_ vm: MeasuredVM, first: UInt64, count: UInt32, bits: [UInt64]) -> [String: String] {
    [
      "result": result { () throws(KernelErrno) in
        try vm.vm.clearDirtyLog(
          DirtyLogRange(slot: 1, firstPage: first, pageCount: count), bits: bits, on: &host.cpu)
      }
    ]
  }

  func set(
    _ vm: MeasuredVM, flags: UInt32, gpa: UInt64 = MeasuredVM.testedGPA, slot: UInt32 = 1
  ) -> [String: String] {
    [
      "result": vm.set(
        slot: slot, flags: flags, gpa: gpa, byteCount: DirtyLogStage.byteCount, hva: hva,
        on: &host.cpu)
    ]
  }

  /// Set bits as `0,5,100-102`, at most twelve runs; `none`.
  static func runs(_ words: [UInt64]) -> String {
    var runs: [String] = []
    var start: Int?
    for page in 0...(words.count * 64) {
      let isSet = page < words.count * 64 && words[page / 64] >> UInt64(page % 64) & 1 != 0
      if isSet {
        start = start ?? page
      } else if let first = start {
        runs.append(first == page - 1 ? "\(first)" : "\(first)-\(page - 1)")
        start = nil
      }
    }
    return runs.isEmpty ? "none" : runs.prefix(12).joined(separator: ",")
  }
}
