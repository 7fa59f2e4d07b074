internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

// How each kind of page comes to stand in each kind of area.
extension KVMExperiment {
  /// The mapping that the slot shows, and the page in it.
  struct Place {
    var base: UInt64
    var byteCount: UInt64
    var page: Int
  }

  /// Maps what the cell asks for.
  func makePlace() throws -> Place {
    switch cell.area {
    case .gup, .gupReadonlySlot:
      if cell.kind.isUserMemory { return try userMemory(in: process) }
      return try driverMemory(cell.kind == .noStructPage ? .mixed : .pages([]))
    case .mixed: return try driverMemory(.pages([]))
    case .mixedSpecial: return try driverMemory(.mixed)
    case .mixedSpecialReadOnly: return try driverMemory(.mixed, isShared: false)
    case .ioNormal: return try driverMemory(.pages(.io))
    case .ioNormalReadOnly: return try driverMemory(.pages(.io), isShared: false)
    case .remap, .remapReadonlySlot:
      // Nobody maps the zero page for writing.
      return try driverMemory(.remapped, isShared: cell.kind != .zeroPage)
    case .remapReadOnlyEntry: return try driverMemory(.remapped, isShared: false)
    case .remapNoWrite: return try driverMemory(.remapped, rights: .read)
    case .remapAbsent: return try driverMemory(.atFault)
    case .remapAbsentDenied:
      return try driverMemory(.atFault, rights: cell.access == .read ? .write : .read)
    case .remapSigbus: return try driverMemory(.sigbus)
    case .remap2M: return try driverMemory(.huge(level: 2))
    case .remap1G: return try driverMemory(.huge(level: 3))
    default: return try restrictedMemory()
    }
  }

  // MARK: user memory

  private func userMemory(in process: HostProcess) throws -> Place {
    var page = 0
    let base: UInt64
    var byteCount: UInt64 = 0x20_0000
    switch cell.kind {
    case .hugetlbHead, .hugetlbTail:
      base = try process.map(.init(byteCount: byteCount, extra: .hugetlb), on: &cpu)
      try process.fill(base..<(base + 4096), 0x11, on: &cpu)
    case .thpHead, .thpTail, .thpSplitHead, .thpSplitTail:
      base = try process.map(.init(byteCount: byteCount, extra: .hugePage), on: &cpu)
      try process.fill(base..<(base + 4096), 0x11, on: &cpu)
    case .zeroPage:
      byteCount = 4096
      base = try process.map(.init(byteCount: byteCount, extra: .noHugePage), on: &cpu)
      _ = try process.read32(base, on: &cpu)
    default:
      byteCount = 4096
      base = try process.map(.init(byteCount: byteCount, extra: .noHugePage), on: &cpu)
      try process.fill(base..<(base + byteCount), 0x11, on: &cpu)
    }
    switch cell.kind {
    case .hugetlbTail, .thpTail: page = 5
    case .thpSplitHead, .thpSplitTail:
      if cell.kind == .thpSplitTail { page = 5 }
      // A change of one page's rights makes the host split its 2 MiB entry, and stays without effect.
      let last = (base + byteCount - 4096)..<(base + byteCount)
      try process.protect(last, rights: .read, on: &cpu)
      try process.protect(last, rights: [.read, .write], on: &cpu)
    default: break
    }
    return Place(base: base, byteCount: byteCount, page: page)
  }

