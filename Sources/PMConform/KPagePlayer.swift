internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// Plays the tables of what /proc/kpagecount and /proc/kpageflags show of a page through a guest fault.
///
/// All rows are played in the order of the measuring program, in one machine, whatever part of them the
/// table has: zero pages, the huge page and the LRU batches go on from row to row.
public struct KPagePlayer: TablePlayer {
  /// The player; it has no settings.
  public init() {}

  /// Plays every row.
  public func outcomes(of table: TruthTable) -> [RowOutcome] {
    let played = KPageRow.playAll(on: table.host) {
      // The zero page had been referenced by programs before.
      $0.machine.insertFlags(.referenced, of: $0.kernel.zeroPage)
    }
    return table.rows.map { row in
      func cell(_ name: String) -> String { table.cell(row, name) ?? "" }
      if cell("backing").hasPrefix("module:") {
        // Not measured: every cell says so.
        return .played([:])
      }
      if cell("backing") == "vvar" { return .notPlayed(.vdsoOrVvar) }
      if cell("backing").hasPrefix("probe:") {
        return SealProbe.play(access: cell("access"), on: table.host)
      }
      let key = KPageRow(backing: cell("backing"), access: cell("access"), slot: cell("slot"))
      return played[key] ?? .failed("no such row: \(key)")
    }
  }
}

/// A row by what it asks for.
struct KPageRow: SharedMachineRow {
  var backing: String
  var access: String
  var slot: String

  static let page: UInt64 = 5

  /// All rows in the order of the program. Those of vvar touch nothing that a later row sees.
  static var all: [KPageRow] {
    var rows: [KPageRow] = []
    for backing in [
      "anon", "anon_untouched", "anon_zeropage", "anon_ro_prot", "thp", "thp_untouched",
      "hugetlb", "hugetlb_shared", "shmem_shared", "file_private", "file_private_readtouched",
      "file_shared", "packet_ring",
    ] {
      for access in ["none", "read", "write"] {
        for slot in ["rw", "ro"] {
          rows.append(KPageRow(backing: backing, access: access, slot: slot))
        }
      }
    }
    return rows
  }

  /// The name of the memory and how it was touched.
  private var memory: (kind: String, touch: UserMapping.Touch) {
    switch backing {
    case "anon_untouched": ("anon", .untouched)
    case "anon_zeropage": ("anon_zeropage", .readTouched)
    case "thp_untouched": ("thp", .untouched)
    case "file_private_readtouched": ("file_private", .readTouched)
    default: (backing, .all)
    }
  }

  func play(_ host: MeasuredHost) throws -> RowOutcome {
    let process = HostProcess(kernel: host.kernel)
    if backing == "packet_ring" {
      guard let block = PageBlock("comp_o4", kernel: host.kernel, on: &host.cpu) else {
        return .failed("no memory for the ring")
      }
      let driver = RemapDriver(pages: block.pages, style: .insertPage, name: "packet")
      let address = try process.map(
        .init(byteCount: 16 << 12, isShared: true, backing: .driver(driver)), on: &host.cpu)
      let cells = try stages(host, process, address..<(address + 16 << 12), [.read, .write])
      try process.unmap(address..<(address + 16 << 12), on: &host.cpu)
      host.cpu.freePages(block.pages[0], order: 4)
      return .played(cells)
    }
    let (kind, touch) = memory
    guard
      let mapping = try UserMapping(
        kind, touch, watched: KPageRow.page, host: host, process: process, pattern: 0x33,
        syncs: true)
    else { return .failed("no such memory: \(backing)") }
    let cells = try stages(host, process, mapping.range, mapping.rights)
    try mapping.end(on: &host.cpu)
    process.exit(on: &host.cpu)
    return .played(cells)
  }

  private func stages(
    _ host: MeasuredHost, _ process: HostProcess, _ range: Range<UInt64>, _ rights: VMAFlags
  ) throws -> [String: String] {
    let kernel = host.kernel
    let watched = range.lowerBound + KPageRow.page << 12
    let before = process.frame(at: watched)
    let isNew = host.facts.kernel >= KernelVersion(6, 13)
    func cell(_ pfn: PFN?) -> String {
      pfn.map { kernel.kpageCell($0, byFolio: isNew) } ?? "nopte"
    }
    var cells = ["S1_before": cell(before)]
    let vm = try MeasuredVM(host.facts, process: process, on: &host.cpu)
    vm.warmUp(on: &host.cpu)
    cells["slot_err"] = vm.set(
      slot: 1, flags: slot == "ro" ? 2 : 0, gpa: MeasuredVM.testedGPA,
      byteCount: range.upperBound - range.lowerBound, hva: range.lowerBound, on: &host.cpu)
    let gpa = MeasuredVM.testedGPA + KPageRow.page << 12
    if access != "none" {
      let run = host.facts.describe(
        vm.access(gpa, write: access == "write" ? 0x7777 : nil, on: &host.cpu))
      cells["run_err"] = run.error
      cells["run_exit"] = run.exit
    } else {
      cells["run_err"] = "0"
    }
    cells["pages_4k"] = "\(vm.grownPages4K)"
    cells["pages_2m"] = "\(vm.grownPages2M)"
    cells["pf_fixed"] = "\(vm.grownFaults)"
    let after = process.frame(at: watched)
    cells["pfn_changed"] = before == after ? "no" : before == nil ? "new" : "yes"
    cells["S3_after_run"] = cell(after)
    let followed = after ?? before
    func stage(_ name: String) {
      if let followed { cells[name] = kernel.kpageCell(followed, byFolio: isNew) }
    }
    try process.protect(range, rights: [], on: &host.cpu)
    stage("S4_after_mprotect_zap")
    try process.protect(range, rights: rights, on: &host.cpu)
    try process.discard(range, on: &host.cpu)
    stage("S5_after_madvise_dontneed")
    vm.vm.close(on: &host.cpu)
    stage("S6_after_vm_close")
    return cells
  }
}

