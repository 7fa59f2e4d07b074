internal import CPhysmemShim
internal import PMArena
public import PMUnits
internal import Synchronization

/// How long the dirty rings of a VM are.
public struct DirtyRingShape: Hashable, Sendable {
  /// Bytes of an entry.
  public static let entryByteCount: Int = 16
  /// Entries kept free for what is marked before a full ring is noticed.
  static let reserve = 64
  /// Those kept free in addition for a page modification log.
  static let logReserve = 512

  /// The ring's length in bytes: a power of two, 4096 to 2^20.
  public let byteCount: Int
  /// From this many entries in use on the guest is not entered.
  public let softLimit: Int

  /// The ring's length in entries.
  public var entryCount: Int { byteCount / DirtyRingShape.entryByteCount }

  /// Checks the arguments of `KVM_ENABLE_CAP` for ``KVMCapability/dirtyLogRing`` and its relative.
  ///
  /// The kernel looks at the lower 32 bits of `byteCount`, and not at flags. Throws in this order:
  /// `EINVAL` where there are no rings, the length is no power of two, or is below a page or below
  /// what is kept free; `E2BIG` where it is above the limit; `EINVAL` where rings are on already or a
  /// vCPU exists. Mirrors `kvm_vm_ioctl_enable_dirty_log_ring`, Linux 6.1.
  public static func checked(
    byteCount: UInt64, settings: DirtyLogSettings, vCPUCount: Int, capabilities: VMCapabilities
  ) throws(KernelErrno) -> DirtyRingShape {
    let length = Int(UInt32(truncatingIfNeeded: byteCount))
    let kept = reserve + (capabilities.hasPageModificationLog ? logReserve : 0)
    guard capabilities.dirtyRingByteLimit > 0, length.nonzeroBitCount == 1,
      length >= max(4096, kept * entryByteCount)
    else { throw .einval }
    guard length <= capabilities.dirtyRingByteLimit else { throw .e2big }
    guard settings.ring == nil, vCPUCount == 0 else { throw .einval }
    return DirtyRingShape(byteCount: length, softLimit: length / entryByteCount - kept)
  }
}

/// An entry of a dirty ring, as user space reads it.
public struct DirtyRingEntry: Hashable, Sendable {
  /// 1: the page is dirty (`KVM_DIRTY_GFN_F_DIRTY`); 2: user space has taken it
  /// (`KVM_DIRTY_GFN_F_RESET`).
  public var flags: UInt32
  /// Address space and id of the slot.
  public var slot: UInt32
  /// The page, counted within the slot.
  public var offset: UInt64

  /// An entry from its fields.
  public init(flags: UInt32, slot: UInt32, offset: UInt64) {
    self.flags = flags
    self.slot = slot
    self.offset = offset
  }
}

/// Pages of one slot within a window of 64, to be protected again together.
public struct DirtyRingGroup: Hashable, Sendable {
  /// Address space and id of the slot, as user space left them.
  public var slot: UInt32
  /// The first page of the window, counted within the slot; its bit is set.
  public var offset: UInt64
  /// Bit `b` is page `offset + b`. Not 0.
  public var mask: UInt64

  /// The distance of the last page from the first.
  public var highestBit: Int { 63 - mask.leadingZeroBitCount }

  /// Takes another page of the slot in, and says whether it fits the window. Addresses are user
  /// space's and may be anything.
  mutating func absorb(_ page: UInt64) -> Bool {
    let distance = page &- offset
    if distance < 64 {
      mask |= 1 << distance
      return true
    }
    let back = offset &- page
    guard back < 64, mask.leadingZeroBitCount >= Int(back) else { return false }
    mask = mask << back | 1
    offset = page
    return true
  }
}

/// The dirty ring of one vCPU.
///
/// Kernel and user space share the entries: the kernel pushes a page with flag 1, user space collects
/// those and sets flag 2, a reset takes these back. Entries follow each other round the ring; a
/// harvest does not move the place of the next push. One thread pushes (the vCPU's), one at a time
/// resets (the caller holds the lock of slot updates), any may read and harvest.
/// Mirrors `struct kvm_dirty_ring`, Linux 6.1.
public final class DirtyRing: @unchecked Sendable {
  // Sendable: entries are touched with the atomic operations of pm_dirty.h; who may write one follows
  // from its flags, which are stored with release and read with acquire order.

  /// `KVM_DIRTY_GFN_F_DIRTY`.
  public static let dirty: UInt32 = 1
  /// `KVM_DIRTY_GFN_F_RESET`.
  public static let reset: UInt32 = 2

  /// How long the ring is.
  public let shape: DirtyRingShape
  private let mapping: TableMapping
  private let entries: UnsafeMutablePointer<pm_dirty_gfn>
  // Entries pushed and entries reset since the ring was made; both wrap.
  private let pushed = Atomic<UInt32>(0)
  private let taken = Atomic<UInt32>(0)

