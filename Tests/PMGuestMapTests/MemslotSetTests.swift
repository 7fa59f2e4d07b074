import PMUnits
import Testing

@testable import PMGuestMap

@Suite struct MemslotSetTests {
  private func slot(
    _ id: UInt16, gfn: UInt64, pages: Int, hva: UInt64, flags: MemslotFlags = []
  ) throws -> Memslot {
    try Memslot(
      MemslotShape(
        id: id, baseGFN: GFN(gfn), pageCount: pages, userspaceAddress: hva, flags: flags))
  }

  @Test func `Lookups agree with a walk over all slots, through many changes`() throws {
    var random = MemslotRandom("MemslotSetTests")
    for _ in 0..<12 {
      var set = MemslotSet(addressSpace: 0, addressSpaceCount: 2)
      var model: [Memslot] = []
      var hint = MemslotHint()
      for step in 0..<100 {
        var old: Memslot?
        if !model.isEmpty, random.oneIn(3) {
          old = model.remove(at: random.below(model.count))
        }
        var new: Memslot?
        let id = old.map(\.id) ?? UInt16(random.below(32764))
        let (gfn, pages) = (UInt64(random.below(4000)), 1 + random.below(60))
        let overlaps = model.contains {
          $0.baseGFN.rawValue < gfn + UInt64(pages) && gfn < $0.endGFN.rawValue
        }
        if !overlaps, !model.contains(where: { $0.id == id }), old == nil || random.oneIn(2) {
          // Few user addresses, so that many slots share them.
          new = try slot(id, gfn: gfn, pages: pages, hva: UInt64(random.below(500)) << 12)
        }
        let before = set.generation
        set = set.replacing(old, with: new)
        #expect(set.generation == before | 1 << 63)
        set.finishUpdate()
        #expect(set.generation == UInt64(step + 1) * 2)
        if let new { model.append(new) }
        check(set, model, &random, &hint)
      }
    }
  }

