import PMPageAllocator
import PMUnits

// Operations that no correct kernel contains.
extension LockstepGenerator {
  mutating func hazard() -> LockstepOperation? {
    guard !blocks.isEmpty, !freed.isEmpty else { return nil }
    let block = blocks[rng.below(blocks.count)]
    let old = freed[rng.below(freed.count)]
    let tail = block.pfn + UInt32(rng.below(1 << block.order))
    switch rng.below(19) {
    case 0, 1: return .free(old.pfn, order: old.order)
    case 2: return .put(old.pfn)
    case 3:
      queue.append(.put(old.pfn))
      return .get(old.pfn)
    case 4:
      queue.append(aligned(old.pfn, order: 4 + rng.below(7)) ?? .put(old.pfn))
      return .get(old.pfn)
    case 5: return .free(tail, order: 0)
    case 6:
      queue.append(.put(tail))
      return .get(tail)
    case 7: return aligned(block.pfn, order: block.order + 1)
    case 8: return block.order > 0 ? .free(block.pfn, order: block.order - 1) : nil
    case 9:
      queue.append(.free(block.pfn, order: block.order))
      return .split(block.pfn, order: block.order)
    case 10: return .setFlags(tail, rng.pick([.locked, .reserved, .slab, .mlocked, .hwpoison]))
    case 11:
      let mapping: UInt64 = rng.pick([0x1000, 0x1001, 0x1002])
      return .setDetails(tail, mapcount: -1, mapping: mapping, memcg: 0)
    case 12: return .setDetails(tail, mapcount: 0, mapping: 0, memcg: 0)
    case 13: return .setDetails(tail, mapcount: -1, mapping: 0, memcg: 0x1000)
    case 14, 15: return aligned(block.pfn, order: rng.below(11))
    case 16:
      // Two holders, each of whom frees the block.
      queue.append(.free(block.pfn, order: block.order))
      queue.append(.free(block.pfn, order: block.order))
      return .get(block.pfn)
    case 17: return .add(rng.chance(50) ? old.pfn : tail, rng.pick([1, -1]))
    default:
      return .freeExact(block.pfn, bytes: 4096 * (1 + rng.below(1 << block.order)))
    }
  }

  /// A free of a block that contains nothing outside its zone; nil where there is no such block.
  private func aligned(_ pfn: UInt32, order: Int) -> LockstepOperation? {
    guard order <= 10, pfn & (1 << UInt32(order) - 1) == 0 else { return nil }
    let end = pfn + 1 << UInt32(order)
    let isInside = zones.contains { zone in
      zone.present.contains { $0.contains(pfn) && end <= $0.upperBound }
    }
    return isInside ? .free(pfn, order: order) : nil
  }
}
