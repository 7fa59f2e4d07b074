internal import CPhysmemShim
internal import PMFrames

/// The splits and merges of one block on lists that hold nothing else, order by order.
///
/// Most blocks are taken from a larger one whose other halves are then the only blocks on their lists, and
/// when they come back they meet just these. Every step is written out for its order: bits, list heads and
/// states are constants then, and a step is a third of what it is in a loop. A list and the one block on it
/// name each other in both words of their links, which are made, compared and stored as one. The functions
/// stand alone and call nothing, with so few values that all of them stay in registers. pre for all: the
/// zone's lock is held.
struct BuddyLadder {
  let links: UnsafeMutablePointer<pm_link>
  let states: UnsafeMutablePointer<UInt16>
  /// The zone's number of blocks by order.
  let blocks: UnsafeMutablePointer<UInt32>
  /// The list of order 0 of the type; those of the other orders follow.
  let list: UInt32

  @inline(__always)
  var heads: UnsafeMutablePointer<pm_link> { links + Int(Int32(bitPattern: list)) }

  /// Merges a block with its buddies as long as each is the only block on its list, up to order 9; says
  /// what it became. The marks of the lists are left to the caller.
  @inline(never)
  func merge(_ freed: UInt32, order: UInt32) -> (index: UInt32, order: UInt32) {
    var index = Int(freed)
    let reached = merge(&index, order: order)
    return (UInt32(truncatingIfNeeded: index), reached)
  }

  @inline(__always)
  private func merge(_ index: inout Int, order: UInt32) -> UInt32 {
    // Once, in front of all steps, not in front of each that may be the first.
    let heads = heads
    switch order {
    case 0:
      guard take(&index, 0, heads) else { return 0 }
      fallthrough
    case 1:
      guard take(&index, 1, heads) else { return 1 }
      fallthrough
    case 2:
      guard take(&index, 2, heads) else { return 2 }
      fallthrough
    case 3:
      guard take(&index, 3, heads) else { return 3 }
      fallthrough
    case 4:
      guard take(&index, 4, heads) else { return 4 }
      fallthrough
    case 5:
      guard take(&index, 5, heads) else { return 5 }
      fallthrough
    case 6:
      guard take(&index, 6, heads) else { return 6 }
      fallthrough
    case 7:
      guard take(&index, 7, heads) else { return 7 }
      fallthrough
    case 8:
      guard take(&index, 8, heads) else { return 8 }
      return 9
    default: return order
    }
  }

  /// The last merge, of two blocks of order 9.
  @inline(__always)
  func mergePageblocks(_ freed: UInt32) -> UInt32? {
    var index = Int(freed)
    return take(&index, 9, heads) ? UInt32(truncatingIfNeeded: index) : nil
  }

  /// One merge; false, with nothing changed, where the buddy is not free or not alone.
  @inline(__always)
  private func take(
    _ index: inout Int, _ order: Int, _ heads: UnsafeMutablePointer<pm_link>
  ) -> Bool {
    let buddy = index ^ (1 &<< order)
    let state = states + buddy
    let old = pm_state_load_relaxed(state)
    let head = pm_link_word(heads + order)
    let first = UInt32(truncatingIfNeeded: head) &+ list &+ 1024 &+ UInt32(order)
    // That the links agree in both directions is what the kernel's list checks ask for, too.
    guard Core.isBuddy(old, order: UInt32(order)), first == UInt32(truncatingIfNeeded: buddy),
      pm_link_word(links + buddy) == LinkWord.back(head)
    else { return false }
    pm_link_word_store_relaxed(heads + order, LinkWord.empty)
    pm_state_store_relaxed(
      state, old & ~(FrameState.harmless | FrameState.buddy) | FrameState.touched)
    blocks[order] &-= 1
    index &= ~(1 &<< order)
    return true
  }

  /// Lists what is left of a block whose first frames are taken: one block of every order whose bit is set in
  /// `pieces`, an unbroken run of bits, each on an empty list and 2^order frames behind the block's start.
  /// The marks of the lists are left to the caller.
  @inline(__always)
  func split(_ index: UInt32, pieces: UInt32) {
    BuddyLadder.split(
      link: links + Int(index), state: states + Int(index), heads: heads, blocks: blocks,
      pieces: pieces)
  }

