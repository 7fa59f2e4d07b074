internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A row of user memory of the core table, by what it asks for.
struct UserRow: SharedMachineRow {
  var kind: String
  var slot: String
  var access: String
  var teardown: String

  /// The page that is watched.
  static let page: UInt64 = 5

  init(kind: String, slot: String, access: String, teardown: String) {
    self.kind = kind
    self.slot = slot
    self.access = access
    self.teardown = teardown
  }

  init(_ cell: (String) -> String) {
    self.init(
      kind: String(cell("kind").dropFirst("user:".count)), slot: cell("slot"),
      access: cell("access"), teardown: cell("teardown"))
  }

  /// All rows in the order in which they were measured.
  static var all: [UserRow] {
    var rows: [UserRow] = []
    for kind in [
      "anon", "thp", "hugetlb", "hugetlb_shared", "shmem_shared", "file_private",
      "file_private_ro", "file_shared", "anon_ro_prot",
    ] {
      for access in ["none", "read", "write", "read+write"] {
        for slot in ["rw", "ro"] {
          for teardown in ["zap_then_close", "close_only"] {
            rows.append(UserRow(kind: kind, slot: slot, access: access, teardown: teardown))
          }
        }
      }
    }
    for access in ["read", "write", "read+write"] {
      for slot in ["rw", "ro"] {
        for kind in [
          "anon(untouched)", "anon_zeropage(readtouched)", "thp(untouched)", "thp(readtouched)",
          "file_private(untouched)", "file_private(readtouched)", "hugetlb(untouched)",
          "shmem_shared(untouched)", "file_shared(untouched)", "anon_ro_prot(untouched)",
        ] {
          rows.append(UserRow(kind: kind, slot: slot, access: access, teardown: "zap_then_close"))
        }
      }
    }
    return rows
  }

  func play(_ host: MeasuredHost) throws -> RowOutcome {
    let kernel = host.kernel
    let process = HostProcess(kernel: kernel)
    guard let (kind, touch) = UserMapping.parse(kind) else { return .failed("kind \(kind)") }
    guard
      let mapping = try UserMapping(
        kind, touch, watched: UserRow.page, host: host, process: process)
    else { return .failed("no such memory: \(kind)") }
    let watched = mapping.address + UserRow.page << 12
    kernel.drainLRUBatches(on: &host.cpu)
    let before = process.frame(at: watched)
    var cells: [String: String] = [
      "map_err": "0", "S1": before.map(kernel.stageCell) ?? "na",
    ]
    let watch = PageWatch(before ?? kernel.zeroPage, in: kernel)
    kernel.observer = watch
    let vm = try MeasuredVM(host.facts, process: process, on: &host.cpu)
    cells["slot_err"] = vm.set(
      slot: 1, flags: slot == "ro" ? 2 : 0, gpa: MeasuredVM.testedGPA,
      byteCount: UserMapping.byteCount, hva: mapping.address, on: &host.cpu)
    vm.warmUp(on: &host.cpu)
    watch.clear()
    guard
      let made = RowAccess.make(
        access, vm, at: MeasuredVM.testedGPA + UserRow.page << 12, value: 0x1234_5678,
        always: true, on: &host.cpu)
    else { return .failed("no such access: \(access)") }
    cells["pages_4k"] = "\(vm.grownPages4K)"
    cells["pages_2m"] = "\(vm.grownPages2M)"
    let after = process.frame(at: watched)
    kernel.drainLRUBatches(on: &host.cpu)
    let followed = after ?? before
    func stage(_ name: String) { cells[name] = followed.map(kernel.stageCell) ?? "na" }
    stage("S3")
    if teardown == "zap_then_close" {
      try process.protect(mapping.range, rights: [], on: &host.cpu)
      stage("S4")
      try process.protect(mapping.range, rights: mapping.rights, on: &host.cpu)
      try process.discard(mapping.range, on: &host.cpu)
      kernel.drainLRUBatches(on: &host.cpu)
      stage("S5")
    }
    vm.vm.close(on: &host.cpu)
    kernel.drainLRUBatches(on: &host.cpu)
    stage("S6")
    note(made, watch, before, after, &cells)
    try mapping.end(on: &host.cpu)
    kernel.drainLRUBatches(on: &host.cpu)
    stage("S7")
    process.exit(on: &host.cpu)
    return .played(cells)
  }

  private func note(
    _ made: RowAccess, _ watch: PageWatch, _ before: PFN?, _ after: PFN?,
    _ cells: inout [String: String]
  ) {
    cells["pos"] =
      before == nil && after == nil
      ? "no_pfn" : before == nil ? "pfn_new" : before == after ? "same_pfn" : "pfn_changed"
    // A page that was not there before could not be watched.
    cells.merge(made.cells(before == nil ? nil : watch)) { $1 }
  }
}
