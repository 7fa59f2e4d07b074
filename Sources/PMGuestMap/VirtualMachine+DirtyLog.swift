internal import CPhysmemShim
internal import PMHostMap
public import PMPageAllocator
public import PMUnits

// Dirty logging: bitmap and ring, what switching it on and off does to the tables.
extension VirtualMachine {
  // MARK: marking

  /// Notes a write to a guest frame, in the ring of the vCPU or in the slot's bitmap. Mirrors
  /// `mark_page_dirty_in_slot`.
  func markDirty(_ gfn: GFN, _ slot: Memslot, _ vcpu: VCPU?) {
    guard slot.logsDirtyPages else { return }
    let page = gfn - slot.baseGFN
    if settings.ring != nil {
      if let ring = vcpu?.ring {
        _ = ring.push(slot: slot.slotNumber, offset: UInt64(page))
      } else {
        kernel.machine.findings.warnOnce("a page was dirtied without a running vCPU")
      }
    } else {
      slot.dirtyBitmap?.mark(page)
    }
    step("gfn \(gfn) is dirty in slot \(slot.id)")
  }

  func markDirtyIfLogged(_ gfn: GFN, _ slot: Memslot, _ vcpu: VCPU?) {
    if slot.logsDirtyPages { markDirty(gfn, slot, vcpu) }
  }

  // MARK: flags of a slot

  /// What a change of flags does to the tables. Mirrors `kvm_mmu_slot_apply_flags`.
  func flagsChanged(from old: Memslot, to new: Memslot, on cpu: inout CPU) {
    guard old.logsDirtyPages != new.logsDirtyPages, !new.isReadonly else { return }
    if new.logsDirtyPages {
      // With manual protection and all pages dirty at first, protection comes with each clear.
      if !settings.isInitiallySet { beginLogging(new, on: &cpu) }
    } else {
      endLogging(new, on: &cpu)
    }
  }

  private func beginLogging(_ slot: Memslot, on cpu: inout CPU) {
    let table = tables[slot.addressSpace]
    let gfns = slot.baseGFN..<slot.endGFN
    mmuLock.lockShared()
    if configuration.mmu == .tdp, configuration.splitsEagerly { _ = table.splitRange(gfns) }
    if configuration.capabilities.hasPageModificationLog {
      // The processor logs dirty bits of small leaves by itself; large ones are still found by W.
      table.clearDirty(gfns) { _, _, old in
        markLost(old, accessed: false, dirty: true, on: &cpu)
      }
      table.writeProtect(gfns, minLevel: 2)
    } else {
      table.writeProtect(gfns)
    }
    mmuLock.unlock()
    gate.requestFlush()
  }

  /// Makes huge leaves possible again: 6.13 puts them in place of full tables, 6.1 and the legacy MMU drop
  /// the small ones that the host maps by a large one. Mirrors `zap_collapsible_spte_range` and
  /// `recover_huge_pages_range`.
  private func endLogging(_ slot: Memslot, on cpu: inout CPU) {
    let table = tables[slot.addressSpace]
    var regions: [(gfn: GFN, level: Int)] = []
    mmuLock.lockExclusive()
    defer { mmuLock.unlock() }
    table.forEachLeaf(in: slot.baseGFN..<slot.endGFN) { gfn, level, _ in
      let wanted = mappingLevel(gfn, slot, maximum: configuration.maxLeafLevel)
      guard wanted > level else { return }
      let first = GFN(gfn.rawValue & ~UInt64(SPTE.frames(level: wanted) - 1))
      if regions.last?.gfn != first { regions.append((first, wanted)) }
    }
    guard !regions.isEmpty else { return }
    for (gfn, level) in regions {
      let range = gfn..<(gfn + SPTE.frames(level: level))
      if era == .c, configuration.mmu == .tdp {
        recover(range, level: level, table, on: &cpu)
      } else {
        table.unmapRange(range) { _, _, old in markDropped(old, on: &cpu) }
      }
    }
    gate.requestFlush()
    recycleTables()
  }

  /// One huge leaf from the first small one that is there. Mirrors `recover_huge_pages_range`.
  private func recover(
    _ range: Range<GFN>, level: Int, _ table: Stage2Table, on cpu: inout CPU
  ) {
    var child: (gfn: GFN, spte: SPTE)?
    table.forEachLeaf(in: range) { gfn, _, spte in
      if child == nil { child = (gfn, spte) }
    }
    guard let child else { return }
    let first = child.spte.pfn - (child.gfn - range.lowerBound)
    var bits = child.spte.attributes
    if bits.contains(.mmuWritable) { bits.formUnion([.write, .dirty]) }
    let huge = SPTE.makeLeaf(pfn: first, level: level, bits)
    _ = table.replaceTableByHuge(range.lowerBound, level: level, huge) { _, _, old in
      markDropped(old, on: &cpu)
    }
  }

  // MARK: ioctls

