internal import CPhysmemShim
internal import PMArena
public import PMUnits

/// The dirty log of one slot: a bit per page, in words of 64.
///
/// Bit `b` of word `w` is page `w * 64 + b` of the slot. The bits beyond the last page stay clear.
/// Every operation is atomic word by word and may be called from any thread; none is atomic over
/// several words. Mirrors `kvm_memory_slot.dirty_bitmap`, Linux 6.1.
public final class DirtyBitmap: @unchecked Sendable {
  // Sendable: the words are touched with the atomic operations of pm_dirty.h only, apart from
  // `init`, when nobody else knows them.

  /// The slot's pages, 1 or more.
  public let pageCount: Int
  /// The words: ``pageCount`` rounded up to a multiple of 64, over 64.
  public let wordCount: Int
  private let mapping: TableMapping
  private let words: UnsafeMutablePointer<UInt64>

  /// A log of `pageCount` (1 or more) pages, all clean or all dirty.
  ///
  /// Throws `ENOMEM` where the host has no addresses left. Memory is taken from the host as pages
  /// are marked.
  public init(pageCount: Int, allDirty: Bool = false) throws(KernelErrno) {
    precondition(pageCount > 0, "a dirty log of \(pageCount) pages")
    self.pageCount = pageCount
    wordCount = (pageCount + 63) / 64
    do throws(HostError) {
      mapping = try TableMapping(byteCount: wordCount * 8)
    } catch {
      throw .enomem
    }
    words = mapping.base.bindMemory(to: UInt64.self, capacity: wordCount)
    guard allDirty else { return }
    for index in 0..<wordCount { pm_dirty_store_relaxed(words + index, validBits(ofWord: index)) }
  }

  /// The bits of a word that stand for pages of the slot.
  public func validBits(ofWord index: Int) -> UInt64 {
    let left = pageCount - index * 64
    return left >= 64 ? .max : (1 << UInt64(max(0, left))) - 1
  }

  private func word(_ index: Int) -> UnsafeMutablePointer<UInt64> {
    precondition(UInt(bitPattern: index) < UInt(bitPattern: wordCount), "no word \(index)")
    return words + index
  }

  // MARK: marking

  /// Marks a page (0 to below ``pageCount``) and says whether it was clean.
  ///
  /// Fully ordered: who harvests the mark sees what the caller wrote to the page before. A page that
  /// is marked already costs no write. Mirrors `mark_page_dirty_in_slot`.
  @discardableResult
  public func mark(_ page: Int) -> Bool {
    precondition(UInt(bitPattern: page) < UInt(bitPattern: pageCount), "no page \(page)")
    return pm_dirty_mark_seq_cst(words + page / 64, 1 << UInt64(page % 64)) != 0
  }

  /// Marks a range of pages within the slot.
  public func mark(_ pages: Range<Int>) {
    precondition(pages.lowerBound >= 0 && pages.upperBound <= pageCount, "no pages \(pages)")
    var page = pages.lowerBound
    while page < pages.upperBound {
      let end = min(pages.upperBound, (page / 64 + 1) * 64)
      let bits = (UInt64.max >> UInt64(64 - (end - page))) << UInt64(page % 64)
      _ = pm_dirty_mark_seq_cst(words + page / 64, bits)
      page = end
    }
  }

  // MARK: reading

  /// Whether a page (0 to below ``pageCount``) is marked. Relaxed.
  public func contains(_ page: Int) -> Bool {
    precondition(UInt(bitPattern: page) < UInt(bitPattern: pageCount), "no page \(page)")
    return pm_dirty_load_relaxed(words + page / 64) >> UInt64(page % 64) & 1 != 0
  }

  /// The number of marked pages. Relaxed: exact while nobody marks or clears.
  public var dirtyCount: Int {
    var count = 0
    forEachDirtyWord { count += $1.nonzeroBitCount }
    return count
  }

  /// Calls `body` with the index and the value of every word that is not 0, in ascending order.
  /// Relaxed; nothing changes.
  public func forEachDirtyWord(_ body: (Int, UInt64) -> Void) {
    var index = pm_dirty_next_relaxed(words, 0, wordCount)
    while index < wordCount {
      let value = pm_dirty_load_relaxed(words + index)
      if value != 0 { body(index, value) }
      index = pm_dirty_next_relaxed(words, index + 1, wordCount)
    }
  }

  /// Copies the log and leaves it as it is: `KVM_GET_DIRTY_LOG` in manual mode.
  ///
  /// `buffer` has ``wordCount`` words or more; those beyond are not touched.
  public func copy(to buffer: UnsafeMutableBufferPointer<UInt64>) {
    precondition(buffer.count >= wordCount, "a buffer of \(buffer.count) words")
    for index in 0..<wordCount { buffer[index] = pm_dirty_load_relaxed(words + index) }
  }

  // MARK: taking out

  /// Takes all marks out: `KVM_GET_DIRTY_LOG` without manual mode.
  ///
  /// Each word is taken in one step, fully ordered, so that a page marked meanwhile is either reported
  /// or still marked afterwards.
  ///
  /// - Parameters:
  ///   - buffer: filled with the former values (zeroes included) if there is one; it then has
  ///     ``wordCount`` words or more. Without one the marks are lost, as where the copy to user space
  ///     fails.
  ///   - body: called with the index and the former value of every word that was not 0, in ascending
  ///     order: there the caller protects the pages again.
  /// - Returns: how many words were not 0.
  @discardableResult
  public func harvest(
    into buffer: UnsafeMutableBufferPointer<UInt64>? = nil,
    _ body: (_ word: Int, _ mask: UInt64) -> Void = { _, _ in }
  ) -> Int {
    precondition((buffer?.count ?? wordCount) >= wordCount, "the buffer is too short")
    let output = buffer?.baseAddress
    output?.update(repeating: 0, count: wordCount)
    var found = 0
    var index = pm_dirty_next_relaxed(words, 0, wordCount)
    while index < wordCount {
      let value = pm_dirty_take_seq_cst(words + index)
      if value != 0 {
        output?[index] = value
        found += 1
        body(index, value)
      }
      index = pm_dirty_next_relaxed(words, index + 1, wordCount)
    }
    return found
  }

  /// Clears bits of a word (0 to below ``wordCount``) in one step and returns those that were set:
  /// the pages to protect again.
  ///
  /// Fully ordered. Bits beyond the last page have no effect. Mirrors the step of
  /// `KVM_CLEAR_DIRTY_LOG`.
  public func clear(word index: Int, _ bits: UInt64) -> UInt64 {
    let word = word(index)
    // A clean word is not written: its cache line stays with those who mark.
    guard bits & pm_dirty_load_relaxed(word) != 0 else { return 0 }
    return pm_dirty_clear_seq_cst(word, bits)
  }

  /// Clears a page (0 to below ``pageCount``) and says whether it was marked. As
  /// ``clear(word:_:)``.
  @discardableResult
  public func clear(page: Int) -> Bool {
    precondition(UInt(bitPattern: page) < UInt(bitPattern: pageCount), "no page \(page)")
    return clear(word: page / 64, 1 << UInt64(page % 64)) != 0
  }
}
