import PMFrames
import PMUnits
import Testing

@testable import PMPageAllocator

/// The short ways of the allocator, where they must leave a request to the general way.
@Suite struct RoutesTests {
  /// Faults that never fire: with them every request goes the general way.
  private static let never = AllocationFaults(interval: 1, probability: 0, space: 0, times: 0)

  /// A fault that never fires makes every request go the general way, a hook every free.
  private static func sendTheGeneralWay(_ cpu: inout CPU) {
    cpu.failPageAlloc = never
    cpu.pageFreeEvent = { _, _, _ in }
  }

  @Test(arguments: [0, 1, 4, 9, 10])
  func `A request with all GFP bits is refused, on a new CPU and after faults were set`(
    _ order: Int
  ) throws {
    for memory in [ByteCount.mib(64), .mib(512), .gib(4)] {
      let machine = try Machine(MachineDescription(memory: memory))
      var cpu = try machine.claimCPU(0)
      let all = GFP(rawValue: .max)
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      cpu.freePages(try cpu.allocatePages(order: order), order: order)
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      cpu.failPageAlloc = RoutesTests.never
      cpu.failPageAlloc = nil
      #expect(throws: AllocationError.self) { try cpu.allocatePages(order: order, gfp: all) }
      #expect(machine.invariantViolations() == [])
    }
  }

  @Test func `The same request goes the short way and the general way to the same frames`() throws {
    // A hook makes every free the general way; a fault that never fires makes every request so.
    let short = try Machine(MachineDescription(memory: .gib(1), cpus: 2))
    let general = try Machine(MachineDescription(memory: .gib(1), cpus: 2))
    var cpu = try short.claimCPU(0)
    var other = try general.claimCPU(0)
    other.failPageAlloc = RoutesTests.never
    var events = 0
    other.pageFreeEvent = { _, _, _ in events += 1 }
    var random = SplitMix64(seed: RandomRun.seed)
    RandomRun.announce("RoutesTests", steps: 20_000)
    var held: [(PFN, Int)] = []
    var frees = 0
    for _ in 0..<20_000 {
      if held.count < 40 || random.next() & 1 == 0 {
        let order = Int(random.next() % 11)
        let gfp: GFP = random.next() & 3 == 0 ? .highUserMovable : .kernel
        let mine = try? cpu.allocatePages(order: order, gfp: gfp)
        let theirs = try? other.allocatePages(order: order, gfp: gfp)
        #expect(mine == theirs)
        if let mine { held.append((mine, order)) }
      } else {
        held.swapAt(Int(random.next() % UInt64(held.count)), held.count - 1)
        let (pfn, order) = held.removeLast()
        cpu.freePages(pfn, order: order)
        other.freePages(pfn, order: order)
        frees += 1
      }
    }
    #expect(events == frees)
    #expect(short.state(withMaps: true) == general.state(withMaps: true))
    #expect(short.invariantViolations() == [])
  }

  @Test func `Whatever is done to frames, what is odd in a free block is noted`() throws {
    let steps = RandomRun.steps(release: 400_000, debug: 10_000)
    RandomRun.announce("RoutesTests", steps: steps)
    var random = SplitMix64(seed: RandomRun.seed)
    var left = steps
    var pokes = 0
    var findings = 0
    while left > 0 {
      let machine = try Machine(MachineDescription(memory: .mib(64)))
      var frames = try Misuse(machine, random)
      // Not for long: a pageblock stays noted until it has grown together and is taken as a whole.
      for step in 1...200 where left > 0 && !machine.metBUG {
        frames.step()
        left -= 1
        guard step % 20 == 0 else { continue }
        let unnoted = machine.invariantViolations().filter { $0.contains("not noted") }
        #expect(unnoted == [], "\(left) of \(steps) steps before the end")
      }
      random = frames.random
      pokes += frames.pokes
      findings += machine.findings.findings.count
    }
    #expect(pokes > steps / 8)
    #expect(findings > 0)
  }

