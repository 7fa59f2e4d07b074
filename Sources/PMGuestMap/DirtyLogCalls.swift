public import PMUnits

/// The argument of `KVM_CLEAR_DIRTY_LOG` without the bitmap.
public struct DirtyLogRange: Hashable, Sendable {
  /// Address space and id of the slot.
  public var slot: UInt32
  /// The first page, counted within the slot; a multiple of 64.
  public var firstPage: UInt64
  /// How many pages.
  public var pageCount: UInt32

  /// A range from its parts, unchecked.
  public init(slot: UInt32, firstPage: UInt64, pageCount: UInt32) {
    self.slot = slot
    self.firstPage = firstPage
    self.pageCount = pageCount
  }

  /// The words of 64 bits that the bitmap of the call has.
  public var wordCount: Int { (Int(pageCount) + 63) / 64 }
}

/// The checks of the ioctls that read and clear dirty logs, in the kernel's order. Each says which
/// log to work on, or with which error the call fails; nothing changes.
extension MemslotSets {
  /// The log that `KVM_GET_DIRTY_LOG` reads.
  ///
  /// Throws `ENXIO` where rings log, `EINVAL` where address space or id are out of range, `ENOENT`
  /// where there is no such slot or it has no log. A buffer that cannot be written gives `EFAULT`
  /// after all that; the marks that were taken out are lost then.
  /// Mirrors `kvm_get_dirty_log_protect`, Linux 6.1.
  public func logToGet(
    slot: UInt32, settings: DirtyLogSettings, capabilities: VMCapabilities
  ) throws(KernelErrno) -> (slot: Memslot, bitmap: DirtyBitmap) {
    guard settings.ring == nil else { throw .enxio }
    let slot = try self.slot(numbered: slot, capabilities: capabilities)
    guard let bitmap = slot.dirtyBitmap else { throw .enoent }
    return (slot, bitmap)
  }

  /// The log that `KVM_CLEAR_DIRTY_LOG` clears.
  ///
  /// Throws in this order: `ENXIO` where rings log; `EINVAL` where address space or id are out of
  /// range, then where the first page is no multiple of 64; `ENOENT` where there is no such slot
  /// or it has no log; `EINVAL` where the range exceeds the slot, or neither is whole words nor ends
  /// with the slot. A bitmap that cannot be read gives `EFAULT` after all that, before anything is
  /// cleared. Mirrors `kvm_clear_dirty_log_protect`, Linux 6.1.
  public func logToClear(
    _ range: DirtyLogRange, settings: DirtyLogSettings, capabilities: VMCapabilities
  ) throws(KernelErrno) -> (slot: Memslot, bitmap: DirtyBitmap) {
    guard settings.ring == nil else { throw .enxio }
    let (space, id) = (Int(range.slot >> 16), range.slot & 0xffff)
    guard space < spaces.count, id < capabilities.slotLimit else { throw .einval }
    guard range.firstPage % 64 == 0 else { throw .einval }
    let slot = try self.slot(numbered: range.slot, capabilities: capabilities)
    guard let bitmap = slot.dirtyBitmap else { throw .enoent }
    guard range.firstPage <= UInt64(slot.pageCount) else { throw .einval }
    let left = UInt64(slot.pageCount) - range.firstPage
    guard range.pageCount <= left, range.pageCount % 64 == 0 || UInt64(range.pageCount) == left
    else { throw .einval }
    return (slot, bitmap)
  }
}

extension DirtyBitmap {
  /// Clears what a legal call of `KVM_CLEAR_DIRTY_LOG` names.
  ///
  /// `bits` has ``DirtyLogRange/wordCount`` words: bit `b` of word `w` is page
  /// `firstPage + w * 64 + b`. Calls `body` with the index of each word of the log and the pages of
  /// it that were marked, in ascending order: there the caller protects them again. Each word is
  /// cleared in one step, fully ordered.
  public func clear(
    _ range: DirtyLogRange, bits: UnsafeBufferPointer<UInt64>,
    _ body: (_ word: Int, _ mask: UInt64) -> Void = { _, _ in }
  ) {
    precondition(bits.count >= range.wordCount, "a bitmap of \(bits.count) words")
    let first = Int(range.firstPage / 64)
    for index in 0..<range.wordCount where bits[index] != 0 {
      let cleared = clear(word: first + index, bits[index])
      if cleared != 0 { body(first + index, cleared) }
    }
  }
}

extension ManualDirtyProtect {
  /// Checks the arguments of `KVM_ENABLE_CAP` for ``KVMCapability/manualDirtyLogProtect2``.
  ///
  /// Throws `EINVAL` where flags are not 0, where a bit is not known, or where
  /// ``ManualDirtyProtect/initiallySet`` comes without ``ManualDirtyProtect/enabled``. 0 switches it
  /// off. Mirrors `kvm_vm_ioctl_enable_cap_generic`, Linux 6.1.
  public static func checked(
    flags: UInt32, argument: UInt64, capabilities: VMCapabilities
  ) throws(KernelErrno) -> ManualDirtyProtect {
    let setting = ManualDirtyProtect(rawValue: argument)
    let allowed =
      setting.contains(.enabled)
      ? capabilities.manualDirtyProtectMask
      : capabilities.manualDirtyProtectMask.intersection(.enabled)
    guard flags == 0, allowed.isSuperset(of: setting) else { throw .einval }
    return setting
  }
}
