public import PMGuestMap
public import PMHostMap
public import PMPageAllocator
internal import PMUnits

/// An emulated virtual machine and a real one over the same memory, kept in step.
///
/// One range of an emulated process's addresses is mirrored into a ``MirroredRange`` of this
/// process: where the emulated page table has an entry, the real one has an entry for the same bytes
/// of the arena with the same right. Slots are made in both machines, with the address of the range
/// in each. The emulated machine resolves each access first (it faults the page into the emulated
/// process), then the real guest makes it; the emulated machine itself touches no data.
///
/// How the two go together:
/// - An invalidation of the emulated process (its notifier) first lets the real guest make what is
///   still to be made, then takes the pages out of the real range: the real kernel's notifier drops
///   the real machine's translations as the emulated one dropped its own.
/// - What an emulated fault put into the page table appears in the real range before the access that
///   caused it, and is faulted in there, because KVM maps neighbours only where it finds entries.
///   Entries without a page (`special` ones of a driver) are not faulted in: KVM's fast lookup
///   refuses such entries, and it refuses absent ones alike.
///
/// What a range of a file cannot show, and so is left to the caller to avoid:
/// - An entry that becomes writable in place, without a notification: the real `mprotect` notifies.
///   Counted in ``silentUpgradeCount``. It takes a file on a disk or a fork to come to that.
/// - A special page that two slots show: an access through one leaves a real entry, which the fast
///   lookup then finds for the other.
/// - Accesses across a page border with a page of a driver, or of an area without the right to read:
///   the instruction emulator goes through the process's own access rights. For the same reason,
///   reads of an area without the right to read through a read-only slot.
/// - Accesses across a page border that fault on both pages, in the process too for the second: when
///   the real guest faults on the first, the second has its new entry already.
/// - Entries of 2 MiB: they are shown as small ones.
///
/// One thread at a time uses the machine, its process and the memory behind them.
public final class MirroredVM: MMUNotifier, @unchecked Sendable {
  // Sendable: one thread at a time, see above; notifications come on the thread that changes the
  // process.

  /// An error of the mirror itself, on purpose: to show that comparisons find it.
  public enum Mistake: String, CaseIterable, Sendable {
    /// An invalidation leaves the real pages where they are.
    case skipsUnmap = "skips-unmap"
    /// A page that may only be read is shown writable.
    case showsWritable = "shows-writable"
    /// A page that appears is not faulted in, so that KVM does not map it along with a neighbour.
    case skipsFaultIn = "skips-fault-in"
  }

  /// What the real range has at a page.
  struct Shown: Equatable {
    var pfn: PFN?
    var isWritable = false
    /// Not faulted in: the emulated entry is special.
    var isSpecial = false

    static var nothing: Shown { Shown() }
  }

  /// The emulated machine.
  public let vm: VirtualMachine
  /// The first emulated address of the range, in bytes.
  public let base: UInt64
  /// The pages of the range.
  public let pageCount: Int
  /// Accesses that the real guest has made.
  public internal(set) var accessCount = 0
  /// Where the real machine did something else than was expected, in words, in order.
  public internal(set) var mismatches: [String] = []
  /// Entries that became writable without a notification, which the mirror had to make up for.
  public private(set) var silentUpgradeCount = 0
  /// An error to make from now on.
  public var mistake: Mistake?

  let range: MirroredRange
  private var machine: RealVM?
  private var shown: [Shown]
  /// Pages whose emulated entries may have changed since they were shown.
  private var stale: Set<Int> = []
  /// Accesses that are resolved and not yet made, with what they should come to.
  var pending: [RealAccess] = []
  var expectations: [GuestAccess] = []
  /// What failed in a notification, which cannot throw.
  private var failure: RealGuestError?
  /// Sums up what is read to fault pages in, so that the reads are not left out.
  private var faultInSum: UInt64 = 0

