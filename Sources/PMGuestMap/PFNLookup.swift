internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
public import PMUnits

/// What a lookup of a guest frame came to, as KVM passes it on: a frame or one of the error frames.
public enum PFNResult: Hashable, Sendable {
  /// A frame.
  case page(PFN)
  /// `KVM_PFN_NOSLOT`: no slot, or one on its way out.
  case noSlot
  /// `KVM_PFN_ERR_FAULT`.
  case fault
  /// `KVM_PFN_ERR_HWPOISON`.
  case hwpoison
  /// `KVM_PFN_ERR_RO_FAULT`: present, but not writable.
  case readOnlyFault
  /// `KVM_PFN_ERR_SIGPENDING`, from 6.3 on.
  case signalPending
  /// `KVM_PFN_ERR_NEEDS_IO` (B, C) and the "async" answer (A): the first try would have to sleep.
  case needsIO
}

/// A lookup with all it leaves behind.
struct PFNLookup {
  var result: PFNResult
  /// Whether the host's entry allows writing, as far as that was asked.
  var isWritable = false
  /// Era C: the page that a reference (or pin) is held on.
  var refcountedPage: PFN?
  /// Era B: the page had a count (`is_refcounted_page`).
  var isRefcounted = false

  static func failed(_ result: PFNResult) -> PFNLookup { PFNLookup(result: result) }
}

/// What a lookup is asked for.
struct PFNRequest {
  var gfn: GFN
  var isWrite: Bool
  /// Whether a writable mapping is wanted where a read gets one for nothing.
  var wantsWritable = true
  /// The first try of a guest fault: does not sleep.
  var noWait = false
  /// Any signal ends the wait.
  var interruptible = false
  /// A pin instead of a reference (era C).
  var pins = false
  /// Era B: nothing is kept beyond the lookup, the notifier guards the result.
  var isGuarded = false
  var holder: Holder
}

// gfn → hva → pfn, in the four eras.
extension VirtualMachine {
  /// Looks a frame up through its slot. `readers` is held. Mirrors `__gfn_to_pfn_memslot` (A),
  /// `__kvm_follow_pfn` (B) and `kvm_follow_pfn` (C).
  func lookUp(_ slot: Memslot?, _ request: PFNRequest, on cpu: inout CPU) -> PFNLookup {
    guard let slot else { return .failed(.noSlot) }
    switch slot.gfnToHVA(request.gfn, forWrite: request.isWrite) {
    case .bad: return .failed(.noSlot)
    case .readOnlyBad:
      step("READONLY slot and a write: KVM_PFN_ERR_RO_FAULT before any look at the host")
      return .failed(.readOnlyFault)
    case .hva(let hva):
      var request = request
      if slot.isReadonly { request.wantsWritable = false }
      return lookUp(hva, request, on: &cpu)
    }
  }

  /// Mirrors `hva_to_pfn`.
  private func lookUp(
    _ hva: UInt64, _ request: PFNRequest, on cpu: inout CPU
  ) -> PFNLookup {
    let take: GUPFlags = request.pins ? .pin : .get
    if request.isWrite || request.wantsWritable {
      if let page = process.getUserPageFast(
        hva, take.union(.write), request.holder, on: &cpu)
      {
        return taken(page, isWritable: true, request, on: &cpu)
      }
    }
    let slow = lookUpSlowly(hva, request, take, on: &cpu)
    switch slow {
    case .page(let page): return page
    case .failed(.eintr) where era == .b || era == .c: return .failed(.signalPending)
    case .failed(.eagain) where era == .c: return .failed(.signalPending)
    case .failed(.ehwpoison): return .failed(.hwpoison)
    default: break
    }
    if case .failed(.eintr) = slow { return .failed(.signalPending) }
    if era == .a0 || era == .a, !request.noWait,
      case .failed(.ehwpoison) = process.getUserPage(
        hva, [.write, .hwpoison], request.holder, on: &cpu)
    {
      // The probe of `check_user_page_hwpoison`; that it may break copy-on-write is the kernel's too.
      return .failed(.hwpoison)
    }
    return lookUpByArea(hva, request, on: &cpu)
  }

  private enum SlowResult {
    case page(PFNLookup)
    case wouldBlock
    case failed(KernelErrno)
  }

  /// Mirrors `hva_to_pfn_slow`.
  private func lookUpSlowly(
    _ hva: UInt64, _ request: PFNRequest, _ take: GUPFlags, on cpu: inout CPU
  ) -> SlowResult {
    var flags: GUPFlags = [.hwpoison, .touch, take]
    if request.isWrite { flags.insert(.write) }
    if request.noWait { flags.insert(.noWait) }
    if request.interruptible { flags.insert(.interruptible) }
    switch process.getUserPage(hva, flags, request.holder, on: &cpu) {
    case .failed(let error): return .failed(error)
    case .wouldBlock: return .wouldBlock
    case .page(let page):
      if !request.isWrite, request.wantsWritable,
        let better = process.getUserPageFast(
          hva, take.union(.write), request.holder, on: &cpu)
      {
        process.release(page, take, request.holder, on: &cpu)
        return .page(taken(better, isWritable: true, request, on: &cpu))
      }
      return .page(taken(page, isWritable: request.isWrite, request, on: &cpu))
    }
  }

