import PMPageAllocator
import PMUnits

// What the generator owns after an operation, by the kernel's documented outcome. Together with the
// number of free pages this has to give the machine's size at any time.
extension LockstepGenerator {
  mutating func observe(_ operation: LockstepOperation, _ result: LockstepResult) {
    switch (operation, result) {
    case (_, .noPage): phase.failures += 1
    case (.allocate(let order, let gfp, _), .page(let pfn)):
      let isCompound = order > 0 && gfp.contains(.comp)
      keep(Block(pfn: pfn, order: order, kind: isCompound ? .compound : .plain))
    case (.folio(let order, _), .page(let pfn)):
      keep(Block(pfn: pfn, order: order, kind: order > 0 ? .compound : .plain))
    case (.exact(let bytes, _), .page(let pfn)):
      keep(Block(pfn: pfn, order: 0, kind: .exact(bytes: bytes)))
    case (_, .bulk(_, let slots)):
      for case let pfn? in slots { keep(Block(pfn: pfn, order: 0, kind: .plain)) }
    default: observeReferences(operation, result)
    }
  }

  private mutating func keep(_ block: Block) {
    phase.failures = 0
    blocks.append(block)
  }

  private mutating func observeReferences(
    _ operation: LockstepOperation, _ result: LockstepResult
  ) {
    switch operation {
    case .free(let pfn, let order): observeFree(pfn, order: order)
    case .freeExact(let pfn, _):
      guard let index = index(of: pfn) else { return }
      // A page that somebody else references stays with them.
      let extra = blocks[index].extra
      remove(index)
      if extra > 0 { blocks.append(Block(pfn: pfn, order: 0, kind: .plain, extra: extra - 1)) }
    case .put(let pfn): observePut(pfn, 1)
    case .putMany(let pfn, let count): observePut(pfn, count)
    case .release(let pfns): for pfn in pfns { observePut(pfn, 1) }
    case .get(let pfn): index(of: pfn).map { blocks[$0].extra += 1 }
    case .tryGet(let pfn) where result == .flag(true):
      index(of: pfn).map { blocks[$0].extra += 1 }
    case .getUnlessZero(let pfn) where result == .flag(true): observeTailReference(pfn)
    case .add(let pfn, _): observeTailReference(pfn)
    case .split(let pfn, let order):
      guard let index = index(of: pfn) else { return }
      let block = blocks[index]
      remove(index)
      for offset in 0..<(UInt32(1) << UInt32(order)) {
        blocks.append(
          Block(
            pfn: pfn + offset, order: 0, kind: .plain, isLRU: offset == 0 && block.isLRU))
      }
    case .setFlags(let pfn, let flags):
      index(of: pfn).map { blocks[$0].isLRU = flags.contains(.lru) }
    default: break
    }
  }

  /// A reference to the first page of a block is one more owner; to another page it spoils the block.
  private mutating func observeTailReference(_ pfn: UInt32) {
    guard let index = index(of: pfn) else { return }
    if blocks[index].pfn == pfn {
      blocks[index].extra += 1
    } else if case .exact = blocks[index].kind {
      // Its pages are freed one by one: this one stays, as a page of its own.
      let block = blocks[index]
      remove(index)
      for offset in 0..<UInt32(block.frames) {
        let isReferenced = block.pfn + offset == pfn
        blocks.append(
          Block(
            pfn: block.pfn + offset, order: 0, kind: .plain,
            extra: (offset == 0 ? block.extra : 0) + (isReferenced ? 1 : 0),
            isLRU: offset == 0 && block.isLRU))
      }
    } else {
      blocks[index].hasTailReference = true
    }
  }

  private mutating func observeFree(_ pfn: UInt32, order: Int) {
    guard let index = blocks.firstIndex(where: { $0.pfn == pfn && $0.order == order }) else {
      return
    }
    let block = blocks[index]
    if block.extra > 0, block.kind == .compound || order == 0 {
      blocks[index].extra -= 1
      return
    }
    remove(index)
    if block.hasTailReference { leakedFrames += 1 << order }
    if block.extra > 0 {
      blocks.append(
        Block(pfn: pfn, order: 0, kind: .plain, extra: block.extra - 1, isLRU: block.isLRU))
    }
  }

  private mutating func observePut(_ pfn: UInt32, _ count: Int32) {
    guard let index = index(of: pfn) else { return }
    if blocks[index].extra >= count {
      blocks[index].extra -= count
      return
    }
    let block = blocks[index]
    remove(index)
    if case .exact = block.kind {
      for offset in 1..<UInt32(max(block.frames, 1)) {
        blocks.append(Block(pfn: block.pfn + offset, order: 0, kind: .plain))
      }
    } else if block.kind == .plain {
      leakedFrames += 1 << block.order - 1
    }
  }

  /// The block that contains a frame.
  func index(of pfn: UInt32) -> Int? {
    if let last = blocks.last, last.pfn == pfn { return blocks.count - 1 }
    return blocks.firstIndex {
      pfn >= $0.pfn && Int(pfn - $0.pfn) < $0.frames
    }
  }

  private mutating func remove(_ index: Int) {
    let block = blocks[index]
    if freed.count < 64 {
      freed.append((block.pfn, block.order))
    } else {
      freed[rng.below(64)] = (block.pfn, block.order)
    }
    blocks.swapAt(index, blocks.count - 1)
    blocks.removeLast()
  }
}
