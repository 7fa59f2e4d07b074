public import PMUnits

/// How far apart the counts of neighbouring frames stand in memory.
///
/// What a machine does is the same with either; only the time that threads take from one another
/// differs, and the memory. Measure before choosing: two processors that share a core, or threads that
/// seldom meet at neighbours, have nothing to gain.
public enum RefcountLayout: String, CaseIterable, Hashable, Codable, Sendable {
  /// 4 bytes, the default: 16 counts share a cache line. A check of 512 counts reads 2 KiB; threads that
  /// change the counts of neighbours take the line from each other.
  case packed
  /// 64 bytes: each count has a cache line of its own, as in Linux, where it lies in a `struct page` of
  /// 64 bytes. Takes 60 bytes more of address space per frame, none of it reserved; a page of the host
  /// then holds the counts of 64 frames, not of 1024. A check of 512 counts reads 32 KiB.
  case strided

  /// By how many bits an index is shifted to count the words before its own.
  var wordShift: Int {
    switch self {
    case .packed: 0
    case .strided: 4
    }
  }

  /// Bytes of one frame's count and what keeps it from the next.
  public var stride: Int { 4 << wordShift }
}

/// The count words of all frames. Every access goes through here, whatever the layout.
///
/// A value of two words: where they start, and the shift. A shift and not a multiplier or a type
/// parameter: one engine serves both layouts. Three instructions per operation (load, constant, shift),
/// which a locked operation hides in most code; `FrameTable.countWord` spares packed counts even those.
@usableFromInline
package struct CountTable: BitwiseCopyable {
  @usableFromInline package let base: UnsafeMutablePointer<Int32>
  /// 0 where counts are packed.
  @usableFromInline package let shift: Int

  init(base: UnsafeMutablePointer<Int32>, layout: RefcountLayout) {
    self.base = base
    shift = layout.wordShift
  }

  /// The count word of a frame. pre: the frame is in the table.
  @inlinable @inline(__always)
  package subscript(index: UInt32) -> UnsafeMutablePointer<Int32> { base + Int(index) &<< shift }

  /// The same by a PFN.
  @inlinable @inline(__always)
  package subscript(pfn: PFN) -> UnsafeMutablePointer<Int32> { self[pfn.rawValue] }
}