  /// A page with a reference from GUP: kept (A, C), or put at once where the notifier guards it (B).
  private func taken(
    _ page: PFN, isWritable: Bool, _ request: PFNRequest, on cpu: inout CPU
  ) -> PFNLookup {
    var found = PFNLookup(result: .page(page), isWritable: isWritable && request.wantsWritable)
    switch era {
    case .a0, .a: break
    case .b:
      found.isRefcounted = true
      if request.isGuarded {
        kernel.put(page, request.holder, on: &cpu)
        step("the reference goes at once: count \(kernel.frames.pageCount(page))")
      }
    case .c: found.refcountedPage = page
    }
    if request.isWrite { found.isWritable = isWritable }
    return found
  }

  /// What the area says after GUP has failed: remapped areas have a path of their own.
  private func lookUpByArea(
    _ hva: UInt64, _ request: PFNRequest, on cpu: inout CPU
  ) -> PFNLookup {
    // A handler that lets go of the lock makes the kernel start again; a few rounds are plenty.
    for _ in 0..<16 {
      guard
        let answer = process.withArea(
          at: hva,
          { area in
            guard let area else { return PFNLookup.failed(.fault) as PFNLookup? }
            if area.isRemapped { return self.lookUpRemapped(hva, request, on: &cpu) }
            let isPermitted = area.flags.contains(request.isWrite ? .write : .read)
            if request.noWait, isPermitted { return .failed(.needsIO) }
            return .failed(.fault)
          })
      else { continue }
      return answer
    }
    return .failed(.fault)
  }

  /// The entry of a remapped area. nil asks for another round. Mirrors `hva_to_pfn_remapped`.
  private func lookUpRemapped(
    _ hva: UInt64, _ request: PFNRequest, on cpu: inout CPU
  ) -> PFNLookup? {
    if request.pins, era == .c, !configuration.allowsUnsafeMappings {
      step("remapped area and a pin: EINVAL")
      return .failed(.fault)
    }
    // 6.1 follows 4 KiB entries only; 6.12 and later any.
    let maxLevel = era == .c ? 3 : 1
    for isSecond in [false, true] {
      let answer = process.withEntry(at: hva, maxLevel: maxLevel) { entry, pfn in
        remapped(entry, pfn, request, on: &cpu)
      }
      if let answer { return answer }
      guard !isSecond else { break }
      step("remapped area without an entry: fixup_user_fault")
      let fixed = process.fixupFault(hva, isWrite: request.isWrite, on: &cpu)
      if fixed.unlocked { return nil }
      if fixed.errno != nil { return .failed(.fault) }
    }
    return .failed(.fault)
  }

  /// A present entry of a remapped area, under its lock.
  private func remapped(
    _ entry: HostEntry, _ pfn: PFN, _ request: PFNRequest, on cpu: inout CPU
  ) -> PFNLookup {
    if request.isWrite, !entry.isWritable {
      step("remapped area, entry present but read-only: KVM_PFN_ERR_RO_FAULT")
      return .failed(.readOnlyFault)
    }
    var found = PFNLookup(
      result: .page(pfn), isWritable: entry.isWritable && (request.wantsWritable || request.isWrite)
    )
    switch era {
    case .c:
      step("remapped area: frame \(pfn), no look at its page")
      return found
    case .a0:
      if refcountedPage(pfn) != nil {
        kernel.getUnchecked(pfn, request.holder)
        step(
          "remapped area: count of frame \(pfn) raised unseen to \(kernel.frames.pageCount(pfn))")
      }
      return found
    case .a, .b:
      guard let page = refcountedPage(pfn) else {
        step("remapped area: frame \(pfn) is not counted (reserved, or no struct page)")
        return found
      }
      guard kernel.getUnlessZero(page, request.holder) else {
        guard era == .b, request.isGuarded else {
          step("remapped area: the own count of frame \(pfn) is 0: EFAULT")
          return .failed(.fault)
        }
        step("remapped area: the own count of frame \(pfn) is 0: mapped without a count")
        return found
      }
      found.isRefcounted = true
      step("remapped area: own count of frame \(pfn) raised to \(kernel.frames.refcount(pfn))")
      if era == .b, request.isGuarded {
        kernel.put(page, request.holder, on: &cpu)
        step("the reference goes at once: count \(kernel.frames.pageCount(page))")
      }
      return found
    }
  }
}