  private func check(
    _ set: MemslotSet, _ model: [Memslot], _ random: inout MemslotRandom,
    _ hint: inout MemslotHint
  ) {
    #expect(set.count == model.count)
    #expect(zip(set.slots, set.slots.dropFirst()).allSatisfy { $0.endGFN <= $1.baseGFN })
    for slot in model { #expect(set.slot(id: slot.id) === slot) }
    for _ in 0..<20 {
      let gfn = GFN(UInt64(random.below(4100)))
      let expected = model.first { $0.contains(gfn) }
      #expect(set.slot(containing: gfn) === expected)
      #expect(set.slot(containing: gfn, hint: &hint) === expected)
      let id = UInt16(random.below(32764))
      #expect(set.slot(id: id) === model.first { $0.id == id })
      let length = random.oneIn(3) ? 0 : random.below(100)
      let gfns = gfn..<(gfn + length)
      let inRange = model.filter { $0.baseGFN < gfns.upperBound && gfns.lowerBound < $0.endGFN }
        .filter { _ in !gfns.isEmpty }.sorted { $0.baseGFN < $1.baseGFN }
      var found: [UInt16] = []
      set.forEachSlot(in: gfns) { slot, _ in found.append(slot.id) }
      #expect(found == inRange.map(\.id))
      #expect(set.hasSlot(in: gfns, otherThan: inRange.first?.id ?? 0) == (inRange.count > 1))
    }
    checkAddresses(set, model, &random)
  }

  private func checkAddresses(
    _ set: MemslotSet, _ model: [Memslot], _ random: inout MemslotRandom
  ) {
    let start = UInt64(random.below(560 << 12))
    let end = start + UInt64(random.below(random.oneIn(2) ? 5000 : 100 << 12))
    var expected: [UInt16: Set<UInt64>] = [:]
    for slot in model where start < end {
      for page in 0..<UInt64(slot.pageCount) {
        let address = slot.userspaceAddress + page << 12
        if address < end, start < address + 4096 {
          expected[slot.id, default: []].insert(slot.baseGFN.rawValue + page)
        }
      }
    }
    var found: [UInt16: Set<UInt64>] = [:]
    var order: [(UInt64, GFN)] = []
    set.forEachSlot(inHVAs: start..<end) { slot, gfns in
      #expect(found[slot.id] == nil)
      found[slot.id] = Set(gfns.lowerBound.rawValue..<gfns.upperBound.rawValue)
      order.append((slot.userspaceAddress, slot.baseGFN))
    }
    #expect(found == expected)
    #expect(zip(order, order.dropFirst()).allSatisfy { $0 < $1 })
  }

  @Test func `Address space k has generations congruent to k`() throws {
    for space in 0..<2 {
      var set = MemslotSet(addressSpace: space, addressSpaceCount: 2)
      for _ in 0..<5 {
        #expect(set.generation % 2 == UInt64(space))
        set = set.replacing(nil, with: nil)
        #expect(set.generation & MemslotSet.updateInProgress != 0)
        set.finishUpdate()
        #expect(set.generation & MemslotSet.updateInProgress == 0)
      }
      #expect(set.generation == UInt64(space) + 10)
    }
  }

  @Test func `All ids can be in use, and the slots at an address are found`() throws {
    var set = MemslotSet(addressSpace: 0, addressSpaceCount: 1)
    let count = 2000
    for index in 0..<count {
      let id = UInt16((index * 32003) % 32764)
      set = set.replacing(
        nil, with: try slot(id, gfn: UInt64(index) * 8, pages: 8, hva: UInt64(index) << 20))
      set.finishUpdate()
    }
    // One slot over all the others' addresses does not hide them.
    set = set.replacing(
      nil, with: try slot(32763, gfn: 1 << 30, pages: count << 8, hva: 0))
    for index in stride(from: 0, to: count, by: 97) {
      var found: [Memslot] = []
      let address = UInt64(index) << 20
      set.forEachSlot(inHVAs: (address + 0x1fff)..<(address + 0x2001)) { slot, gfns in
        found.append(slot)
        #expect(gfns.upperBound - gfns.lowerBound == 2)
      }
      #expect(found.count == 2)
      #expect(found.contains { $0.baseGFN == GFN(UInt64(index) * 8) })
    }
  }
}

@Suite struct MemslotTests {
  private func slot(_ flags: MemslotFlags) throws -> Memslot {
    try Memslot(
      MemslotShape(
        id: 5, addressSpace: 1, baseGFN: GFN(0x100), pageCount: 4, userspaceAddress: 0x7000_0000,
        flags: flags))
  }

  @Test func `A frame's address depends on slot, flags and direction, in this order`() throws {
    for write in [false, true] {
      #expect(try slot([]).gfnToHVA(GFN(0x103), forWrite: write) == .hva(0x7000_3000))
      #expect(try slot([]).gfnToHVA(GFN(0x104), forWrite: write) == .bad)
      #expect(try slot([]).gfnToHVA(GFN(0xff), forWrite: write) == .bad)
      #expect(try slot([]).invalidated().gfnToHVA(GFN(0x100), forWrite: write) == .bad)
      // On its way out it has no addresses, also where it could not be written anyway.
      #expect(try slot(.readonly).invalidated().gfnToHVA(GFN(0x100), forWrite: write) == .bad)
      let set = MemslotSet(addressSpace: 1, addressSpaceCount: 2)
      #expect(set.gfnToHVA(GFN(0x100), forWrite: write) == .bad)
    }
    #expect(try slot(.readonly).gfnToHVA(GFN(0x100), forWrite: false) == .hva(0x7000_0000))
    #expect(try slot(.readonly).gfnToHVA(GFN(0x100), forWrite: true) == .readOnlyBad)
    #expect(HVAResult.hva(8).address == 8 && HVAResult.bad.address == nil)
  }

