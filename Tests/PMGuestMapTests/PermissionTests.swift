import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// A driver that makes entries of its own kind, or answers faults with an error.
final class SpecialDriver: HostDriver, @unchecked Sendable {
  // Sendable: constant after init.
  enum Kind {
    case huge(PFN)
    case answer(DriverAnswer)
  }
  let name = "special"
  let mappings = MappingList()
  let kind: Kind

  init(_ kind: Kind) { self.kind = kind }

  func mmap(_ area: VMA, in process: HostProcess, on cpu: inout CPU) throws(KernelErrno) {
    process.insertFlags([.pfnmap, .io], of: area)
    guard case .huge(let pfn) = kind else { return }
    try process.insertHugePFN(area, at: area.start, pfn: pfn, level: 2)
  }

  func fault(
    _ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU
  ) -> DriverAnswer {
    if case .answer(let answer) = kind { answer } else { .sigbus }
  }
}

/// The permission variants of the truth table, each in every era.
@Suite struct PermissionTests {
  /// What an access came to.
  enum End: Equatable {
    /// Done, with an entry; `isWritable` is also the entry's host-writable bit.
    case mapped(isWritable: Bool, TruthCode)
    /// Done without an entry that allows it: through the emulator.
    case emulated
    case fault
    case exit
    /// EFAULT in A and B, mapped huge in C.
    case hugeFault
  }

  struct Variant: Sendable, CustomStringConvertible {
    var description: String
    var read: End?
    var write: End?
    /// Makes the mapping; the page is the first.
    var setUp: @Sendable (GuestFixture) throws -> UInt64
    var flags: MemslotFlags = []

    init(
      _ description: String, read: End?, write: End?, flags: MemslotFlags = [],
      _ setUp: @escaping @Sendable (GuestFixture) throws -> UInt64
    ) {
      self.description = description
      self.read = read
      self.write = write
      self.flags = flags
      self.setUp = setUp
    }
  }