extension HostKernel {
  /// A page as /proc/kpagecount and /proc/kpageflags show it. `byFolio`: a tail shows the flags of its
  /// folio (6.18) instead of its own (6.1).
  func kpageCell(_ pfn: PFN, byFolio: Bool) -> String {
    let frames = machine.frames
    let head = frames.compoundHead(of: pfn)
    let flags = machine.flags(of: byFolio ? head : pfn)
    let headFlags = machine.flags(of: head)
    let isTail = frames.isCompoundTail(pfn)
    let isHead = frames.isCompoundHead(pfn)
    let isCompound = isTail || isHead
    let isAnonymous = machine.details(of: head).mapping & 3 == 1
    let count = machine.mapcount(of: pfn)
    let isHuge = isHugetlb(head)
    let isZero = pfn == zeroPage || isHugeZeroPage(head)
    let isTHP =
      isCompound && !isHuge && (headFlags.contains(.lru) || isAnonymous || isHugeZeroPage(head))
    let named: [(String, Bool)] = [
      ("LOCKED", flags.contains(.locked)), ("REFERENCED", flags.contains(.referenced)),
      ("DIRTY", flags.contains(.dirty)), ("LRU", flags.contains(.lru)),
      ("ACTIVE", flags.contains(.active)), ("SLAB", flags.contains(.slab)),
      ("BUDDY", frames.buddyOrder(pfn) != nil), ("MMAP", count > 0), ("ANON", isAnonymous),
      ("SWAPBACKED", flags.contains(.swapbacked)), ("HEAD", isHead), ("TAIL", isTail),
      ("HUGE", isHuge), ("UNEVICTABLE", flags.contains(.unevictable)),
      ("HWPOISON", flags.contains(.hwpoison)), ("THP", isTHP), ("ZERO_PAGE", isZero),
      ("RESERVED", machine.flags(of: pfn).contains(.reserved)),
    ]
    let names = named.filter(\.1).map(\.0).joined(separator: "|")
    return "\(count):\(names.isEmpty ? "-" : names)"
  }
}

/// The probe of a sealed memory file: does a page that KVM maps have references that the file cannot
/// explain?
enum SealProbe {
  static func play(access: String, on facts: HostFacts) -> RowOutcome {
    do {
      let host = try MeasuredHost.make(facts)
      let kernel = host.kernel
      let access = access.split(separator: "=").last.map(String.init) ?? access
      let file = HostFile(kernel: kernel, kind: .tmpfs, byteCount: 0)
      try file.write(pages: 0..<16, pattern: 0x44, on: &host.cpu)
      let process = HostProcess(kernel: kernel)
      let address = try process.map(
        .init(byteCount: 16 << 12, backing: .file(file)), on: &host.cpu)
      for page in UInt64(0)..<16 {
        _ = try process.read32(address + page << 12, on: &host.cpu)
      }
      let vm = try MeasuredVM(facts, process: process, on: &host.cpu)
      _ = vm.set(
        slot: 1, flags: access == "write" ? 0 : 2, gpa: MeasuredVM.testedGPA,
        byteCount: 16 << 12, hva: address, on: &host.cpu)
      guard
        let made = RowAccess.make(
          access, vm, at: MeasuredVM.testedGPA + KPageRow.page << 12, value: 0x7777,
          always: true, on: &host.cpu)
      else { return .failed("no such access: \(access)") }
      let total = vm.vm.leafCounts.pages4K
      let seal = result { () throws(KernelErrno) in try file.sealWrites(on: &host.cpu) }
      return .played([
        "access": "access=\(access)",
        "run_err": made.run.map { "run=\($0.error)/\($0.exit)" } ?? "run=0/na",
        "slot_err": "", "run_exit": "", "pages_4k": "pages_4k_total=\(total)", "pages_2m": "",
        "pf_fixed": "", "pfn_changed": "",
        "S1_before": "F_ADD_SEALS(F_SEAL_WRITE)=\(seal)", "S3_after_run": "",
        "S4_after_mprotect_zap": "", "S5_after_madvise_dontneed": "", "S6_after_vm_close": "",
        "refcount": "",
      ])
    } catch {
      return .failed("\(error)")
    }
  }
}