  /// Couples `vm`, which has no slot yet, with a new real machine. `base` is the emulated address of
  /// the range's first page, a multiple of 2 MiB, as the real range begins at one.
  ///
  /// Slot 0 of the emulated machine is made where the real guest has its own memory; no access goes
  /// there. Throws what the real machine throws.
  public init(
    _ vm: VirtualMachine, base: UInt64, pageCount: Int, on cpu: inout CPU
  ) throws(RealGuestError) {
    guard base % (2 << 20) == 0 else {
      throw .invalid("a mirrored range from 0x\(String(base, radix: 16))")
    }
    let range = try MirroredRange(byteCount: pageCount << 12, of: vm.kernel.machine.arena)
    let machine = try RealVM()
    self.vm = vm
    self.base = base
    self.pageCount = pageCount
    self.range = range
    self.machine = machine
    shown = Array(repeating: .nothing, count: pageCount)
    do throws(KernelErrno) {
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: 0, guestPhysicalAddress: 0, memorySize: machine.privateByteCount,
          userspaceAddress: 0x10_0000), on: &cpu)
    } catch { throw .invalid("the emulated machine has slots: \(error)") }
    vm.process.register(self)
  }

  deinit {
    // The real machine goes before the addresses that its slots name.
    machine = nil
  }

  /// The emulated process.
  public var process: HostProcess { vm.process }

  /// The real machine. Its slots and mappings are this type's to change.
  public var real: RealVM {
    guard let machine else { fatalError("a mirrored machine after its end") }
    return machine
  }

  /// Ends the coupling: the real guest makes what is still to be made, the real machine ends, and the
  /// emulated process forgets this machine and ``vm``. To be called once, and whatever happened:
  /// machine and process keep each other alive until then.
  public func close(on cpu: inout CPU) throws(RealGuestError) {
    flushNoting()
    process.unregister(self)
    vm.close(on: &cpu)
    machine = nil
    try rethrow()
  }

  /// Lets the real guest make what is resolved, where nothing can be thrown.
  func flushNoting() {
    do throws(RealGuestError) { try flush() } catch {
      if failure == nil { failure = error }
    }
  }

  /// Throws what failed in a notification, once.
  func rethrow() throws(RealGuestError) {
    guard let error = failure else { return }
    failure = nil
    throw error
  }
}

// MARK: - Pages

extension MirroredVM {
  /// The pages of the range that a range of emulated addresses touches.
  public func pages(of addresses: Range<UInt64>) -> Range<Int> {
    let end = base + UInt64(pageCount) << 12
    let part = addresses.clamped(to: base..<end)
    guard !part.isEmpty else { return 0..<0 }
    return Int((part.lowerBound - base) >> 12)..<Int((part.upperBound - base + 4095) >> 12)
  }

  /// The emulated address of a page of the range.
  public func address(of page: Int) -> UInt64 { base + UInt64(page) << 12 }

  /// What the real range should have at a page, by the emulated entry.
  private func wanted(_ page: Int) -> Shown {
    let address = address(of: page)
    guard let entry = process.entry(at: address)?.entry, let pfn = process.frame(at: address)
    else { return .nothing }
    if entry.isWritable { return Shown(pfn: pfn, isWritable: true, isSpecial: entry.isSpecial) }
    guard let flags = process.areaInfo(at: address)?.flags else { return .nothing }
    let isZero = pfn == vm.kernel.zeroPage
    // KVM follows the entries of a remapped area without a look at the area's rights.
    if entry.isSpecial, !flags.isDisjoint(with: [.io, .pfnmap]), !isZero {
      return Shown(pfn: pfn, isSpecial: true)
    }
    // A page that may only be written is reached by the fast lookup alone, where it is writable.
    guard !entry.isProtnone, flags.contains(.read) else { return .nothing }
    return Shown(pfn: pfn, isSpecial: entry.isSpecial && !isZero)
  }

