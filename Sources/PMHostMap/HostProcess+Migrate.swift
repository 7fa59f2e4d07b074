internal import CPhysmemShim
internal import PMFrames
public import PMPageAllocator
internal import PMUnits

/// What ``HostProcess/migrate(_:on:)`` did, counted in entries; absent entries are not counted.
public struct MigrationResult: Hashable, Sendable {
  /// Pages that have a new frame now.
  public var moved: Int = 0
  /// Pages that somebody else uses too and that stayed: mapped by a second process, pinned, referenced
  /// by a lookup of user pages or by another CPU's LRU batch (-EACCES and -EBUSY of `move_pages`).
  public var busy: Int = 0
  /// Entries whose page cannot be moved: the zero page, pages of drivers and files, huge pages and
  /// pieces of them, poisoned pages.
  public var notMovable: Int = 0
  /// Pages that stayed because there was no frame to move them to (-ENOMEM).
  public var outOfMemory: Int = 0

  /// Nothing done yet.
  public init() {}
}

extension MigrationResult {
  /// The sums of two results.
  public static func + (left: MigrationResult, right: MigrationResult) -> MigrationResult {
    var sum = left
    sum.moved += right.moved
    sum.busy += right.busy
    sum.notMovable += right.notMovable
    sum.outOfMemory += right.outOfMemory
    return sum
  }
}

// Pages that get another frame under their process, as compaction and move_pages do it.
extension HostProcess {
  /// Moves the anonymous pages of a range to new frames, one by one, each between the notifiers' start
  /// and end; contents, rights and marks stay. A page that anybody but its entry holds is left as it
  /// was. Mirrors `move_pages` without MPOL_MF_MOVE_ALL, with `try_to_migrate`, `folio_migrate_mapping`
  /// and `remove_migration_ptes`, Linux 6.1.
  ///
  /// Only anonymous pages of order 0 are moved. Pages of files are not: the page cache hands its frames
  /// out without a reference, so that a fault in another process could map the old one.
  ///
  /// Takes the mmap lock for writing, page by page, where the kernel leaves a migration entry for
  /// others to wait at: whoever faults meanwhile waits at the lock, and no access of the process is on
  /// its way to the old frame while it is copied. Any thread, with a CPU of its own.
  @discardableResult
  public func migrate(_ range: Range<UInt64>, on cpu: inout CPU) -> MigrationResult {
    // Pages on their way to the LRU lists have one reference too many.
    kernel.drainLRUBatches(on: &cpu)
    var result = MigrationResult()
    var address = range.lowerBound & ~4095
    while address < range.upperBound, let size = migrateEntry(at: address, &result, on: &cpu) {
      address = (address & ~(size - 1)) + size
    }
    return result
  }

  /// Moves the page of one entry; returns how many bytes the entry, present or absent, stands for, and
  /// nil above user space.
  private func migrateEntry(
    at address: UInt64, _ result: inout MigrationResult, on cpu: inout CPU
  ) -> UInt64? {
    mmapLock.lockExclusive()
    guard let found = table.walk(address) else {
      mmapLock.unlock()
      return nil
    }
    let size = UInt64(4096) << UInt64(9 * (found.level - 1))
    guard found.entry.isPresent, let area = area(at: address) else {
      mmapLock.unlock()
      return size
    }
    guard let page = movablePage(found, area) else {
      mmapLock.unlock()
      result.notMovable += 1
      return size
    }
    guard isMappedOnce(page) else {
      mmapLock.unlock()
      result.busy += 1
      return size
    }
    guard let copy = newAnonymousPage(zeroed: false, on: &cpu) else {
      mmapLock.unlock()
      result.outOfMemory += 1
      return size
    }
    let isMoved = notifying(address..<(address + 4096), on: &cpu) { cpu in
      move(page, to: copy, at: address, on: &cpu)
    }
    mmapLock.unlock()
    if isMoved {
      result.moved += 1
      kernel.step("migration: frame \(page) to \(copy), between invalidate start and end")
      kernel.put(page, holder(address), on: &cpu)
    } else {
      result.busy += 1
      kernel.step("migration: frame \(page) has users beside its entry and stays")
      cpu.putPage(copy)
    }
    return size
  }

  /// The page of an entry if its kind can be moved. Mirrors `vma_migratable` and what
  /// `isolate_lru_page` and `folio_test_large` refuse. Under the mmap lock.
  private func movablePage(_ leaf: HostLeaf, _ area: VMA) -> PFN? {
    guard leaf.level == 1, !area.isRemapped, let page = normalPage(leaf.entry),
      page != kernel.zeroPage, kernel.hasPage(page), !kernel.isReserved(page),
      kernel.frames.compoundHead(of: page) == page, kernel.frames.compoundOrder(page) == 0,
      kernel.isAnonymous(page), !kernel.machine.flags(of: page).contains(.hwpoison)
    else { return nil }
    return page
  }

  /// Whether one entry maps a page, here or anywhere. A process that is about to drop its entry may
  /// still hold its reference.
  private func isMappedOnce(_ page: PFN) -> Bool { kernel.machine.addMapcount(0, of: page) == 0 }

  /// Moves a page that nobody but its entry holds; false, with nothing changed, where somebody does.
  private func move(_ old: PFN, to copy: PFN, at address: UInt64, on cpu: inout CPU) -> Bool {
    tableLock.withLock { () -> Bool in
      guard let found = table.leaf(address), found.level == 1, found.entry.pfn == old else {
        return false
      }
      // The entry goes before the count is looked at: a fast lookup that took its reference in time
      // is seen in the count, any other sees that the entry changed and gives its reference back.
      table.set(found.slot, .none)
      guard isMappedOnce(old), kernel.machine.flags(of: old).contains(.lru),
        kernel.frames.freeze(old, expected: 1) || pm_planted(PM_PLANTED_MIGRATION_IGNORES_COUNT)
      else {
        table.set(found.slot, found.entry)
        return false
      }
      copyPage(from: old, to: copy)
      copyDetails(from: old, to: copy)
      kernel.machine.addMapcount(1, of: copy)
      kernel.machine.addMapcount(-1, of: old)
      kernel.ledger?.get(copy, holder(address))
      kernel.addToLRU(copy, on: &cpu)
      var entry = found.entry
      entry.rawValue = entry.rawValue & ~HostEntry.frameMask | copy.physicalAddress
      table.set(found.slot, entry)
      // The end of the freeze gives the entry's reference back to the caller, who drops it. Added and
      // not stored, so that no reference that came from nowhere meanwhile is forgotten.
      kernel.frames.increment(old)
      return true
    }
  }

  /// Flags, mapping and memory cgroup of a page that is frozen go to its successor. Mirrors
  /// `folio_migrate_flags` with `mem_cgroup_migrate`; PG_lru comes with the LRU batch.
  private func copyDetails(from old: PFN, to copy: PFN) {
    let moving: PageFlags = [
      .referenced, .uptodate, .dirty, .active, .workingset, .swapbacked, .anonExclusive,
      .unevictable, .mlocked,
    ]
    let details = kernel.machine.details(of: old)
    if details.memcg != 0 { kernel.machine.setDetails(of: copy, memcg: details.memcg) }
    kernel.machine.setMapping(details.mapping, of: copy)
    kernel.machine.insertFlags(
      kernel.machine.flags(of: old).intersection(moving), of: copy)
  }
}
