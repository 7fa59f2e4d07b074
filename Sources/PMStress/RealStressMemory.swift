internal import PMArena
internal import PMPageAllocator
internal import PMRealGuest
internal import PMUnits

/// The memory that real guests stand on, and what can be done to it. One thread at a time uses it.
///
/// Memory that is taken away from the guests is filled with poison and kept for a while: whoever still
/// reaches it by an old translation leaves traces there.
protocol RealMemory: AnyObject, Sendable {
  /// Where the guests' pages begin.
  var userspaceAddress: UInt64 { get }
  /// Whether ``zap(region:)`` can be done.
  var canZap: Bool { get }

  /// Puts new zeroed memory under a region that has none; false where none is to be had.
  func map(region: Int) throws -> Bool
  /// Takes a region's memory away, and leaves mere addresses.
  func takeAway(region: Int) throws
  /// Throws the contents away; the region reads as zero.
  func discard(region: Int) throws
  /// Takes the entries out of the process's page table; the contents stay.
  func zap(region: Int) throws
  /// Changes what the process may do with a region.
  func protect(region: Int, _ rights: MirroredRange.Protection) throws
  /// Gives a chunk, which may be read and written, other memory with the same contents; false where that
  /// cannot be.
  func migrate(chunk: Int) throws -> Bool
  /// The bytes of a page, as the host sees them; nil where it may not look.
  func bytes(ofPage page: Int) -> UnsafeRawPointer?
  /// What was found in poisoned memory so far.
  func takeFindings() -> [String]
  /// Looks at all poison and gives everything back. At the end, at rest; the guests are gone.
  func settle(_ plan: StressPlan, _ control: StressControl) throws
}

/// What memory is filled with that nobody may use.
enum RealPoison {
  static func word(_ block: Int) -> UInt64 { 0xdead_0000_0000_0000 | UInt64(block) }

  static func fill(_ base: UnsafeMutableRawPointer, byteCount: Int, block: Int) {
    let words = base.assumingMemoryBound(to: UInt64.self)
    words.update(repeating: word(block), count: byteCount / 8)
  }

  /// The first word that is not as it was filled, in words, or nil.
  static func finding(
    _ base: UnsafeMutableRawPointer, byteCount: Int, block: Int, _ name: String
  ) -> String? {
    let words = UnsafeBufferPointer(
      start: base.assumingMemoryBound(to: UInt64.self), count: byteCount / 8)
    let poison = word(block)
    guard let index = words.firstIndex(where: { $0 != poison }) else { return nil }
    return "property 3: \(name) was taken away from the guests and poisoned, and byte "
      + "\(index * 8) of it was written afterwards: 0x\(String(words[index], radix: 16))"
  }
}

// MARK: - Frames of a machine

/// Memory that is a file: frames of a machine, shown in a range of this process.
final class RealFileMemory: RealMemory, @unchecked Sendable {
  // Sendable: one thread at a time uses it: the one that sets up, then the one that changes things, then,
  // after that has ended, the one that tidies up.

  private let shape: RealShape
  private let machine: Machine
  private let freeBefore: Int64
  private let mistake: RealStress.Mistake?
  private let range: MirroredRange
  private var frames: RealFrames?
  /// The first frame of each chunk's block, or nil.
  private var blocks: [PFN?]
  private var poisoned: [PFN] = []
  private let poisonLimit: Int
  private var findings: [String] = []

  let canZap = true

  init(_ shape: RealShape, _ plan: StressPlan, _ mistake: RealStress.Mistake?) throws {
    self.shape = shape
    self.mistake = mistake
    let backing = plan.options.backing
    // Frames beyond the guests' own: those of migrations, and those that are poisoned. Pages of a
    // pool are all taken at once, so there are fewer.
    let extra = shape.byteCount / (backing == .sharedHugeTLB ? 4 : 1)
    let byteCount = (shape.byteCount + extra + (32 << 20) + (2 << 20) - 1) & ~((2 << 20) - 1)
    var description = MachineDescription(
      memory: ByteCount(byteCount), backing: backing.arenaBacking)
    description.model.kvm = plan.era
    machine = try Machine(description)
    do {
      var cpu = try machine.claimCPU(0)
      cpu.drainLocalPages()
    }
    freeBefore = machine.freePageCount
    frames = try RealFrames(machine, shape)
    range = try MirroredRange(byteCount: Int(shape.byteCount), of: machine.arena)
    blocks = .init(repeating: nil, count: shape.chunkCount)
    poisonLimit = max(shape.chunkCount / 8, 2)
    for region in 0..<shape.regionCount {
      guard try map(region: region) else {
        throw RealGuestError.invalid("the machine has no block for region \(region)")
      }
    }
    frames?.arm(plan)
  }

  var userspaceAddress: UInt64 { range.userspaceAddress }

  private func live() -> RealFrames {
    guard let frames else { fatalError("the frames of a round after its end") }
    return frames
  }

