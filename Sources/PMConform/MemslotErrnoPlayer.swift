internal import PMGuestMap
internal import PMHostMap
internal import PMUnits

/// Plays the tables of ioctl results: slots, dirty logs, capabilities.
///
/// Most rows have a VM of their own; those that clear logs, enable manual protection or use the newer
/// region call share one within their family, in the order of the table. A table that compares hosts
/// has a result column for each: its name tells the host.
public struct MemslotErrnoPlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Columns of the table that are no results.
  private static let inputs: Set<String> = ["case", "slots_before", "operation", "note"]

  /// Plays every row for every host that the table names.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    let results = table.columns.filter { !MemslotErrnoPlayer.inputs.contains($0) }
    var outcomes = [RowOutcome](repeating: .played([:]), count: table.rows.count)
    for column in results {
      let run: MemslotErrnoRun
      do {
        run = try MemslotErrnoRun(host(column, table))
      } catch {
        return table.rows.map { _ in .failed("\(error)") }
      }
      for (index, row) in table.rows.enumerated() {
        let outcome = run.play(
          name: table.cell(row, "case") ?? "", before: table.cell(row, "slots_before") ?? "-",
          operation: table.cell(row, "operation") ?? "", result: column)
        outcomes[index] = merged(outcomes[index], outcome)
      }
    }
    return outcomes
  }

  private func host(_ column: String, _ table: TruthTable) -> HostFacts {
    // A name with a version is a host's, and so are the names that the tables' README gives the two;
    // `result` is that of the whole table.
    let words = column.split { "_- ".contains($0) }
    let name: String? =
      if words.contains(where: { $0.contains("6.") }) {
        words.joined(separator: "-")
      } else if words.last == "A" {
        "6.1"
      } else if words.last == "B" {
        "6.18"
      } else {
        nil
      }
    return name.map { HostFacts(header: [], name: "-" + $0) } ?? table.host
  }

  private func merged(_ first: RowOutcome, _ second: RowOutcome) -> RowOutcome {
    guard case .played(let left) = first, case .played(let right) = second else {
      if case .failed = first { return first }
      return second
    }
    return .played(left.merging(right) { $1 })
  }
}

/// The rows of one host.
private final class MemslotErrnoRun {
  let capabilities: VMCapabilities
  private let host: MeasuredHost
  /// The VM of the `clearlog.` rows: slot 2 with 200 pages and a log.
  private let clearing: VirtualMachine
  /// The VM of the `region2.` rows.
  private let regions: VirtualMachine

  /// Where the tests' memory is: 16 MiB.
  private static let memory: UInt64 = 0x7e00_0000_0000
  /// The bits that are passed to clear a log: all.
  private static let allBits = [UInt64](repeating: .max, count: 64)

  init(_ facts: HostFacts) throws {
    capabilities = facts.capabilities
    host = try MeasuredHost.make(facts)
    regions = try VirtualMachine(
      process: HostProcess(kernel: host.kernel), configuration: facts.configuration)
    clearing = try VirtualMachine(
      process: HostProcess(kernel: host.kernel), configuration: facts.configuration)
    try clearing.setUserMemoryRegion(
      MemslotErrnoRun.region(2, 1, 0x200000, pages: 200), on: &host.cpu)
  }

  private static func region(
    _ slot: UInt32, _ flags: UInt32, _ address: UInt64, pages: UInt64 = 4
  ) -> MemoryRegion {
    MemoryRegion(
      slot: slot, flags: flags, guestPhysicalAddress: address, memorySize: pages << 12,
      userspaceAddress: memory)
  }

  /// A VM without any slot, over a process of its own.
  private func fresh() throws -> VirtualMachine {
    try VirtualMachine(
      process: HostProcess(kernel: host.kernel), configuration: host.facts.configuration)
  }

  func play(
    name: String, before: String, operation: String, result column: String
  ) -> RowOutcome {
    do {
      return try playRow(name: name, before: before, operation: operation, result: column)
    } catch {
      return .failed("\(error)")
    }
  }

