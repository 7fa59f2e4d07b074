public import PMGuestMap
public import PMPageAllocator
internal import PMUnits

/// What both machines answered to a call.
public struct MirroredAnswer: Equatable, Sendable {
  /// The emulated kernel's error number, 0 for success.
  public var emulated: Int32
  /// The real kernel's error number, 0 for success.
  public var real: Int32
  /// The emulated machine's dirty log, bit n of the words for page n; empty for other calls.
  public var emulatedLog: [UInt64] = []
  /// The real machine's dirty log.
  public var realLog: [UInt64] = []

  /// Whether both say the same.
  public var isEqual: Bool { emulated == real && emulatedLog == realLog }
}

extension MirroredAnswer: CustomStringConvertible {
  /// Both answers, and the pages that only one log has.
  public var description: String {
    func name(_ errno: Int32) -> String {
      errno == 0 ? "success" : KVM.errorName(errno) ?? "errno \(errno)"
    }
    func pages(_ a: [UInt64], without b: [UInt64]) -> String {
      let found = a.indices.flatMap { word in
        (0..<64).filter { (a[word] & ~(word < b.count ? b[word] : 0)) >> UInt64($0) & 1 != 0 }
          .map { "\(word * 64 + $0)" }
      }
      return found.isEmpty ? "none" : found.joined(separator: " ")
    }
    var text = "emulated \(name(emulated)), real \(name(real))"
    if emulatedLog != realLog {
      text += "; dirty in the emulated log only: \(pages(emulatedLog, without: realLog))"
      text += "; in the real one only: \(pages(realLog, without: emulatedLog))"
    }
    return text
  }
}

// The calls about slots and dirty logs, made on both machines.
extension MirroredVM {
  /// Makes, changes, moves or deletes a slot in both machines. `userspaceAddress` of the region is
  /// the emulated one; the memory has to lie in the mirrored range.
  ///
  /// Throws ``RealGuestError/invalid(_:)`` for memory outside of it: the real guest must not reach
  /// what is nobody's.
  public func setMemoryRegion(
    _ region: MemoryRegion, form: RealRegionForm = .first, on cpu: inout CPU
  ) throws(RealGuestError) -> MirroredAnswer {
    let end = base + UInt64(pageCount) << 12
    guard region.userspaceAddress >= base, region.userspaceAddress < end,
      region.memorySize <= end - region.userspaceAddress
    else { throw .invalid("a slot with memory outside of the mirrored range") }
    try flush()
    try sync()
    var answer = MirroredAnswer(emulated: 0, real: 0)
    do throws(KernelErrno) {
      switch form {
      case .automatic, .first: try vm.setUserMemoryRegion(region, on: &cpu)
      case .second: try vm.setUserMemoryRegion2(MemoryRegion2(region, guestMemfd: -1), on: &cpu)
      }
    } catch { answer.emulated = error.rawValue }
    answer.real = real.setMemoryRegion(
      slot: region.slot, flags: region.flags,
      guestPhysicalAddress: region.guestPhysicalAddress, memorySize: region.memorySize,
      userspaceAddress: range.userspaceAddress + (region.userspaceAddress - base), form: form)
    // The deletion or the move of a slot drops all translations.
    if vm.leafCounts == Stage2Table.LeafCounts() { try hideSpecialEntries() }
    return answer
  }

  /// `KVM_GET_DIRTY_LOG` on both machines; `pageCount` is how many pages the caller thinks there
  /// are.
  public func dirtyLog(
    slot: UInt32, pageCount: Int, on cpu: inout CPU
  ) throws(RealGuestError) -> MirroredAnswer {
    try flush()
    var answer = MirroredAnswer(emulated: 0, real: 0)
    let wordCount = (pageCount + 63) / 64
    answer.emulatedLog = MirroredVM.dirtyLog(
      of: vm, slot: slot, wordCount: wordCount, &answer.emulated, on: &cpu)
    let found = real.dirtyLog(slot: slot, pageCount: pageCount)
    answer.real = found.errno
    answer.realLog = found.bitmap
    return answer
  }

  /// The log of one machine, 0 after an error.
  static func dirtyLog(
    of vm: VirtualMachine, slot: UInt32, wordCount: Int, _ errno: inout Int32, on cpu: inout CPU
  ) -> [UInt64] {
    let there = (vm.memslots[0].slot(id: UInt16(truncatingIfNeeded: slot))?.pageCount ?? 0) + 63
    var words = [UInt64](repeating: 0, count: max(1, wordCount, there / 64))
    let failure = words.withUnsafeMutableBufferPointer { buffer -> KernelErrno? in
      do throws(KernelErrno) {
        try vm.getDirtyLog(slot: slot, into: buffer, on: &cpu)
        return nil
      } catch { return error }
    }
    errno = failure?.rawValue ?? 0
    return Array(words.prefix(wordCount))
  }

  /// `KVM_CLEAR_DIRTY_LOG` on both machines.
  public func clearDirtyLog(
    _ range: DirtyLogRange, bits: [UInt64], on cpu: inout CPU
  ) throws(RealGuestError) -> MirroredAnswer {
    try flush()
    var answer = MirroredAnswer(emulated: 0, real: 0)
    do throws(KernelErrno) {
      try vm.clearDirtyLog(range, bits: bits, on: &cpu)
    } catch { answer.emulated = error.rawValue }
    answer.real = real.clearDirtyLog(
      slot: range.slot, firstPage: range.firstPage, pageCount: range.pageCount, bitmap: bits)
    return answer
  }

  /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` on both machines.
  public func enableManualDirtyLogProtect(
    _ argument: UInt64, flags: UInt32 = 0
  ) throws(RealGuestError) -> MirroredAnswer {
    try flush()
    var answer = MirroredAnswer(emulated: 0, real: 0)
    do throws(KernelErrno) {
      try vm.enableManualDirtyLogProtect(argument, flags: flags)
    } catch { answer.emulated = error.rawValue }
    answer.real = real.enableCapability(
      RealVM.manualDirtyLogProtect2, arguments: [argument], flags: flags)
    return answer
  }
}
