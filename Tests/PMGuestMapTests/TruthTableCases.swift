import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// What a page is, rows 1 to 11 of the truth table (row 10, device memory with pages, is not modelled).
enum PageKind: String, CaseIterable {
  case order0 = "1 order 0"
  case uncounted = "1z order 0 with count 0"
  case compoundHead = "2 compound head"
  case compoundTail = "3 compound tail"
  case blockHead = "4 block head"
  case blockTail = "5 block tail"
  case reserved = "6 reserved"
  case noPage = "7 no struct page"
  case hugetlbHead = "8 hugetlb, first piece"
  case hugetlbTail = "8 hugetlb, other piece"
  case thpHead = "9 THP, first piece"
  case thpTail = "9 THP, other piece"
  case splitTHP = "9p THP mapped by small entries"
  case zero = "11 zero page"
}

/// Generic rows of the table, and the exceptions by number.
enum TruthCode: String {
  case g = "G"
  /// G of a page that gets a huge entry.
  case gHuge = "G, 2M"
  case rPlus = "R+"
  case r0 = "R0"
  case rN = "RN"
  case fault = "EFAULT"
  /// Row 6 by GUP.
  case reserved = "6"
  /// Row 11 read, by GUP and by a remapped area.
  case zeroRead = "11r"
  case zeroRemapped = "11r remapped"
  /// Row 11 write by GUP.
  case zeroCopied = "11w"
  /// Read-only remapped entry and a write whose emulation fails.
  case exit = "RO_FAULT"
}

/// What a fault and a zap did.
struct TruthResult: Hashable, CustomStringConvertible {
  enum End: String { case done, fault, exit }
  var end: End
  /// Change of the folio's count while the entry is made, and after the fault.
  var during: Int32 = 0
  var after: Int32 = 0
  /// KVM's own marks at the end of the fault: calls of `folio_mark_accessed`, PG_dirty newly set.
  var accessed = 0
  var isDirty = false
  /// The same at the zap.
  var zapAccessed = 0
  var isZapDirty = false
  var bit59 = false
  var level = 0
  var isWritable = false

  var description: String {
    "\(end) during \(during) after \(after) fault \(accessed)A\(isDirty ? "D" : "") "
      + "zap \(zapAccessed)A\(isZapDirty ? "D" : "") bit59 \(bit59) level \(level) W \(isWritable)"
  }

  /// What the table says. Entries are writable unless the page cannot be.
  static func expected(_ code: TruthCode, _ era: KernelModel.KVM) -> TruthResult {
    var result = TruthResult(end: .done, level: 1, isWritable: true)
    switch code {
    case .fault: return TruthResult(end: .fault)
    case .exit: return TruthResult(end: .exit)
    case .g, .gHuge, .zeroCopied:
      result.during = era == .b ? 0 : 1
      result.accessed = 1
      result.isDirty = era == .c
      result.level = code == .gHuge ? 2 : 1
      result.bit59 = era == .b && code != .gHuge
      let isMarked = era == .a || (era == .b && code != .gHuge)
      result.zapAccessed = isMarked ? 1 : 0
      result.isZapDirty = isMarked
    case .rPlus:
      guard era != .c else { return result }
      result.during = era == .a ? 1 : 0
      result.accessed = 1
      result.bit59 = era == .b
      result.zapAccessed = 1
      result.isZapDirty = true
    case .r0:
      if era == .a { return TruthResult(end: .fault) }
    case .rN: break
    case .reserved:
      result.during = era == .b ? 0 : 1
      result.after = era == .a ? 1 : 0
      result.bit59 = era == .b
    case .zeroRead:
      result.during = era == .b ? 0 : 1
      result.bit59 = era == .b
      result.isWritable = false
    case .zeroRemapped:
      result.during = era == .a ? 1 : 0
      result.bit59 = era == .b
    }
    return result
  }
}

/// One page kind in one kind of area, ready for faults.
final class TruthCase {
  enum Area: String, CaseIterable {
    case gup = "GUP"
    case remap = "REMAP"
  }

  let fixture: GuestFixture
  /// The guest frame and the user address of the page.
  let gfn: UInt64
  private(set) var hva: UInt64 = 0
  /// The frame that is there now; nil: an access is to bring one.
  private(set) var page: PFN?
  private var forced: [(pfn: PFN, count: Int32)] = []
  private var pieces = 1
  private var piece = 0

  /// nil where the row does not exist.
  init?(
    _ kind: PageKind, _ area: Area, _ era: KernelModel.KVM, isWritable: Bool = true
  ) throws {
    fixture = try GuestFixture(era, memory: .mib(64), hugePages: 1)
    let rights: VMAFlags = isWritable ? [.read, .write] : .read
    switch (kind, area) {
    case (.hugetlbHead, .remap), (.hugetlbTail, .remap), (.splitTHP, .remap):
      gfn = 0
      return nil
    case (.hugetlbHead, .gup), (.hugetlbTail, .gup), (.thpHead, .gup), (.thpTail, .gup),
      (.splitTHP, .gup):
      pieces = 512
      piece = [.hugetlbHead, .thpHead].contains(kind) ? 0 : 3
      let isHugetlb = kind == .hugetlbHead || kind == .hugetlbTail
      gfn = 512 + UInt64(piece)
      hva = try fixture.mapAnonymous(
        pages: 512, rights: rights, extra: isHugetlb ? .hugetlb : .hugePage)
      try fixture.process.write32(hva, 1, on: &fixture.cpu)
      if kind == .splitTHP {
        let last = hva + 511 << 12
        try fixture.process.discard(last..<(last + 4096), on: &fixture.cpu)
      }
      page = fixture.process.frame(at: hva + UInt64(piece) << 12)
      // The split has made the page dirty, which is not what is looked for.
      if let page { fixture.machine.removeFlags(.dirty, of: head(page)) }
    case (.zero, .gup):
      gfn = 0
      hva = try fixture.mapAnonymous(pages: 1, rights: rights)
      page = fixture.kernel.zeroPage
    default:
      gfn = 0
      try mapDriver(kind, area, rights)
    }
    fixture.kernel.drainLRUBatches(on: &fixture.cpu)
    try fixture.setSlot(gfn - UInt64(piece), pages: pieces, hva: hva)
  }

