internal import CPhysmemShim
internal import PMUnits

extension Stage2Table {
  /// Takes W from the small leaves of 64 frames, `first + n` for each bit `n` of `mask`, as a harvest of a
  /// dirty log does for each word; returns the bits of those that need the slow way
  /// (``reprotect(first:mask:writeProtecting:)``), and whether any other changed.
  ///
  /// A leaf that is writable, accessed and dirty is changed by a plain store: a fast page fault has
  /// nothing to add to it, nor has the guest's processor, and everybody else who changes leaves of a slot
  /// that logs holds the lock exclusively or the lock of the slots. Shared, under the lock of the slots.
  /// pre: `first` is a multiple of 64.
  @inline(__always)
  func protectSettled(first: GFN, mask: UInt64) -> (left: UInt64, changed: Bool) {
    guard first.rawValue & 63 == 0, first.rawValue < frameLimit else { return (mask, false) }
    let (slot, _, level) = lowestEntry(first.rawValue)
    guard level == 1 else { return (mask, false) }
    // Present, W, accessed, dirty; accessed and dirty bits in use.
    let settled: UInt64 = 0x800 | 0x2 | 0x100 | 0x200
    var changed: UInt64 = 0
    let left = pm_sptes_clear_settled_relaxed(slot, mask, settled, 3 << 52, 0x2, &changed)
    return (left, changed != 0)
  }
}
