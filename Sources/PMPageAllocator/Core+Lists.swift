internal import CPhysmemShim
internal import PMFrames
internal import PMUnits

// Doubly linked lists of blocks by link index: a frame's index is its PFN, a list head's is negative
// as a signed word. Heads live just below link 0, so one array access serves both.
//
// The kernel of the traces checks every insertion and removal (DEBUG_LIST with
// BUG_ON_DATA_CORRUPTION) and stops on the first inconsistency. So do these: they report it, change
// nothing and return false.
extension Core {
  @inline(__always)
  func link(_ index: UInt32) -> UnsafeMutablePointer<pm_link> {
    links + Int(Int32(bitPattern: index))
  }
  @inline(__always)
  func next(_ index: UInt32) -> UInt32 { link(index).pointee.next &+ index &+ 1024 }
  @inline(__always)
  func previous(_ index: UInt32) -> UInt32 { link(index).pointee.prev &+ index &- 1024 }
  @inline(__always)
  func setNext(_ index: UInt32, _ value: UInt32) {
    // Atomic because a CPU may look at a list's first block before it takes the lock.
    pm_link_next_store_relaxed(link(index), value &- index &- 1024)
  }
  @inline(__always)
  func setPrevious(_ index: UInt32, _ value: UInt32) {
    link(index).pointee.prev = value &- index &+ 1024
  }

  /// Makes a list head stand for an empty list.
  func makeEmpty(_ head: UInt32) {
    setNext(head, head)
    setPrevious(head, head)
  }

  /// Inserts at the end from which the allocator takes. Mirrors `list_add`.
  @inline(__always) @discardableResult
  func addFront(_ head: UInt32, _ index: UInt32) -> Bool {
    let first = next(head)
    if previous(first) != head || first == index { return corruptedAdd(index) }
    setPrevious(first, index)
    setNext(index, first)
    setPrevious(index, head)
    setNext(head, index)
    return true
  }

  /// Inserts at the other end. Mirrors `list_add_tail`.
  @inline(__always) @discardableResult
  func addBack(_ head: UInt32, _ index: UInt32) -> Bool {
    let last = previous(head)
    if next(last) != head || last == index { return corruptedAdd(index) }
    setPrevious(head, index)
    setNext(index, head)
    setPrevious(index, last)
    setNext(last, index)
    return true
  }

  /// Removes a block from whatever list it is on and poisons its link. Returns the list head if the
  /// list is empty now, `Core.none` if not, and nil where the list is corrupted. Mirrors `list_del`.
  @inline(__always)
  func delete(_ index: UInt32) -> UInt32? {
    let after = next(index)
    let before = previous(index)
    if previous(after) != index || next(before) != index { return corruptedDelete(index) }
    setPrevious(after, before)
    setNext(before, after)
    pm_link_store_relaxed(
      link(index),
      pm_link(next: Core.poison &- index &- 1024, prev: Core.poison &- index &+ 1024))
    return after == before ? after : Core.none
  }

  @inline(never)
  private func corruptedAdd(_ index: UInt32) -> Bool {
    log.takeUnretainedValue().append(
      .listCorruption(pfn: PFN(index), what: "list_add corruption or double add"))
    return false
  }

  @inline(never)
  private func corruptedDelete(_ index: UInt32) -> UInt32? {
    log.takeUnretainedValue().append(
      .listCorruption(pfn: PFN(index), what: "list_del corruption"))
    return nil
  }

  // MARK: per-CPU lists

  // A per-CPU list differs in one point: the `prev` of its first block is not kept. Handing a frame out
  // then only reads links. With two CPUs at work next to each other each one's prefetcher fetches the
  // other's lines, and every store to such a line would have to take it back.

  /// Takes the first block off a per-CPU list that is not empty; nil where the list is corrupted.
  @inline(__always)
  func popFront(_ head: UInt32, _ index: UInt32) -> UInt32? {
    let after = next(index)
    if after == head {
      if previous(head) != index { return corruptedDelete(index) }
      setPrevious(head, head)
    } else if previous(after) != index {
      return corruptedDelete(index)
    }
    setNext(head, after)
    return index
  }

  /// Puts a block at the front of a per-CPU list. Mirrors `list_add`.
  @inline(__always)
  func pushFront(_ head: UInt32, _ index: UInt32) -> Bool {
    let first = next(head)
    if first == index { return corruptedAdd(index) }
    setPrevious(first, index)
    setNext(index, first)
    // Only says that the block is on no other list any more.
    setPrevious(index, head)
    setNext(head, index)
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
    pm_state_store_relaxed(mask, mask.pointee | (1 << UInt16(truncatingIfNeeded: order)))
    (pm_zone_nr_free(zone) + Int(order)).pointee &+= 1
    noteListed(index, order: order)
    return true
  }

  /// Keeps the pageblock's marks: a block of order 9 or 10 makes it whole, a smaller one in a whole
  /// pageblock is out of the ordinary.
  @inline(__always)
  private func noteListed(_ index: UInt32, order: UInt32) {
    let block = marks + Int(index >> 9)
    let isBroken = pm_pageblock_load_relaxed(block) & PageblockMarks.broken != 0
    if order < 9 {
      if !isBroken { markUnusual(index) }
    } else {
      if isBroken { pm_marks_clear(block, PageblockMarks.broken) }
      if order == 10 { pm_marks_clear(block + 1, PageblockMarks.broken) }
    }
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
    let mask = pm_zone_nonempty(zone) + Int(slot >> 4)
    pm_state_store_relaxed(mask, mask.pointee & ~(1 << UInt16(truncatingIfNeeded: slot & 15)))
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