  /// What the real range should have, with special entries that KVM refuses left out.
  private func wantedForGuest(_ page: Int) -> Shown {
    let found = wanted(page)
    guard found.isSpecial, let flags = process.areaInfo(at: address(of: page))?.flags,
      flags.isDisjoint(with: [.io, .pfnmap])
    else { return found }
    // A special entry of a mixed area: GUP refuses it, and the area is not one that KVM follows.
    return .nothing
  }

  /// Makes the real range equal to the emulated page table at all pages that may have changed, and
  /// at `pages`. To be called after each operation of the process, before the next access.
  public func sync(pages: Range<Int> = 0..<0) throws(RealGuestError) {
    try rethrow()
    for page in pages.clamped(to: 0..<pageCount) { stale.insert(page) }
    guard !stale.isEmpty else { return }
    let all = stale.sorted()
    stale.removeAll(keepingCapacity: true)
    for page in all {
      let wanted = wantedForGuest(page)
      if wanted != shown[page] { try show(wanted, at: page) }
    }
  }

  private func show(_ wanted: Shown, at page: Int) throws(RealGuestError) {
    // What was resolved before the entry was made runs without it.
    try flush()
    let old = shown[page]
    if old.pfn == wanted.pfn, old.pfn != nil, !old.isWritable, wanted.isWritable {
      silentUpgradeCount += 1
    }
    shown[page] = wanted
    guard let pfn = wanted.pfn else { return try range.unmap(pages: page..<page + 1) }
    try range.map(
      page: page, physicalAddress: pfn.physicalAddress, byteCount: 4096,
      isWritable: wanted.isWritable || mistake == .showsWritable)
    if !wanted.isSpecial, mistake != .skipsFaultIn {
      faultInSum &+= UInt64((range.base + page << 12).load(as: UInt8.self))
    }
  }

  /// Shows the special pages afresh, without entries: to be done when all translations are gone, or
  /// KVM would find the entries that its own accesses have left.
  func hideSpecialEntries() throws(RealGuestError) {
    for page in shown.indices where shown[page].isSpecial { try show(shown[page], at: page) }
  }

  /// Whether the page at an emulated address is one that a driver put there without a page behind
  /// it, and that may not be written.
  func isReadOnlySpecial(_ address: UInt64) -> Bool {
    guard let entry = process.entry(at: address)?.entry, entry.isSpecial, !entry.isWritable,
      let flags = process.areaInfo(at: address)?.flags
    else { return false }
    return !flags.isDisjoint(with: [.io, .pfnmap])
  }

  /// Remembers that a fault may have changed entries: of the page, or of what is mapped around it.
  func noteFault(at address: UInt64) {
    let window = UInt64(max(1, vm.kernel.behaviour.faultAroundPages)) << 12
    let start = address & ~(window - 1)
    for page in pages(of: start..<start + window) { stale.insert(page) }
  }

  var hasStalePages: Bool { !stale.isEmpty }
}

// MARK: - Notifications

extension MirroredVM {
  /// Lets the real guest finish and takes the pages of the range out of its reach.
  public func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU) {
    hide(pages(of: range))
  }

  /// Nothing: what the entries are now is looked up by ``sync(pages:)``, as the process is locked.
  public func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU) {}

  /// False: the real machine's accessed bits are not looked at.
  public func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool { false }

  /// False: the real machine's accessed bits are not looked at.
  public func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool { false }

  /// Takes everything out of the real guest's reach.
  public func release(on cpu: inout CPU) { hide(0..<pageCount) }

  private func hide(_ pages: Range<Int>) {
    guard !pages.isEmpty else { return }
    do throws(RealGuestError) {
      try flush()
      let there = pages.filter { shown[$0].pfn != nil }
      for page in pages {
        shown[page] = .nothing
        stale.insert(page)
      }
      guard let first = there.first, let last = there.last, mistake != .skipsUnmap else { return }
      try range.unmap(pages: first..<last + 1)
    } catch {
      if failure == nil { failure = error }
    }
  }
}