  @Test func `Addresses lead back to frames`() throws {
    let slot = try slot([])
    #expect(slot.slotNumber == 0x1_0005)
    #expect(slot.gfn(ofHVA: 0x7000_0fff) == GFN(0x100))
    #expect(slot.gfn(ofHVA: 0x7000_3fff) == GFN(0x103))
    #expect(slot.gfn(ofHVA: 0x7000_4000) == nil)
    #expect(slot.gfn(ofHVA: 0x6fff_ffff) == nil)
    // A page that is touched in part counts.
    #expect(slot.gfns(ofHVAs: 0x7000_0fff..<0x7000_1001) == GFN(0x100)..<GFN(0x102))
    #expect(slot.gfns(ofHVAs: 0..<UInt64.max) == GFN(0x100)..<GFN(0x104))
    #expect(slot.gfns(ofHVAs: 0x7000_4000..<0x8000_0000) == nil)
  }

  @Test func `A log goes on where both slots log, and begins anew where one did not`() throws {
    var settings = DirtyLogSettings()
    let logged = try Memslot(slot(.logDirtyPages).shape, settings: settings)
    let bitmap = try #require(logged.dirtyBitmap)
    bitmap.mark(2)
    var moved = logged.shape
    moved.baseGFN = GFN(0x900)
    let after = try Memslot(moved, replacing: logged, settings: settings)
    #expect(after.dirtyBitmap === bitmap)
    #expect(after.largePages !== logged.largePages)
    #expect(logged.invalidated().dirtyBitmap === bitmap)
    var off = logged.shape
    off.flags = []
    let without = try Memslot(off, replacing: logged, settings: settings)
    #expect(without.dirtyBitmap == nil)
    #expect(without.largePages === logged.largePages)
    settings.manualProtect = [.enabled, .initiallySet]
    let again = try Memslot(logged.shape, replacing: without, settings: settings)
    #expect(again.dirtyBitmap?.dirtyCount == 4)
    #expect(try Memslot(moved, replacing: logged, settings: settings).dirtyBitmap === bitmap)
  }
}

@Suite struct LargePageInfoTests {
  @Test func `Counters agree with the rule written out for every region`() {
    var random = MemslotRandom("LargePageInfoTests")
    for _ in 0..<300 {
      let unit = UInt64([1, 512, 512 * 512][random.below(3)])
      let base = UInt64(random.below(2000)) * unit
      let pages = 1 + random.below(3 << 18)
      let address =
        (random.oneIn(2) ? base : UInt64(random.below(1 << 20))) << 12
        + UInt64(random.below(3)) << 30
      let info = LargePageInfo(
        baseGFN: GFN(base), pageCount: pages, userspaceAddress: address)
      var counted: [UInt64] = []
      for _ in 0..<random.below(4) {
        counted.append(base + UInt64(random.below(pages)))
        info.adjust(GFN(counted[counted.count - 1]), by: 1)
      }
      for gfn in counted + [base, base + UInt64(pages) - 1] {
        for level in 2...3 {
          #expect(
            info.disallowCount(GFN(gfn), level: level)
              == rule(level, gfn, base, pages, address) + shared(counted, gfn, level))
        }
      }
      for gfn in counted { info.adjust(GFN(gfn), by: -1) }
      let probe = base + UInt64(random.below(pages))
      let allowed = (1...3).last { $0 == 1 || rule($0, probe, base, pages, address) == 0 }
      // The decision goes down level by level and stops at the first that is allowed.
      #expect(info.maximumLevel(GFN(probe), limit: 5) == allowed)
      #expect(info.maximumLevel(GFN(probe), limit: 1) == 1)
    }
  }

  private func rule(
    _ level: Int, _ gfn: UInt64, _ base: UInt64, _ pages: Int, _ address: UInt64
  ) -> Int {
    let size = UInt64(level == 2 ? 512 : 512 * 512)
    let (first, last) = (base / size, (base + UInt64(pages) - 1) / size)
    let isCut =
      gfn / size == first && base % size != 0
      || gfn / size == last && (base + UInt64(pages)) % size != 0
    return isCut || base % size != (address / 4096) % size ? 1 : 0
  }

  private func shared(_ counted: [UInt64], _ gfn: UInt64, _ level: Int) -> Int {
    let size = UInt64(level == 2 ? 512 : 512 * 512)
    return counted.count { $0 / size == gfn / size }
  }
}
