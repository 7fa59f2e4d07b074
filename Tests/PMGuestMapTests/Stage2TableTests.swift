import PMUnits
import Testing

@testable import PMGuestMap

@Suite("Stage-2 tables")
struct Stage2TableTests {
  @Test("An empty tree maps nothing, at any frame, and has one table")
  func empty() throws {
    let table = try Stage2Table()
    #expect(table.levels == 4 && table.frameLimit == 1 << 36 && table.tableCount == 1)
    for gfn in [0, 1, 511, 1 << 35, 1 << 36, UInt64.max >> 12] {
      #expect(table.lookup(GFN(gfn)) == nil)
      #expect(table.unmap(GFN(gfn)) == nil)
      #expect(table.fastFix(GFN(gfn), write: true) == .giveUp)
    }
    #expect(table.unmapRange(table.allFrames) == 0)
    #expect(try Stage2Table(levels: 5).frameLimit == 1 << 45)
  }

  @Test("A mapped frame is found at its level, and so is every frame of a huge leaf")
  func mapping() throws {
    let table = try Stage2Table()
    var cursor = Stage2Cursor()
    #expect(table.map(GFN(5), PFN(77), .readWrite, &cursor) == .installed)
    #expect(table.map(GFN(6), PFN(78), .readWrite, &cursor) == .installed)
    #expect(table.map(GFN(6), PFN(78), .readWrite, &cursor) == .spurious)
    #expect(table.map(GFN(6), PFN(79), .readWrite, &cursor) == .occupiedByLeaf(level: 1))
    let huge = SPTE.makeLeaf(pfn: PFN(0x800), level: 2, .readOnly)
    #expect(table.install(GFN(0x3ff), level: 2, huge) == .installed)
    #expect(table.install(GFN(1), level: 2, huge) == .occupiedByTable)
    #expect(table.map(GFN(0x210), PFN(1), .readWrite, &cursor) == .occupiedByLeaf(level: 2))
    #expect(table.lookup(GFN(5))?.spte.pfn == PFN(77))
    #expect(try #require(table.lookup(GFN(0x2ff))) == (huge, 2))
    #expect(table.leafCounts == .init(pages4K: 2, pages2M: 1))
    #expect(table.tableCount == 4)
  }

  @Test("A leaf of the same page is replaced, and only if it is the expected one")
  func permissionChange() throws {
    let table = try Stage2Table()
    let before = SPTE.makeLeaf(pfn: PFN(9), level: 1, .writeProtected)
    let after = SPTE.makeLeaf(pfn: PFN(9), level: 1, .readWrite)
    let hostReadOnly = SPTE.makeLeaf(pfn: PFN(9), level: 1, .readOnly)
    #expect(table.install(GFN(1), level: 1, hostReadOnly) == .installed)
    #expect(table.install(GFN(1), level: 1, before) == .installed)
    #expect(table.install(GFN(1), level: 1, after, expected: .empty) == .lostRace)
    #expect(table.install(GFN(1), level: 1, after, expected: before) == .installed)
    #expect(table.lookup(GFN(1))?.spte == after)
    #expect(table.leafCounts == .init(pages4K: 1))
  }

  @Test("An entry that is not present is installed, found by no lookup, and zapped without a visit")
  func markers() throws {
    let table = try Stage2Table()
    let marker = SPTE(rawValue: 6 | 3 << 40)
    #expect(table.install(GFN(3), level: 1, marker) == .installed)
    #expect(table.lookup(GFN(3)) == nil && table.leafCounts == .init())
    #expect(table.accessWalk(GFN(3), write: false) == .violation(marker, level: 1))
    #expect(table.unmapRange(table.allFrames) == 0)
    #expect(table.accessWalk(GFN(3), write: false) == .violation(.empty, level: 1))
  }

  @Test("Whoever meets a frozen entry has lost a race, and finds an empty table afterwards")
  func frozen() throws {
    let table = try Stage2Table()
    let huge = SPTE.makeLeaf(pfn: PFN(0x400), level: 2, .readWrite)
    #expect(table.install(GFN(0), level: 2, huge) == .installed)
    var cursor = Stage2Cursor()
    var during: [Stage2InstallResult] = []
    let old = table.zapHugeForSmall(GFN(17), level: 2) { _ in
      during = [
        table.map(GFN(3), PFN(1), .readWrite, &cursor), table.install(GFN(3), level: 2, huge),
        table.splitHuge(GFN(3), level: 2),
      ]
      #expect(table.mapRange(GFN(3), PFN(1), count: 4, .readWrite) == 0)
      #expect(table.lookup(GFN(3)) == nil && table.fastFix(GFN(3), write: true) == .giveUp)
    }
    #expect(old == huge && during == [.lostRace, .lostRace, .lostRace])
    #expect(table.map(GFN(3), PFN(1), .readWrite, &cursor) == .installed)
    #expect(table.install(GFN(3), level: 2, huge) == .occupiedByTable)
  }

