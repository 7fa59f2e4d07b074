import PMGuestMap
import PMUnits
import Testing

@Suite("SPTE")
struct SPTETests {
  @Test("A leaf carries page, level and attributes in the bits of an EPT entry")
  func layout() {
    let leaf = SPTE.makeLeaf(pfn: PFN(0x12345), level: 1, .readWrite)
    #expect(leaf.rawValue == 0x0600_0000_1234_5b07)
    #expect(leaf.isPresent && leaf.isReadable && leaf.isWritable && leaf.isExecutable)
    #expect(leaf.isAccessed && leaf.isDirty && leaf.isHostWritable && leaf.isMMUWritable)
    #expect(!leaf.isLarge && leaf.isLeaf(level: 1))
    #expect(leaf.pfn == PFN(0x12345))
    #expect(leaf.attributes == .readWrite)
    let huge = SPTE.makeLeaf(pfn: PFN(0x400), level: 2, [.readOnly, .refcounted])
    #expect(huge.rawValue == 0x0800_0000_0040_0985)
    #expect(huge.isLarge && !huge.isTable && huge.isLeaf(level: 2) && huge.isRefcounted)
    #expect(!huge.isWritable && !huge.isHostWritable && !huge.isMMUWritable)
    #expect(SPTE.makeLeaf(pfn: .max, level: 1, .readOnly).pfn == .max)
  }

  @Test("The frozen marker and the empty entry are not present, and neither is a table")
  func markers() {
    for entry in [SPTE.frozen, .empty] {
      #expect(!entry.isPresent && !entry.isTable && !entry.isLeaf(level: 1))
    }
    #expect(SPTE.frozen.rawValue == 0x5a0 && SPTE.frozen.isFrozen && !SPTE.empty.isFrozen)
  }

  @Test("Exactly 111, 110, 100 and 000 are legal for host-writable, MMU-writable and W")
  func writability() {
    let legal: [(Bool, Bool, Bool)] = [
      (true, true, true), (true, true, false), (true, false, false), (false, false, false),
    ]
    for bits in 0..<8 {
      let triple = (bits & 4 != 0, bits & 2 != 0, bits & 1 != 0)
      var attributes: SPTE.Attributes = [.read]
      if triple.0 { attributes.insert(.hostWritable) }
      if triple.1 { attributes.insert(.mmuWritable) }
      if triple.2 { attributes.insert(.write) }
      #expect(attributes.isWritabilityLegal == legal.contains { $0 == triple }, "\(triple)")
    }
  }

  @Test(
    "Aging clears the accessed bit, or takes R, W and X where there is none and keeps R and X"
  )
  func aging() {
    let leaf = SPTE.makeLeaf(pfn: PFN(7), level: 1, .readWrite)
    #expect(leaf.aged.rawValue == leaf.rawValue & ~0x100)
    #expect(!leaf.aged.isAccessed && leaf.aged.aged == leaf.aged && leaf.aged.restored == leaf.aged)

    let plain = SPTE.makeLeaf(
      pfn: PFN(7), level: 1,
      [.read, .write, .execute, .hostWritable, .mmuWritable, .accessDirtyDisabled])
    #expect(plain.isAccessed && plain.isDirty && plain.needsWriteProtection)
    let tracked = plain.aged
    #expect(tracked.isAccessTracked && !tracked.isAccessed && !tracked.isDirty)
    #expect(tracked.isPresent && tracked.isWritabilityLegal && tracked.aged == tracked)
    #expect(tracked.rawValue & 7 == 0 && tracked.rawValue >> 54 & 7 == 5)
    var expected = plain
    expected.isWritable = false
    #expect(tracked.restored == expected)
  }

  @Test("A split inherits everything but the size")
  func children() {
    let gigabyte = SPTE.makeLeaf(pfn: PFN(0x40000), level: 3, .writeProtected)
    let middle = gigabyte.child(3, level: 3)
    #expect(middle == SPTE.makeLeaf(pfn: PFN(0x40600), level: 2, .writeProtected))
    let small = middle.child(511, level: 2)
    #expect(small == SPTE.makeLeaf(pfn: PFN(0x407ff), level: 1, .writeProtected))

    let mitigated = SPTE.makeLeaf(pfn: PFN(0x200), level: 2, [.read, .accessed])
    #expect(!mitigated.child(0, level: 2).isExecutable)
    #expect(mitigated.child(0, level: 2, restoringExecute: true).isExecutable)
  }

  @Test("An entry describes itself")
  func description() {
    #expect(
      SPTE.makeLeaf(pfn: PFN(0x1f00), level: 1, .readWrite).description == "pfn 1f00 rwx HM AD")
    #expect(
      SPTE.makeLeaf(pfn: PFN(0x200), level: 2, .readOnly).description == "pfn 200 r-x -- A- large")
    #expect(SPTE.frozen.description == "frozen" && SPTE.empty.description == "empty")
    #expect(SPTE(rawValue: 6).description == "special 6")
  }
}