  private func playRow(
    name: String, before: String, operation: String, result column: String
  ) throws -> RowOutcome {
    let (family, rest) = split(name)
    let arguments = Arguments(operation, memory: MemslotErrnoRun.memory)
    if "\(name) \(operation)".lowercased().contains("create_guest_memfd") {
      return .played([column: createGuestMemfd(arguments)])
    }
    let value: String?
    switch family {
    case "cap":
      let answer = capabilities.checkExtension(rest)
      value = "sys=\(answer),vm=\(answer)"
    case "getlog": value = try getLog(rest, arguments)
    case "clearlog": value = clearLog(rest, arguments)
    case "enable_manual_protect2": value = try enableManualProtect(rest)
    case "region2": value = region2(arguments)
    default: return try playRegion(before, arguments, column)
    }
    guard let value else { return .failed("unknown operation '\(operation.prefix(60))'") }
    return .played([column: value])
  }

  private func split(_ name: String) -> (family: String, rest: String) {
    guard let point = name.firstIndex(of: ".") else { return (name, "") }
    return (String(name[..<point]), String(name[name.index(after: point)...]))
  }

  // MARK: families

  /// `KVM_SET_USER_MEMORY_REGION` on a fresh VM after others, whose results are compared too.
  private func playRegion(
    _ before: String, _ arguments: Arguments, _ column: String
  ) throws -> RowOutcome {
    let vm = try fresh()
    var values: [String: String] = [:]
    if before != "-" {
      var parts: [String] = []
      for step in before.split(separator: ";") {
        let text = step.split(separator: "=>").first.map { $0.filter { $0 != " " } } ?? ""
        guard let region = Arguments(text, memory: MemslotErrnoRun.memory).region else {
          return .failed("unknown operation '\(text.prefix(60))'")
        }
        let result = result { () throws(KernelErrno) in
          try vm.setUserMemoryRegion(region, on: &host.cpu)
        }
        parts.append("\(text)=>\(result)")
      }
      values["slots_before"] = parts.joined(separator: " ; ")
    }
    guard let region = arguments.region else {
      return .failed("unknown operation '\(arguments.text.prefix(60))'")
    }
    values[column] = result { () throws(KernelErrno) in
      try vm.setUserMemoryRegion(region, on: &host.cpu)
    }
    return .played(values)
  }

  /// `KVM_GET_DIRTY_LOG`; slot 1 has no log, slot 2 has one.
  private func getLog(_ name: String, _ arguments: Arguments) throws -> String? {
    guard let slot = arguments.slot else { return nil }
    let vm = try fresh()
    func set(
      _ slot: UInt32, _ flags: UInt32, _ address: UInt64, pages: UInt64 = 4
    ) throws(KernelErrno) {
      try vm.setUserMemoryRegion(
        MemslotErrnoRun.region(slot, flags, address, pages: pages), on: &host.cpu)
    }
    return result { () throws(KernelErrno) in
      try set(1, 0, 0x100000)
      try set(2, 1, 0x200000)
      if name == "after_log_off" {
        try set(2, 0, 0x200000)
      } else if name == "after_delete" {
        try set(2, 0, 0x200000, pages: 0)
      }
      guard !name.hasSuffix("_buffer") else {
        return try vm.getDirtyLog(slot: slot, into: nil, on: &host.cpu)
      }
      var words: [UInt64] = [0]
      try words.withUnsafeMutableBufferPointer { buffer throws(KernelErrno) in
        try vm.getDirtyLog(slot: slot, into: buffer, on: &host.cpu)
      }
    }
  }

  /// `KVM_CLEAR_DIRTY_LOG`, and the row that enables manual protection in between.
  private func clearLog(_ name: String, _ arguments: Arguments) -> String? {
    if let argument = suffix(name, after: "enable_manual_").flatMap(UInt64.init) {
      return result { () throws(KernelErrno) in
        try clearing.enableManualDirtyLogProtect(argument)
      }
    }
    guard let slot = arguments.slot, let first = arguments["first"],
      let count = arguments["n"].flatMap({ UInt32(exactly: $0) })
    else { return nil }
    let range = DirtyLogRange(slot: slot, firstPage: first, pageCount: count)
    let bits = MemslotErrnoRun.allBits
    return result { () throws(KernelErrno) in
      let isGiven = !name.hasSuffix("_null") && range.wordCount <= bits.count
      try clearing.clearDirtyLog(range, bits: isGiven ? bits : nil, on: &host.cpu)
    }
  }

