public import PMGuestMap
internal import PMHostMap
public import PMPageAllocator
internal import PMUnits

// Accesses: resolved by the emulated machine, then made by the real guest, many at a time.
extension MirroredVM {
  /// Accesses that wait at most before the real guest makes them.
  private static let batchLimit = 2048

  /// Resolves an access in the emulated machine and lets the real guest make it, now or at the next
  /// ``flush()``, in order.
  ///
  /// `expected` is what a software guest got from the same access; the real outcome is compared with
  /// it, value included, and what differs is told in ``mismatches``. Throws
  /// ``RealGuestError/unreachable(guestPhysicalAddress:byteCount:)`` at the next flush for what the
  /// real guest cannot reach.
  public func submit(
    _ access: RealAccess, expecting expected: GuestAccess, on cpu: inout CPU
  ) throws(RealGuestError) {
    let resolved = resolve(access, on: &cpu)
    try rethrow()
    if hasStalePages { try sync() }
    if !MirroredVM.isSame(resolved, expected) {
      mismatches.append(
        "\(describe(access)): the software guest got \(describe(expected)), the emulated machine "
          + "beside the real one \(describe(resolved))")
    }
    pending.append(access)
    expectations.append(adjusted(expected, access))
    if pending.count >= MirroredVM.batchLimit { try flush() }
  }

  /// Lets the real guest make what is resolved, and compares.
  public func flush() throws(RealGuestError) {
    guard !pending.isEmpty else { return }
    var script = pending
    let wanted = expectations
    let first = accessCount
    pending.removeAll(keepingCapacity: true)
    expectations.removeAll(keepingCapacity: true)
    let report = try real.perform(script: &script)
    accessCount += script.count
    var stops = report.stops[...]
    for index in script.indices {
      var outcome = RealAccessOutcome.done(value: script[index].value & script[index].size.mask)
      if let stop = stops.first, stop.index == index {
        outcome = stop.outcome
        stops.removeFirst()
      }
      if !isExpected(outcome, wanted[index], isWrite: script[index].isWrite) {
        mismatches.append(
          "\(describe(script[index])) (access \(first + index)): expected "
            + "\(describe(wanted[index])), the real guest got \(describe(outcome)); "
            + place(of: script[index].guestPhysicalAddress))
      }
    }
  }

  /// Where a guest address is, for people.
  private func place(of gpa: UInt64) -> String {
    let gfn = GFN(guestPhysicalAddress: gpa)
    guard let slot = vm.memslots[0].slot(containing: gfn) else { return "no slot there" }
    let address = slot.hva(of: gfn)
    let area = process.areaInfo(at: address).map { "area with flags \($0.flags.rawValue)" }
    let host = process.entry(at: address)?.entry.description
    let guest = vm.translation(gfn).map { "\($0.spte)" }
    return
      "slot \(slot.id) with flags \(slot.flags.rawValue), page \((address - base) >> 12) of the range, "
      + "\(area ?? "no area"), host entry \(host ?? "none"), guest entry now \(guest ?? "none")"
  }

  // MARK: comparing

  private static func isSame(_ a: GuestAccess, _ b: GuestAccess) -> Bool {
    if case .done = a, case .done = b { return true }
    return a == b
  }

  private func isExpected(
    _ outcome: RealAccessOutcome, _ expected: GuestAccess, isWrite: Bool
  ) -> Bool {
    switch (outcome, expected) {
    case (.done(let value), .done(let wanted)): isWrite || value == wanted
    case (.mmio(let gpa, let count, let write), .mmio(let wanted, let wantedCount, let wantedWrite)):
      gpa == wanted && count == wantedCount && write == wantedWrite
    case (.failed(let errno, let reason), .failed(let wanted, let isSet)):
      errno == wanted.rawValue && reason == (isSet ? 0 : RealVM.unsetExitReason)
    case (.interrupted, .interrupted), (.dirtyRingFull, .dirtyRingFull): true
    default: false
    }
  }

  /// What a file's page comes to where the emulated machine has a driver's page: a refused write to
  /// one that is present goes to the instruction emulator and so to user space, but in an area of
  /// pages it is a fault.
  private func adjusted(_ expected: GuestAccess, _ access: RealAccess) -> GuestAccess {
    guard access.isWrite, case .mmio = expected else { return expected }
    let gfn = GFN(guestPhysicalAddress: access.guestPhysicalAddress)
    guard let slot = vm.memslots[0].slot(containing: gfn), !slot.isReadonly,
      isReadOnlySpecial(slot.hva(of: gfn))
    else { return expected }
    return .failed(.efault, exitReasonIsSet: vm.era == .c)
  }

  private func describe(_ access: RealAccess) -> String {
    let what = access.isWrite ? "write of 0x\(String(access.value, radix: 16)) to" : "read of"
    let address = String(access.guestPhysicalAddress, radix: 16)
    return "\(what) 0x\(address), \(access.size.rawValue) bytes"
  }

  private func describe(_ outcome: GuestAccess) -> String {
    switch outcome {
    case .done(let value): "0x\(String(value, radix: 16))"
    case .mmio(let gpa, let count, let isWrite): mmio(gpa, count, isWrite)
    case .failed(let errno, let isSet): "\(errno)\(isSet ? "" : " and no exit reason")"
    case .interrupted: "an interruption"
    case .dirtyRingFull: "a full ring"
    }
  }