  static let variants: [Variant] = [
    Variant(
      "GUP area, entry read-only after a fork",
      read: .mapped(isWritable: false, .g), write: .mapped(isWritable: true, .g)
    ) {
      let hva = try $0.mapAnonymous(pages: 1)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      $0.keep($0.process.fork(on: &$0.cpu))
      return hva
    },
    Variant(
      "GUP area without VM_WRITE", read: .mapped(isWritable: false, .g), write: .fault
    ) {
      let hva = try $0.mapAnonymous(pages: 1)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      try $0.process.protect(hva..<(hva + 4096), rights: .read, on: &$0.cpu)
      return hva
    },
    Variant("PROT_NONE", read: .fault, write: .fault) {
      let hva = try $0.mapAnonymous(pages: 1)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      try $0.process.protect(hva..<(hva + 4096), rights: [], on: &$0.cpu)
      return hva
    },
    Variant(
      "VM_WRITE without VM_READ, entry present",
      read: .mapped(isWritable: true, .g), write: .mapped(isWritable: true, .g)
    ) {
      let hva = try $0.mapAnonymous(pages: 1, rights: .write)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      return hva
    },
    Variant(
      "VM_WRITE without VM_READ, entry absent", read: .fault,
      write: .mapped(isWritable: true, .g)
    ) { try $0.mapAnonymous(pages: 1, rights: .write) },
    Variant("secret memory", read: .fault, write: .fault) {
      let file = HostFile(kernel: $0.kernel, kind: .secret, byteCount: 4096)
      let hva = try $0.process.map(
        HostProcess.MapRequest(byteCount: 4096, isShared: true, backing: .file(file)),
        on: &$0.cpu)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      return hva
    },
    Variant("no area", read: .fault, write: .fault) { _ in 0x7000_0000_0000 },
    Variant("truncated file", read: .fault, write: .fault) {
      let file = HostFile(kernel: $0.kernel, kind: .tmpfs, byteCount: 4096)
      let hva = try $0.process.map(
        HostProcess.MapRequest(byteCount: 4096, isShared: true, backing: .file(file)),
        on: &$0.cpu)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      file.truncate(to: 0, on: &$0.cpu)
      return hva
    },
    Variant("out of memory", read: .mapped(isWritable: false, .zeroRead), write: .fault) {
      let hva = try $0.mapAnonymous(pages: 1)
      // The tables of the path are the emulator's own; only the page is missing.
      for order in [10, 9, 5, 0] { while (try? $0.allocate(order: order)) != nil {} }
      while (try? $0.cpu.allocatePages(gfp: [.highUserMovable, .zero])) != nil {}
      return hva
    },
    Variant(
      "a page that a monitor has to bring",
      read: .mapped(isWritable: true, .g), write: .mapped(isWritable: true, .g)
    ) {
      let hva = try $0.mapAnonymous(pages: 1)
      try $0.process.registerMissingHandler(hva..<(hva + 4096), on: &$0.cpu) { _ in
        .page(pattern: 0x33)
      }
      return hva
    },
    Variant(
      "remapped, entry read-only in a private area",
      read: .mapped(isWritable: false, .rPlus), write: .emulated
    ) { try $0.map([$0.allocate()], .remap, isShared: false).hva },
    Variant("remapped, entry absent, no VM_READ", read: .fault, write: nil) {
      try $0.map([$0.allocate()], .insertPFN, rights: .write).hva
    },
    Variant(
      "remapped, entry absent, no VM_WRITE", read: .mapped(isWritable: false, .rPlus),
      write: .fault
    ) { try $0.map([$0.allocate()], .insertPFN, rights: .read).hva },
    Variant(
      "remapped, handler makes the entry", read: .mapped(isWritable: true, .rPlus),
      write: .mapped(isWritable: true, .rPlus)
    ) { try $0.map([$0.allocate()], .insertPFN).hva },
    Variant("remapped, handler says SIGBUS", read: .fault, write: .fault) {
      let (driver, hva) = try $0.map([$0.allocate()], .remap)
      driver.mappings.unmap(on: &$0.cpu)
      return hva
    },
    Variant("remapped, handler has no memory", read: .fault, write: .fault) {
      try $0.map(SpecialDriver(.answer(.oom)), pages: 1)
    },
    Variant("remapped by a 2M entry", read: .hugeFault, write: .hugeFault) {
      try $0.map(SpecialDriver(.huge($0.allocate(order: 9))), pages: 512)
    },
    Variant(
      "READONLY slot", read: .mapped(isWritable: false, .g), write: .exit, flags: .readonly
    ) {
      let hva = try $0.mapAnonymous(pages: 1)
      try $0.process.write32(hva, 7, on: &$0.cpu)
      return hva
    },
    Variant("READONLY slot over nothing", read: .fault, write: .exit, flags: .readonly) { _ in
      0x7000_0000_0000
    },
    Variant(
      "VM_MIXEDMAP, ordinary entry", read: .mapped(isWritable: true, .g),
      write: .mapped(isWritable: true, .g)
    ) { try $0.map([$0.allocate()], .insertPage).hva },
    Variant("VM_MIXEDMAP, special entry", read: .fault, write: .fault) {
      try $0.map([$0.allocate()], .insertMixed).hva
    },
    Variant(
      "VM_MIXEDMAP, special writable entry of the zero page",
      read: .mapped(isWritable: false, .zeroRead), write: .mapped(isWritable: true, .zeroRead)
    ) { try $0.map([$0.kernel.zeroPage], .insertMixed).hva },
    Variant(
      "VM_MIXEDMAP, special read-only entry of the zero page",
      read: .mapped(isWritable: false, .zeroRead), write: .mapped(isWritable: true, .g)
    ) {
      let hva = try $0.map([$0.kernel.zeroPage], .insertMixed, isShared: false).hva
      // Something has to fault the entry in.
      _ = try $0.process.read32(hva, on: &$0.cpu)
      return hva
    },
    Variant(
      "VM_PFNMAP, a copied page with an ordinary writable entry",
      read: .mapped(isWritable: true, .g), write: .mapped(isWritable: true, .g)
    ) { try $0.mapCopied() },
    Variant(
      "VM_PFNMAP, a copied page with an ordinary read-only entry",
      read: .mapped(isWritable: false, .rPlus), write: .emulated
    ) {
      let hva = try $0.mapCopied()
      $0.keep($0.process.fork(on: &$0.cpu))
      return hva
    },
  ]

  @Test(arguments: variants, GuestFixture.eras)
  func `Each variant ends as the table says`(_ variant: Variant, _ era: KernelModel.KVM) throws {
    for (isWrite, end) in [(false, variant.read), (true, variant.write)] {
      guard let end else { continue }
      try check(variant, end, isWrite: isWrite, era)
    }
  }

