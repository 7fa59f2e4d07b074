internal import PMArena
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// A machine whose frames all have an owner's mark beside them: who got a frame that another thread has,
/// sees it at once.
final class AllocWorld: @unchecked Sendable {
  // Sendable: constant after init; the marks are atomic, the blocks under way are under a mutex, and the
  // bytes of a frame are its owner's.

  let machine: Machine
  let freeBefore: Int64
  /// Frames that one thread may hold.
  let share: Int
  private let owners: SharedWords<UInt32>
  /// Blocks that go from one thread to another, which frees them on its own CPU.
  private let passing = Guarded<[AllocBlock]>([])

  init(_ plan: StressPlan) throws {
    machine = try Machine(plan.machineWithoutGuests)
    var cpu = try machine.claimCPU(0)
    cpu.drainLocalPages()
    freeBefore = machine.freePageCount
    // Together the threads want more than there is, so that allocations fail now and then.
    share = Int(freeBefore) * 11 / 10 / plan.options.threads
    owners = SharedWords(count: machine.frames.frameCount, repeating: 0)
  }

  deinit { owners.deallocate() }

  private func words(_ frame: Int) -> UnsafeMutablePointer<UInt64> {
    (machine.arena.base + frame << 12).assumingMemoryBound(to: UInt64.self)
  }

  private func canary(_ block: AllocBlock, _ frame: Int) -> UInt64 {
    UInt64(block.serial) << 32 | UInt64(UInt32(truncatingIfNeeded: frame))
  }

  /// Marks the frames of a fresh block as this thread's and writes to each of them. Says what is wrong.
  func take(_ block: AllocBlock, thread: Int) -> String? {
    for offset in 0..<block.count {
      let pfn = block.first + offset
      let frame = Int(pfn.rawValue)
      let other = owners.place(frame).pointee.exchange(
        UInt32(thread + 1), ordering: .relaxed)
      if other != 0 { return "frame \(pfn) was handed out, and thread \(other - 1) has it" }
      let count = machine.frames.refcount(pfn)
      if count != block.count(of: offset) {
        return "frame \(pfn), number \(offset) of \(block), was handed out with a count of \(count)"
      }
      words(frame)[0] = canary(block, frame)
      words(frame)[511] = canary(block, frame)
    }
    return nil
  }

  /// Looks at the bytes, counts and marks of a block that is still held.
  func look(_ block: AllocBlock, thread: Int) -> String? {
    for offset in 0..<block.count {
      let pfn = block.first + offset
      let frame = Int(pfn.rawValue)
      let owner = owners.place(frame).pointee.load(ordering: .relaxed)
      if owner != UInt32(thread + 1) {
        return "frame \(pfn) of \(block) has the mark of thread \(Int(owner) - 1)"
      }
      if words(frame)[0] != canary(block, frame) || words(frame)[511] != canary(block, frame) {
        return "frame \(pfn) of \(block) has bytes of somebody else: "
          + String(words(frame)[0], radix: 16)
      }
      let count = machine.frames.refcount(pfn)
      if count != block.count(of: offset) {
        return "frame \(pfn), number \(offset) of \(block), is held with a count of \(count)"
      }
    }
    return nil
  }

  /// Takes the marks away: the block goes to another thread, or back to the allocator.
  func leave(_ block: AllocBlock, to thread: Int? = nil) {
    let mark = thread.map { UInt32($0 + 1) } ?? 0
    for offset in 0..<block.count {
      owners.place(Int(block.first.rawValue) + offset).pointee.store(mark, ordering: .relaxed)
    }
  }

  /// The mark of blocks under way.
  static let passingThread = 1 << 20

  func pass(_ block: AllocBlock) {
    leave(block, to: AllocWorld.passingThread)
    passing.withLock { $0.append(block) }
  }

  func receive(thread: Int) -> AllocBlock? {
    guard let block = passing.withLock({ $0.popLast() }) else { return nil }
    leave(block, to: thread)
    return block
  }

  /// Looks at everything that is still held and gives it back. At rest.
  func settle(_ held: [[AllocBlock]], on cpu: inout CPU) -> [String] {
    var found: [String] = []
    for (thread, blocks) in held.enumerated() {
      for block in blocks {
        if let text = look(block, thread: thread) { found.append(text) }
      }
    }
    let rest = passing.withLock { $0 }
    for block in rest {
      if let text = look(block, thread: AllocWorld.passingThread) { found.append(text) }
    }
    guard found.isEmpty else { return Array(found.prefix(5)) }
    for block in held.joined() { block.free(on: &cpu) }
    for block in rest { block.free(on: &cpu) }
    return []
  }
}

/// A block of frames as one call gave it.
struct AllocBlock: Sendable, CustomStringConvertible {
  /// Which call, and so how it goes back.
  enum Form: UInt8, Sendable { case plain, compound, exact, split }

  var first: PFN
  var order: UInt8
  var form: Form
  /// Frames: 2^order, or fewer for an exact block.
  var frames: Int32
  /// A number that no other block of the round has at the same time.
  var serial: UInt32

  var count: Int { Int(frames) }

  /// The count that frame number `offset` has while the block is held.
  @inline(__always)
  func count(of offset: Int) -> Int32 {
    switch form {
    case .plain, .compound: offset == 0 ? 1 : 0
    case .exact, .split: 1
    }
  }

  /// Gives the block back.
  @inline(__always)
  func free(on cpu: inout CPU) {
    switch form {
    case .plain, .compound: cpu.freePages(first, order: Int(order))
    case .exact: cpu.freeExact(first, bytes: UInt64(count) << 12)
    case .split: for offset in 0..<count { cpu.freePages(first + offset, order: 0) }
    }
  }

  var description: String { "the \(form) block \(first) of order \(order)" }
}