  private func describe(_ outcome: RealAccessOutcome) -> String {
    switch outcome {
    case .done(let value): "0x\(String(value, radix: 16))"
    case .mmio(let gpa, let count, let isWrite): mmio(gpa, count, isWrite)
    case .failed(let errno, let reason):
      (KVM.errorName(errno) ?? "errno \(errno)") + (reason == 0 ? "" : " and exit reason \(reason)")
    case .interrupted: "an interruption"
    case .dirtyRingFull: "a full ring"
    case .other(let reason): "exit \(reason)"
    }
  }

  private func mmio(_ gpa: UInt64, _ count: Int, _ isWrite: Bool) -> String {
    "an MMIO \(isWrite ? "write" : "read") of \(count) bytes at 0x\(String(gpa, radix: 16))"
  }
}

// MARK: - Resolving

// What `VCPU` does with an access, without its data: the same faults in the same order, so that the
// emulated process and its memory become what they are beside a software guest.
extension MirroredVM {
  private enum Translation {
    case ready
    case emulated
    case exit(GuestAccess)
  }

  private func resolve(_ access: RealAccess, on cpu: inout CPU) -> GuestAccess {
    let gpa = access.guestPhysicalAddress
    let count = access.size.rawValue
    let inPage = 4096 - Int(gpa & 4095)
    guard count > inPage else {
      switch translate(gpa, isWrite: access.isWrite, on: &cpu) {
      case .ready: return .done(0)
      case .exit(.mmio):
        return .mmio(gpa: gpa, byteCount: count, isWrite: access.isWrite)
      case .exit(let exit): return exit
      case .emulated: return emulate(gpa, count, isWrite: access.isWrite, on: &cpu)
      }
    }
    return resolveAcross(gpa, inPage, count, isWrite: access.isWrite, on: &cpu)
  }

  /// An access across a page border: the processor asks for the pages in order. The first that is
  /// not plain memory sends the whole instruction to the emulator, which makes each part by itself
  /// and hands out what is not memory.
  private func resolveAcross(
    _ gpa: UInt64, _ inPage: Int, _ count: Int, isWrite: Bool, on cpu: inout CPU
  ) -> GuestAccess {
    let second = gpa + UInt64(inPage)
    var isEmulated = false
    for page in [gpa, second] where !isEmulated {
      switch translate(page, isWrite: isWrite, on: &cpu) {
      case .ready: continue
      case .exit(.mmio), .emulated: isEmulated = true
      case .exit(let exit): return exit
      }
    }
    guard isEmulated else { return .done(0) }
    let near = emulate(gpa, inPage, isWrite: isWrite, on: &cpu)
    let far = emulate(second, count - inPage, isWrite: isWrite, on: &cpu)
    if case .done = near { return far }
    return near
  }

  /// Takes faults until the tables allow the access.
  private func translate(_ gpa: UInt64, isWrite: Bool, on cpu: inout CPU) -> Translation {
    let gfn = GFN(guestPhysicalAddress: gpa)
    for _ in 0..<1000 {
      if let spte = vm.translation(gfn)?.spte, spte.isReadable, !isWrite || spte.isWritable {
        return .ready
      }
      if let slot = vm.memslots[0].slot(containing: gfn) {
        prepareFault(slot.hva(of: gfn), isWrite: isWrite)
      }
      switch vm.handleFault(gfn, isWrite: isWrite, on: &cpu) {
      case .retry, .fixed, .spurious: continue
      case .emulate: return .emulated
      case .mmio: return .exit(.mmio(gpa: gpa, byteCount: 0, isWrite: isWrite))
      case .failed(let error): return .exit(.failed(error, exitReasonIsSet: vm.era == .c))
      case .hwpoison, .interrupted: return .exit(.interrupted)
      }
    }
    return .exit(.interrupted)
  }

  /// Before the emulated process may fault: what the real guest has still to write may be copied by
  /// it, and what it has still to read must not see the new entry.
  private func prepareFault(_ hva: UInt64, isWrite: Bool) {
    if let entry = process.entry(at: hva)?.entry, !entry.isProtnone, !isWrite || entry.isWritable {
      return
    }
    flushNoting()
    noteFault(at: hva)
  }

  /// One page's part of an emulated access, which goes through the user address.
  private func emulate(
    _ gpa: UInt64, _ count: Int, isWrite: Bool, on cpu: inout CPU
  ) -> GuestAccess {
    let gfn = GFN(guestPhysicalAddress: gpa)
    let exit = GuestAccess.mmio(gpa: gpa, byteCount: count, isWrite: isWrite)
    guard let slot = vm.memslots[0].slot(containing: gfn),
      let page = slot.gfnToHVA(gfn, forWrite: isWrite).address
    else { return exit }
    let hva = page + (gpa & 4095)
    prepareFault(hva, isWrite: isWrite)
    do throws(KernelErrno) {
      try process.accessing(hva, isWrite: isWrite, on: &cpu) { _, _ in }
    } catch { return exit }
    if isWrite, slot.logsDirtyPages { slot.dirtyBitmap?.mark(gfn - slot.baseGFN) }
    return .done(0)
  }
}