  /// What is dirty in a slot. Without manual protection the log is emptied and its pages are protected
  /// again before anything is copied: a `buffer` that cannot be written (nil) loses it. Throws ENXIO with
  /// rings, EINVAL for a slot number out of range, ENOENT without slot or log, EFAULT for a nil buffer.
  /// `buffer` has a word per 64 pages or more. Mirrors `KVM_GET_DIRTY_LOG`.
  public func getDirtyLog(
    slot number: UInt32, into buffer: UnsafeMutableBufferPointer<UInt64>?, on cpu: inout CPU
  ) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    let (slot, bitmap) = try slots.logToGet(
      slot: number, settings: settings, capabilities: configuration.capabilities)
    if settings.manualProtect.contains(.enabled) {
      guard let buffer else { throw .efault }
      return bitmap.copy(to: buffer)
    }
    var isProtected = false
    mmuLock.lockShared()
    bitmap.harvest(into: buffer) { word, mask in
      if reprotect(slot, word: word, mask, on: &cpu) { isProtected = true }
    }
    mmuLock.unlock()
    if isProtected { gate.requestFlush() }
    if buffer == nil { throw .efault }
  }

  /// Clears pages of a log and protects those again that were dirty. Throws as the kernel does, in its
  /// order; EFAULT for nil `bits`. Mirrors `KVM_CLEAR_DIRTY_LOG`.
  public func clearDirtyLog(
    _ range: DirtyLogRange, bits: [UInt64]?, on cpu: inout CPU
  ) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    let (slot, bitmap) = try slots.logToClear(
      range, settings: settings, capabilities: configuration.capabilities)
    guard range.wordCount > 0 else { return }
    guard let bits, bits.count >= range.wordCount else { throw .efault }
    var isProtected = false
    mmuLock.lockShared()
    bits.withUnsafeBufferPointer { words in
      bitmap.clear(range, bits: words) { word, mask in
        if reprotect(slot, word: word, mask, on: &cpu) { isProtected = true }
      }
    }
    mmuLock.unlock()
    if isProtected { gate.requestFlush() }
  }

  /// Protects the pages of one word of a log again; true where an entry changed. `mmuLock` is held.
  /// Mirrors `kvm_arch_mmu_enable_log_dirty_pt_masked`.
  private func reprotect(
    _ slot: Memslot, word: Int, _ mask: UInt64, on cpu: inout CPU
  ) -> Bool {
    if pm_planted(PM_PLANTED_HARVEST_NOT_PROTECTED) { return false }
    let table = tables[slot.addressSpace]
    let base = slot.baseGFN + word * 64
    var isChanged = false
    if settings.isInitiallySet {
      let first = base + mask.trailingZeroBitCount
      let last = base + (63 - mask.leadingZeroBitCount)
      if configuration.mmu == .tdp, configuration.splitsEagerly {
        // 6.1 passes the last frame as an end that is not included.
        let end = era == .c ? last + 1 : last
        if first < end { _ = table.splitRange(first..<end) }
      }
      let hugeFrames = UInt64(SPTE.frames(level: 2))
      isChanged = table.writeProtect(first..<(first + 1), minLevel: 2, clearingMMUWritable: true)
      if first.rawValue / hugeFrames != last.rawValue / hugeFrames {
        let other = table.writeProtect(
          last..<(last + 1), minLevel: 2, clearingMMUWritable: true)
        isChanged = isChanged || other
      }
    }
    let usesDirtyBit = configuration.capabilities.hasPageModificationLog
    var mask = mask
    if !usesDirtyBit {
      let quick = table.protectSettled(first: base, mask: mask)
      if quick.changed { isChanged = true }
      mask = quick.left
      if mask == 0 { return isChanged }
    }
    let other = table.reprotect(first: base, mask: mask, writeProtecting: !usesDirtyBit) {
      _, _, old in
      if usesDirtyBit, old.isDirty { markLost(old, accessed: false, dirty: true, on: &cpu) }
    }
    return isChanged || other
  }

  // MARK: settings

  /// Switches manual protection on or off. EINVAL for unknown bits or flags. Mirrors
  /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
  public func enableManualDirtyLogProtect(
    _ argument: UInt64, flags: UInt32 = 0
  ) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    settings.manualProtect = try ManualDirtyProtect.checked(
      flags: flags, argument: argument, capabilities: configuration.capabilities)
  }

  /// Gives every vCPU to come a dirty ring of this many bytes; slots then have no bitmap. Once, and
  /// before the first vCPU. Throws EINVAL and E2BIG. Mirrors `KVM_CAP_DIRTY_LOG_RING`.
  public func enableDirtyRing(byteCount: UInt64) throws(KernelErrno) {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    settings.ring = try DirtyRingShape.checked(
      byteCount: byteCount, settings: settings, vCPUCount: hasVCPU ? 1 : 0,
      capabilities: configuration.capabilities)
  }

  /// Takes back the entries of all rings that user space has marked, and protects their pages again.
  /// Returns how many. Throws EINVAL without rings. Mirrors `KVM_RESET_DIRTY_RINGS`.
  public func resetDirtyRings(
    _ vcpus: [VCPU], on cpu: inout CPU
  ) throws(KernelErrno) -> Int {
    slotsLock.lock()
    defer { slotsLock.unlock() }
    guard settings.ring != nil else { throw .einval }
    var count = 0
    mmuLock.lockShared()
    for vcpu in vcpus {
      guard let ring = vcpu.ring else { continue }
      count += ring.reset { group in
        guard let slot = slots.slot(of: group) else { return }
        protect(slot, group, on: &cpu)
      }
    }
    mmuLock.unlock()
    if count > 0 { gate.requestFlush() }
    return count
  }

  /// Protects the pages of a group of ring entries that are inside their slot.
  private func protect(_ slot: Memslot, _ group: DirtyRingGroup, on cpu: inout CPU) {
    let left = slot.pageCount - Int(clamping: group.offset)
    guard left > 0 else { return }
    let mask = left >= 64 ? group.mask : group.mask & ((1 << UInt64(left)) - 1)
    guard mask != 0, !pm_planted(PM_PLANTED_HARVEST_NOT_PROTECTED) else { return }
    let table = tables[slot.addressSpace]
    _ = table.reprotect(
      first: slot.baseGFN + Int(group.offset), mask: mask,
      writeProtecting: !configuration.capabilities.hasPageModificationLog)
  }
}
