internal import CPhysmemShim
internal import Glibc
internal import PMFrames
internal import PMHostMap
public import PMPageAllocator
internal import PMUnits

// Accesses to their end: translation, faults, emulation, exits.
extension VCPU {
  /// How an attempt at one page ended.
  private enum Attempt {
    /// The value, and whether the processor has just set a dirty bit that it logs.
    case done(UInt64, isLogged: Bool)
    case violation
  }

  /// Reads 1 to 8 bytes. An access that crosses a page border is made page by page; what is left when an
  /// exit comes is what the exit carries.
  public func read(_ gpa: UInt64, byteCount: Int, on cpu: inout CPU) -> GuestAccess {
    access(gpa, byteCount: byteCount, write: nil, on: &cpu)
  }

  /// Writes 1 to 8 bytes, the low ones of `value`.
  @discardableResult
  public func write(
    _ gpa: UInt64, byteCount: Int, value: UInt64, on cpu: inout CPU
  ) -> GuestAccess {
    access(gpa, byteCount: byteCount, write: value, on: &cpu)
  }

  private func access(
    _ gpa: UInt64, byteCount: Int, write value: UInt64?, on cpu: inout CPU
  ) -> GuestAccess {
    precondition((1...8).contains(byteCount), "an access of \(byteCount) bytes")
    let inPage = 4096 - Int(gpa & 4095)
    guard byteCount > inPage else {
      return accessPage(gpa, byteCount: byteCount, write: value, on: &cpu)
    }
    return accessAcross(gpa, first: inPage, byteCount: byteCount, write: value, on: &cpu)
  }

  /// Both pages of a crossing access. The processor looks at both before it touches either; only an
  /// emulated access is done in part.
  private func accessAcross(
    _ gpa: UInt64, first: Int, byteCount: Int, write value: UInt64?, on cpu: inout CPU
  ) -> GuestAccess {
    let second = gpa &+ UInt64(first)
    let isWrite = value != nil
    for address in [gpa, second] {
      switch translate(GFN(guestPhysicalAddress: address), isWrite: isWrite, on: &cpu) {
      case .ready: continue
      case .emulated, .exit(.mmio):
        // One page for the emulator means the whole instruction for the emulator.
        return emulatedAccess(gpa, byteCount: byteCount, write: value, on: &cpu)
      case .exit(let exit): return exit
      }
    }
    let low = accessPage(gpa, byteCount: first, write: value, on: &cpu)
    guard case .done(let lowValue) = low else { return low }
    let rest = value.map { $0 >> UInt64(8 * first) }
    let high = accessPage(second, byteCount: byteCount - first, write: rest, on: &cpu)
    guard case .done(let highValue) = high else { return high }
    return .done(lowValue | highValue << UInt64(8 * first))
  }

  /// What a page's translation comes to before the access itself.
  private enum Translation {
    case ready
    case emulated
    case exit(GuestAccess)
  }

  /// An access within one page.
  private func accessPage(
    _ gpa: UInt64, byteCount: Int, write value: UInt64?, on cpu: inout CPU
  ) -> GuestAccess {
    let gfn = GFN(guestPhysicalAddress: gpa)
    while true {
      if case .done(let result, let isLogged) = attempt(gpa, byteCount, value) {
        if isLogged { vm.drainPageModificationLog(gfn, addressSpace: addressSpace, vcpu: self) }
        return .done(result)
      }
      switch translate(gfn, isWrite: value != nil, on: &cpu) {
      case .ready: continue
      case .exit(let exit):
        if case .mmio = exit { return .mmio(gpa: gpa, byteCount: byteCount, isWrite: value != nil) }
        return exit
      case .emulated: return emulate(gpa, byteCount, value, on: &cpu)
      }
    }
  }

