internal import PMPageAllocator

/// A set of frames as one bit each; grows to the highest frame in it.
struct FrameSet {
  private var words: [UInt64] = []

  init() {}

  /// The frames on buddy and per-CPU lists.
  init(listedIn zones: [MachineState.Zone]) {
    for zone in zones {
      for (slot, blocks) in zone.freeLists.enumerated() {
        for pfn in blocks { insert(pfn, 1 << UInt32(slot / 5)) }
      }
      for pageset in zone.pagesets {
        for (slot, blocks) in pageset.lists.enumerated() {
          for block in blocks { insert(block.pfn, 1 << UInt32(slot < 12 ? slot / 3 : 9)) }
        }
      }
    }
  }

  /// Calls `body` with each word that a range touches and the range's bits in it.
  private static func forEachWord(
    _ frames: Range<UInt32>, _ body: (_ word: Int, _ mask: UInt64) -> Void
  ) {
    var pfn = UInt64(frames.lowerBound)
    let end = UInt64(frames.upperBound)
    while pfn < end {
      let count = min(64 - pfn & 63, end - pfn)
      body(Int(pfn >> 6), (UInt64.max >> (64 - count)) << (pfn & 63))
      pfn += count
    }
  }

  mutating func insert(_ pfn: UInt32, _ count: UInt32) {
    guard count > 0 else { return }
    let last = Int(pfn + count - 1) >> 6
    if last >= words.count {
      words.append(contentsOf: repeatElement(0, count: last + 1 - words.count))
    }
    FrameSet.forEachWord(pfn..<(pfn + count)) { words[$0] |= $1 }
  }

  /// Removes frames; whether all of them were there.
  mutating func removeAll(_ frames: Range<UInt32>) -> Bool {
    var hadAll = true
    FrameSet.forEachWord(frames) { word, mask in
      guard word < words.count else {
        hadAll = false
        return
      }
      if words[word] & mask != mask { hadAll = false }
      words[word] &= ~mask
    }
    return hadAll
  }

  func contains(_ pfn: UInt32) -> Bool {
    let word = Int(pfn >> 6)
    return word < words.count && words[word] >> UInt64(pfn & 63) & 1 == 1
  }
}