  /// An empty ring. Throws `ENOMEM` where the host has no addresses left.
  public init(_ shape: DirtyRingShape) throws(KernelErrno) {
    self.shape = shape
    do throws(HostError) {
      mapping = try TableMapping(byteCount: shape.byteCount)
    } catch {
      throw .enomem
    }
    entries = mapping.base.bindMemory(to: pm_dirty_gfn.self, capacity: shape.entryCount)
  }

  private func place(_ index: UInt32) -> UnsafeMutablePointer<pm_dirty_gfn> {
    entries + Int(index & UInt32(shape.entryCount - 1))
  }

  // MARK: kernel side

  /// Entries pushed and not yet reset.
  public var usedCount: Int {
    Int(pushed.load(ordering: .acquiring) &- taken.load(ordering: .acquiring))
  }

  /// Whether the guest must not be entered before a reset (`KVM_EXIT_DIRTY_RING_FULL`).
  public var isSoftFull: Bool { usedCount >= shape.softLimit }

  /// Adds a page; false where every entry is in use, when the page is not logged: the kernel warns
  /// there, and it does not happen while the guest stays out of a softly full ring.
  ///
  /// Release: who reads flag 1 reads slot and page too. The vCPU's thread only.
  /// Mirrors `kvm_dirty_ring_push`.
  public func push(slot: UInt32, offset: UInt64) -> Bool {
    let index = pushed.load(ordering: .relaxed)
    guard index &- taken.load(ordering: .acquiring) < UInt32(shape.entryCount) else { return false }
    let entry = place(index)
    pm_dirty_gfn_fill_relaxed(entry, slot, offset)
    pm_dirty_gfn_set_flags_release(entry, DirtyRing.dirty)
    pushed.store(index &+ 1, ordering: .releasing)
    return true
  }

  /// Takes back the entries that user space has collected, up to the first that it has not, and
  /// returns how many there were.
  ///
  /// Calls `body` with groups of following entries that are neighbours, in the ring's order; see
  /// `MemslotSets.slot(of:)` for which to skip. The caller protects the pages again and flushes
  /// where the count is not 0. One thread at a time. Mirrors `kvm_dirty_ring_reset`.
  public func reset(_ body: (DirtyRingGroup) -> Void) -> Int {
    var count = 0
    var group: DirtyRingGroup?
    var index = taken.load(ordering: .relaxed)
    while count < shape.entryCount {
      let entry = place(index)
      guard pm_dirty_gfn_flags_acquire(entry) & DirtyRing.reset != 0 else { break }
      let (slot, page) = (pm_dirty_gfn_slot_relaxed(entry), pm_dirty_gfn_offset_relaxed(entry))
      pm_dirty_gfn_set_flags_release(entry, 0)
      index &+= 1
      count += 1
      taken.store(index, ordering: .releasing)
      if var current = group {
        if current.slot == slot, current.absorb(page) {
          group = current
          continue
        }
        body(current)
      }
      group = DirtyRingGroup(slot: slot, offset: page, mask: 1)
    }
    if let group { body(group) }
    return count
  }

  // MARK: user side

  /// An entry by its place, 0 to below ``DirtyRingShape/entryCount``. Slot and page have a meaning
  /// where the flags are not 0. Acquire.
  public func entry(at index: Int) -> DirtyRingEntry {
    precondition(index >= 0 && index < shape.entryCount, "no entry \(index)")
    let entry = entries + index
    let flags = pm_dirty_gfn_flags_acquire(entry)
    return DirtyRingEntry(
      flags: flags, slot: pm_dirty_gfn_slot_relaxed(entry),
      offset: pm_dirty_gfn_offset_relaxed(entry))
  }

  /// Writes an entry as user space may, which KVM does not trust; see ``entry(at:)``. Release.
  public func write(_ entry: DirtyRingEntry, at index: Int) {
    precondition(index >= 0 && index < shape.entryCount, "no entry \(index)")
    pm_dirty_gfn_fill_relaxed(entries + index, entry.slot, entry.offset)
    pm_dirty_gfn_set_flags_release(entries + index, entry.flags)
  }

  /// Collects as user space does: from place `next` on (which moves on) the entries with flag 1 are
  /// returned, `limit` at most, and their flags set to 2.
  ///
  /// `next` belongs to the one collector of the ring and begins at 0.
  public func harvest(next: inout UInt32, limit: Int = .max) -> [DirtyRingEntry] {
    var found: [DirtyRingEntry] = []
    while found.count < min(limit, shape.entryCount) {
      let index = Int(next & UInt32(shape.entryCount - 1))
      let entry = entry(at: index)
      guard entry.flags == DirtyRing.dirty else { break }
      pm_dirty_gfn_set_flags_release(entries + index, DirtyRing.reset)
      found.append(entry)
      next &+= 1
    }
    return found
  }
}