  @inline(never)
  private static func split(
    link: UnsafeMutablePointer<pm_link>, state: UnsafeMutablePointer<UInt16>,
    heads: UnsafeMutablePointer<pm_link>, blocks: UnsafeMutablePointer<UInt32>, pieces: UInt32
  ) {
    let order = pieces.trailingZeroBitCount
    // The first piece as seen from its list's head.
    let distance = link - heads &+ (1 &<< order) &- order
    var word = LinkWord.toward(UInt64(bitPattern: Int64(distance)))
    @inline(__always)
    func put(_ order: Int) -> Bool {
      if pieces < 1 &<< order { return false }
      let piece = 1 &<< order
      mark(link + piece, state + piece, order: order, heads + order, word)
      blocks[order] &+= 1
      // To the next piece, 2^order frames on, and to the next list, one head on.
      word &+= UInt64(piece &- 1) &* LinkWord.unit
      return true
    }
    switch order {
    case 0:
      guard put(0) else { return }
      fallthrough
    case 1:
      guard put(1) else { return }
      fallthrough
    case 2:
      guard put(2) else { return }
      fallthrough
    case 3:
      guard put(3) else { return }
      fallthrough
    case 4:
      guard put(4) else { return }
      fallthrough
    case 5:
      guard put(5) else { return }
      fallthrough
    case 6:
      guard put(6) else { return }
      fallthrough
    case 7:
      guard put(7) else { return }
      fallthrough
    case 8:
      guard put(8) else { return }
      fallthrough
    case 9: _ = put(9)
    default: return
    }
  }

  /// Lists the frames of a range of a block that ends with the block, in the largest pieces.
  @inline(never)
  func listRest(_ index: UInt32, _ frames: Range<UInt32>) {
    var cursor = frames.lowerBound
    while cursor < frames.upperBound {
      let order = cursor.trailingZeroBitCount
      let block = Int(index &+ cursor)
      let link = links + block
      let distance = link - heads &- order
      BuddyLadder.mark(
        link, states + block, order: order, heads + order,
        LinkWord.toward(UInt64(bitPattern: Int64(distance))))
      blocks[order] &+= 1
      // The lowest bit, as a piece is no longer than its address is aligned.
      cursor &+= cursor & (0 &- cursor)
    }
  }

  /// Marks a free block and makes it the only one of a list.
  @inline(__always)
  private static func mark(
    _ link: UnsafeMutablePointer<pm_link>, _ state: UnsafeMutablePointer<UInt16>, order: Int,
    _ head: UnsafeMutablePointer<pm_link>, _ word: UInt64
  ) {
    // Flags that somebody set on a free page stay with it until a test finds them.
    let kept = pm_state_load_relaxed(state) & ~FrameState.harmless
    pm_state_store_relaxed(
      state, kept | FrameState.touched | FrameState.buddy | UInt16(truncatingIfNeeded: order))
    pm_link_word_store_relaxed(link, LinkWord.back(word))
    pm_link_word_store_relaxed(head, word)
  }
}

/// Both words of a link that name the same neighbour, `next` in the low half.
///
/// Toward a neighbour `x` frames on they are x - 1024 and x + 1024, each in 32 bits. Without a borrow or
/// a carry between the halves, for x from 1025 to 2^32 - 1025, a link is x units and a constant, and the link back is
/// found by a subtraction. List heads are numbered from below -1032 down for this, so that no block is nearer
/// to its list.
enum LinkWord {
  /// What one frame more adds.
  @inline(__always) static var unit: UInt64 { 0x1_0000_0001 }

  /// The head of an empty list, toward itself.
  @inline(__always) static var empty: UInt64 { 0x400_ffff_fc00 }

  /// pre: 1025 to 2^32 - 1025.
  @inline(__always)
  static func toward(_ distance: UInt64) -> UInt64 {
    distance &* unit &+ (1024 &<< 32 &- 1024)
  }

  /// The link of the neighbour that a link names, back to where that stands.
  @inline(__always)
  static func back(_ word: UInt64) -> UInt64 {
    1 &<< 32 &+ 2 &* (1024 &<< 32 &- 1024) &- word
  }
}
