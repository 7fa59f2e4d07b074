internal import ArgumentParser
internal import PMConform
internal import PMPageAllocator

/// `physmem kvm table`.
struct KVMTableCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "table",
    abstract: "The truth table: page kind by VMA by access by era, each cell an experiment.",
    discussion: """
      Every cell is one access of a guest to one page on a fresh machine. Pages of device memory \
      (ZONE_DEVICE) and pages that are swapped out are not among them: the machine has neither.
      """)

  @Option(help: "A0, A, B or C; without it, all four side by side.")
  var era: String?

  @Option(help: "Only this kind of page, as noncompound-tail.")
  var kind: String?

  @Flag(help: "Print one page of HTML.")
  var html = false

  @Flag(help: "Print one JSON object.")
  var json = false

  @Option(
    parsing: .upToNextOption,
    help: ArgumentHelp(
      "Tell one cell step by step: KIND VMA ACCESS, as noncompound-tail remap read.",
      valueName: "cell"))
  var explain: [String] = []

  func validate() throws {
    _ = try eras
    if let kind { _ = try KVMTableCommand.kind(kind) }
    guard !(html && json) else { throw ValidationError("--html and --json exclude each other") }
    guard !explain.isEmpty else { return }
    guard !html, kind == nil else {
      throw ValidationError("--explain stands alone or with --era and --json")
    }
    _ = try explained
  }

  func run() throws {
    do {
      if explain.isEmpty { try printTable() } else { try printExplanation() }
    } catch let error as MachineError {
      Output.error("\(error)")
      throw ExitCode.unavailable
    } catch let error as ExitCode {
      throw error
    } catch {
      Output.error("an experiment could not be made: \(error)")
      throw ExitCode.mismatch
    }
  }

  private func printTable() throws {
    let kind = try kind.map(KVMTableCommand.kind)
    let tables = try eras.map { try KVMTable($0, kind: kind) }
    if json {
      try Output.json(KVMTableJSON(eras: tables.map { .init(era: $0.era, cells: $0.cells) }))
    } else if html {
      Output.line(KVMTableHTML(tables: tables).page)
    } else {
      for line in KVMTableText(tables: tables).lines { Output.line(line) }
    }
  }

  private func printExplanation() throws {
    let (kind, area, access) = try explained
    let cells = try eras.compactMap { try KVMTable.cell(kind, area, access, $0) }
    if json {
      try Output.json(KVMTableJSON(eras: cells.map { .init(era: $0.era, cells: [$0]) }))
    } else {
      for (index, cell) in cells.enumerated() {
        if index > 0 { Output.line() }
        for line in KVMTableText.explanation(of: cell) { Output.line(line) }
      }
    }
  }

  // MARK: arguments

  private var eras: [KernelModel.KVM] {
    get throws { try KVMEra.parse(era) }
  }

  private static func kind(_ name: String) throws -> KVMPageKind {
    guard let kind = KVMPageKind(rawValue: name.lowercased()) else {
      throw ValidationError("no page kind '\(name)': " + names(KVMPageKind.self))
    }
    return kind
  }

  private static func names<Value: CaseIterable & RawRepresentable<String>>(
    _ type: Value.Type
  ) -> String {
    "one of " + type.allCases.map(\.rawValue).joined(separator: ", ")
  }

  private var explained: (KVMPageKind, KVMArea, KVMAccess) {
    get throws {
      guard explain.count == 3 else {
        throw ValidationError("--explain takes three words: KIND VMA ACCESS")
      }
      let kind = try KVMTableCommand.kind(explain[0])
      guard let area = KVMArea(rawValue: explain[1].lowercased()) else {
        throw ValidationError("no VMA '\(explain[1])': " + KVMTableCommand.names(KVMArea.self))
      }
      guard let access = KVMAccess(rawValue: explain[2].lowercased()) else {
        throw ValidationError("no access '\(explain[2])': read or write")
      }
      guard area.kinds.contains(kind) else {
        let kinds = area.kinds.map(\.rawValue).joined(separator: ", ")
        throw ValidationError("the table shows \(area.rawValue) for \(kinds) only")
      }
      return (kind, area, access)
    }
  }
}

/// Names of the eras.
enum KVMEra {
  /// The era of a name in either case, all of them for none.
  static func parse(_ name: String?) throws -> [KernelModel.KVM] {
    guard let name else { return KernelModel.KVM.allCases }
    guard let era = KernelModel.KVM(rawValue: name.uppercased()) else {
      throw ValidationError("no era '\(name)': one of A0, A, B, C")
    }
    return [era]
  }

  /// Which kernels.
  static func title(_ era: KernelModel.KVM) -> String {
    switch era {
    case .a0: "up to Linux 5.12, before the fixes of CVE-2021-22543"
    case .a: "Linux 5.13 to 6.12"
    case .b: "the v7 series of July 2023 as posted, never merged"
    case .c: "Linux 6.13 and later"
    }
  }
}
