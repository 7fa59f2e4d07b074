public import PMPageAllocator

/// Somebody who keeps translations of a process's addresses and must drop them before they change.
///
/// `invalidateRangeStart` comes before an entry changes, `invalidateRangeEnd` after; every start has its
/// end, and both may nest. Several threads may call at once. Mirrors `struct mmu_notifier_ops`.
public protocol MMUNotifier: AnyObject, Sendable {
  /// Translations of `range` must be gone when this returns, and none may appear until the end.
  func invalidateRangeStart(_ range: Range<UInt64>, on cpu: inout CPU)
  /// The entries of `range` have changed.
  func invalidateRangeEnd(_ range: Range<UInt64>, on cpu: inout CPU)
  /// Clears the accessed marks of the translations of `range` and says whether one was set. Mirrors
  /// `clear_flush_young` (`flush`) and `clear_young`.
  func clearYoung(_ range: Range<UInt64>, flush: Bool, on cpu: inout CPU) -> Bool
  /// Says whether the translation of an address is marked accessed, and changes nothing.
  func testYoung(_ address: UInt64, on cpu: inout CPU) -> Bool
  /// The process ends: every translation must go, and none may appear again.
  func release(on cpu: inout CPU)
}