  private func show(_ chunk: Int, _ pfn: PFN) throws {
    try range.map(
      page: chunk * shape.chunkPages, physicalAddress: pfn.physicalAddress,
      byteCount: shape.chunkPages << 12, isWritable: true)
  }

  func map(region: Int) throws -> Bool {
    var taken: [PFN] = []
    for _ in shape.chunks(ofRegion: region) {
      guard let pfn = try live().allocate(zeroed: true) else {
        for pfn in taken { live().free(pfn) }
        return false
      }
      taken.append(pfn)
    }
    for (chunk, pfn) in zip(shape.chunks(ofRegion: region), taken) {
      blocks[chunk] = pfn
      try show(chunk, pfn)
    }
    return true
  }

  func takeAway(region: Int) throws {
    if mistake != .skipsUnmap { try range.unmap(pages: shape.pages(ofRegion: region)) }
    for chunk in shape.chunks(ofRegion: region) {
      guard let pfn = blocks[chunk] else { continue }
      blocks[chunk] = nil
      poison(pfn)
    }
  }

  func discard(region: Int) throws {
    for chunk in shape.chunks(ofRegion: region) {
      if let pfn = blocks[chunk] { try live().punch(pfn) }
    }
  }

  func zap(region: Int) throws { try range.zap(pages: shape.pages(ofRegion: region)) }

  func protect(region: Int, _ rights: MirroredRange.Protection) throws {
    try range.protect(pages: shape.pages(ofRegion: region), rights)
  }

  func migrate(chunk: Int) throws -> Bool {
    guard let old = blocks[chunk], let new = try live().allocate(zeroed: false) else {
      return false
    }
    // No more writes: what is copied is what the guests will find.
    try range.protect(pages: shape.pages(ofChunk: chunk), .read)
    live().address(new).copyMemory(
      from: live().address(old), byteCount: shape.chunkPages << 12)
    if mistake == .migratesWithoutSwitch {
      try range.protect(pages: shape.pages(ofChunk: chunk), .readWrite)
    } else {
      try show(chunk, new)
    }
    blocks[chunk] = new
    poison(old)
    return true
  }

  func bytes(ofPage page: Int) -> UnsafeRawPointer? {
    // The arena's own mapping shows the frame whatever the guests' addresses allow.
    guard let pfn = blocks[page / shape.chunkPages] else { return nil }
    return UnsafeRawPointer(live().address(pfn)) + (page % shape.chunkPages) << 12
  }

  private func poison(_ pfn: PFN) {
    RealPoison.fill(
      live().address(pfn), byteCount: shape.chunkPages << 12, block: Int(pfn.rawValue))
    poisoned.append(pfn)
    if poisoned.count > poisonLimit { release(poisoned.removeFirst()) }
  }

  private func release(_ pfn: PFN) {
    let finding = RealPoison.finding(
      live().address(pfn), byteCount: shape.chunkPages << 12, block: Int(pfn.rawValue),
      "frame \(pfn)")
    if let finding { findings.append(finding) }
    live().free(pfn)
  }

  func takeFindings() -> [String] {
    defer { findings.removeAll() }
    return findings
  }

  func settle(_ plan: StressPlan, _ control: StressControl) throws {
    for pfn in poisoned { release(pfn) }
    poisoned.removeAll()
    try range.unmap(pages: 0..<shape.pageCount)
    for (chunk, pfn) in blocks.enumerated() {
      if let pfn { live().free(pfn) }
      blocks[chunk] = nil
    }
    let found = takeFindings()
    frames = nil
    try StressRest.check(machine, freeBefore: freeBefore, plan, control) { _ in found }
  }
}

/// Blocks of a machine's frames, all of one order, through one CPU of it.
private final class RealFrames {
  private let machine: Machine
  private let order: Int
  private var cpu: CPU

  init(_ machine: Machine, _ shape: RealShape) throws {
    self.machine = machine
    order = shape.chunkOrder
    cpu = try machine.claimCPU(0)
  }

  /// From now on allocations fail as the plan says.
  func arm(_ plan: StressPlan) { StressRest.arm(&cpu, plan) }

  func allocate(zeroed: Bool) throws -> PFN? {
    guard let pfn = try? cpu.allocatePages(order: order, gfp: .highUserMovable) else { return nil }
    if zeroed { try punch(pfn) }
    return pfn
  }

  func free(_ pfn: PFN) { cpu.freePages(pfn, order: order) }

  func address(_ pfn: PFN) -> UnsafeMutableRawPointer {
    machine.arena.base + Int(pfn.physicalAddress)
  }

  /// Gives the block's pages back to the host: they read as zero wherever they are shown.
  func punch(_ pfn: PFN) throws {
    let start = pfn.physicalAddress
    try machine.arena.discard(start..<start + UInt64(4096) << UInt64(order))
  }
}
