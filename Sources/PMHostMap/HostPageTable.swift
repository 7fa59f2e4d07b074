internal import CPhysmemShim
internal import PMUnits

/// A found entry: where it stands, at which level, and what it said.
struct HostLeaf {
  var slot: UnsafeMutablePointer<UInt64>
  /// 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB.
  var level: Int
  var entry: HostEntry

  /// The frame that maps one address of the leaf.
  func pfn(at address: UInt64) -> UInt32 {
    let pages = (address >> 12) & ((1 << UInt64(9 * (level - 1))) - 1)
    return entry.pfn.rawValue &+ UInt32(pages)
  }
}

/// The page table of a process: four levels of 512 words.
///
/// Entries are read without a lock and changed under the process's page-table lock. Tables that a
/// munmap leaves empty are unlinked and freed once no lock-free reader is inside, see
/// ``beginLockFree()``.
final class HostPageTable: @unchecked Sendable {
  // Sendable: entries are atomic words, changed under the process's page-table lock; `retired` is
  // touched under that lock only, and `readers` is atomic.
  typealias Table = UnsafeMutablePointer<UInt64>

  private let root: Table
  private var retired: [Table] = []
  private let readers: UnsafeMutablePointer<Int64>

  /// The first address above user space with four levels.
  static let addressLimit: UInt64 = 1 << 47

  init() {
    root = HostPageTable.makeTable()
    readers = .allocate(capacity: 1)
    readers.initialize(to: 0)
  }

  deinit {
    for table in retired { table.deallocate() }
    free(root, level: 4)
    readers.deallocate()
  }

  private static func makeTable() -> Table {
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    memory.initializeMemory(as: UInt64.self, repeating: 0, count: 512)
    return memory.assumingMemoryBound(to: UInt64.self)
  }

  private func free(_ table: Table, level: Int) {
    if level > 1 {
      for index in 0..<512 {
        if let next = child(table[index]) { free(next, level: level - 1) }
      }
    }
    table.deallocate()
  }

  /// The table an upper entry leads to; nil where it is absent or a leaf.
  @inline(__always)
  private func child(_ word: UInt64) -> Table? {
    guard word & HostEntry.presentBit != 0, word & HostEntry.largeBit == 0 else { return nil }
    return Table(bitPattern: UInt(word & HostEntry.frameMask))
  }

  @inline(__always)
  private static func index(_ address: UInt64, _ level: Int) -> Int {
    Int((address >> UInt64(12 + 9 * (level - 1))) & 511)
  }

  /// The deepest entry of an address: a leaf, or the absent entry at which the walk ended. Lock-free.
  func walk(_ address: UInt64) -> HostLeaf? {
    guard address < HostPageTable.addressLimit else { return nil }
    var table = root
    var level = 4
    while true {
      let slot = table + HostPageTable.index(address, level)
      let word = pm_entry_load_acquire(slot)
      guard level > 1, let next = child(word) else {
        return HostLeaf(slot: slot, level: level, entry: HostEntry(rawValue: word))
      }
      table = next
      level -= 1
    }
  }

  /// The entry of an address, or nil where it is absent. Lock-free.
  func leaf(_ address: UInt64) -> HostLeaf? {
    guard let found = walk(address), found.entry.isPresent else { return nil }
    return found
  }

  /// The slot of an address at a level, with the tables above it made; nil where a leaf of a higher
  /// level is in the way. Under the page-table lock.
  func slot(_ address: UInt64, level target: Int) -> Table? {
    guard address < HostPageTable.addressLimit else { return nil }
    var table = root
    var level = 4
    while level > target {
      let slot = table + HostPageTable.index(address, level)
      let word = slot.pointee
      if let next = child(word) {
        table = next
      } else {
        guard word & HostEntry.presentBit == 0 else { return nil }
        let made = HostPageTable.makeTable()
        pm_entry_store_release(slot, UInt64(UInt(bitPattern: made)) | HostEntry.presentBit)
        table = made
      }
      level -= 1
    }
    return table + HostPageTable.index(address, target)
  }

  /// Whether a lower table hangs where a 2 MiB entry of an address would go.
  func hasLowerTable(_ address: UInt64) -> Bool { (walk(address)?.level ?? 4) == 1 }

  /// Writes an entry. Under the page-table lock.
  func set(_ slot: Table, _ entry: HostEntry) { pm_entry_store_release(slot, entry.rawValue) }

  /// Replaces a 2 MiB entry by a table of 512 entries. Under the page-table lock.
  func replaceByTable(_ slot: Table, _ entry: (Int) -> HostEntry) {
    let made = HostPageTable.makeTable()
    for index in 0..<512 { made[index] = entry(index).rawValue }
    pm_entry_store_release(slot, UInt64(UInt(bitPattern: made)) | HostEntry.presentBit)
  }

  /// Unlinks the lowest tables that lie wholly in a range; their entries must be absent. Under the
  /// page-table lock. Mirrors `free_pgtables` at that level.
  func unlinkTables(_ range: Range<UInt64>) {
    var address = (range.lowerBound + 0x1f_ffff) & ~0x1f_ffff
    while address + 0x20_0000 <= range.upperBound {
      if let found = walk(address), found.level == 1, let slot = upperSlot(address) {
        let table = child(slot.pointee)
        pm_entry_store_release(slot, 0)
        if let table { retired.append(table) }
      }
      address += 0x20_0000
    }
    // A reader that came in before the unlinking may still be in a table; the next caller tries again.
    if pm_counter_load_seq_cst(readers) == 0 {
      for table in retired { table.deallocate() }
      retired.removeAll(keepingCapacity: true)
    }
  }

  private func upperSlot(_ address: UInt64) -> Table? {
    var table = root
    for level in [4, 3] {
      guard let next = child(table[HostPageTable.index(address, level)]) else { return nil }
      table = next
    }
    return table + HostPageTable.index(address, 2)
  }

  /// Enters a lock-free walk: no table that it can see is freed until ``endLockFree()``. The counterpart
  /// of switching interrupts off, which holds back the kernel's freeing of tables.
  func beginLockFree() { pm_counter_add_seq_cst(readers, 1) }

  /// Ends a lock-free walk.
  func endLockFree() { pm_counter_add_seq_cst(readers, -1) }
}