  /// Takes faults until the tables allow the access. A fault that has to be taken again, because a slot
  /// is on its way out or an invalidation is under way, lets the thread that it waits for run.
  private func translate(_ gfn: GFN, isWrite: Bool, on cpu: inout CPU) -> Translation {
    while true {
      // The ring is tested before every entry of the guest, also after a fault of the same run.
      if let ring, ring.isSoftFull { return .exit(.dirtyRingFull) }
      if isAllowed(gfn, isWrite: isWrite) { return .ready }
      let outcome = vm.handleFault(
        gfn, addressSpace: addressSpace, isWrite: isWrite, vcpu: self, on: &cpu)
      switch outcome {
      case .fixed, .spurious: continue
      case .retry: sched_yield()
      case .emulate: return .emulated
      case .mmio: return .exit(.mmio(gpa: gfn.guestPhysicalAddress, byteCount: 0, isWrite: isWrite))
      case .failed(let error):
        return .exit(.failed(error, exitReasonIsSet: vm.era == .c))
      case .hwpoison, .interrupted: return .exit(.interrupted)
      }
    }
  }

  private func isAllowed(_ gfn: GFN, isWrite: Bool) -> Bool {
    cache.enter()
    defer { cache.leave() }
    if cache.translate(gfn, forWrite: isWrite) != nil { return true }
    guard let (spte, _) = vm.tables[addressSpace].lookup(gfn) else { return false }
    return spte.isReadable && (!isWrite || spte.isWritable)
  }

  /// One try within one page: through the cache, or through the tables with their accessed and dirty
  /// bits, which fills the cache.
  private func attempt(_ gpa: UInt64, _ byteCount: Int, _ value: UInt64?) -> Attempt {
    let gfn = GFN(guestPhysicalAddress: gpa)
    cache.enter()
    defer { cache.leave() }
    if let page = cache.translate(gfn, forWrite: value != nil) {
      return .done(touch(page + Int(gpa & 4095), byteCount, value), isLogged: false)
    }
    // A processor with a page-modification log notes each dirty bit that it sets.
    let logs = value != nil && vm.configuration.capabilities.hasPageModificationLog
    let wasClean =
      logs && vm.tables[addressSpace].lookup(gfn).map { !$0.spte.hasDirtyBit } ?? false
    guard
      case .granted(let spte, let level) = vm.tables[addressSpace].accessWalk(
        gfn, write: value != nil)
    else { return .violation }
    let inside = UInt32(truncatingIfNeeded: gfn.rawValue) & UInt32(SPTE.frames(level: level) - 1)
    let pfn = PFN(spte.pfn.rawValue &+ inside)
    if vm.checksAccesses { vm.checkAccess(gfn, pfn) }
    guard let page = vm.kernel.bytes(of: pfn) else {
      return .done(
        touchDevice(pfn.physicalAddress + (gpa & 4095), byteCount, value), isLogged: wasClean)
    }
    // With checks on, every access is looked at.
    if !vm.checksAccesses {
      cache.fill(gfn, page: page, isWritable: spte.isWritable && spte.isDirty)
    }
    return .done(touch(page + Int(gpa & 4095), byteCount, value), isLogged: wasClean)
  }

  /// Reads or writes up to eight bytes, little endian, and returns what a read found.
  private func touch(
    _ bytes: UnsafeMutableRawPointer, _ byteCount: Int, _ value: UInt64?
  ) -> UInt64 {
    if let value {
      switch byteCount {
      case 8: pm_guest_store_u64(bytes, value.littleEndian)
      case 4: pm_guest_store_u32(bytes, UInt32(truncatingIfNeeded: value).littleEndian)
      case 2: pm_guest_store_u16(bytes, UInt16(truncatingIfNeeded: value).littleEndian)
      default:
        for place in 0..<byteCount {
          pm_guest_store_u8(bytes + place, UInt8(truncatingIfNeeded: value >> UInt64(8 * place)))
        }
      }
      return 0
    }
    switch byteCount {
    case 8: return UInt64(littleEndian: pm_guest_load_u64(bytes))
    case 4: return UInt64(UInt32(littleEndian: pm_guest_load_u32(bytes)))
    case 2: return UInt64(UInt16(littleEndian: pm_guest_load_u16(bytes)))
    default:
      return (0..<byteCount).reduce(0) { word, place in
        word | UInt64(pm_guest_load_u8(bytes + place)) << UInt64(8 * place)
      }
    }
  }

  private func touchDevice(_ address: UInt64, _ byteCount: Int, _ value: UInt64?) -> UInt64 {
    if value != nil { return 0 }
    let ones = byteCount == 8 ? UInt64.max : (1 << UInt64(8 * byteCount)) - 1
    return (readsDevice?(address, byteCount) ?? .max) & ones
  }