  /// `N` is on a fresh VM, `N_flagsM` on the VM after `N`; a refused call changes nothing.
  private func enableManualProtect(_ name: String) throws -> String? {
    let parts = name.split(separator: "_", maxSplits: 1).map(String.init)
    guard let argument = parts.first.flatMap(number) else { return nil }
    var flags: UInt32 = 0
    if parts.count > 1 {
      guard let value = suffix(parts[1], after: "flags").flatMap(UInt32.init) else { return nil }
      flags = value
    }
    let vm = try fresh()
    return result { () throws(KernelErrno) in
      try vm.enableManualDirtyLogProtect(argument, flags: flags)
    }
  }

  /// `KVM_SET_USER_MEMORY_REGION2`: the first row makes slot 1, the others try slot 2.
  private func region2(_ arguments: Arguments) -> String? {
    guard let flags = arguments["flags"].flatMap({ UInt32(exactly: $0) }) else { return nil }
    let isFirst = regions.memslots[0].isEmpty && flags == 0 && !arguments.isPadded
    let region =
      isFirst
      ? MemslotErrnoRun.region(1, flags, 0x100000)
      : MemslotErrnoRun.region(2, flags, arguments.isPadded ? 0x300000 : 0x200000)
    let descriptor = Int32(truncatingIfNeeded: arguments["fd"] ?? 0)
    return result { () throws(KernelErrno) in
      try regions.setUserMemoryRegion2(
        MemoryRegion2(region, guestMemfd: descriptor), on: &host.cpu)
    }
  }

  /// `KVM_CREATE_GUEST_MEMFD` of the size given, or of a page.
  private func createGuestMemfd(_ arguments: Arguments) -> String {
    result { () throws(KernelErrno) in
      try capabilities.checkGuestMemfd(
        byteCount: arguments["size"] ?? 4096, flags: arguments["flags"] ?? 0)
    }
  }

  private func suffix(_ text: String, after prefix: String) -> String? {
    text.hasPrefix(prefix) ? String(text.dropFirst(prefix.count)) : nil
  }

  private func number(_ text: String) -> UInt64? { Arguments.number(text[...]) }
}

/// The arguments of an operation: `key=value` with a comma between.
private struct Arguments {
  let text: String
  private var values: [String: UInt64] = [:]
  /// A padding word has a value.
  private(set) var isPadded = false

  init(_ text: String, memory: UInt64) {
    self.text = text
    for part in text.split(separator: ",") {
      let pair = part.split(separator: "=", maxSplits: 1)
      guard pair.count == 2 else { continue }
      if pair[0].hasPrefix("pad") { isPadded = true }
      let value =
        pair[1].hasPrefix("H+")
        ? Arguments.number(pair[1].dropFirst(2)).map { memory &+ $0 } : Arguments.number(pair[1])
      values[String(pair[0])] = value
    }
  }

  /// Decimal, negative decimal (as two's complement) or hexadecimal with `0x`.
  static func number(_ text: Substring) -> UInt64? {
    if text.hasPrefix("0x") { return UInt64(text.dropFirst(2), radix: 16) }
    return UInt64(text) ?? Int64(text).map { UInt64(bitPattern: $0) }
  }

  subscript(key: String) -> UInt64? { values[key] }

  var slot: UInt32? { self["slot"].flatMap { UInt32(exactly: $0) } }

  /// All five fields of a memory region; nil where one is missing or too large.
  var region: MemoryRegion? {
    guard let slot, let flags = self["flags"].flatMap({ UInt32(exactly: $0) }),
      let address = self["gpa"], let size = self["size"], let userspace = self["hva"]
    else { return nil }
    return MemoryRegion(
      slot: slot, flags: flags, guestPhysicalAddress: address, memorySize: size,
      userspaceAddress: userspace)
  }
}
