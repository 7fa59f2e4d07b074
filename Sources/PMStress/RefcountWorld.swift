internal import PMArena
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// Pages that threads share: some that stay, and some that are looked up without a lock while others
/// take them away, as pages of the page cache are.
final class RefcountWorld: @unchecked Sendable {
  // Sendable: constant after init, except the words, which are atomic, and the bytes of a page, which
  // are written before it is published and only read from then on.

  static let slotCount = 64
  static let hotCount = 16

  let machine: Machine
  let freeBefore: Int64
  /// The frame that each slot names; as an entry of an XArray.
  let slots: SharedWords<UInt32>
  /// Taken by whoever replaces or freezes the page of a slot; as the lock of an XArray.
  let locks: SharedWords<UInt32>
  /// Pages that stay as long as the round.
  let hot: PFN
  /// A compound page of order 3.
  let folio: PFN

  init(_ plan: StressPlan) throws {
    machine = try Machine(plan.machineWithoutGuests)
    var cpu = try machine.claimCPU(0)
    cpu.drainLocalPages()
    freeBefore = machine.freePageCount
    slots = SharedWords(count: RefcountWorld.slotCount, repeating: 0)
    locks = SharedWords(count: RefcountWorld.slotCount, repeating: 0)
    let block = try cpu.allocatePages(order: 4, gfp: .highUser)
    cpu.splitPage(block, order: 4)
    hot = block
    folio = try cpu.allocateFolio(order: 3, gfp: .highUser)
    for slot in 0..<RefcountWorld.slotCount {
      let page = try cpu.allocatePages(gfp: .highUser)
      stamp(page, slot)
      slots.place(slot).pointee.store(page.rawValue, ordering: .releasing)
    }
  }

  deinit {
    slots.deallocate()
    locks.deallocate()
  }

  private func words(_ pfn: PFN) -> UnsafeMutablePointer<UInt64> {
    (machine.arena.base + Int(pfn.physicalAddress)).assumingMemoryBound(to: UInt64.self)
  }

  private func tag(_ pfn: PFN, _ slot: Int) -> UInt64 {
    0x5107_0000_0000_0000 | UInt64(slot) << 32 | UInt64(pfn.rawValue)
  }

  /// Writes to a page, before anybody else can see it, to which slot it belongs.
  func stamp(_ pfn: PFN, _ slot: Int) {
    words(pfn)[0] = tag(pfn, slot)
    words(pfn)[511] = tag(pfn, slot)
  }

  /// Whether a page that is held through a slot has that slot's bytes.
  func isStamped(_ pfn: PFN, _ slot: Int) -> Bool {
    words(pfn)[0] == tag(pfn, slot) && words(pfn)[511] == tag(pfn, slot)
  }

  /// Clears the stamp of a page that the caller alone holds: whoever gets it next finds nothing old.
  func unstamp(_ pfn: PFN) {
    words(pfn)[0] = 0
    words(pfn)[511] = 0
  }

  /// Compares every count with the references that threads say they hold, then gives all pages back and
  /// says what is missing. At rest.
  func settle(_ held: [RefcountHoldings], on cpu: inout CPU) -> [String] {
    var found: [String] = []
    func expect(_ pfn: PFN, _ count: Int, _ what: String) {
      let seen = machine.frames.refcount(pfn)
      if Int(seen) != count {
        found.append("\(what), frame \(pfn): count \(seen), \(count) references are held")
      }
    }
    var holders: [UInt32: Int] = [:]
    for holding in held {
      for entry in holding.looked { holders[UInt32(truncatingIfNeeded: entry), default: 0] += 1 }
    }
    for slot in 0..<RefcountWorld.slotCount {
      let pfn = slots.place(slot).pointee.load(ordering: .acquiring)
      expect(PFN(pfn), 1 + (holders.removeValue(forKey: pfn) ?? 0), "slot \(slot)")
    }
    for (pfn, count) in holders { expect(PFN(pfn), count, "a page without a slot") }
    for index in 0..<RefcountWorld.hotCount {
      expect(hot + index, 1 + held.reduce(0) { $0 + $1.hot[index] }, "shared page \(index)")
    }
    expect(folio, 1 + held.reduce(0) { $0 + $1.folio }, "compound page")
    guard found.isEmpty else { return found }
    for holding in held {
      for entry in holding.looked { cpu.putPage(PFN(UInt32(truncatingIfNeeded: entry))) }
      for index in 0..<RefcountWorld.hotCount where holding.hot[index] > 0 {
        cpu.putPage(hot + index, count: Int32(holding.hot[index]))
      }
      if holding.folio > 0 { cpu.putPage(folio, count: Int32(holding.folio)) }
    }
    for slot in 0..<RefcountWorld.slotCount {
      cpu.putPage(PFN(slots.place(slot).pointee.load(ordering: .acquiring)))
    }
    for index in 0..<RefcountWorld.hotCount { cpu.putPage(hot + index) }
    cpu.putPage(folio)
    return found
  }
}

/// The references that a thread holds.
struct RefcountHoldings: Sendable {
  /// Pages found through slots: the slot in the high half, the frame in the low.
  var looked: ContiguousArray<UInt64> = []
  /// References to each shared page, pins counted as 1024.
  var hot: ContiguousArray<Int> = .init(repeating: 0, count: RefcountWorld.hotCount)
  /// References to the compound page.
  var folio = 0
}
