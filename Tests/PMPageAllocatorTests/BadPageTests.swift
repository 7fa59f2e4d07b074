import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The page test: its reasons, their precedence, and where it stands (specification 8.1 to 8.4).
@Suite struct BadPageTests {
  /// Something wrong with a page.
  enum Fault: CaseIterable {
    case mapcount
    case mapping
    case refcount
    case flags
    case cgroup

    var reason: String {
      switch self {
      case .mapcount: "nonzero mapcount"
      case .mapping: "non-NULL mapping"
      case .refcount: "nonzero _refcount"
      case .flags: "PAGE_FLAGS_CHECK_AT_FREE flag(s) set"
      case .cgroup: "page still charged to cgroup"
      }
    }

    static func set(_ faults: [Fault], _ machine: Machine, _ pfn: PFN) {
      if faults.contains(.refcount) { machine.frames.setRefcount(pfn, 1) }
      if faults.contains(.flags) { machine.setFlags(of: pfn, [.locked, .dirty]) }
      machine.setDetails(
        of: pfn, mapcount: faults.contains(.mapcount) ? 0 : -1,
        mapping: faults.contains(.mapping) ? 0x1000 : 0,
        memcg: faults.contains(.cgroup) ? 0x40 : 0)
    }
  }

  @Test(arguments: Fault.allCases)
  func `Every reason is reported for a tail and leaks the block`(_ fault: Fault) throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    Fault.set([fault], machine, PFN(0x403))
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 3)
    #expect(machine.badPages == ["403 \(fault.reason) (free)"])
    #expect(machine.freePageCount == 0)
  }

  @Test func `Of several faults the last test of the kernel is reported`() throws {
    for first in Fault.allCases.indices {
      let machine = try smallMachine(SmallZone())
      machine.own([0x400])
      Fault.set(Array(Fault.allCases[...first]), machine, PFN(0x405))
      var cpu = try machine.claimCPU(0)
      cpu.freePages(PFN(0x400), order: 4)
      #expect(machine.badPages == ["405 \(Fault.allCases[first].reason) (free)"])
    }
  }

  @Test(arguments: [Fault.mapcount, .mapping, .flags, .cgroup], [4, 10])
  func `Blocks past the CPU's lists are tested at their first page too`(
    _ fault: Fault, _ order: Int
  ) throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    Fault.set([fault], machine, PFN(0x400))
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: order)
    #expect(machine.badPages == ["400 \(fault.reason) (free)"])
    #expect(machine.freePageCount == 0)
  }

  @Test(arguments: [Fault.mapcount, .mapping, .cgroup], [0, 3, 9])
  func `What is wrong with the first page of the other orders is found by the drain`(
    _ fault: Fault, _ order: Int
  ) throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    Fault.set([fault], machine, PFN(0x400))
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: order)
    #expect(machine.findings.total == 0)
    cpu.drainLocalPages()
    #expect(machine.badPages == ["400 \(fault.reason) (drain)"])
    #expect(machine.freePageCount == 0)
    // A report resets the map count and nothing else.
    #expect(machine.details(of: PFN(0x400)).mapcount == -1)
  }

  @Test func `Flags found at an allocation have a reason of their own`() throws {
    for (order, moment) in [(0, "refill"), (4, "allocation")] {
      let machine = try smallMachine(SmallZone(free: [FreeBlocks(4, .movable, 0x400)]))
      // Not among the flags that a free tests.
      machine.setFlags(of: PFN(order == 0 ? 0x401 : 0x40f), [.dirty])
      var cpu = try machine.claimCPU(0)
      if order == 0 {
        #expect(try cpu.allocatePages(gfp: [.noWait, .movable]) == PFN(0x400))
        _ = try? cpu.allocatePages(gfp: [.noWait, .movable])
      } else {
        #expect(throws: AllocationError.outOfMemory) {
          try cpu.allocatePages(order: order, gfp: [.noWait, .movable])
        }
      }
      let pfn = order == 0 ? "401" : "40f"
      #expect(machine.badPages == ["\(pfn) PAGE_FLAGS_CHECK_AT_PREP flag(s) set (\(moment))"])
    }
  }

  @Test func `An anonymous mapping is forgotten at a free, a file mapping is not`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400, 0x410])
    machine.setDetails(of: PFN(0x400), mapping: 0x1001)
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 4)
    #expect(machine.freeList(4, .movable) == [0x400])
    #expect(machine.details(of: PFN(0x400)).mapping == 0)
  }

  @Test func `A poisoned single page is never freed, and nothing is said`() throws {
    let machine = try smallMachine(SmallZone())
    machine.own([0x400])
    machine.setFlags(of: PFN(0x400), [.hwpoison, .mlocked])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 0)
    #expect(machine.freePageCount == 0)
    #expect(machine.findings.total == 0)
    #expect(machine.flags(of: PFN(0x400)) == [.hwpoison])
  }

  @Test func `A free that covers a free block reports a map count of -128 and takes its mark`()
    throws
  {
    let machine = try smallMachine(SmallZone(free: [FreeBlocks(2, .movable, 0x404)]))
    machine.own([0x400])
    var cpu = try machine.claimCPU(0)
    cpu.freePages(PFN(0x400), order: 3)
    #expect(machine.badPages == ["404 nonzero mapcount (free)"])
    guard case .badPage(let page) = machine.findings.findings.first else { return }
    #expect(page.mapcount == -128)
    #expect(machine.frames.buddyOrder(PFN(0x404)) == nil)
  }

  @Test func `A finding prints one line in the kernel's words`() throws {
    let page = BadPage(
      pfn: PFN(0x1f), reason: "nonzero mapcount", flags: [.head], refcount: 0, mapcount: -128,
      moment: .drain)
    #expect(
      "\(Finding.badPage(page))"
        == "Bad page state pfn:1f refcount:0 mapcount:-128 flags:0x10000 (drain): nonzero mapcount")
    #expect(
      "\(Finding.refcountUnderflow(pfn: PFN(0x1f), count: -1))"
        == "refcount underflow pfn:1f count:-1")
    #expect(
      "\(Finding.listCorruption(pfn: PFN(0x1f), what: "list_del corruption"))"
        == "kernel BUG: list_del corruption pfn:1f")
  }
}
