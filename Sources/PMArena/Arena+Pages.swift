import PMUnits

extension Arena {
  /// Takes the pages of a range of offsets from the host now, zeroed, on up to `threads` threads.
  ///
  /// What the pages contain stays. The range is widened to whole pages. More threads than 2 MiB
  /// parts in the range, or than 256, are not started. Throws `ENOMEM` or `EFAULT` if the host runs
  /// out of pages of this kind; on Linux before 5.14 the process gets a signal instead.
  public func prefault(_ range: Range<UInt64>, threads: Int) throws(ArenaError) {
    precondition(threads >= 1, "prefault on \(threads) threads")
    try check(range)
    if range.isEmpty { return }
    let mask = backing.pageSize.rawValue - 1
    let start = range.lowerBound & ~mask
    let end = (range.upperBound + mask) & ~mask
    let parts = (end - start + (2 << 20) - 1) >> 21
    try ArenaError.wrapping { () throws(HostError) in
      try memory.prefault(
        offset: Int(start), byteCount: Int(end - start), threads: min(threads, Int(parts)))
    }
  }

  /// Gives the pages of a range of offsets back to the host; they read as zero afterwards.
  ///
  /// For a shared backing this is so in every process that maps the file. After a ``fork()`` new zeroed
  /// memory is put in place of the range, which takes one of the process's mappings (`vm.max_map_count`).
  /// Throws ``ArenaError/unaligned(offset:byteCount:unit:)`` unless the range begins and ends at pages of
  /// the backing.
  public func discard(_ range: Range<UInt64>) throws(ArenaError) {
    try check(range)
    try backing.checkAlignment(offset: range.lowerBound, byteCount: range.byteCount)
    if range.isEmpty { return }
    try ArenaError.wrapping { () throws(HostError) in
      try divergence.withLock { state throws(HostError) in
        guard state.isPrivate && backing.isShared || state.foreign.intersects(range) else {
          return try memory.discard(offset: Int(range.lowerBound), byteCount: Int(range.byteCount))
        }
        try memory.replaceByZeroes(offset: Int(range.lowerBound), byteCount: Int(range.byteCount))
        state.foreign.insert(contentsOf: range)
      }
    }
  }

  /// The host node that holds the page of an offset, or nil if this process has not touched it.
  ///
  /// Asking does not make the page present. The answer may be out of date when it arrives.
  public func hostNode(at offset: UInt64) throws(ArenaError) -> Int? {
    try check(offset: offset, byteCount: 1)
    let address = base + Int(offset & ~4095)
    return try ArenaError.wrapping { () throws(HostError) in try Host.node(ofPageAt: address) }
  }

  /// Which 4 KiB pages of a range this process has: a bit each, in words of 64. Of private memory only those
  /// that are its own, and not those it shares since a fork or a merge.
  package func presentPages(_ range: Range<UInt64>) throws(ArenaError) -> [UInt64] {
    try check(range)
    return try ArenaError.wrapping { () throws(HostError) in
      try Host.pages(base + Int(range.lowerBound), byteCount: Int(range.byteCount), own: isPrivate)
    }
  }

  func check(_ range: Range<UInt64>) throws(ArenaError) {
    try check(offset: range.lowerBound, byteCount: range.byteCount)
  }
}

extension RangeSet<UInt64> {
  func intersects(_ range: Range<UInt64>) -> Bool {
    !isEmpty && !intersection(RangeSet(range)).isEmpty
  }
}

extension Range<UInt64> {
  var byteCount: UInt64 { upperBound - lowerBound }
}