  /// Allocations and frees of all kinds, and what nobody may do: references that come from nowhere or go
  /// there, map counts of free pages.
  private struct Misuse: ~Copyable {
    private let machine: Machine
    private var cpu: CPU
    private var held: [(PFN, Int)] = []
    var random: SplitMix64
    var pokes = 0

    init(_ machine: Machine, _ random: SplitMix64) throws {
      self.machine = machine
      self.random = random
      cpu = try machine.claimCPU(0)
    }

    private mutating func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }

    mutating func step() {
      switch below(16) {
      case 0..<7:
        let order = below(11)
        let gfp: GFP = below(8) == 0 ? [.kernel, .comp] : .kernel
        if let pfn = try? cpu.allocatePages(order: order, gfp: gfp) { held.append((pfn, order)) }
      case 7..<13: if !held.isEmpty { free() }
      default: poke()
      }
    }

    /// Sometimes in pieces, sometimes with a reference of somebody else's that goes later.
    private mutating func free() {
      held.swapAt(below(held.count), held.count - 1)
      let (pfn, order) = held.removeLast()
      // What comes from lists that were mixed up on the way is let be.
      guard pfn.rawValue & (1 << UInt32(order) - 1) == 0 else { return }
      switch below(10) {
      case 0 where !machine.frames.isCompoundHead(pfn):
        cpu.splitPage(pfn, order: order)
        for piece in 0..<(1 << order) { cpu.freePages(pfn + piece, order: 0) }
      case 1:
        machine.frames.increment(pfn)
        cpu.freePages(pfn, order: order)
        held.append((pfn, below(2) * order))
      case 2:
        let other = below(11)
        cpu.freePages(pfn, order: pfn.rawValue & (1 << UInt32(other) - 1) == 0 ? other : 0)
      case 3: cpu.drainLocalPages()
      default: cpu.freePages(pfn, order: order)
      }
    }

