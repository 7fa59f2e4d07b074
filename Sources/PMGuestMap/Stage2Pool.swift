internal import CPhysmemShim
internal import PMArena

/// Where tables come from: zeroed pages of 512 entries, taken from the host in growing chunks.
///
/// A chunk costs address space only; its pages come from the host as tables are made. Tables that
/// left the tree wait in a queue, because a walker without a lock may still read them.
///
/// Thread rules: any thread may call anything; one spin lock, held for a few instructions (and for
/// a `mmap` where the pool grows), orders it all.
@usableFromInline
final class Stage2Pool: @unchecked Sendable {
  // Sendable: `lock` covers every variable below; pages belong to who took them.

  private final class Chunk {
    let mapping: TableMapping
    init(tables: Int) throws(HostError) { mapping = try TableMapping(byteCount: tables << 12) }
  }

  private let lock: UnsafeMutablePointer<UInt32>
  private var chunks: [Chunk] = []
  private var fresh: UnsafeMutableRawPointer?
  private var freshEnd: UnsafeMutableRawPointer?
  private var mappedTables = 0
  // `lock` excludes what the check of exclusivity would find, and costs less.
  @exclusivity(unchecked) private var free: [UnsafeMutablePointer<UInt64>] = []
  @exclusivity(unchecked) private var detached: [UnsafeMutablePointer<UInt64>] = []
  /// How many tables were detached before the first of `detached`, since ever.
  private var reclaimed = 0
  private var inUse = 0

  /// The first chunk is 256 KiB. From the second on they are large enough for huge pages, and each
  /// doubles the pool, up to 32 MiB at a time.
  private static let firstTables = 64
  private static let secondTables = 1024
  private static let largestTables = 8192

  /// Maps the first chunk; throws where the host refuses.
  init() throws(HostError) {
    let first = try Chunk(tables: Stage2Pool.firstTables)
    lock = .allocate(capacity: 16)
    lock.initialize(repeating: 0, count: 16)
    add(first, tables: Stage2Pool.firstTables)
  }

  deinit { lock.deallocate() }

  private func withLock<Result>(_ body: () -> Result) -> Result {
    pm_lock_acquire(lock)
    defer { pm_lock_release(lock) }
    return body()
  }

  /// A table, or nil where the host has no more memory. Its entries are 0 if `isZeroed`, else
  /// anything.
  func take(isZeroed: Bool = true) -> UnsafeMutablePointer<UInt64>? {
    var recycled = false
    let table: UnsafeMutablePointer<UInt64>? = withLock {
      if let table = free.popLast() {
        recycled = true
        inUse += 1
        return table
      }
      if fresh == freshEnd, !grow() { return nil }
      guard let page = fresh else { return nil }
      fresh = page + 4096
      inUse += 1
      return page.bindMemory(to: UInt64.self, capacity: 512)
    }
    // Fresh pages are zero as the host gives them.
    if recycled, isZeroed { table?.update(repeating: 0, count: 512) }
    return table
  }

  private func grow() -> Bool {
    let tables = min(max(Stage2Pool.secondTables, mappedTables), Stage2Pool.largestTables)
    guard let chunk = try? Chunk(tables: tables) else { return false }
    add(chunk, tables: tables)
    return true
  }

  private func add(_ chunk: Chunk, tables: Int) {
    chunk.mapping.adviseHugePages()
    chunks.append(chunk)
    mappedTables += tables
    fresh = chunk.mapping.base
    freshEnd = chunk.mapping.base + (tables << 12)
  }

  /// Takes back a table that no other thread has ever seen.
  func giveBack(_ table: UnsafeMutablePointer<UInt64>) {
    withLock {
      free.append(table)
      inUse -= 1
    }
  }

  /// Queues a table that left the tree.
  @usableFromInline
  func detach(_ table: UnsafeMutablePointer<UInt64>) {
    withLock {
      detached.append(table)
      inUse -= 1
    }
  }

  /// How many tables were detached since ever.
  var detachedMark: Int { withLock { reclaimed + detached.count } }

  /// Makes the tables that were detached before `mark` was read free; returns how many.
  func reclaim(upTo mark: Int) -> Int {
    withLock {
      let count = min(max(0, mark - reclaimed), detached.count)
      // The next one to be taken is the one detached first, which is mostly the lowest.
      free.append(contentsOf: detached.prefix(count).reversed())
      detached.removeFirst(count)
      reclaimed += count
      return count
    }
  }

  /// Tables in the tree, tables that wait, and bytes of address space.
  var usage: (inUse: Int, detached: Int, byteCount: Int) {
    withLock { (inUse, detached.count, mappedTables << 12) }
  }
}