  private func check(
    _ variant: Variant, _ end: End, isWrite: Bool, _ era: KernelModel.KVM
  ) throws {
    let fixture = try GuestFixture(era, memory: .mib(16))
    let hva = try variant.setUp(fixture)
    let isHuge = end == .hugeFault
    try fixture.setSlot(0, pages: isHuge ? 512 : 1, hva: hva, flags: variant.flags)
    let hadEntry = fixture.process.entry(at: hva) != nil
    var during: (pfn: PFN, count: Int32, held: Int32)?
    fixture.recorder.onStep = { text in
      guard text.hasPrefix("entry of gfn"), let pfn = fixture.process.frame(at: hva) else { return }
      let held = fixture.ledger.holders(of: pfn).filter { $0.holder.isGuestFault }
        .reduce(0) { $0 + $1.count }
      during = (pfn, fixture.count(pfn), Int32(held))
    }
    let access = isWrite ? fixture.write(0, 0x77) : fixture.read(0)
    fixture.recorder.onStep = nil
    let what: Comment = "\(variant), \(isWrite ? "write" : "read"), era \(era.rawValue)"
    switch end {
    case .fault:
      #expect(GuestFixture.errno(access) == .efault, what)
      #expect(fixture.leaf(0) == nil, what)
    case .exit:
      #expect(access == .mmio(gpa: 0, byteCount: 4, isWrite: true), what)
      #expect(fixture.leaf(0) == nil, what)
      // Decided before any look at the host.
      #expect((fixture.process.entry(at: hva) != nil) == hadEntry, what)
    case .emulated:
      #expect(GuestFixture.isDone(access), what)
      #expect(fixture.leaf(0)?.isWritable != true, what)
      #expect(try fixture.process.read32(hva, on: &fixture.cpu) == 0x77, what)
    case .hugeFault:
      if era == .c {
        #expect(GuestFixture.isDone(access) && fixture.level(0) == 2, what)
      } else {
        #expect(GuestFixture.errno(access) == .efault, what)
      }
    case .mapped(let isWritable, let code):
      #expect(GuestFixture.isDone(access), what)
      let leaf = try #require(fixture.leaf(0), what)
      #expect(leaf.isWritable == isWritable && leaf.isHostWritable == isWritable, what)
      let seen = try #require(during, what)
      #expect(leaf.pfn == seen.pfn, what)
      let expected = TruthResult.expected(code, era)
      #expect(seen.held == expected.during, what)
      #expect(leaf.isRefcounted == expected.bit59, what)
    }
    fixture.vm.close(on: &fixture.cpu)
    #expect(!fixture.ledger.holdsGuestFaults, what)
    #expect(fixture.ledger.unmatchedPuts == [], what)
  }

  @Test(arguments: GuestFixture.eras)
  func `A page that became exclusive again is made writable in place, without a drop`(
    _ era: KernelModel.KVM
  ) throws {
    let fixture = try GuestFixture(era)
    let hva = try fixture.mapAnonymous(pages: 1)
    try fixture.process.write32(hva, 7, on: &fixture.cpu)
    let page = try #require(fixture.process.frame(at: hva))
    fixture.process.fork(on: &fixture.cpu).exit(on: &fixture.cpu)
    try fixture.setSlot(0, pages: 1, hva: hva)
    #expect(fixture.read(0) == .done(7))
    #expect(fixture.leaf(0)?.isWritable == false)
    // The second mark has put the page into a batch, whose reference would force a copy.
    fixture.kernel.drainLRUBatches(on: &fixture.cpu)
    let sequence = fixture.vm.invalidationSequence
    fixture.recorder.clear()
    #expect(GuestFixture.isDone(fixture.write(0, 8)))
    #expect(fixture.vm.invalidationSequence == sequence)
    #expect(fixture.leaf(0)?.pfn == page && fixture.leaf(0)?.isWritable == true)
    // The read-only entry was replaced, not dropped: nothing of it is passed on.
    #expect(fixture.recorder.setAccessed == [] && fixture.recorder.setDirty == [])
  }

  @Test(arguments: GuestFixture.eras)
  func `A host entry that became writable is found by the next write only`(
    _ era: KernelModel.KVM
  ) throws {
    let fixture = try GuestFixture(era)
    let file = HostFile(kernel: fixture.kernel, kind: .disk, byteCount: 4096)
    let hva = try fixture.process.map(
      HostProcess.MapRequest(byteCount: 4096, isShared: true, backing: .file(file)),
      on: &fixture.cpu)
    try fixture.setSlot(0, pages: 1, hva: hva)
    #expect(fixture.read(0) == .done(0))
    #expect(fixture.leaf(0)?.isHostWritable == false)
    try fixture.process.write32(hva, 9, on: &fixture.cpu)
    #expect(fixture.process.entry(at: hva)?.entry.isWritable == true)
    #expect(fixture.leaf(0)?.isWritable == false)
    #expect(fixture.read(0) == .done(9))
    #expect(fixture.leaf(0)?.isWritable == false)
    #expect(GuestFixture.isDone(fixture.write(0, 10)))
    #expect(fixture.leaf(0)?.isWritable == true)
  }
}

extension Holder {
  /// The kernel's own.
  var isOwner: Bool { if case .owner = self { true } else { false } }
  var isGuestFault: Bool { if case .guestFault = self { true } else { false } }
}

extension ReferenceLedger {
  /// Whether any reference of a guest fault is left.
  var holdsGuestFaults: Bool {
    pages.contains { holders(of: $0).contains { $0.holder.isGuestFault } }
  }
}