  /// The variants that are about rights.
  private func restrictedMemory() throws -> Place {
    var place: Place
    switch cell.area {
    case .gupReadOnlyEntry where cell.kind == .hugetlbHead:
      let base = try process.map(.init(byteCount: 0x20_0000, extra: .hugetlb), on: &cpu)
      _ = try process.read32(base, on: &cpu)
      return Place(base: base, byteCount: 0x20_0000, page: 0)
    case .gupWriteOnlyAbsent:
      let base = try process.map(.init(byteCount: 4096, rights: .write), on: &cpu)
      return Place(base: base, byteCount: 4096, page: 0)
    case .gupSecret, .gupSigbus:
      let isSecret = cell.area == .gupSecret
      let file = HostFile(kernel: kernel, kind: isSecret ? .secret : .tmpfs, byteCount: 4096)
      let base = try process.map(
        .init(byteCount: 8192, isShared: true, backing: .file(file)), on: &cpu)
      try process.fill(base..<(base + 4096), 0x11, on: &cpu)
      return Place(base: base, byteCount: 8192, page: isSecret ? 0 : 1)
    default: place = try userMemory(in: process)
    }
    let range = place.base..<(place.base + place.byteCount)
    switch cell.area {
    case .gupReadOnlyEntry: others.append(process.fork(on: &cpu))
    case .gupNoWrite: try process.protect(range, rights: .read, on: &cpu)
    case .gupNone: try process.protect(range, rights: [], on: &cpu)
    case .gupWriteOnly: try process.protect(range, rights: .write, on: &cpu)
    default: try process.unmap(range, on: &cpu)
    }
    return place
  }

  // MARK: a driver's memory

  private func driverMemory(
    _ making: KVMTableDriver.Making, rights: VMAFlags = [.read, .write], isShared: Bool = true
  ) throws -> Place {
    let (pages, page) = try frames()
    let driver = KVMTableDriver(pages, making)
    var request = HostProcess.MapRequest(
      byteCount: UInt64(pages.count) << 12, rights: rights, isShared: isShared,
      backing: .driver(driver))
    if cell.area == .remap1G {
      request.byteCount = 1 << 30
      request.address = 0x7000_0000_0000
    }
    let base = try process.map(request, on: &cpu)
    if let refusal = driver.refusal(of: pages[page]) {
      cell.forced = "vm_insert_page says \(refusal)"
    }
    if cell.area == .remap, cell.kind.isUserMemory, cell.kind != .zeroPage {
      cell.forced = "no driver does this"
    }
    return Place(base: base, byteCount: request.byteCount, page: page)
  }

  /// Adjacent frames of the kind, and which of them is meant.
  private func frames() throws -> (pages: [PFN], page: Int) {
    let order = cell.area == .remap2M ? 9 : 2
    func run(_ first: PFN, _ count: Int) -> [PFN] { (0..<count).map { first + $0 } }
    switch cell.kind {
    case .order0: return ([try block(0, [.user, .zero])], 0)
    case .reserved:
      let page = try block(0, [.user, .zero])
      RemapDriver.reserve([page], in: machine)
      return ([page], 0)
    case .freedOrder0:
      let page = try cpu.allocatePages(gfp: [.user, .zero])
      // An ordinary entry cannot come to name a page on a list: there, a lone page without a count.
      if cell.area == .gup {
        kernel.frames.setRefcount(page, 0)
      } else {
        cpu.freePages(page, order: 0)
      }
      return ([page], 0)
    case .compoundHead, .compoundTail:
      let first = try block(order, [.user, .zero, .comp])
      return (run(first, 1 << order), cell.kind == .compoundHead ? 0 : 1)
    case .plainHead, .plainTail:
      let first = try block(order, [.user, .zero])
      return (run(first, 1 << order), cell.kind == .plainHead ? 0 : 1)
    case .noStructPage: return ([cell.area == .remap1G ? PFN(0x40000) : PFN(0xfed00)], 0)
    case .zeroPage: return ([kernel.zeroPage], 0)
    case .anonymous, .hugetlbHead, .hugetlbTail, .thpHead, .thpTail, .thpSplitHead,
      .thpSplitTail:
      let owner = HostProcess(kernel: kernel)
      others.append(owner)
      let place = try userMemory(in: owner)
      guard let first = owner.frame(at: place.base) else { throw KernelErrno.efault }
      return (run(first, place.page + 1), place.page)
    }
  }

  private func block(_ order: Int, _ gfp: GFP) throws -> PFN {
    let first = try cpu.allocatePages(order: order, gfp: gfp)
    ledger.get(first, .owner("driver"))
    return first
  }
}
