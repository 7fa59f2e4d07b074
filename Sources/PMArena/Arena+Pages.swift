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
  /// For a shared backing this is so in every process that maps the file. Throws
  /// ``ArenaError/unaligned(offset:byteCount:unit:)`` unless the range begins and ends at pages of
  /// the backing.
  public func discard(_ range: Range<UInt64>) throws(ArenaError) {
    try check(range)
    try backing.checkAlignment(offset: range.lowerBound, byteCount: range.byteCount)
    if range.isEmpty { return }
    try ArenaError.wrapping { () throws(HostError) in
      try memory.discard(offset: Int(range.lowerBound), byteCount: Int(range.byteCount))
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

  private func check(_ range: Range<UInt64>) throws(ArenaError) {
    try check(offset: range.lowerBound, byteCount: range.byteCount)
  }
}

extension Range<UInt64> {
  fileprivate var byteCount: UInt64 { upperBound - lowerBound }
}
