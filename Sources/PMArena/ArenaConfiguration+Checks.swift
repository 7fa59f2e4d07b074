import PMUnits
import SystemPackage

// What is checked before and after the host is asked, and how its refusals are explained.

extension ArenaConfiguration {
  /// Throws if the size, a range or a node is impossible.
  func check() throws(ArenaError) {
    let pageSize = backing.pageSize
    if byteCount.rawValue == 0 {
      throw .invalidSize(byteCount, reason: "it must have some memory")
    }
    if byteCount > Arena.maxByteCount {
      throw .invalidSize(byteCount, reason: "the largest is \(Arena.maxByteCount)")
    }
    if byteCount.rawValue % pageSize.rawValue != 0 {
      throw .invalidSize(
        byteCount, reason: "the pages of \(backing.rawValue) have \(pageSize) each")
    }
    for range in nodeRanges { try check(range) }
    try checkNodes()
  }

  private func check(_ range: NodeRange) throws(ArenaError) {
    let (offset, count) = (range.startOffset, range.byteCount.rawValue)
    guard offset < byteCount.rawValue && count > 0 && count <= byteCount.rawValue - offset else {
      throw .outOfRange(offset: offset, byteCount: count, arenaByteCount: byteCount.rawValue)
    }
    try backing.checkAlignment(offset: offset, byteCount: count)
  }

  private func checkNodes() throws(ArenaError) {
    let named = namedHostNodes
    if named.isEmpty { return }
    let available = try ArenaError.wrapping { () throws(HostError) in try Host.memoryNodes() }
    for node in named where !available.contains(node) {
      throw .noSuchNode(node, available: available)
    }
  }

  /// The arena's error for a refusal of the host: where the pool of huge pages is too small, that.
  func explain(_ error: HostError) -> ArenaError {
    guard backing.isHuge && error.errno == .noMemory,
      let pool = try? Host.hugePagePool(pageSize: backing.pageSize)
    else { return .host(error) }
    let needed = Int(byteCount.rawValue / backing.pageSize.rawValue)
    guard pool.available < needed else { return .host(error) }
    return .hugePagesShort(
      pageSize: backing.pageSize, free: pool.available, needed: needed,
      remedy: pool.commandForMore(needed - pool.available))
  }

  /// Throws if a node has fewer huge pages than are bound to it.
  ///
  /// The kernel reserves pages without looking at nodes, and would only find out at the first
  /// touch. A node whose pool cannot be read is not checked, nor are pools that may grow by
  /// themselves.
  func checkNodePools() throws(ArenaError) {
    guard backing.isHuge, let pool = try? Host.hugePagePool(pageSize: backing.pageSize),
      pool.growthLimit == 0
    else { return }
    try checkNodePools { try? Host.hugePagePool(pageSize: backing.pageSize, node: $0) }
  }

  /// The same with the pools given, so that a machine with one node can test it.
  package func checkNodePools(poolOfNode: (Int) -> HugePagePool?) throws(ArenaError) {
    var neededPages: [Int: Int] = [:]
    for range in nodeRanges {
      guard let node = range.hostNode else { continue }
      neededPages[node, default: 0] += Int(range.byteCount.rawValue / backing.pageSize.rawValue)
    }
    for (node, needed) in neededPages.sorted(by: { $0.key < $1.key }) {
      guard let pool = poolOfNode(node), pool.available < needed else { continue }
      throw .hugePagesShort(
        pageSize: backing.pageSize, free: pool.available, needed: needed,
        remedy: pool.commandForMore(needed - pool.available))
    }
  }
}

extension Backing {
  /// Throws unless the range begins and ends at a page.
  func checkAlignment(offset: UInt64, byteCount: UInt64) throws(ArenaError) {
    guard offset % pageSize.rawValue == 0 && byteCount % pageSize.rawValue == 0 else {
      throw .unaligned(offset: offset, byteCount: byteCount, unit: pageSize)
    }
  }
}
