internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// Doubly linked lists of blocks by link index: a frame's index is its PFN, a list head's is negative
// as a signed word. Heads live just below link 0, so one array access serves both.
//
// The kernel of the traces checks every insertion and removal (DEBUG_LIST with
// BUG_ON_DATA_CORRUPTION) and stops on the first inconsistency. So do these: they report it, change
// nothing and return false.
//
// The links are a value of one word, as a loop that stores links has to read again every pointer that it
// does not hold in a local.
struct BlockLinks {
  let base: UnsafeMutablePointer<pm_link>

  @inline(__always)
  subscript(index: UInt32) -> UnsafeMutablePointer<pm_link> {
    base + Int(Int32(bitPattern: index))
  }
  @inline(__always)
  func next(_ index: UInt32) -> UInt32 { self[index].pointee.next &+ index &+ 1024 }
  @inline(__always)
  func previous(_ index: UInt32) -> UInt32 { self[index].pointee.prev &+ index &- 1024 }
  @inline(__always)
  func setNext(_ index: UInt32, _ value: UInt32) {
    // Atomic because a CPU may look at a list's first block before it takes the lock.
    pm_link_next_store_relaxed(self[index], value &- index &- 1024)
  }
  @inline(__always)
  func setPrevious(_ index: UInt32, _ value: UInt32) {
    self[index].pointee.prev = value &- index &+ 1024
  }
  /// Makes a list head stand for an empty list.
  @inline(__always)
  func setEmpty(_ head: UInt32) {
    pm_link_word_store_relaxed(self[head], LinkWord.empty)
  }
  /// Both at once.
  @inline(__always)
  func set(_ index: UInt32, next: UInt32, previous: UInt32) {
    pm_link_store_relaxed(
      self[index], pm_link(next: next &- index &- 1024, prev: previous &- index &+ 1024))
  }
}

extension Core {
  @inline(__always)
  var blockLinks: BlockLinks { BlockLinks(base: links) }
  @inline(__always)
  func link(_ index: UInt32) -> UnsafeMutablePointer<pm_link> { blockLinks[index] }
  @inline(__always)
  func next(_ index: UInt32) -> UInt32 { blockLinks.next(index) }
  @inline(__always)
  func previous(_ index: UInt32) -> UInt32 { blockLinks.previous(index) }
  @inline(__always)
  func setNext(_ index: UInt32, _ value: UInt32) { blockLinks.setNext(index, value) }
  @inline(__always)
  func setPrevious(_ index: UInt32, _ value: UInt32) { blockLinks.setPrevious(index, value) }

  /// Makes a list head stand for an empty list.
  func makeEmpty(_ head: UInt32) { blockLinks.setEmpty(head) }

  /// Inserts at the end from which the allocator takes. Mirrors `list_add`.
  @inline(__always) @discardableResult
  func addFront(_ head: UInt32, _ index: UInt32) -> Bool {
    let links = blockLinks
    let first = links.next(head)
    if links.previous(first) != head || first == index { return corruptedAdd(index) }
    links.setPrevious(first, index)
    links.set(index, next: first, previous: head)
    links.setNext(head, index)
    return true
  }

  /// Inserts at the other end. Mirrors `list_add_tail`.
  @inline(__always) @discardableResult
  func addBack(_ head: UInt32, _ index: UInt32) -> Bool {
    let links = blockLinks
    let last = links.previous(head)
    if links.next(last) != head || last == index { return corruptedAdd(index) }
    links.setPrevious(head, index)
    links.set(index, next: head, previous: last)
    links.setNext(last, index)
    return true
  }

  /// Removes a block from whatever list it is on and poisons its link. Returns the list head if the
  /// list is empty now, `Core.none` if not, and nil where the list is corrupted. Mirrors `list_del`.
  @inline(__always)
  func delete(_ index: UInt32) -> UInt32? {
    let links = blockLinks
    let after = links.next(index)
    let before = links.previous(index)
    // Not a block but another list's head, where a block was put on both.
    if Int32(bitPattern: index) < 0 || links.previous(after) != index
      || links.next(before) != index
    {
      return corruptedDelete(index)
    }
    links.setPrevious(after, before)
    links.setNext(before, after)
    links.set(index, next: Core.poison, previous: Core.poison)
    return after == before ? after : Core.none
  }

  @inline(__always)
  private func corruptedAdd(_ index: UInt32) -> Bool {
    reportCorruptedAdd(index)
    return false
  }

  @inline(never)
  func reportCorruptedAdd(_ index: UInt32) {
    log.takeUnretainedValue().append(
      .listCorruption(pfn: PFN(index), what: "list_add corruption or double add"))
  }

  @inline(never) @discardableResult
  func corruptedDelete(_ index: UInt32) -> UInt32? {
    // In place of another list's head, the block on that list from which one gets there.
    let block = Int32(bitPattern: index) < 0 ? previous(index) : index
    log.takeUnretainedValue().append(
      .listCorruption(pfn: PFN(block), what: "list_del corruption"))
    return nil
  }

  // MARK: per-CPU lists

  // A per-CPU list differs in one point: the `prev` of its first block is not kept. Handing a frame out
  // then only reads links. With two CPUs at work next to each other each one's prefetcher fetches the
  // other's lines, and every store to such a line would have to take it back.

  /// Takes the first block off a per-CPU list that is not empty; nil where the list is corrupted. A list that
  /// runs into another one's head is: a block was put on both.
  @inline(__always)
  func popFront(_ head: UInt32, _ index: UInt32) -> UInt32? {
    let after = next(index)
    if after == head {
      if previous(head) != index { return corruptedDelete(index) }
      setPrevious(head, head)
    } else if Int32(bitPattern: after) < 0 || previous(after) != index {
      return corruptedDelete(index)
    }
    setNext(head, after)
    return index
  }

