import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// The truth table of the specification, section 3: page kind, kind of area, access and era.
@Suite struct TruthTableTests {
  typealias Area = TruthCase.Area

  struct Row: Sendable, CustomStringConvertible {
    var kind: PageKind
    var area: Area
    var read: TruthCode
    var write: TruthCode
    var description: String { "\(kind.rawValue), \(area.rawValue)" }
  }

  private static func row(_ kind: PageKind, _ gup: TruthCode, _ remap: TruthCode?) -> [Row] {
    let first = Row(kind: kind, area: .gup, read: gup, write: gup)
    return [first] + (remap.map { [Row(kind: kind, area: .remap, read: $0, write: $0)] } ?? [])
  }

  static let rows: [Row] =
    row(.order0, .g, .rPlus) + row(.uncounted, .fault, .r0) + row(.compoundHead, .g, .rPlus)
    + row(.compoundTail, .g, .r0) + row(.blockHead, .g, .rPlus) + row(.blockTail, .fault, .r0)
    + row(.reserved, .reserved, .rN) + row(.noPage, .fault, .rN)
    + row(.hugetlbHead, .gHuge, nil) + row(.hugetlbTail, .gHuge, nil)
    + row(.thpHead, .gHuge, .rPlus) + row(.thpTail, .gHuge, .r0) + row(.splitTHP, .g, nil)
    + [
      Row(kind: .zero, area: .gup, read: .zeroRead, write: .zeroCopied),
      Row(kind: .zero, area: .remap, read: .zeroRemapped, write: .zeroRemapped),
    ]

  @Test(arguments: rows, GuestFixture.eras)
  func `Outcome, count, marks and entry are the table's`(
    _ row: Row, _ era: KernelModel.KVM
  ) throws {
    for isWrite in [false, true] {
      let test = try #require(try TruthCase(row.kind, row.area, era))
      var expected = TruthResult.expected(isWrite ? row.write : row.read, era)
      let result = try test.measure(isWrite: isWrite)
      if row.kind == .zero, row.area == .gup, isWrite {
        // The slow lookup that breaks copy-on-write has made the fault start again, or the new page
        // came with the fault: its marks are those of the tries, its count is compared.
        expected.accessed = result.accessed
        expected.isDirty = result.isDirty
        expected.isZapDirty = result.isZapDirty
      }
      #expect(result == expected, "\(row), \(isWrite ? "write" : "read"), era \(era.rawValue)")
    }
  }

  @Test(arguments: GuestFixture.eras)
  func `A read-only remapped entry of the zero page is never mapped writable`(
    _ era: KernelModel.KVM
  ) throws {
    for isWrite in [false, true] {
      let test = try #require(try TruthCase(.zero, .remap, era, isWritable: false))
      var expected = TruthResult.expected(isWrite ? .exit : .zeroRemapped, era)
      expected.isWritable = false
      #expect(try test.measure(isWrite: isWrite) == expected)
    }
  }

  @Test(arguments: rows, GuestFixture.eras)
  func `Over faults, retries, zaps and the VM's end the counts change by nothing`(
    _ row: Row, _ era: KernelModel.KVM
  ) throws {
    for isWrite in [false, true] {
      let test = try #require(try TruthCase(row.kind, row.area, era))
      let fixture = test.fixture
      let before = test.page.map { fixture.machine.hasPage($0) ? fixture.count($0) : 0 }
      var lookups = 0
      var isStale = false
      fixture.recorder.onLock = { _, cpu in
        lookups += 1
        guard isStale else { return }
        isStale = false
        let range = test.hva..<(test.hva + 4096)
        fixture.vm.invalidateRangeStart(range, on: &cpu)
        fixture.vm.invalidateRangeEnd(range, on: &cpu)
      }
      for round in 0..<4 {
        isStale = round % 2 == 1
        _ = isWrite ? fixture.write(test.gfn) : fixture.read(test.gfn)
        if round != 2 { fixture.notify(test.pageAddress) }
      }
      _ = fixture.read(test.gfn)
      fixture.vm.close(on: &fixture.cpu)
      if let page = test.page, fixture.machine.hasPage(page) {
        let isLeak = row.kind == .reserved && row.area == .gup && era == .a
        fixture.kernel.drainLRUBatches(on: &fixture.cpu)
        #expect(
          fixture.count(page) - (before ?? 0) == (isLeak ? Int32(lookups) : 0),
          "\(row), era \(era.rawValue), \(lookups) lookups")
      }
      test.restoreCounts()
      fixture.process.exit(on: &fixture.cpu)
      #expect(fixture.ledger.unmatchedPuts == [])
      // What is left is the kernel's own, and the leak.
      let left = fixture.ledger.pages.filter { $0 != fixture.kernel.zeroPage }
      #expect(left == (row.kind == .reserved && row.area == .gup && era == .a ? [test.page] : []))
    }
  }
}
