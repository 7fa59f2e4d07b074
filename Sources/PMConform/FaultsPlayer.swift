internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Plays the tables of single guest accesses to mappings of many kinds, and of short sequences.
///
/// Every single row has a machine of its own; the rows of a sequence share one, and the number at the
/// beginning of a row's note says which step it is.
public struct FaultsPlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Plays every row.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    var sequences: [String: FaultSequence] = [:]
    var places: [String: Int] = [:]
    return table.rows.map { row in
      func cell(_ name: String) -> String { table.cell(row, name) ?? "" }
      let name = cell("case")
      if name.contains("secretmem") { return .notPlayed(.secretmem) }
      if name.contains("vdso") || name.contains("vvar") { return .notPlayed(.vdsoOrVvar) }
      if name.contains("hwpoison") { return .notPlayed(.hwpoison) }
      guard name.hasPrefix("seq.") else {
        return FaultRow(cell).play(on: table.host)
      }
      let sequence = sequences[name] ?? FaultSequence(name, on: table.host)
      sequences[name] = sequence
      let place = places[name, default: 0]
      places[name] = place + 1
      return sequence.outcome(access: cell("access"), note: cell("note"), place: place)
    }
  }
}

/// How these tables print one access.
struct FaultCells {
  var cells: [String: String]

  init(_ access: GuestAccess, isRead: Bool, on facts: HostFacts) {
    let run = facts.describe(access)
    var detail = "-"
    if case .mmio(let gpa, let byteCount, let isWrite) = access {
      let offset = gpa &- MeasuredVM.testedGPA
      detail =
        "gpa=slot+0x\(String(offset, radix: 16)),len=\(byteCount),\(isWrite ? "write" : "read")"
    }
    var value = "na"
    if isRead, case .done(let found) = access { value = "0x\(String(found, radix: 16))" }
    cells = ["KVM_RUN": run.error, "exit": run.exit, "detail": detail, "value_read": value]
  }
}

/// One access to a fresh mapping.
struct FaultRow {
  static let pages: UInt64 = 16
  let name: String
  let slot: String
  let access: String

  init(_ cell: (String) -> String) {
    name = cell("case")
    slot = cell("slot")
    access = cell("access")
  }

  func play(on facts: HostFacts) -> RowOutcome {
    do {
      let host = try MeasuredHost.make(facts)
      let process = HostProcess(kernel: host.kernel)
      guard let mapping = try FaultMapping(name, host, process) else {
        return .failed("no such mapping: \(name)")
      }
      let vm = try MeasuredVM(facts, process: process, on: &host.cpu)
      vm.warmUp(on: &host.cpu)
      _ = vm.set(
        slot: 1, flags: slot == "ro" ? 2 : 0, gpa: MeasuredVM.testedGPA,
        byteCount: mapping.pageCount << 12, hva: mapping.address, on: &host.cpu)
      let page: UInt64 = name.hasSuffix("_tail") ? 3 : 0
      let isRead = access == "read"
      let made = vm.access(
        MeasuredVM.testedGPA + page << 12, write: isRead ? nil : 0x5566_7788, on: &host.cpu)
      var cells = FaultCells(made, isRead: isRead, on: facts).cells
      let address = mapping.address + page << 12
      cells["note"] = note(vm, made, isRead, process, address, host)
      return .played(cells)
    } catch {
      return .failed("\(error)")
    }
  }

  private func note(
    _ vm: MeasuredVM, _ made: GuestAccess, _ isRead: Bool, _ process: HostProcess,
    _ address: UInt64, _ host: MeasuredHost
  ) -> String {
    let info = process.areaInfo(at: address)
    let isPFNMap = info?.flags.contains(.pfnmap) ?? false
    let isPresent = !isPFNMap && process.entry(at: address) != nil
    var note =
      "pages_4k+=\(vm.grownPages4K) pf_fixed+=\(vm.grownFaults) "
      + "host_pte_present_after=\(isPresent ? 1 : 0)"
    if case .done = made, !isRead, info?.flags.contains(.read) == true,
      let value = try? process.read32(address, on: &host.cpu)
    {
      note += " host_sees=0x\(String(value, radix: 16))"
    }
    return note
  }
}

/// The mapping of a case, by its name.
struct FaultMapping {
  let address: UInt64
  let pageCount: UInt64

  init?(_ name: String, _ host: MeasuredHost, _ process: HostProcess) throws {
    let words = Set(name.split(separator: "_").map(String.init))
    switch name.split(separator: "_").first {
    case "anon": address = try FaultMapping.anonymous(words, host, process)
    case "never": address = try FaultMapping.hole(host, process)
    case "file": address = try FaultMapping.file(words, host, process)
    case "packet":
      guard let block = PageBlock("comp_o4", kernel: host.kernel, on: &host.cpu) else { return nil }
      let driver = RemapDriver(pages: block.pages, style: .insertPage, name: "packet")
      address = try process.map(
        .init(byteCount: FaultRow.pages << 12, isShared: true, backing: .driver(driver)),
        on: &host.cpu)
    case "kvm":
      guard let block = PageBlock("order0", kernel: host.kernel, on: &host.cpu) else { return nil }
      let driver = RemapDriver(pages: block.pages, style: .faultPage, name: "kvm-vcpu")
      address = try process.map(
        .init(byteCount: 4096, isShared: true, backing: .driver(driver)), on: &host.cpu)
      pageCount = 1
      return
    default: return nil
    }
    pageCount = FaultRow.pages
  }

  private static func anonymous(
    _ words: Set<String>, _ host: MeasuredHost, _ process: HostProcess
  ) throws -> UInt64 {
    let byteCount = FaultRow.pages << 12
    let address = try process.map(.init(byteCount: byteCount), on: &host.cpu)
    let range = address..<(address + byteCount)
    if !words.contains("untouched") { try process.fill(range, 0x11, on: &host.cpu) }
    if words.contains("readtouched") {
      try process.discard(range, on: &host.cpu)
      for page in 0..<FaultRow.pages {
        _ = try process.read32(address + page << 12, on: &host.cpu)
      }
    }
    if words.contains("munmapped") { try process.unmap(range, on: &host.cpu) }
    let rights: [(String, VMAFlags)] = [
      ("none", []), ("ro", .read), ("wo", .write), ("exec", .execute),
    ]
    for (word, right) in rights where words.contains(word) {
      try process.protect(range, rights: right, on: &host.cpu)
    }
    return address
  }

  private static func hole(_ host: MeasuredHost, _ process: HostProcess) throws -> UInt64 {
    let byteCount = FaultRow.pages << 12
    let address = try process.map(.init(byteCount: byteCount), on: &host.cpu)
    try process.unmap(address..<(address + byteCount), on: &host.cpu)
    return address
  }

  private static func file(
    _ words: Set<String>, _ host: MeasuredHost, _ process: HostProcess
  ) throws -> UInt64 {
    let isNew = host.facts.kernel >= KernelVersion(6, 13)
    let file = HostFile(kernel: host.kernel, kind: isNew ? .disk : .tmpfs, byteCount: 0)
    try file.write(pages: 0..<FaultRow.pages, pattern: 0x22, on: &host.cpu)
    if words.contains("eof") { file.truncate(to: 0, on: &host.cpu) }
    return try process.map(
      .init(
        byteCount: FaultRow.pages << 12, rights: words.contains("ro") ? .read : [.read, .write],
        isShared: words.contains("shared"), backing: .file(file)), on: &host.cpu)
  }
}
