import PMPageAllocator
import Testing

@testable import PMConform

@Suite struct KVMTableTests {
  @Test(arguments: KernelModel.KVM.allCases)
  func `Every cell of an era keeps the rules that hold for all`(_ era: KernelModel.KVM) throws {
    let table = try KVMTable(era)
    let combinations = KVMArea.allCases.reduce(0) { $0 + $1.kinds.count * 2 }
    #expect(table.cells.count == combinations)
    for cell in table.cells {
      let name =
        "\(era.rawValue) \(cell.kind.rawValue) \(cell.area.rawValue) \(cell.access.rawValue)"
      #expect(cell.era == era)
      #expect(cell.outcome != .interrupted, "\(name)")
      // An entry and a finished access come together, but for the emulator.
      #expect((cell.entry != nil) == (cell.outcome == .ok), "\(name)")
      #expect(cell.entry != nil || cell.during == nil, "\(name)")
      #expect(cell.steps.count >= 3, "\(name)")
      if cell.entry == nil { #expect(cell.zapMarks == .init(), "\(name)") }
      if let entry = cell.entry {
        // No slot here logs dirty pages and no guest shadows its tables.
        #expect(entry.isWritable == entry.isHostWritable, "\(name)")
        #expect(cell.access == .read || entry.isWritable, "\(name)")
        if entry.isRefcounted { #expect(era == .b && entry.level == 1, "\(name)") }
        if !entry.isWritable { #expect(!cell.zapMarks.dirty, "\(name)") }
      }
      switch era {
      case .a0, .a: #expect(!cell.faultMarks.dirty, "\(name)")
      case .b: #expect(cell.during ?? 0 == 0, "\(name)")
      case .c: #expect(cell.zapMarks == .init(), "\(name)")
      }
      // The counting invariant: only reserved pages of GUP areas leak, in the old eras.
      let leaks = cell.kind == .reserved && cell.area == .gup && (era == .a0 || era == .a)
      #expect(cell.after == (leaks ? 1 : 0), "\(name)")
      if era != .a0 { #expect(!cell.isFreedByFault, "\(name)") }
    }
  }

  @Test func `A table of one kind has its cells, and a cell alone is the same`() throws {
    let table = try KVMTable(.b, kind: .plainTail)
    #expect(table.cells.allSatisfy { $0.kind == .plainTail })
    #expect(table[.order0, .gup, .read] == nil)
    let cell = try #require(table[.plainTail, .remap, .write])
    let alone = try #require(try KVMTable.cell(.plainTail, .remap, .write, .b))
    #expect(alone.steps == cell.steps)
    #expect(alone.count == "0->0")
    #expect(alone.entry == cell.entry)
    #expect(try KVMTable.cell(.plainTail, .gupNone, .read, .b) == nil)
  }

  @Test func `Steps carry the counts of the page and of its head, and who holds them`() throws {
    let cell = try #require(try KVMTable.cell(.compoundTail, .gup, .read, .a))
    let first = try #require(cell.steps.first)
    #expect(first.ownCount == 0)
    // Each of the block's four pages is mapped, and the driver has it.
    #expect(first.headCount == 5)
    let install = try #require(cell.steps.first { $0.text.hasPrefix("entry of gfn") })
    #expect(install.ownCount == 0)
    #expect(install.headCount == 6)
    #expect(install.holders.contains { $0.hasPrefix("KVM guest fault") })
    #expect(cell.steps.last?.headCount == 5)
    #expect(cell.path == "fast GUP")
    let device = try #require(try KVMTable.cell(.noStructPage, .remap, .read, .c))
    #expect(device.steps.allSatisfy { $0.pfn != nil && $0.ownCount == nil })
    #expect(device.count == "-")
  }

  @Test func `What no driver can do is said to be forced`() throws {
    for kind in [KVMPageKind.plainTail, .freedOrder0] {
      let cell = try #require(try KVMTable.cell(kind, .gup, .read, .c))
      #expect(cell.forced == "vm_insert_page says EINVAL")
      #expect(cell.outcome == .efault)
      #expect(cell.findings.count == 1)
    }
    #expect(try KVMTable.cell(.plainHead, .gup, .read, .c)?.forced == nil)
    #expect(try KVMTable.cell(.thpTail, .remap, .read, .c)?.forced != nil)
    #expect(try KVMTable.cell(.zeroPage, .remap, .read, .c)?.forced == nil)
  }
}
