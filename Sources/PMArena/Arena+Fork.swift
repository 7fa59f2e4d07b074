import PMUnits

/// How an arena's mapping has come to differ from its file.
struct ArenaDivergence {
  /// Whether what is written stays in this process.
  var isPrivate: Bool
  /// Offsets at which something else than the arena's file (or its first anonymous memory) is mapped:
  /// discarded ranges, pages shared by a merge. Their contents are not the file's, whoever owns them.
  var foreign = RangeSet<UInt64>()
}

extension Arena {
  /// Makes a second arena with the same bytes; each side's pages are copied when one is written.
  ///
  /// The first fork of a shared arena freezes its file: the new arena maps it privately, and so does this
  /// one from then on, at the same address and in one step, so that a thread that writes at that moment
  /// is seen in both or in this one only. Other processes that map the file no longer see what is written
  /// here, and must not write it any more; ``fileDescriptor`` is nil from then on. The memory that both
  /// still share is given back with the last of them.
  ///
  /// A private arena, and one that was forked before, has pages of its own: these are copied at once, and
  /// whoever writes meanwhile must be stopped for the copy to be of one moment. Node ranges do not pass on.
  ///
  /// Throws what the host says. This arena is then as it was, or private already.
  public func fork() throws(ArenaError) -> Arena {
    try ArenaError.wrapping { () throws(HostError) in
      try divergence.withLock { state throws(HostError) -> Arena in
        let child = try memory.mapCopy()
        if state.isPrivate {
          try copyOwnPages(to: child, foreign: state.foreign)
        } else {
          try memory.becomePrivate()
          state.isPrivate = true
        }
        return Arena(
          memory: child, divergence: ArenaDivergence(isPrivate: true, foreign: state.foreign))
      }
    }
  }

  /// Copies the pages whose contents are not in the file that both map.
  private func copyOwnPages(
    to child: borrowing HostMemory, foreign: RangeSet<UInt64>
  ) throws(HostError) {
    let own = try Host.pages(base, byteCount: Int(byteCount), own: true)
    for range in foreign.ranges {
      try child.replaceByZeroes(offset: Int(range.lowerBound), byteCount: Int(range.byteCount))
      // Pages shared by a merge are not own; reading one never touched takes no memory.
      for offset in stride(from: Int(range.lowerBound), to: Int(range.upperBound), by: 4096)
      where !Arena.isZero(base + offset) {
        (child.base + offset).copyMemory(from: base + offset, byteCount: 4096)
      }
    }
    for (index, word) in own.enumerated() {
      var bits = word
      while bits != 0 {
        let offset = (index * 64 + bits.trailingZeroBitCount) << 12
        bits &= bits - 1
        (child.base + offset).copyMemory(from: base + offset, byteCount: 4096)
      }
    }
  }

  /// Whether the 4 KiB at an address are zero.
  package static func isZero(_ page: UnsafeRawPointer) -> Bool {
    let words = UnsafeBufferPointer(start: page.assumingMemoryBound(to: UInt64.self), count: 512)
    return words.allSatisfy { $0 == 0 }
  }

  /// Maps bytes of another arena, a shared one, in place of a range: they are shared until either is
  /// written here. The pages that were there go back to the host.
  ///
  /// pre: this arena is private, in pages of 4 KiB, and nobody writes the range meanwhile; the bytes of the
  /// other do not change as long as this arena lives.
  package func share(
    _ range: Range<UInt64>, from other: borrowing Arena, at otherOffset: UInt64
  ) throws(ArenaError) {
    try check(range)
    try other.check(otherOffset..<otherOffset + range.byteCount)
    precondition(isPrivate && !backing.isHuge, "sharing pages of \(backing.rawValue)")
    guard let file = other.memory.file else { fatalError("pages of a private arena to share") }
    try ArenaError.wrapping { () throws(HostError) in
      try divergence.withLock { state throws(HostError) in
        var request = Host.MapRequest(byteCount: Int(range.byteCount), fileDescriptor: file)
        request.fileOffset = Int(otherOffset)
        try Host.map(request, at: base + Int(range.lowerBound))
        state.foreign.insert(contentsOf: range)
      }
    }
  }
}

extension HostMemory {
  /// Maps the same file once more, privately; or new memory where there is none.
  fileprivate func mapCopy() throws(HostError) -> HostMemory {
    var request = Host.MapRequest(byteCount: mapping.byteCount, isReserved: backing.isHuge)
    guard let file else {
      request.hugePageShift = backing.hugePageShift
      return HostMemory(
        backing: backing, descriptor: nil, mapping: try HostMemory.map(request, backing))
    }
    let descriptor = try OwnedDescriptor(duplicating: file)
    request.fileDescriptor = descriptor.rawValue
    request.fileOffset = fileOffset
    return HostMemory(
      backing: backing, descriptor: descriptor, mapping: try HostMemory.map(request, backing),
      fileOffset: fileOffset)
  }

  /// Maps the file privately where it was shared.
  fileprivate func becomePrivate() throws(HostError) {
    var request = Host.MapRequest(
      byteCount: mapping.byteCount, fileDescriptor: file, isReserved: backing.isHuge)
    request.fileOffset = fileOffset
    try Host.map(request, at: base)
  }

  /// Puts new zeroed memory in place of a range.
  func replaceByZeroes(offset: Int, byteCount: Int) throws(HostError) {
    var request = Host.MapRequest(byteCount: byteCount, isReserved: backing.isHuge)
    request.hugePageShift = backing.hugePageShift
    try Host.map(request, at: base + offset)
  }
}
