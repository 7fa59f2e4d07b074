public import PMUnits
internal import Synchronization

/// The slot that a vCPU found last. Only a hint: a lookup checks it, so that it may come from any set.
public struct MemslotHint: Sendable {
  var index: Int = 0

  /// A hint that says nothing.
  public init() {}
}

/// The slots of one address space: disjoint, sorted by guest frame, immutable.
///
/// A change makes a new set; readers go on with the one they hold. Lookups by guest frame and by id
/// take time logarithmic in the number of slots, and finding the slots of a range of user addresses
/// logarithmic time for each one found. The generation is the one thing that changes in place, by
/// whoever publishes sets; everything may be read from any thread.
/// Mirrors `struct kvm_memslots`, Linux 6.1.
public final class MemslotSet: Sendable {
  /// Set in ``generation`` while an update is in flight.
  public static let updateInProgress: UInt64 = 1 << 63

  /// The address space.
  public let addressSpace: Int
  /// What every update adds to the generation: the number of address spaces, so that those of
  /// address space `k` stay congruent to `k`.
  public let generationStep: Int
  /// The slots by ascending guest frame.
  public let slots: ContiguousArray<Memslot>
  /// The first frame of each slot, in the order of ``slots``: what a search looks at.
  private let bases: ContiguousArray<UInt64>
  /// Id above the index in ``slots``, ascending.
  private let byID: ContiguousArray<UInt32>
  /// Indices in ``slots`` by ascending user address, then guest frame.
  private let byHVA: ContiguousArray<UInt16>
  /// For the subtree whose root is this place of `byHVA`, the highest end of a slot. The tree is that
  /// of a binary search: the root of a range of places is its middle.
  private let highestEnds: ContiguousArray<UInt64>
  private let generationWord: Atomic<UInt64>

  /// The empty set of an address space (0 or more) of a new VM.
  public convenience init(addressSpace: Int, addressSpaceCount: Int) {
    precondition(
      addressSpace >= 0 && addressSpace < addressSpaceCount, "no address space \(addressSpace)")
    self.init(
      addressSpace, step: addressSpaceCount, generation: UInt64(addressSpace), slots: [],
      byID: [], byHVA: [])
  }

  private init(
    _ addressSpace: Int, step: Int, generation: UInt64, slots: ContiguousArray<Memslot>,
    byID: ContiguousArray<UInt32>, byHVA: ContiguousArray<UInt16>
  ) {
    self.addressSpace = addressSpace
    generationStep = step
    generationWord = Atomic(generation)
    self.slots = slots
    self.byID = byID
    self.byHVA = byHVA
    bases = ContiguousArray(slots.lazy.map(\.baseGFN.rawValue))
    highestEnds = MemslotSet.highestEnds(slots, byHVA)
  }

  // MARK: generation

  /// The number of the set, see ``updateInProgress``. Acquire.
  public var generation: UInt64 { generationWord.load(ordering: .acquiring) }

  /// Ends the update that published this set: readers of the one before are gone. Release.
  ///
  /// Clears ``updateInProgress`` and adds ``generationStep``. pre: the update is in flight, and the
  /// caller holds the lock of slot updates. Mirrors the end of `kvm_swap_active_memslots`.
  public func finishUpdate() {
    let value = generationWord.load(ordering: .relaxed)
    precondition(value & MemslotSet.updateInProgress != 0, "no update is in flight")
    let next = (value & ~MemslotSet.updateInProgress) &+ UInt64(generationStep)
    generationWord.store(next, ordering: .releasing)
  }

  // MARK: lookups

  /// The number of slots.
  public var count: Int { slots.count }
  /// Whether there is none.
  public var isEmpty: Bool { slots.isEmpty }

  /// The index in ``slots`` of the slot that holds a guest frame; nil where none does.
  public func index(containing gfn: GFN) -> Int? {
    let index = bases.partitioningIndex { $0 > gfn.rawValue } - 1
    guard index >= 0, slots[index].contains(gfn) else { return nil }
    return index
  }

  /// The slot that holds a guest frame; nil where none does. Mirrors `gfn_to_memslot`.
  public func slot(containing gfn: GFN) -> Memslot? { index(containing: gfn).map { slots[$0] } }

  /// The same with a look at the slot found last. Mirrors `kvm_vcpu_gfn_to_memslot`; the kernel drops
  /// its hint with the generation, here it is checked each time.
  public func slot(containing gfn: GFN, hint: inout MemslotHint) -> Memslot? {
    if hint.index < slots.count {
      let slot = slots[hint.index]
      if slot.contains(gfn) { return slot }
    }
    guard let index = index(containing: gfn) else { return nil }
    hint.index = index
    return slots[index]
  }

  /// The slot of an id; nil where there is none. Mirrors `id_to_memslot`.
  public func slot(id: UInt16) -> Memslot? {
    let place = byID.partitioningIndex { $0 >> 16 >= UInt32(id) }
    guard place < byID.count, byID[place] >> 16 == UInt32(id) else { return nil }
    return slots[Int(byID[place] & 0xffff)]
  }

  /// Where a guest frame is in the process. Mirrors `__gfn_to_hva_many`, a missing slot included.
  public func gfnToHVA(_ gfn: GFN, forWrite: Bool) -> HVAResult {
    slot(containing: gfn)?.gfnToHVA(gfn, forWrite: forWrite) ?? .bad
  }

