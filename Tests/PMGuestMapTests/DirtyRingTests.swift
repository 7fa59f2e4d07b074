import Foundation
import PMUnits
import Synchronization
import Testing

@testable import PMGuestMap

@Suite struct DirtyRingTests {
  private static let host = VMCapabilities.linux61(fiveLevel: true, physicalAddressBits: 40)

  private func shape(_ bytes: UInt64, pml: Bool = false) throws(KernelErrno) -> DirtyRingShape {
    var host = DirtyRingTests.host
    host.hasPageModificationLog = pml
    return try DirtyRingShape.checked(
      byteCount: bytes, settings: DirtyLogSettings(), vCPUCount: 0, capabilities: host)
  }

  @Test(arguments: [0, 1, 3, 100, 1024, 2048, 4095, 4097, 12288, 3 << 20, 1 << 32, 1 << 40])
  func `A ring's length is a power of two from a page on`(_ bytes: UInt64) {
    #expect(throws: KernelErrno.einval) { try shape(bytes) }
  }

  @Test func `A ring is at most a MiB, and keeps room for the page modification log`() throws {
    #expect(throws: KernelErrno.e2big) { try shape(1 << 21) }
    #expect(throws: KernelErrno.e2big) { try shape(1 << 31) }
    #expect(try shape(1 << 20).entryCount == 65536)
    let small = try shape(4096)
    #expect(small.entryCount == 256)
    #expect(small.softLimit == 192)
    // 64 + 512 entries are 9216 bytes.
    #expect(throws: KernelErrno.einval) { try shape(8192, pml: true) }
    #expect(try shape(16384, pml: true).softLimit == 1024 - 576)
    // Beyond 32 bits nothing is looked at.
    #expect(try shape(1 << 32 | 4096) == small)
  }

