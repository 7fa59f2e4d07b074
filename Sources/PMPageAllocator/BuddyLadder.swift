internal import CPhysmemShim
internal import PMFrames

/// The splits and merges of one block on lists that hold nothing else, order by order.
///
/// Most blocks are taken from a larger one whose other halves are then the only blocks on their lists, and
/// when they come back they meet just these. Every step is written out for its order: bits, list heads and
/// states are constants then, and a step is a third of what it is in a loop. The functions stand alone, with
/// the few pointers they need, so that all of them stay in registers. pre for all: the zone's lock is held.
struct BuddyLadder {
  let links: BlockLinks
  let states: UnsafeMutablePointer<UInt16>
  /// The zone's number of blocks by order.
  let blocks: UnsafeMutablePointer<UInt32>
  /// The list of order 0 of the type; those of the others follow.
  let list: UInt32

  /// Merges a block with its buddies as long as each is the only block on its list, up to order 9, or to 10
  /// where the other pageblock mixes; says what it became. The marks of the lists are left to the caller.
  @inline(never)
  func merge(_ freed: UInt32, order: UInt32, mixes: Bool) -> (index: UInt32, order: UInt32) {
    var index = freed
    switch order {
    case 0:
      guard take(&index, 0) else { return (index, 0) }
      fallthrough
    case 1:
      guard take(&index, 1) else { return (index, 1) }
      fallthrough
    case 2:
      guard take(&index, 2) else { return (index, 2) }
      fallthrough
    case 3:
      guard take(&index, 3) else { return (index, 3) }
      fallthrough
    case 4:
      guard take(&index, 4) else { return (index, 4) }
      fallthrough
    case 5:
      guard take(&index, 5) else { return (index, 5) }
      fallthrough
    case 6:
      guard take(&index, 6) else { return (index, 6) }
      fallthrough
    case 7:
      guard take(&index, 7) else { return (index, 7) }
      fallthrough
    case 8:
      guard take(&index, 8) else { return (index, 8) }
      fallthrough
    case 9:
      guard mixes, take(&index, 9) else { return (index, 9) }
      return (index, 10)
    default: return (index, order)
    }
  }

  /// One merge; false, with nothing changed, where the buddy is not free or not alone.
  @inline(__always)
  private func take(_ index: inout UInt32, _ order: UInt32) -> Bool {
    let buddy = index ^ (1 &<< order)
    let state = states + Int(buddy)
    let old = pm_state_load_relaxed(state)
    let head = list &+ order
    guard Core.isBuddy(old, order: order), links.isAlone(buddy, on: head) else { return false }
    links.setEmpty(head)
    links.set(buddy, next: Core.poison, previous: Core.poison)
    pm_state_store_relaxed(
      state, old & ~(FrameState.harmless | FrameState.buddy) | FrameState.touched)
    blocks[Int(order)] &-= 1
    index &= ~(1 &<< order)
    return true
  }

  /// Lists what is left of a block of order `found` when its first 2^order frames are taken: one block of
  /// every order between, each on an empty list. The marks of the lists are left to the caller.
  @inline(never)
  func split(_ index: UInt32, order: UInt32, found: UInt32) {
    switch order {
    case 0:
      if put(index, 0, found) { return }
      fallthrough
    case 1:
      if put(index, 1, found) { return }
      fallthrough
    case 2:
      if put(index, 2, found) { return }
      fallthrough
    case 3:
      if put(index, 3, found) { return }
      fallthrough
    case 4:
      if put(index, 4, found) { return }
      fallthrough
    case 5:
      if put(index, 5, found) { return }
      fallthrough
    case 6:
      if put(index, 6, found) { return }
      fallthrough
    case 7:
      if put(index, 7, found) { return }
      fallthrough
    case 8:
      if put(index, 8, found) { return }
      fallthrough
    case 9: _ = put(index, 9, found)
    default: return
    }
  }

  /// One piece; true where the block is used up.
  @inline(__always)
  private func put(_ index: UInt32, _ order: UInt32, _ found: UInt32) -> Bool {
    if order == found { return true }
    list(index &+ (1 &<< order), order: order)
    return false
  }

  /// Lists the frames of a range of a block that ends with the block, in the largest pieces.
  @inline(never)
  func listRest(_ index: UInt32, _ frames: Range<UInt32>) {
    var cursor = frames.lowerBound
    while cursor < frames.upperBound {
      list(index &+ cursor, order: UInt32(truncatingIfNeeded: cursor.trailingZeroBitCount))
      // The lowest bit, as a piece is no longer than its address is aligned.
      cursor &+= cursor & (0 &- cursor)
    }
  }

  /// Lists and marks a free block whose list is empty.
  @inline(__always)
  func list(_ block: UInt32, order: UInt32) {
    let head = list &+ order
    // Flags that somebody set on a free page stay with it until a test finds them.
    let kept = pm_state_load_relaxed(states + Int(block)) & ~FrameState.harmless
    pm_state_store_relaxed(
      states + Int(block),
      kept | FrameState.touched | FrameState.buddy | UInt16(truncatingIfNeeded: order))
    links.set(block, next: head, previous: head)
    links.set(head, next: block, previous: block)
    blocks[Int(order)] &+= 1
  }
}