  /// Puts a block at the front of a per-CPU list. Mirrors `list_add`.
  @inline(__always)
  func pushFront(_ head: UInt32, _ index: UInt32) -> Bool {
    let links = blockLinks
    let first = links.next(head)
    if first == index { return corruptedAdd(index) }
    links.setPrevious(first, index)
    // `prev` only says that the block is on no other list any more.
    links.set(index, next: first, previous: head)
    links.setNext(head, index)
    return true
  }

  /// The block before another on a per-CPU list, or the head.
  @inline(__always)
  func previous(onPerCPUList head: UInt32, _ index: UInt32) -> UInt32 {
    index == next(head) ? head : previous(index)
  }

  // MARK: buddy lists

  /// The head of a zone's list for an order and a migratetype.
  @inline(__always)
  func freeList(_ zone: UnsafeMutablePointer<pm_zone>, order: UInt32, type: UInt8) -> UInt32 {
    UInt32(bitPattern: zone.pointee.list_base) &+ UInt32(type) &* 16 &+ order
  }

  @inline(__always)
  func nonemptyOrders(_ zone: UnsafeMutablePointer<pm_zone>, type: UInt8) -> UInt16 {
    pm_state_load_relaxed(pm_zone_nonempty(zone) + Int(type))
  }

  /// Links a free block and marks it. pre: the zone's lock is held.
  @inline(__always) @discardableResult
  func addBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, type: UInt8, toBack: Bool
  ) -> Bool {
    // Flags that somebody set on a free page stay with it until a test finds them.
    let kept = state(index) & ~FrameState.harmless
    setState(
      index,
      kept | FrameState.touched | FrameState.buddy | UInt16(truncatingIfNeeded: order))
    let head = freeList(zone, order: order, type: type)
    guard toBack ? addBack(head, index) : addFront(head, index) else { return false }
    let mask = pm_zone_nonempty(zone) + Int(type)
    pm_state_store_relaxed(mask, mask.pointee | (1 &<< UInt16(truncatingIfNeeded: order)))
    (pm_zone_nr_free(zone) + Int(order)).pointee &+= 1
    if order < 9 { noteListed(index) }
    return true
  }

  /// Lists and marks what is left of a free block of order `found`, taken off its list, when frames were
  /// cut off its front: from `rest` frames after its first on, in the largest pieces.
  /// pre: the zone's lock is held, and `found` is the lowest order, from that of the lowest bit of `rest`
  /// on, of which the type has a block; all the lists that the pieces go to are empty, then.
  @inline(__always)
  func listRest(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, after rest: UInt32, found: UInt32,
    type: UInt8
  ) {
    let end: UInt32 = 1 &<< found
    let ladder = ladder(zone, type: type)
    // Cut at a power of two, one piece of each order is left.
    if rest & (rest &- 1) == 0 {
      ladder.split(index, pieces: end &- rest)
    } else {
      ladder.listRest(index, rest..<end)
    }
    let mask = pm_zone_nonempty(zone) + Int(type)
    // The pieces' orders are the bits of what is left.
    pm_state_store_relaxed(mask, mask.pointee | UInt16(truncatingIfNeeded: end &- rest))
    if found < 9 { noteListed(index) }
  }

  /// Keeps the pageblock's marks: a block below order 9 in a whole pageblock is out of the ordinary.
  @inline(__always)
  func noteListed(_ index: UInt32) {
    if pm_pageblock_load_relaxed(broken + Int(index &>> 9)) == 0 { markUnusual(index) }
  }

  /// Unlinks a free block from whatever list of the zone it is on and clears its mark; false, with
  /// nothing changed, where the list is corrupted. pre: the zone's lock is held.
  @inline(__always)
  func deleteBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32
  ) -> Bool {
    guard unlinkBlock(zone, index) else { return false }
    let kept = state(index) & ~(FrameState.harmless | FrameState.buddy)
    setState(index, kept | FrameState.touched)
    (pm_zone_nr_free(zone) + Int(order)).pointee &-= 1
    return true
  }

  /// The list part of `deleteBlock`; also used to move a block.
  @inline(__always)
  func unlinkBlock(_ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32) -> Bool {
    guard let emptied = delete(index) else { return false }
    if emptied != Core.none { noteEmptied(zone, emptied) }
    return true
  }

  @inline(__always)
  private func noteEmptied(_ zone: UnsafeMutablePointer<pm_zone>, _ head: UInt32) {
    // The block may sit on a list of any type, so the head that became empty tells which.
    let slot = head &- UInt32(bitPattern: zone.pointee.list_base)
    guard slot < 80 else { return }
    let mask = pm_zone_nonempty(zone) + Int(slot &>> 4)
    pm_state_store_relaxed(mask, mask.pointee & ~(1 &<< UInt16(truncatingIfNeeded: slot & 15)))
  }

  /// Moves a free block to the back of another type's list of its order. Mirrors
  /// `move_to_free_list`. pre: the zone's lock is held.
  @discardableResult
  func moveBlock(
    _ zone: UnsafeMutablePointer<pm_zone>, _ index: UInt32, order: UInt32, type: UInt8
  ) -> Bool {
    guard unlinkBlock(zone, index) else { return false }
    (pm_zone_nr_free(zone) + Int(order)).pointee &-= 1
    return addBlock(zone, index, order: order, type: type, toBack: true)
  }
}
