import PMArena
import PMFrames
import PMGuestMap
import PMHostMap
import PMPageAllocator
import PMUnits

/// A hot operation through the public API, on a small machine. The loops count down without checks, so
/// that they themselves cost next to nothing.
struct HotLoop {
  /// The name of the benchmark case that it is the middle of, or is made of.
  let name: String
  /// Performs the operation `count` times on a new machine; says what is not as it has to be after that.
  let run: (_ count: Int) throws -> String?

  static var all: [HotLoop] {
    [
      HotLoop(name: "refcount.pair", run: referencePairs),
      HotLoop(name: "refcount.tryget", run: tryGets),
      HotLoop(name: "alloc.pair.o0") { try allocationPairs(order: 0, count: $0) },
      HotLoop(name: "alloc.pair.o9") { try allocationPairs(order: 9, count: $0) },
      HotLoop(name: "alloc.pair.o4") { try allocationPairs(order: 4, count: $0) },
      HotLoop(name: "alloc.pair.o8") { try allocationPairs(order: 8, count: $0) },
      HotLoop(name: "alloc.pair.o10") { try allocationPairs(order: 10, count: $0) },
      HotLoop(name: "alloc.bulk.o0", run: bulkFrames),
      HotLoop(name: "stage2.pair", run: stage2Pairs),
      HotLoop(name: "guest.read", run: guestReads),
    ]
  }

  /// Large enough that a CPU keeps a block of order 9 on its list.
  private static func machine() throws -> Machine {
    try Machine(MachineDescription(memory: .gib(1)))
  }

  /// A get and a put of one frame.
  private static func referencePairs(_ count: Int) throws -> String? {
    let frames = try machine().frames
    let pfn = PFN(0x2000)
    frames.setRefcount(pfn, 1)
    var dead = 0
    var left = count
    while left > 0 {
      left &-= 1
      frames.increment(pfn)
      if frames.putAndTest(pfn) { dead &+= 1 }
    }
    return difference(of: dead, from: 0, "last puts")
      ?? difference(of: Int(frames.refcount(pfn)), from: 1, "references")
  }

  /// A get unless zero of one frame.
  private static func tryGets(_ count: Int) throws -> String? {
    let frames = try machine().frames
    let pfn = PFN(0x2000)
    frames.setRefcount(pfn, 1)
    var refused = 0
    var left = count
    while left > 0 {
      left &-= 1
      if !frames.getPageUnlessZero(pfn) { refused &+= 1 }
    }
    return difference(of: refused, from: 0, "refusals")
      ?? difference(of: Int(frames.refcount(pfn)), from: 1 + count, "references")
  }

  /// A block allocated and freed.
  private static func allocationPairs(order: Int, count: Int) throws -> String? {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    // The first block fills the CPU's list; from then on every pair is a hit.
    cpu.freePages(try cpu.allocatePages(order: order), order: order)
    var allocated = 0
    var left = count
    while left > 0 {
      left &-= 1
      if let pfn = try? cpu.allocatePages(order: order) {
        cpu.freePages(pfn, order: order)
        allocated &+= 1
      }
    }
    return difference(of: allocated, from: count, "blocks")
      ?? difference(of: machine.findings.findings.count, from: 0, "findings")
  }

  /// A frame allocated and freed, 4096 after one another: most are hits, the others fill or empty the
  /// CPU's list.
  private static func bulkFrames(_ count: Int) throws -> String? {
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    let frames = UnsafeMutableBufferPointer<PFN>.allocate(capacity: 4096)
    defer { frames.deallocate() }
    var allocated = 0
    var left = count
    while left > 0 {
      let some = min(left, frames.count)
      left &-= some
      for index in 0..<some {
        guard let pfn = try? cpu.allocatePages() else { break }
        frames[index] = pfn
        allocated &+= 1
      }
      for index in 0..<some { cpu.freePages(frames[index], order: 0) }
    }
    return difference(of: allocated, from: count, "frames")
      ?? difference(of: machine.findings.findings.count, from: 0, "findings")
  }

  /// A page installed in a stage-2 table and taken out again, in the next of 512 places.
  private static func stage2Pairs(_ count: Int) throws -> String? {
    let table = try Stage2Table()
    var cursor = Stage2Cursor()
    // The tables above the pages are there before the first pair.
    _ = table.map(GFN(0), PFN(0x1000), .readWrite, &cursor)
    _ = table.unmap(GFN(0), &cursor)
    var place: UInt32 = 0
    var done = 0
    var left = count
    while left > 0 {
      left &-= 1
      let gfn = GFN(UInt64(place))
      if table.map(gfn, PFN(0x1000 &+ place), .readWrite, &cursor) == .installed,
        table.unmap(gfn, &cursor) != nil
      {
        done &+= 1
      }
      place = (place &+ 1) & 511
    }
    return difference(of: done, from: count, "pages")
      ?? difference(of: table.leafCounts.pages4K, from: 0, "pages left")
  }

  /// A load of eight bytes from a page that is translated, each from another of 512 pages.
  private static func guestReads(_ count: Int) throws -> String? {
    let byteCount: UInt64 = 2 << 20
    let machine = try machine()
    var cpu = try machine.claimCPU(0)
    let process = HostProcess(kernel: try HostKernel(machine: machine, on: &cpu))
    let base = try process.map(.init(byteCount: byteCount), on: &cpu)
    let vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: .linux618, era: .c))
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 0, flags: 0, guestPhysicalAddress: 0, memorySize: byteCount, userspaceAddress: base),
      on: &cpu)
    let vcpu = try VCPU(vm)
    vcpu.bind()
    for page in 0..<(byteCount >> 12) {
      // The second access, a read, puts the page into the vCPU's translations for reading.
      _ = vcpu.write(page << 12, byteCount: 8, value: 1, on: &cpu)
      _ = vcpu.read(page << 12, byteCount: 8, on: &cpu)
    }
    var address: UInt64 = 0
    var sum: UInt64 = 0
    var missed = 0
    var left = count
    while left > 0 {
      left &-= 1
      if let value = vcpu.loadUInt64(at: address) { sum &+= value } else { missed &+= 1 }
      address = (address &+ 4096) & (byteCount &- 1)
    }
    return difference(of: missed, from: 0, "misses")
      ?? difference(of: Int(sum), from: count, "the sum of what was read")
  }

  private static func difference(of found: Int, from expected: Int, _ what: String) -> String? {
    found == expected ? nil : "\(found) \(what), expected \(expected)"
  }
}
