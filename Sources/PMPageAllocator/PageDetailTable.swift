internal import CPhysmemShim
internal import PMArena
internal import PMUnits

/// The details of those pages that have any: one block of 512 records for each pageblock in which some
/// page ever had one, found through a lazily mapped directory of 8 bytes per pageblock.
///
/// The blocks form a list through a record behind their last page, so that whatever covers all of them
/// costs what there is, not what there could be.
///
/// Flags and map counts may be changed by any thread at any time; everything else belongs to whoever
/// owns the page.
final class PageDetailTable: @unchecked Sendable {
  // Sendable: the directory's slots are published once by compare-and-exchange and stay; flags and
  // counts are atomic words; the rest of a record is written by the page's owner.
  private let directory: TableMapping
  private let slots: UnsafeMutablePointer<UnsafeMutablePointer<pm_detail>?>
  /// Word 0 of the allocation: the first block of the list.
  private let first: UnsafeMutablePointer<UInt64>

  init(frameCount: Int) throws(HostError) {
    let slotCount = max(1, (frameCount + Order.pageblockFrames - 1) / Order.pageblockFrames)
    directory = try TableMapping(byteCount: slotCount * 8)
    slots = directory.base.bindMemory(
      to: UnsafeMutablePointer<pm_detail>?.self, capacity: slotCount)
    first = .allocate(capacity: 1)
    first.initialize(to: 0)
  }

  deinit {
    for block in blocks { block.start.deallocate() }
    first.deallocate()
  }

  /// All blocks with the first page of each.
  private var blocks: [(start: UnsafeMutablePointer<pm_detail>, page: UInt32)] {
    var found: [(UnsafeMutablePointer<pm_detail>, UInt32)] = []
    var word = pm_detail_list_first(first)
    while let block = UnsafeMutablePointer<pm_detail>(bitPattern: UInt(word)) {
      let link = block[Order.pageblockFrames]
      found.append((block, UInt32(truncatingIfNeeded: link.memcg)))
      word = link.mapping
    }
    return found
  }

  /// Bytes of address space of the directory.
  var byteCount: Int { directory.byteCount }

  /// The record of a page, or nil where its pageblock has none.
  @inline(__always)
  func existing(_ index: UInt32) -> UnsafeMutablePointer<pm_detail>? {
    guard let block = pm_detail_block_acquire(slots + Int(index >> 9)) else { return nil }
    return block + Int(index & 511)
  }

  /// The record of a page, made where there is none.
  @inline(__always)
  func record(_ index: UInt32) -> UnsafeMutablePointer<pm_detail> {
    if let block = pm_detail_block_acquire(slots + Int(index >> 9)) {
      return block + Int(index & 511)
    }
    return make(index)
  }

  @inline(never)
  private func make(_ index: UInt32) -> UnsafeMutablePointer<pm_detail> {
    // One record more than pages: its `mapping` links the list, its `memcg` says which pages.
    let records = Order.pageblockFrames + 1
    let block = UnsafeMutablePointer<pm_detail>.allocate(capacity: records)
    block.initialize(repeating: pm_detail(), count: records)
    let link = block + Order.pageblockFrames
    link.pointee.memcg = UInt64(index & ~511)
    let there = pm_detail_block_publish(slots + Int(index >> 9), block)
    if there == block {
      pm_detail_list_push(first, &link.pointee.mapping, UInt64(UInt(bitPattern: block)))
    } else {
      block.deallocate()
    }
    return there + Int(index & 511)
  }

  subscript(index: UInt32) -> PageDetails {
    guard let record = existing(index) else { return PageDetails() }
    return PageDetails(
      flags: PageFlags(rawValue: pm_flags_load_relaxed(&record.pointee.flags)),
      mapcount: pm_mapcount_load_relaxed(&record.pointee.mapped) - 1,
      mapping: pm_detail_word_load_relaxed(&record.pointee.mapping),
      memcg: pm_detail_word_load_relaxed(&record.pointee.memcg),
      private: pm_detail_word_load_relaxed(&record.pointee.owner_word),
      wholeMapcount: pm_mapcount_load_relaxed(&record.pointee.mapped_whole),
      pincount: pm_mapcount_load_relaxed(&record.pointee.pinned))
  }

  /// The flags alone.
  func flags(_ index: UInt32) -> PageFlags {
    guard let record = existing(index) else { return [] }
    return PageFlags(rawValue: pm_flags_load_relaxed(&record.pointee.flags))
  }

  func store(_ details: PageDetails, at index: UInt32) {
    if details.isClean, existing(index) == nil { return }
    pm_detail_store_relaxed(
      record(index),
      pm_detail(
        flags: details.flags.rawValue, mapped: details.mapcount + 1,
        mapped_whole: details.wholeMapcount, pinned: details.pincount, mapping: details.mapping,
        memcg: details.memcg, owner_word: details.private))
  }

  /// All entries, for snapshots.
  var all: [UInt32: PageDetails] {
    var found: [UInt32: PageDetails] = [:]
    for block in blocks {
      for page in block.page..<(block.page + UInt32(Order.pageblockFrames)) {
        let details = self[page]
        if !details.isClean { found[page] = details }
      }
    }
    return found
  }

  func replaceAll(_ details: [UInt32: PageDetails]) {
    for block in blocks {
      block.start.update(repeating: pm_detail(), count: Order.pageblockFrames)
    }
    for (index, value) in details { store(value, at: index) }
  }
}