    private mutating func poke() {
      let pfn = PFN(UInt32(0x100 + below(0x3e00)))
      pokes += 1
      switch below(6) {
      case 0: machine.frames.increment(pfn)
      case 1:
        machine.frames.increment(pfn)
        _ = machine.frames.decrementReturn(pfn)
      case 2: machine.frames.subtract(pfn, -1)
      case 3: _ = machine.addMapcount(1, of: pfn)
      case 4: machine.insertFlags(.lru, of: pfn)
      default: _ = machine.frames.decrementReturn(pfn)
      }
    }
  }

  /// Frames on a CPU's list have a count of 0 and a plain state: a block that is freed over them passes the
  /// test, and they are handed out from the list as well.
  @Test(arguments: [4, 5], [true, false])
  func `A frame that was freed with a block while on a list is found in the block`(
    _ order: Int, _ isShort: Bool
  ) throws {
    let machine = try Machine(MachineDescription(memory: .gib(1)))
    var cpu = try machine.claimCPU(0)
    if !isShort { RoutesTests.sendTheGeneralWay(&cpu) }
    // The first frame of a refill; the next 62 are on the list.
    let first = try cpu.allocatePages()
    try #require(first.rawValue % 1024 == 0)
    cpu.freePages(first, order: order)
    #expect(machine.findings.total == 0)
    let second = try cpu.allocatePages()
    #expect(second == first + 1)
    let block = try cpu.allocatePages(order: order)
    #expect(block != first)
    #expect(machine.findings.total == 1)
    #expect(machine.frames.refcount(first) == 0)
  }

  @Test func `A pageblock that was handed out in frames and freed as one is looked at`() throws {
    // The frames are on the lists of eight CPUs, of which none drains.
    let machine = try Machine(MachineDescription(memory: .gib(1), cpus: 9))
    var cpu = try machine.claimCPU(0)
    var frames: [PFN] = []
    while frames.count < 512 {
      let pfn = try cpu.allocatePages()
      if !frames.isEmpty || pfn.rawValue % 512 == 0 { frames.append(pfn) }
    }
    try #require(frames.map(\.rawValue) == Array(frames[0].rawValue..<frames[0].rawValue + 512))
    for other in 1...8 {
      var holder = try machine.claimCPU(other)
      for pfn in frames[(other == 1 ? 1 : (other - 1) * 64)..<other * 64] {
        holder.freePages(pfn, order: 0)
      }
    }
    cpu.freePages(frames[0], order: 9)
    cpu.drainLocalPages()
    #expect(machine.findings.total == 0)
    var holder = try machine.claimCPU(3)
    let taken = try holder.allocatePages()
    #expect(frames.contains(taken))
    // Handed out again and again until the block is met, which is found and leaked.
    var blocks: Set<PFN> = []
    while let block = try? cpu.allocatePages(order: 9), blocks.insert(block).inserted {}
    #expect(!blocks.contains(frames[0]))
    #expect(machine.findings.total == 1)
  }

  /// Blocks on the lists of a block that was freed twice over them, taken as they are and not cut.
  @Test(arguments: [true, false], [0, 6])
  func `A block that is handed out of a whole one is found when the whole is freed`(
    _ isShort: Bool, _ order: Int
  ) throws {
    let machine = try Machine(MachineDescription(memory: .gib(1)))
    var cpu = try machine.claimCPU(0)
    if !isShort { RoutesTests.sendTheGeneralWay(&cpu) }
    let first = try cpu.allocatePages()
    try #require(first.rawValue % 1024 == 0)
    // The first time the pieces on the buddy lists are found, and lose their marks; the second time nothing is.
    cpu.freePages(first, order: 10)
    let found = machine.findings.total
    #expect(found == 5)
    machine.frames.increment(first)
    cpu.freePages(first, order: 10)
    #expect(machine.findings.total == found)
    #expect(try cpu.allocatePages(order: 10) == first)
    let part = try cpu.allocatePages(order: order)
    #expect((1..<1024).contains(part - first))
    cpu.freePages(first, order: 10)
    #expect(machine.findings.total == found + 1)
    #expect(machine.frames.refcount(first) == 0)
    #expect(machine.frames.buddyOrder(first) == nil)
  }

  @Test(arguments: [Migratetype.highatomic, .movable])
  func `A block next to a pageblock of another kind goes the short way as the general way`(
    _ type: Migratetype
  ) throws {
    var states: [MachineState] = []
    for isShort in [true, false] {
      // With so much besides that no watermark is near.
      var whole = FreeBlocks(10, .movable)
      whole.pfns = (2..<8).map { $0 * 0x400 }
      let machine = try smallMachine(
        SmallZone(
          count: 0x1c00, managed: 0x1c00, otherTypes: [0x400: type],
          free: [FreeBlocks(9, type, 0x400), FreeBlocks(9, .movable, 0x600), whole]))
      let core = machine.core(cpu: 0)
      #expect(core.hasPlenty(core.zones, order: 0))
      var cpu = try machine.claimCPU(0)
      if !isShort { RoutesTests.sendTheGeneralWay(&cpu) }
      for order in [4, 8, 6, 5] {
        let first = try cpu.allocatePages(order: order, gfp: .highUserMovable)
        let second = try cpu.allocatePages(order: order, gfp: .highUserMovable)
        cpu.freePages(first, order: order)
        cpu.freePages(second, order: order)
      }
      #expect(machine.findings.total == 0)
      states.append(machine.state(withMaps: true))
    }
    #expect(states[0] == states[1])
    let whole = states[0].zones[0].freeLists[10 * 5 + Int(Migratetype.movable.rawValue)]
    #expect(whole.contains(0x400) == (type == .movable))
  }

  @Test func `Both words of a link are one number`() {
    var random = SplitMix64(seed: RandomRun.seed)
    RandomRun.announce("RoutesTests", steps: 1000)
    let edges: [UInt32] = [1025, 1026, 1 << 31 - 1, 1 << 31, 1 << 31 + 1, .max - 1025, .max - 1024]
    let others = (0..<1000).map { _ in
      UInt32(truncatingIfNeeded: 1025 + random.next() % ((1 << 32) - 2050))
    }
    for distance in edges + others {
      let word = LinkWord.toward(UInt64(distance))
      #expect(UInt32(truncatingIfNeeded: word) == distance &- 1024)
      #expect(UInt32(truncatingIfNeeded: word >> 32) == distance &+ 1024)
      let back = LinkWord.back(word)
      #expect(UInt32(truncatingIfNeeded: back) == 0 &- distance &- 1024)
      #expect(UInt32(truncatingIfNeeded: back >> 32) == 0 &- distance &+ 1024)
    }
    #expect(LinkWord.empty == UInt64(0 &- 1024 as UInt32) | 1024 << 32)
  }

  @Test func `After a bad block the next one may be stolen, and the boost wakes kswapd`() throws {
    // One block of the type, with a raised count in it; the others are of another type.
    func machine() throws -> Machine {
      var movable = FreeBlocks(8, .movable)
      movable.pfns = (0..<16).map { 0x600 + $0 * 0x200 }
      return try smallMachine(
        SmallZone(
          count: 0x4000, managed: 0x4000, free: [FreeBlocks(4, .unmovable, 0x400), movable]))
    }
    let short = try machine()
    let general = try machine()
    short.frames.setRefcount(PFN(0x403), 1)
    general.frames.setRefcount(PFN(0x403), 1)
    var cpu = try short.claimCPU(0)
    var other = try general.claimCPU(0)
    other.failPageAlloc = RoutesTests.never
    // The first request, which finds nothing, tells the short way what such requests come to.
    let mine = [try? cpu.allocatePages(order: 10), try? cpu.allocatePages(order: 4)]
    let theirs = [try? other.allocatePages(order: 10), try? other.allocatePages(order: 4)]
    #expect(mine == theirs)
    #expect(mine[0] == nil && mine[1] != nil)
    #expect(cpu.route.gfp == GFP.kernel.rawValue && short.findings.total > 0)
    #expect(short.state(withMaps: true) == general.state(withMaps: true))
    #expect(short.findings.total == general.findings.total)
  }

  @Test func `A corrupted list is reported once`() throws {
    let machine = try Machine(MachineDescription(memory: .gib(1)))
    let reference = try Machine(MachineDescription(memory: .gib(1)))
    var totals: [Int] = []
    for (machine, isShort) in [(machine, true), (reference, false)] {
      var cpu = try machine.claimCPU(0)
      if !isShort { cpu.failPageAlloc = RoutesTests.never }
      cpu.freePages(try cpu.allocatePages(order: 4), order: 4)
      // The next block of order 10 no longer points back to its list.
      let core = machine.core(cpu: 0)
      for zone in 0..<core.zoneCount {
        for type in UInt8(0)..<3 {
          let head = core.freeList(core.zones + zone, order: 10, type: type)
          let first = core.next(head)
          if Int32(bitPattern: first) >= 0 { core.setPrevious(first, first) }
        }
      }
      _ = try? cpu.allocatePages(order: 4)
      totals.append(Int(machine.findings.total))
    }
    #expect(totals[0] == totals[1])
    #expect(totals[0] > 0)
  }

  @Test func `A contiguous range is noted: freed as one block, it is tested page by page`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    var cpu = try machine.claimCPU(0)
    try cpu.allocateContiguous(PFN(0x2000), count: 512)
    cpu.freePages(PFN(0x2000), order: 9)
    #expect(machine.findings.total == 511)
    #expect(machine.whereabouts(of: PFN(0x2001)) == .used)
    #expect(machine.frames.refcount(PFN(0x2001)) == 1)
  }
}
