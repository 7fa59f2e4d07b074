internal import PMUnits

/// Which of KVM's calls sets a memory region.
public enum RealRegionForm: Sendable {
  /// The second where the kernel offers it, else the first.
  case automatic
  /// `KVM_SET_USER_MEMORY_REGION`.
  case first
  /// `KVM_SET_USER_MEMORY_REGION2`: `ENOTTY` where the kernel has none.
  case second
}

/// The machine's descriptor and what is known of its slots.
final class RealMemoryRegions: Sendable {
  private let vm: KVMDescriptor
  private let hasSecondForm: Bool
  /// The pages of each slot, by its number with address space. Held over the kernel's calls, which
  /// write as many bits as the slot then has pages.
  private let pageCounts: Guarded<[UInt32: UInt64]>

  init(vm: consuming KVMDescriptor, hasSecondForm: Bool, privatePageCount: UInt64) {
    self.vm = vm
    self.hasSecondForm = hasSecondForm
    pageCounts = Guarded(privatePageCount == 0 ? [:] : [0: privatePageCount])
  }

  func set(_ region: KVM.Region, _ form: RealRegionForm) -> Int32 {
    let isSecondForm =
      switch form {
      case .automatic: hasSecondForm
      case .first: false
      case .second: true
      }
    return pageCounts.withLock { counts in
      let errno = KVM.setRegion(vm.rawValue, region, isSecondForm: isSecondForm)
      if errno == 0 {
        let count = region.memorySize / GuestProgram.pageSize
        counts[region.slot] = count == 0 ? nil : count
      }
      return errno
    }
  }

  func dirtyLog(slot: UInt32, pageCount: Int) -> (errno: Int32, bitmap: [UInt64]) {
    pageCounts.withLock { counts in
      let wordCount = (pageCount + 63) / 64
      // The kernel writes a bit for each page of the slot, whatever the caller knows of it.
      let needed = Int((counts[slot] ?? 0) + 63) / 64
      var bitmap = [UInt64](repeating: 0, count: max(1, wordCount, needed))
      let errno = KVM.dirtyLog(vm.rawValue, slot: slot, into: &bitmap)
      return (errno, Array(bitmap.prefix(wordCount)))
    }
  }

  func dirtyLog(slot: UInt32, into bitmap: inout [UInt64]) -> Int32 {
    // By pointer, because the lock's closure may not capture what is inout.
    bitmap.withUnsafeMutableBufferPointer { words in
      pageCounts.withLock { counts in
        let needed = Int((counts[slot] ?? 0) + 63) / 64
        precondition(words.count >= max(1, needed), "\(words.count) words for \(needed)")
        return KVM.dirtyLog(vm.rawValue, slot: slot, into: words)
      }
    }
  }

  func clearDirtyLog(
    slot: UInt32, firstPage: UInt64, pageCount: UInt32, bitmap: [UInt64]
  ) -> Int32 {
    KVM.clearDirtyLog(
      vm.rawValue, slot: slot, firstPage: firstPage, pageCount: pageCount, bitmap: bitmap)
  }

  func enableCapability(_ capability: UInt32, flags: UInt32, arguments: [UInt64]) -> Int32 {
    KVM.enableCapability(vm.rawValue, capability, flags: flags, arguments: arguments)
  }

  func checkExtension(_ capability: UInt32) throws(RealGuestError) -> Int {
    try KVM.checkExtension(vm.rawValue, capability)
  }

  func resetDirtyRings() -> (errno: Int32, count: Int) { KVM.resetDirtyRings(vm.rawValue) }
}

// MARK: - Memory regions

extension RealVM {
  /// Makes, changes, moves or (`memorySize` 0) deletes a memory region; the kernel's rules apply.
  ///
  /// `slot` is address space << 16 | number, `flags` are KVM's (1: log dirty pages, 2: read-only),
  /// the addresses and the size are bytes. Anything may be tried: the result is the kernel's error
  /// number, or 0. What it accepts the guest accesses as this process could: it is the caller's
  /// matter that `userspaceAddress` names memory that a guest may change.
  public func setMemoryRegion(
    slot: UInt32, flags: UInt32, guestPhysicalAddress: UInt64, memorySize: UInt64,
    userspaceAddress: UInt64, form: RealRegionForm = .automatic
  ) -> Int32 {
    memory.set(
      KVM.Region(
        slot: slot, flags: flags, guestPhysicalAddress: guestPhysicalAddress,
        memorySize: memorySize, userspaceAddress: userspaceAddress), form)
  }

  /// The pages of a slot that were written since the last call (with manual protection: since their
  /// bits were cleared): bit n of the words is page n.
  ///
  /// `pageCount` is how many pages to tell of, 0 or more; further ones of the slot are looked up
  /// and lost. The kernel's error number, or 0, and a word for each 64 pages, 0 after an error.
  public func dirtyLog(slot: UInt32, pageCount: Int) -> (errno: Int32, bitmap: [UInt64]) {
    precondition(pageCount >= 0, "a dirty log of \(pageCount) pages")
    return memory.dirtyLog(slot: slot, pageCount: pageCount)
  }

  /// The same into a bitmap of the caller's, which needs a bit for each page of the slot and one word at
  /// least; spares an array per call. What the bitmap held is overwritten. The kernel's error number, or 0.
  public func dirtyLog(slot: UInt32, into bitmap: inout [UInt64]) -> Int32 {
    memory.dirtyLog(slot: slot, into: &bitmap)
  }

  /// Clears the bits of a slot's log that are set in `bitmap`, whose bit 0 is page `firstPage`, and
  /// watches those pages again. For machines with `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` enabled.
  ///
  /// `bitmap` needs a bit for each of `pageCount` pages. The kernel's error number, or 0.
  public func clearDirtyLog(
    slot: UInt32, firstPage: UInt64, pageCount: UInt32, bitmap: [UInt64]
  ) -> Int32 {
    precondition(
      bitmap.count >= (Int(pageCount) + 63) / 64,
      "\(bitmap.count) words are too few for \(pageCount) pages")
    return memory.clearDirtyLog(
      slot: slot, firstPage: firstPage, pageCount: pageCount, bitmap: bitmap)
  }
}

// MARK: - Capabilities

extension RealVM {
  /// Enables a capability of the machine, by its `KVM_CAP_` number; at most 4 arguments.
  ///
  /// The kernel's error number, or 0.
  public func enableCapability(
    _ capability: UInt32, arguments: [UInt64] = [], flags: UInt32 = 0
  ) -> Int32 {
    memory.enableCapability(capability, flags: flags, arguments: arguments)
  }

  /// What the kernel says of a capability, by its `KVM_CAP_` number: 0 if it has none of that kind.
  public func checkExtension(_ capability: UInt32) throws(RealGuestError) -> Int {
    try memory.checkExtension(capability)
  }
}
