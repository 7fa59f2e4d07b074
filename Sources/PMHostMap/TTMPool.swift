internal import PMArena
internal import PMFrames
public import PMPageAllocator
public import PMUnits

/// A pool of pages for buffer objects of a graphics driver, as amdgpu's TTM keeps them.
///
/// Blocks are of order 0 to 10 and never compound: the first frame has a count of 1, the others 0. The
/// order is held in the first frame's `private`. Cached blocks go back to the allocator at once; those
/// with another caching type to a pool of their type and order, cleared. Mirrors `ttm_pool`, Linux 6.1.
public final class TTMPool: @unchecked Sendable {
  // Sendable: the pools are touched under `lock` only.

  /// How the processor caches the pages. Changing it changes nothing about their counts.
  public enum Caching: String, CaseIterable, Hashable, Sendable {
    /// Write-back: no pool.
    case cached
    /// Write-combined.
    case writeCombined
    /// Uncached.
    case uncached
  }

  /// The pages of one buffer object.
  public struct Buffer: Sendable {
    /// Every frame, in order.
    public let pages: [PFN]
    /// First frame and order of each block.
    public let blocks: [(first: PFN, order: Int)]
    /// The caching type.
    public let caching: Caching
  }

  private struct Key: Hashable {
    var caching: Caching
    var order: Int
  }

  /// The machine.
  public let machine: Machine
  /// How many frames the pools keep at most (`page_pool_size`).
  public let pageLimit: Int
  private let lock = HostMutex()
  private var pools: [Key: [PFN]] = [:]
  private var pooled = 0
  private var next = 0

  /// A pool that keeps at most `pageLimit` frames.
  public init(machine: Machine, pageLimit: Int = 1 << 20) {
    self.machine = machine
    self.pageLimit = pageLimit
  }

  /// Frames in the pools.
  public var pooledPageCount: Int { lock.withLock { pooled } }

  /// Allocates the pages of a buffer: the largest order that fits first, from the pool of its type or
  /// from the allocator, one order less where there is none. Throws ENOMEM with everything given back.
  /// Mirrors `ttm_pool_alloc`.
  public func allocate(
    pageCount: Int, caching: Caching = .cached, zeroed: Bool = true, on cpu: inout CPU
  ) throws(KernelErrno) -> Buffer {
    guard pageCount > 0 else { throw .einval }
    var blocks: [(first: PFN, order: Int)] = []
    var pages: [PFN] = []
    var left = pageCount
    var order = min(10, Int.bitWidth - 1 - pageCount.leadingZeroBitCount)
    while left > 0 {
      order = min(order, Int.bitWidth - 1 - left.leadingZeroBitCount)
      guard let first = block(order, caching, zeroed, on: &cpu) else {
        guard order > 0 else {
          for block in blocks { machine.setPrivate(UInt64(block.order), of: block.first) }
          free(Buffer(pages: pages, blocks: blocks, caching: .cached), on: &cpu)
          throw .enomem
        }
        order -= 1
        continue
      }
      blocks.append((first, order))
      for index in 0..<(1 << order) { pages.append(first + index) }
      left -= 1 << order
    }
    return Buffer(pages: pages, blocks: blocks, caching: caching)
  }

  private func block(
    _ order: Int, _ caching: Caching, _ zeroed: Bool, on cpu: inout CPU
  ) -> PFN? {
    let kept = lock.withLock { () -> PFN? in
      guard let first = pools[Key(caching: caching, order: order)]?.popLast() else { return nil }
      pooled -= 1 << order
      return first
    }
    if let kept { return kept }
    var gfp: GFP = .highUser
    if zeroed { gfp.insert(.zero) }
    if order > 0 { gfp.formUnion([.noMemalloc, .noRetry, .noWarn, .kswapdReclaim]) }
    guard let first = try? cpu.allocatePages(order: order, gfp: gfp) else { return nil }
    machine.setPrivate(UInt64(order), of: first)
    return first
  }

  /// Gives the pages of a buffer back; its mappings must be gone, which nothing here checks, as nothing
  /// in the kernel does. The order of each block is what its first frame's `private` says: if somebody
  /// freed that frame meanwhile it says 0, and the rest of the block is lost. Mirrors `ttm_pool_free`.
  public func free(_ buffer: Buffer, on cpu: inout CPU) {
    for block in buffer.blocks {
      let order = min(10, Int(machine.details(of: block.first).private))
      if buffer.caching == .cached {
        freeBlock(block.first, order, on: &cpu)
      } else {
        clear(block.first, order)
        lock.withLock {
          pools[Key(caching: buffer.caching, order: order), default: []].append(block.first)
          pooled += 1 << order
        }
      }
    }
    while pooledPageCount > pageLimit, shrink(on: &cpu) > 0 {}
  }

  private func freeBlock(_ first: PFN, _ order: Int, on cpu: inout CPU) {
    machine.setPrivate(0, of: first)
    cpu.freePages(first, order: order)
  }

  private func clear(_ first: PFN, _ order: Int) {
    (machine.arena.base + Int(first.physicalAddress)).initializeMemory(
      as: UInt8.self, repeating: 0, count: 4096 << order)
  }

  /// Frees one block of the next pool that has one, and returns its frames; 0 where the pools are empty.
  /// Mirrors `ttm_pool_shrink`.
  @discardableResult
  public func shrink(on cpu: inout CPU) -> Int {
    let taken = lock.withLock { () -> (PFN, Int)? in
      let keys = Caching.allCases.flatMap { caching in
        (0...10).map { Key(caching: caching, order: $0) }
      }
      for step in 0..<keys.count {
        let key = keys[(next + step) % keys.count]
        guard let pool = pools[key], !pool.isEmpty else { continue }
        let first = pool[0]
        pools[key]?.removeFirst()
        pooled -= 1 << key.order
        next = (next + step + 1) % keys.count
        return (first, key.order)
      }
      return nil
    }
    guard let (first, order) = taken else { return 0 }
    freeBlock(first, order, on: &cpu)
    return 1 << order
  }
}