  /// A page of a driver: as an ordinary entry, or as a special one.
  private func mapDriver(_ kind: PageKind, _ area: Area, _ rights: VMAFlags) throws {
    let pfn = try driverPage(kind)
    page = pfn
    let style: RemapDriver.Style =
      area == .remap ? .remap : kind == .noPage ? .insertMixed : .insertPage
    let isForced = [.uncounted, .blockTail].contains(kind)
    // `vm_insert_page` wants a count to begin with.
    if isForced, area == .gup { fixture.machine.frames.setRefcount(pfn, 1) }
    hva = try fixture.map([pfn], style, rights: rights).hva
    if isForced {
      let count = fixture.machine.frames.refcount(pfn)
      forced.append((pfn, count))
      fixture.machine.frames.setRefcount(pfn, 0)
    }
  }

  private func driverPage(_ kind: PageKind) throws -> PFN {
    switch kind {
    case .order0, .uncounted: return try fixture.allocate()
    case .compoundHead: return try fixture.allocate(order: 2, compound: true)
    case .compoundTail: return try fixture.allocate(order: 2, compound: true) + 1
    case .blockHead: return try fixture.allocate(order: 2)
    case .blockTail: return try fixture.allocate(order: 2) + 1
    case .reserved:
      let pfn = try fixture.allocate()
      RemapDriver.reserve([pfn], in: fixture.machine)
      return pfn
    case .noPage: return PFN(0x10_0000)
    case .thpHead: return try fixture.allocate(order: 9, compound: true)
    case .thpTail: return try fixture.allocate(order: 9, compound: true) + 3
    case .zero: return fixture.kernel.zeroPage
    case .hugetlbHead, .hugetlbTail, .splitTHP: fatalError("no driver has such a page")
    }
  }

  var pageAddress: UInt64 { hva + UInt64(piece) << 12 }

  /// Gives back the counts that were forced to 0.
  func restoreCounts() {
    for (pfn, count) in forced { fixture.machine.frames.setRefcount(pfn, count) }
    forced = []
  }

  private func folioCount(_ page: PFN) -> Int32 {
    fixture.machine.hasPage(page) ? fixture.count(page) : 0
  }

  private func head(_ page: PFN) -> PFN { fixture.machine.frames.compoundHead(of: page) }

  private func isDirty(_ page: PFN) -> Bool {
    fixture.machine.hasPage(page) && fixture.marks(head(page)).contains(.dirty)
  }

  /// One access of the guest and one invalidation, with what they did to the page that is mapped.
  func measure(isWrite: Bool) throws -> TruthResult {
    let recorder = fixture.recorder
    recorder.clear()
    let wasDirty = page.map(isDirty) ?? false
    var during: Int32 = 0
    var base = page.map(folioCount) ?? 0
    let old = page
    recorder.onStep = { [unowned self] text in
      guard text.hasPrefix("entry of gfn"),
        let pfn = fixture.process.frame(at: pageAddress)
      else { return }
      // A page that came with the fault: mapped, and in a batch of the LRU lists.
      if pfn != old { base = Int32(fixture.ledger.count(of: pfn)) - (fixture.vm.era == .b ? 0 : 1) }
      during = folioCount(pfn) - base
    }
    let access = isWrite ? fixture.write(gfn) : fixture.read(gfn)
    recorder.onStep = nil
    var result = TruthResult(end: .done)
    switch access {
    case .failed(.efault, let isSet):
      result.end = .fault
      #expect(isSet == (fixture.vm.era == .c))
    case .mmio: result.end = .exit
    default: #expect(GuestFixture.isDone(access))
    }
    guard let mapped = fixture.process.frame(at: pageAddress) ?? page else { return result }
    result.during = during
    result.after = folioCount(mapped) - base
    // Slow lookups mark the page of a small entry by themselves, in each of their tries.
    let isSmall = fixture.process.entry(at: pageAddress)?.level == 1
    let slow = recorder.steps.filter { $0.hasPrefix("slow GUP: frame") }.count
    result.accessed = recorder.accessed.count - (isSmall ? slow : 0)
    result.isDirty = isDirty(mapped) && !wasDirty
    if let (spte, level) = fixture.vm.translation(GFN(gfn)) {
      result.bit59 = spte.isRefcounted
      result.level = level
      result.isWritable = spte.isWritable
    }
    let isDirtyNow = isDirty(mapped)
    recorder.clear()
    fixture.notify(pageAddress)
    #expect(fixture.leaf(gfn) == nil)
    result.zapAccessed = recorder.accessed.count
    result.isZapDirty = isDirty(mapped) && !isDirtyNow
    return result
  }
}