  @Test func `Rings are enabled once, before any vCPU, and the length is looked at first`() throws {
    var model = MemslotModel(capabilities: DirtyRingTests.host)
    try model.enable(.dirtyLogRing, flags: 1, argument: 4096)
    #expect(throws: KernelErrno.einval) { try model.enable(.dirtyLogRing, argument: 4096) }
    #expect(throws: KernelErrno.einval) {
      try model.enable(.dirtyLogRingAcquireRelease, argument: 4096)
    }
    #expect(throws: KernelErrno.e2big) { try model.enable(.dirtyLogRing, argument: 1 << 21) }
    var late = MemslotModel(capabilities: DirtyRingTests.host)
    late.vCPUCount = 1
    #expect(throws: KernelErrno.einval) { try late.enable(.dirtyLogRing, argument: 4096) }
    #expect(throws: KernelErrno.e2big) { try late.enable(.dirtyLogRing, argument: 1 << 21) }
    #expect(late.settings.ring == nil)
    var without = DirtyRingTests.host
    without.dirtyRingByteLimit = 0
    var none = MemslotModel(capabilities: without)
    #expect(throws: KernelErrno.einval) { try none.enable(.dirtyLogRing, argument: 4096) }
    #expect(throws: KernelErrno.einval) { try none.enable(.synchronousMMU, argument: 0) }
  }

  @Test func `With rings slots have no bitmap, and the bitmap calls say so first`() throws {
    var model = MemslotModel(capabilities: DirtyRingTests.host)
    try model.enable(.dirtyLogRing, argument: 4096)
    try model.setUserMemoryRegion(
      MemoryRegion(
        slot: 2, flags: 1, guestPhysicalAddress: 0, memorySize: 0x4000, userspaceAddress: 0x10000))
    #expect(model.slots[0].slot(id: 2)?.dirtyBitmap == nil)
    for slot in [2, 9, 0x7fff, 0x7_0002] as [UInt32] {
      #expect(throws: KernelErrno.enxio) { try model.getDirtyLog(slot: slot, into: nil) }
      #expect(throws: KernelErrno.enxio) {
        try model.clearDirtyLog(
          DirtyLogRange(slot: slot, firstPage: 1, pageCount: 1), bits: nil)
      }
    }
  }

  @Test func `An entry goes from the vCPU to user space and back, and places follow on`() throws {
    let ring = try DirtyRing(shape(4096))
    for page in [3, 700, 50] as [UInt64] { #expect(ring.push(slot: 1, offset: page)) }
    #expect(ring.usedCount == 3)
    #expect(ring.entry(at: 1) == DirtyRingEntry(flags: 1, slot: 1, offset: 700))
    // Nothing is taken back before it was collected.
    #expect(ring.reset { _ in } == 0)
    var next: UInt32 = 0
    #expect(ring.harvest(next: &next, limit: 2).map(\.offset) == [3, 700])
    #expect(ring.entry(at: 0).flags == 2)
    #expect(ring.reset { _ in } == 2)
    #expect(ring.entry(at: 0).flags == 0)
    #expect(ring.usedCount == 1)
    #expect(ring.harvest(next: &next).map(\.offset) == [50])
    #expect(ring.reset { _ in } == 1)
    #expect(ring.push(slot: 1, offset: 3))
    #expect(ring.entry(at: 3) == DirtyRingEntry(flags: 1, slot: 1, offset: 3))
  }

  @Test func `A ring is softly full before it is full, and full it takes nothing`() throws {
    let ring = try DirtyRing(shape(4096))
    for page in 0..<256 {
      #expect(ring.isSoftFull == (page >= 192))
      #expect(ring.push(slot: 1, offset: UInt64(page)))
    }
    #expect(!ring.push(slot: 1, offset: 999))
    #expect(ring.usedCount == 256)
    var next: UInt32 = 0
    #expect(ring.harvest(next: &next).count == 256)
    #expect(next == 256)
    var groups: [DirtyRingGroup] = []
    #expect(ring.reset { groups.append($0) } == 256)
    #expect(groups.map(\.offset) == [0, 64, 128, 192])
    #expect(groups.allSatisfy { $0.mask == .max })
    #expect(!ring.isSoftFull && ring.usedCount == 0)
  }

  private func groups(_ pages: [(UInt32, UInt64)]) throws -> [DirtyRingGroup] {
    let ring = try DirtyRing(shape(4096))
    for (slot, page) in pages { #expect(ring.push(slot: slot, offset: page)) }
    var next: UInt32 = 0
    _ = ring.harvest(next: &next)
    var groups: [DirtyRingGroup] = []
    #expect(ring.reset { groups.append($0) } == pages.count)
    return groups
  }

  @Test func `Neighbours within 64 pages of a slot are taken back together, both ways`() throws {
    #expect(
      try groups([(1, 100), (1, 103), (1, 163), (1, 164)]) == [
        DirtyRingGroup(slot: 1, offset: 100, mask: 1 | 1 << 3 | 1 << 63),
        DirtyRingGroup(slot: 1, offset: 164, mask: 1),
      ])
    #expect(
      try groups([(1, 100), (1, 98), (1, 37), (1, 36)]) == [
        DirtyRingGroup(slot: 1, offset: 37, mask: 1 | 1 << 61 | 1 << 63),
        DirtyRingGroup(slot: 1, offset: 36, mask: 1),
      ])
    #expect(
      try groups([(1, 5), (2, 6), (1, 7), (1, 7)]) == [
        DirtyRingGroup(slot: 1, offset: 5, mask: 1), DirtyRingGroup(slot: 2, offset: 6, mask: 1),
        DirtyRingGroup(slot: 1, offset: 7, mask: 1),
      ])
  }

  @Test func `Groups hold exactly the pages of the entries, for any order of them`() throws {
    var random = MemslotRandom("DirtyRingTests")
    for _ in 0..<200 {
      let spread = 1 + random.below(400)
      let pages = (0..<random.below(256)).map { _ in
        (UInt32(1 + random.below(2)), UInt64(random.below(spread)))
      }
      var expected = Set<[UInt64]>()
      for (slot, page) in pages { expected.insert([UInt64(slot), page]) }
      var found = Set<[UInt64]>()
      for group in try groups(pages) {
        #expect(group.mask & 1 == 1)
        for bit in 0...group.highestBit where group.mask >> UInt64(bit) & 1 != 0 {
          found.insert([UInt64(group.slot), group.offset + UInt64(bit)])
        }
      }
      #expect(found == expected)
    }
  }

  @Test func `What user space writes into the ring is not trusted`() throws {
    let ring = try DirtyRing(shape(4096))
    let entries: [(UInt32, UInt64)] = [
      (1, .max), (1, 2), (0xffff_ffff, 0), (1, 1 << 63), (1, 3), (9, 0), (0x1_0001, 0),
    ]
    for (index, entry) in entries.enumerated() {
      ring.write(DirtyRingEntry(flags: 2, slot: entry.0, offset: entry.1), at: index)
    }
    var model = MemslotModel(capabilities: DirtyRingTests.host)
    try model.setUserMemoryRegion(
      MemoryRegion(
        slot: 1, flags: 1, guestPhysicalAddress: 0, memorySize: 0x4000, userspaceAddress: 0x10000))
    var legal: [DirtyRingGroup] = []
    let count = ring.reset { if model.slots.slot(of: $0) != nil { legal.append($0) } }
    #expect(count == entries.count)
    #expect(legal == [DirtyRingGroup(slot: 1, offset: 3, mask: 1)])
    // Entries taken back that were never pushed leave a ring that only says it is full.
    #expect(ring.isSoftFull)
    #expect(!ring.push(slot: 1, offset: 0))
  }

  @Test func `A vCPU, a collector and a resetter lose no page`() throws {
    let ring = try DirtyRing(shape(4096))
    let count = 20_000
    let collected = Atomic<Int>(0)
    let sum = Atomic<Int>(0)
    let reset = Atomic<Int>(0)
    onMemslotThreads(3) { thread in
      switch thread {
      case 0:
        var page = 0
        while page < count {
          if !ring.isSoftFull, ring.push(slot: 1, offset: UInt64(page)) {
            page += 1
          } else {
            sched_yield()
          }
        }
      case 1:
        var next: UInt32 = 0
        while collected.load(ordering: .relaxed) < count {
          let entries = ring.harvest(next: &next)
          for entry in entries { sum.add(Int(entry.offset), ordering: .relaxed) }
          collected.add(entries.count, ordering: .relaxed)
          if entries.isEmpty { sched_yield() }
        }
      default:
        while reset.load(ordering: .relaxed) < count {
          let taken = ring.reset { _ in }
          reset.add(taken, ordering: .relaxed)
          if taken == 0 { sched_yield() }
        }
      }
    }
    #expect(sum.load(ordering: .relaxed) == count * (count - 1) / 2)
    #expect(ring.usedCount == 0)
  }
}
