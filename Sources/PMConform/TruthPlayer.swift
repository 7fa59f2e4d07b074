internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Plays the core table: pages of every kind through a guest fault and its end, stage by stage.
///
/// Rows of the measuring module have a machine of their own. Rows of user memory share one, because the
/// zero page, the huge zero page and the huge page keep their flags: all of them are played, in the order
/// in which they were measured, whatever part of them the table has.
public struct TruthPlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Plays every row.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    var user: [UserRow: RowOutcome]?
    return table.rows.map { row in
      func cell(_ name: String) -> String { table.cell(row, name) ?? "" }
      guard cell("kind").hasPrefix("user:") else {
        guard let module = ModuleRow(cell) else {
          return .failed("not a row of the measuring module: \(cell("kind"))/\(cell("vma"))")
        }
        return module.play(on: table.host)
      }
      let key = UserRow(cell)
      if user == nil { user = UserRow.playAll(on: table.host) }
      return user?[key] ?? .failed("no such row of user memory: \(key)")
    }
  }
}

/// What one or two accesses of a row came to.
struct RowAccess {
  var run: (error: String, exit: String)?
  var readValue: UInt64?
  var readIsDone = false

  /// Makes the accesses that `name` asks for; the write after a read only if the read gave no errno, or
  /// in any case where `always` says so. Nil for an unknown name.
  static func make(
    _ name: String, _ vm: MeasuredVM, at gpa: UInt64, value: UInt32, always: Bool, on cpu: inout CPU
  ) -> RowAccess? {
    var made = RowAccess()
    guard ["none", "read", "write", "read+write"].contains(name) else { return nil }
    if name.hasPrefix("read") {
      let access = vm.access(gpa, on: &cpu)
      made.run = vm.facts.describe(access)
      if case .done(let value) = access {
        made.readIsDone = true
        made.readValue = value
      }
      if case .failed = access, !always { return made }
    }
    if name.hasSuffix("write") {
      made.run = vm.facts.describe(vm.access(gpa, write: value, on: &cpu))
    }
    return made
  }
}

extension RowAccess {
  /// What was returned and, where a page was watched, what was counted: the cells of the core table.
  /// Empty where there was no access.
  func cells(_ watch: PageWatch?) -> [String: String] {
    guard let run else { return [:] }
    var cells = ["run_err": run.error, "run_exit": run.exit]
    guard let watch else { return cells }
    if let first = watch.first {
      cells["infault_ref"] = "\(first.own)"
      cells["infault_href"] = "\(first.head)"
    }
    cells["n_release"] = "\(watch.releases)"
    cells["n_dirty"] = "\(watch.dirtied)"
    cells["n_accessed"] = "\(watch.accessed)"
    cells["n_mark"] = "\(watch.marked)"
    return cells
  }
}

/// A row of the measuring module.
struct ModuleRow {
  let kind: String
  let style: RemapDriver.Style
  let isWritable: Bool
  let index: Int
  let isSlotReadonly: Bool
  let access: String
  let zaps: Bool

  init?(_ cell: (String) -> String) {
    kind = cell("kind")
    guard PageBlock.parse(kind) != nil, let style = RemapDriver.Style(rawValue: cell("vma")),
      style != .faultPage, let index = Int(cell("idx")), index >= 0,
      ["rw", "ro"].contains(cell("vma_prot")), ["rw", "ro"].contains(cell("slot")),
      ["zap_then_close", "close_only"].contains(cell("teardown"))
    else { return nil }
    self.style = style
    self.index = index
    isWritable = cell("vma_prot") == "rw"
    isSlotReadonly = cell("slot") == "ro"
    access = cell("access")
    zaps = cell("teardown") == "zap_then_close"
  }

  func play(on facts: HostFacts) -> RowOutcome {
    do {
      let host = try MeasuredHost.make(facts)
      return try play(host)
    } catch {
      return .failed("\(error)")
    }
  }

  private func play(_ host: MeasuredHost) throws -> RowOutcome {
    let kernel = host.kernel
    guard let block = PageBlock(kind, kernel: kernel, on: &host.cpu) else {
      return .failed("no memory for \(kind)")
    }
    guard block.pages.indices.contains(index) else {
      return .failed("\(kind) has no page \(index)")
    }
    let pfn = block.pages[index]
    var cells = ["S0": kernel.stageCell(pfn)]
    let process = HostProcess(kernel: kernel)
    let driver = RemapDriver(pages: block.pages, style: style)
    let byteCount = UInt64(block.pages.count) << 12
    let rights: VMAFlags = isWritable ? [.read, .write] : .read
    let address: UInt64
    do throws(KernelErrno) {
      address = try process.map(
        .init(byteCount: byteCount, rights: rights, isShared: true, backing: .driver(driver)),
        on: &host.cpu)
    } catch {
      cells["map_err"] = "\(error)"
      // Nothing more was done, so that the page stays as it is through all stages.
      for stage in ["S1", "S3", "S6", "S7"] { cells[stage] = kernel.stageCell(pfn) }
      return .played(cells)
    }
    cells["map_err"] = driver.insertionErrors[index].map { "\($0)" } ?? "0"
    cells["S1"] = kernel.stageCell(pfn)
    let watch = PageWatch(pfn, in: kernel)
    kernel.observer = watch
    let vm = try MeasuredVM(host.facts, process: process, on: &host.cpu)
    cells["slot_err"] = vm.set(
      slot: 1, flags: isSlotReadonly ? 2 : 0, gpa: MeasuredVM.testedGPA, byteCount: byteCount,
      hva: address, on: &host.cpu)
    vm.warmUp(on: &host.cpu)
    watch.clear()
    let gpa = MeasuredVM.testedGPA + UInt64(index) << 12
    guard
      let made = RowAccess.make(
        access, vm, at: gpa, value: 0x1234_5678, always: false, on: &host.cpu)
    else { return .failed("no such access: \(access)") }
    cells["S3"] = kernel.stageCell(pfn)
    cells["pages_4k"] = "\(vm.grownPages4K)"
    cells["pages_2m"] = "\(vm.grownPages2M)"
    if zaps {
      try process.protect(address..<(address + byteCount), rights: [], on: &host.cpu)
      cells["S4"] = kernel.stageCell(pfn)
      try process.protect(address..<(address + byteCount), rights: rights, on: &host.cpu)
      driver.mappings.unmap(on: &host.cpu)
      cells["S5"] = kernel.stageCell(pfn)
    }
    vm.vm.close(on: &host.cpu)
    cells["S6"] = kernel.stageCell(pfn)
    cells.merge(made.cells(watch)) { $1 }
    if made.readIsDone { cells["val_ok"] = made.readValue == 0 ? "yes" : "no" }
    try process.unmap(address..<(address + byteCount), on: &host.cpu)
    cells["S7"] = kernel.stageCell(pfn)
    return .played(cells)
  }
}
