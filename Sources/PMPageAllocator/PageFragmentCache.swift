internal import CPhysmemShim
internal import PMFrames
public import PMUnits

/// Small pieces cut from the end of a block, whose count keeps it until the last piece is freed.
///
/// Mirrors `struct page_frag_cache`, Linux 6.1: the cache takes 32768 extra references at once and
/// hands them out one per piece, so that a piece costs no atomic operation. One CPU at a time may use
/// a cache. Give the block back with ``drain(on:)``; a cache that is dropped without it leaks its
/// block, as in the kernel.
public struct PageFragmentCache: ~Copyable, Sendable {
  /// The block's first frame; nil before the first allocation and after a drain.
  public private(set) var block: PFN?
  /// Pieces end here; the next one ends at or below it.
  public private(set) var offset: Int = 0
  /// The block's size in bytes: 32768, or 4096 where no order-3 block was to be had.
  public private(set) var byteCount: Int = 0
  private var bias: Int32 = 0
  private var isPfmemalloc = false

  /// The largest block.
  public static let maxByteCount: Int = 32768

  /// An empty cache.
  public init() {}

  /// Cuts off a piece of `bytes`, its start a multiple of `alignment` (a power of two), and returns
  /// its physical address. nil where the block is too small for the piece even when it is new. Throws
  /// where a new block is needed and there is none. Mirrors `page_frag_alloc_align`.
  public mutating func allocate(
    bytes: Int, alignment: Int = 1, gfp: GFP = .atomic, on cpu: inout CPU
  ) throws(AllocationError) -> UInt64? {
    guard bytes > 0, alignment > 0, alignment & (alignment - 1) == 0 else {
      fatalError("\(bytes) bytes aligned to \(alignment): expected a positive size, a power of two")
    }
    if block == nil { try refill(gfp, &cpu) }
    if offset - bytes < 0 { try replaceBlock(gfp, &cpu) }
    guard let block, offset - bytes >= 0 else { return nil }
    bias -= 1
    offset = (offset - bytes) & ~(alignment - 1)
    return block.physicalAddress + UInt64(offset)
  }

  /// Frees the piece at a physical address: its block goes with its last piece. Mirrors
  /// `page_frag_free`.
  public static func free(_ address: UInt64, on cpu: inout CPU) {
    guard let pfn = PFN(physicalAddress: address) else {
      fatalError("address \(String(address, radix: 16)) is above the machine")
    }
    cpu.dropBlock(cpu.machine.frames.compoundHead(of: pfn), references: 1)
  }

  /// Gives back the references that were not handed out; the block is freed with its last piece.
  /// Mirrors `__page_frag_cache_drain`.
  public mutating func drain(on cpu: inout CPU) {
    guard let block else { return }
    cpu.dropBlock(block, references: bias)
    self.block = nil
    bias = 0
    offset = 0
    byteCount = 0
  }

  private mutating func refill(_ gfp: GFP, _ cpu: inout CPU) throws(AllocationError) {
    block = nil
    let eager = gfp.union([.comp, .noWarn, .noRetry, .noMemalloc])
    cpu.core.pfmemalloc.pointee = 0
    let first = cpu.allocate(order: 3, gfp: eager.rawValue, node: cpu.node)
    let pfn: PFN
    if first != Core.none {
      pfn = PFN(first)
      byteCount = PageFragmentCache.maxByteCount
    } else {
      pfn = try cpu.allocatePages(order: 0, gfp: gfp)
      byteCount = 4096
    }
    isPfmemalloc = cpu.core.pfmemalloc.pointee != 0
    block = pfn
    cpu.machine.frames.add(pfn, Int32(PageFragmentCache.maxByteCount))
    bias = Int32(PageFragmentCache.maxByteCount) + 1
    offset = byteCount
  }

  /// The block is used up: keep it if all its pieces are freed, else leave it to them.
  private mutating func replaceBlock(_ gfp: GFP, _ cpu: inout CPU) throws(AllocationError) {
    guard let used = block else { return }
    guard cpu.machine.frames.subtractAndTest(used, bias) else {
      try refill(gfp, &cpu)
      return
    }
    if isPfmemalloc {
      // Memory from the reserves must not be kept for ordinary use.
      cpu.freeBlock(used)
      try refill(gfp, &cpu)
      return
    }
    bias = Int32(PageFragmentCache.maxByteCount) + 1
    cpu.machine.frames.setRefcount(used, bias)
    offset = byteCount
  }
}

extension CPU {
  /// Drops references to a block's head and frees it by its compound order with the last.
  mutating func dropBlock(_ head: PFN, references: Int32) {
    _ = zone(of: head.rawValue)
    if machine.frames.subtractAndTest(head, references) {
      freeBlock(head)
    } else {
      reportUnderflow(head.rawValue)
    }
  }

  mutating func freeBlock(_ head: PFN) {
    let zone = zone(of: head.rawValue)
    core.free(zone, head.rawValue, order: UInt32(machine.frames.compoundOrder(head)))
  }
}
