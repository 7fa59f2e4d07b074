internal import PMFrames
public import PMPageAllocator
package import PMUnits

/// Pages on their way to the LRU lists, per CPU. Each holds a reference until the batch is drained.
struct LRUBatches {
  /// New pages (`lru_add`).
  var added: [PFN] = []
  /// Pages to be activated (`activate`).
  var activated: [PFN] = []
}

// The marks of a page: referenced, dirty, active, and the LRU batches that carry them. "Dirty" and
// "referenced" of a compound page are those of its head.
extension HostKernel {
  /// Sets PG_dirty. Mirrors `set_page_dirty` for pages without a backing store.
  package func setDirty(_ pfn: PFN) {
    machine.insertFlags(.dirty, of: frames.compoundHead(of: pfn))
  }

  /// Sets PG_referenced without counting as an access, as fast GUP does. Mirrors
  /// `folio_set_referenced`.
  package func setReferenced(_ pfn: PFN) {
    machine.insertFlags(.referenced, of: frames.compoundHead(of: pfn))
  }

  /// Counts an access: not referenced, referenced, active. Pages that are on no list only toggle
  /// "referenced". Mirrors `folio_mark_accessed` with the classic LRU, Linux 6.1.
  package func markAccessed(_ pfn: PFN, on cpu: inout CPU) {
    let head = frames.compoundHead(of: pfn)
    observer?.markedAccessed(head)
    let flags = machine.flags(of: head)
    if !flags.contains(.referenced) {
      machine.insertFlags(.referenced, of: head)
    } else if !flags.contains(.active), !flags.contains(.unevictable) {
      activate(head, flags, on: &cpu)
      machine.removeFlags(.referenced, of: head)
    }
  }

  /// Mirrors `folio_activate` and `__lru_cache_activate_folio`.
  private func activate(_ head: PFN, _ flags: PageFlags, on cpu: inout CPU) {
    let batch = batches + cpu.index
    if flags.contains(.lru) {
      let holder = Holder.lruBatch(cpu: cpu.index)
      get(head, holder, on: &cpu)
      batch.pointee.activated.append(head)
      let isLarge = frames.compoundOrder(head) > 0
      if isLarge || batch.pointee.activated.count >= behaviour.lruBatchSize {
        drainActivated(on: &cpu)
      }
    } else if batch.pointee.added.contains(head) {
      machine.insertFlags(.active, of: head)
    }
  }

  /// Puts a new page into this CPU's batch; a large folio, or a full batch, goes to the list at once.
  /// Mirrors `folio_add_lru`.
  func addToLRU(_ head: PFN, on cpu: inout CPU) {
    let batch = batches + cpu.index
    let holder = Holder.lruBatch(cpu: cpu.index)
    get(head, holder, on: &cpu)
    batch.pointee.added.append(head)
    let isLarge = frames.compoundOrder(head) > 0
    if isLarge || batch.pointee.added.count >= behaviour.lruBatchSize { drainAdded(on: &cpu) }
  }

  /// Moves this CPU's batches to the lists. Mirrors `lru_add_drain`.
  public func drainLRUBatches(on cpu: inout CPU) {
    drainAdded(on: &cpu)
    drainActivated(on: &cpu)
  }

  private func drainAdded(on cpu: inout CPU) {
    let pages = (batches + cpu.index).pointee.added
    guard !pages.isEmpty else { return }
    (batches + cpu.index).pointee.added.removeAll(keepingCapacity: true)
    for page in pages { machine.insertFlags(.lru, of: page) }
    releaseBatch(pages, on: &cpu)
  }

  private func drainActivated(on cpu: inout CPU) {
    let pages = (batches + cpu.index).pointee.activated
    guard !pages.isEmpty else { return }
    (batches + cpu.index).pointee.activated.removeAll(keepingCapacity: true)
    for page in pages {
      let flags = machine.flags(of: page)
      if flags.contains(.lru), !flags.contains(.unevictable) {
        machine.insertFlags(.active, of: page)
      }
    }
    releaseBatch(pages, on: &cpu)
  }

  private func releaseBatch(_ pages: [PFN], on cpu: inout CPU) {
    let holder = Holder.lruBatch(cpu: cpu.index)
    release(pages.map { (pfn: $0, holder: holder) }, on: &cpu)
  }
}