  /// Whether a slot other than `id` holds a frame of `gfns`. Mirrors `kvm_check_memslot_overlap`.
  public func hasSlot(in gfns: Range<GFN>, otherThan id: UInt16) -> Bool {
    var overlaps = false
    forEachSlot(in: gfns) { slot, _ in overlaps = overlaps || slot.id != id }
    return overlaps
  }

  /// Calls `body` with every slot that holds a frame of `gfns`, and with those frames, in ascending
  /// order.
  public func forEachSlot(in gfns: Range<GFN>, _ body: (Memslot, Range<GFN>) -> Void) {
    guard !gfns.isEmpty else { return }
    var index = max(0, bases.partitioningIndex { $0 > gfns.lowerBound.rawValue } - 1)
    while index < slots.count, slots[index].baseGFN < gfns.upperBound {
      let slot = slots[index]
      if slot.endGFN > gfns.lowerBound {
        body(
          slot, max(slot.baseGFN, gfns.lowerBound)..<min(slot.endGFN, gfns.upperBound))
      }
      index += 1
    }
  }

  /// Calls `body` with every slot whose memory intersects a range of user addresses, and with the
  /// guest frames touched, in the order of user addresses, then guest frames.
  ///
  /// Slots may share user addresses: each one is reported. For the MMU notifier.
  public func forEachSlot(
    inHVAs range: Range<UInt64>, _ body: (Memslot, Range<GFN>) -> Void
  ) {
    guard !range.isEmpty else { return }
    visit(0, byHVA.count, range, body)
  }

  private func visit(
    _ low: Int, _ high: Int, _ range: Range<UInt64>, _ body: (Memslot, Range<GFN>) -> Void
  ) {
    guard low < high else { return }
    let middle = (low + high) / 2
    guard highestEnds[middle] > range.lowerBound else { return }
    visit(low, middle, range, body)
    let slot = slots[Int(byHVA[middle])]
    guard slot.userspaceAddress < range.upperBound else { return }
    if let gfns = slot.gfns(ofHVAs: range) { body(slot, gfns) }
    visit(middle + 1, high, range, body)
  }

  private static func highestEnds(
    _ slots: ContiguousArray<Memslot>, _ byHVA: ContiguousArray<UInt16>
  ) -> ContiguousArray<UInt64> {
    var ends = ContiguousArray<UInt64>(repeating: 0, count: byHVA.count)
    @discardableResult
    func fill(_ low: Int, _ high: Int) -> UInt64 {
      guard low < high else { return 0 }
      let middle = (low + high) / 2
      let own = slots[Int(byHVA[middle])].userspaceEnd
      ends[middle] = max(own, max(fill(low, middle), fill(middle + 1, high)))
      return ends[middle]
    }
    fill(0, byHVA.count)
    return ends
  }

  // MARK: changes

  /// The set without `old` (a slot of it) and with `new`, whose frames no other slot holds; either
  /// may be nil. Its update is in flight: publish it, wait for readers of this one, and call
  /// ``finishUpdate()``.
  ///
  /// Takes time linear in the number of slots.
  public func replacing(_ old: Memslot?, with new: Memslot?) -> MemslotSet {
    var (slots, byID, byHVA) = (slots, byID, byHVA)
    if let old {
      guard let index = index(containing: old.baseGFN), slots[index].id == old.id else {
        preconditionFailure("slot \(old.slotNumber) is not in the set")
      }
      slots.remove(at: index)
      byID.removeAll { $0 & 0xffff == UInt32(index) }
      byHVA.removeAll { $0 == UInt16(index) }
      for place in byID.indices where byID[place] & 0xffff > UInt32(index) { byID[place] -= 1 }
      for place in byHVA.indices where byHVA[place] > UInt16(index) { byHVA[place] -= 1 }
    }
    if let new {
      precondition(new.addressSpace == addressSpace, "slot \(new.slotNumber) is of another space")
      let index = slots.partitioningIndex { $0.baseGFN > new.baseGFN }
      precondition(
        index == 0 || slots[index - 1].endGFN <= new.baseGFN, "slot \(new.slotNumber) overlaps")
      precondition(
        index == slots.count || new.endGFN <= slots[index].baseGFN,
        "slot \(new.slotNumber) overlaps")
      slots.insert(new, at: index)
      for place in byID.indices where byID[place] & 0xffff >= UInt32(index) { byID[place] += 1 }
      for place in byHVA.indices where byHVA[place] >= UInt16(index) { byHVA[place] += 1 }
      let entry = UInt32(new.id) << 16 | UInt32(index)
      let place = byID.partitioningIndex { $0 > entry }
      precondition(
        place == 0 || byID[place - 1] >> 16 != UInt32(new.id), "slot \(new.slotNumber) is there")
      byID.insert(entry, at: place)
      let key = (new.userspaceAddress, new.baseGFN)
      let order = byHVA.partitioningIndex { place in
        let slot = slots[Int(place)]
        return (slot.userspaceAddress, slot.baseGFN) > key
      }
      byHVA.insert(UInt16(index), at: order)
    }
    return MemslotSet(
      addressSpace, step: generationStep, generation: generation | MemslotSet.updateInProgress,
      slots: slots, byID: byID, byHVA: byHVA)
  }
}

extension ContiguousArray {
  /// The first index whose element is in the second part; pre: the elements are partitioned by it.
  func partitioningIndex(where isInSecondPart: (Element) -> Bool) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = low + (high - low) / 2
      if isInSecondPart(self[middle]) { high = middle } else { low = middle + 1 }
    }
    return low
  }
}