  /// The instruction emulator: its access goes through the user address, and becomes an exit where that
  /// fails. Mirrors `emulator_read_write_onepage` with `emulator_write_phys`.
  private func emulate(
    _ gpa: UInt64, _ byteCount: Int, _ value: UInt64?, on cpu: inout CPU
  ) -> GuestAccess {
    vm.emulate(
      gpa, byteCount: byteCount, value: value, addressSpace: addressSpace, vcpu: self, on: &cpu)
  }

  /// Performs a whole access in the instruction emulator, as KVM does for guests that it never lets run
  /// by themselves: each part that lies in a slot is done through the user address, and the exit carries
  /// the rest. Mirrors `emulator_read_write`.
  public func emulatedAccess(
    _ gpa: UInt64, byteCount: Int, write value: UInt64?, on cpu: inout CPU
  ) -> GuestAccess {
    precondition((1...8).contains(byteCount), "an access of \(byteCount) bytes")
    let inPage = min(byteCount, 4096 - Int(gpa & 4095))
    let first = emulate(gpa, inPage, value, on: &cpu)
    guard inPage < byteCount else { return first }
    // The second page is reached in any case; the exit is that of the first fragment that needs one.
    let rest = value.map { $0 >> UInt64(8 * inPage) }
    let second = emulate(gpa &+ UInt64(inPage), byteCount - inPage, rest, on: &cpu)
    guard case .done(let low) = first else { return first }
    guard case .done(let high) = second else { return second }
    return .done(low | high << UInt64(8 * inPage))
  }
}

extension VirtualMachine {
  /// One page's part of an emulated access.
  func emulate(
    _ gpa: UInt64, byteCount: Int, value: UInt64?, addressSpace: Int, vcpu: VCPU?,
    on cpu: inout CPU
  ) -> GuestAccess {
    let gfn = GFN(guestPhysicalAddress: gpa)
    let exit = GuestAccess.mmio(gpa: gpa, byteCount: byteCount, isWrite: value != nil)
    readers.lockShared()
    defer { readers.unlock() }
    guard let slot = slots[addressSpace].slot(containing: gfn),
      let page = slot.gfnToHVA(gfn, forWrite: value != nil).address
    else {
      step("emulation: no user address for this access: KVM_EXIT_MMIO")
      return exit
    }
    let hva = page + (gpa & 4095)
    var word = (value ?? 0).littleEndian
    do throws(KernelErrno) {
      try withUnsafeMutableBytes(of: &word) { buffer throws(KernelErrno) in
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<byteCount])
        if value != nil {
          try process.write(hva, UnsafeRawBufferPointer(part), on: &cpu)
        } else {
          try process.read(hva, into: part, on: &cpu)
        }
      }
    } catch {
      step("emulation: the user address cannot be reached: KVM_EXIT_MMIO")
      return exit
    }
    if value != nil {
      markDirtyIfLogged(gfn, slot, vcpu)
      step("emulation: the write goes through the user address")
      return .done(0)
    }
    return .done(UInt64(littleEndian: word))
  }

  /// What the processor's log of dirty bits holds goes to the slot's log. Mirrors
  /// `vmx_flush_pml_buffer`, at once instead of at the next exit.
  func drainPageModificationLog(_ gfn: GFN, addressSpace: Int, vcpu: VCPU) {
    readers.lockShared()
    defer { readers.unlock() }
    guard let slot = slots[addressSpace].slot(containing: gfn) else { return }
    markDirtyIfLogged(gfn, slot, vcpu)
  }

  /// Notes an access to a frame that nobody owns.
  func checkAccess(_ gfn: GFN, _ pfn: PFN) {
    guard kernel.hasPage(pfn), kernel.machine.zone(of: pfn) != nil else { return }
    switch kernel.machine.whereabouts(of: pfn) {
    case .free, .perCPU:
      notifierLock.withLock {
        guard accessFindings.count < VirtualMachine.findingLimit else { return }
        accessFindings.append(.accessAfterFree(gfn: gfn, pfn: pfn))
      }
    default: break
    }
  }
}