  @Test("A cursor notices that its table left the tree, also when it is used with another tree")
  func cursors() throws {
    let table = try Stage2Table()
    let other = try Stage2Table()
    var cursor = Stage2Cursor()
    #expect(table.map(GFN(0), PFN(1), .readWrite, &cursor) == .installed)
    #expect(other.map(GFN(1), PFN(2), .readWrite, &cursor) == .installed)
    #expect(table.lookup(GFN(1)) == nil && other.lookup(GFN(1)) != nil)
    table.zapAll()
    #expect(table.detachedTableCount == 3)
    #expect(table.reclaimDetachedTables() == 3)
    #expect(table.map(GFN(1), PFN(2), .readWrite, &cursor) == .installed)
    #expect(table.lookup(GFN(1))?.spte.pfn == PFN(2) && table.lookup(GFN(0)) == nil)
  }

  @Test("A table that left the tree is frozen, so that an install on its way into it starts again")
  func detachedTables() throws {
    let table = try Stage2Table()
    let huge = SPTE.makeLeaf(pfn: PFN(0x400), level: 2, .readWrite)
    for isReplaced in [true, false] {
      #expect(
        table.install(GFN(9), level: 1, .makeLeaf(pfn: PFN(9), level: 1, .readOnly)) == .installed)
      guard case .table(let lowest) = table.descend(GFN(0), to: 1) else {
        Issue.record("no table for frame 0")
        return
      }
      if isReplaced {
        #expect(table.replaceTableByHuge(GFN(0), level: 2, huge) { _, _, _ in } == .installed)
        #expect(table.unmap(GFN(0))?.level == 2)
      } else {
        table.zapAll()
      }
      #expect((0..<512).allSatisfy { lowest[$0] == SPTE.frozen.rawValue })
    }
  }

  @Test("Only tables that were detached before the mark are recycled")
  func reclaiming() throws {
    let table = try Stage2Table()
    #expect(table.mapRange(GFN(0), PFN(0), count: 512, .readWrite) == 512)
    table.zapAll()
    let mark = table.detachedMark
    #expect(table.mapRange(GFN(0), PFN(0), count: 1024, .readWrite) == 1024)
    table.zapAll()
    #expect(table.detachedTableCount == 7)
    #expect(table.reclaimDetachedTables(upTo: mark) == 3)
    #expect(table.reclaimDetachedTables(upTo: mark) == 0)
    #expect(table.reclaimDetachedTables() == 4)
  }

  @Test("A range is split down to small leaves, 1 GiB by way of 2 MiB")
  func splitting() throws {
    let table = try Stage2Table()
    let gigabyte = SPTE.makeLeaf(pfn: PFN(0x40000), level: 3, [.read, .accessed])
    #expect(table.install(GFN(0), level: 3, gigabyte) == .installed)
    #expect(table.splitRange(GFN(0x201)..<GFN(0x401)) == 3)
    #expect(table.leafCounts == .init(pages4K: 1024, pages2M: 510))
    let small = try #require(table.lookup(GFN(0x3ff)))
    #expect(small.level == 1 && small.spte.pfn == PFN(0x403ff) && small.spte.isExecutable)
    let medium = try #require(table.lookup(GFN(0x600)))
    #expect(medium.level == 2 && !medium.spte.isExecutable)
  }

  @Test("The pool grows with the tree and its tables come back")
  func growing() throws {
    let table = try Stage2Table()
    var cursor = Stage2Cursor()
    for index in 0..<3000 {
      let gfn = GFN(UInt64(index) << 18)
      #expect(table.map(gfn, PFN(UInt32(index)), .readWrite, &cursor) == .installed)
    }
    #expect(table.tableCount == 1 + 6 + 3000 + 3000)
    let size = table.tableByteCount
    table.zapAll()
    #expect(table.reclaimDetachedTables() == 6006)
    #expect(table.mapRange(GFN(0), PFN(0), count: 512 * 2000, .readWrite) == 512 * 2000)
    #expect(table.tableByteCount == size)
  }
}
