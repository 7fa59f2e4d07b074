internal import PMGuestMap
internal import PMHostMap
internal import PMUnits

/// The scenarios of the dirty ring: sizes that are allowed, then one VM with 256 entries.
final class DirtyRingScript {
  private let stage: DirtyLogStage
  private let facts: HostFacts
  private let vm: MeasuredVM
  private let ring: DirtyRing
  private var sized: [UInt64: VirtualMachine] = [:]

  private struct NoRing: Error {}

  init(_ facts: HostFacts) throws {
    self.facts = facts
    guard let stage = try DirtyLogStage("4k", facts) else { throw NoRing() }
    self.stage = stage
    vm = try stage.makeVM(manual: 0, ringByteCount: 4096)
    guard let ring = vm.vcpu.ring else { throw NoRing() }
    self.ring = ring
    _ = stage.set(vm, flags: 1)
  }

  func play(step: String, operation: String) throws -> RowOutcome {
    let words = step.split(separator: " ").map(String.init)
    switch words.first {
    case "check_extension":
      return .played([
        "result": "\(facts.capabilities.checkExtension(.dirtyLogRing))"
      ])
    case "enable": return try enable(words)
    case "get_dirty_log": return .played(stage.get(vm))
    case "mmap": return .played(["result": "0"])
    case "KVM_RESET_DIRTY_RINGS": return try reset()
    case "fill": return fill()
    case "slot":
      return .played([
        "result": vm.set(
          slot: 7, flags: 1, gpa: 0x8000_0000, byteCount: DirtyLogStage.byteCount,
          hva: stage.hva, on: &stage.host.cpu)
      ])
    case "ring": return entry(words)
    default: break
    }
    switch DirtyLogOperation(operation) {
    case .write(let pages): return .played(stage.access(pages, isWrite: true, vm))
    case .read(let pages): return .played(stage.access(pages, isWrite: false, vm))
    default: return .failed("the scenario has no step \(step): \(operation)")
    }
  }

  /// `enable N bytes` on a VM of its own each, `… again` on the same; `enable 4096` is the VM of the rest.
  private func enable(_ words: [String]) throws -> RowOutcome {
    guard words.count > 1, let byteCount = UInt64(words[1]) else {
      return .failed("no such size: \(words)")
    }
    if words.count == 2 { return .played(["result": vm.vcpu.ring == nil ? "EINVAL" : "0"]) }
    let there = sized[byteCount]
    let fresh =
      try there
      ?? VirtualMachine(
        process: HostProcess(kernel: stage.host.kernel), configuration: facts.configuration)
    sized[byteCount] = fresh
    return .played([
      "result": result { () throws(KernelErrno) in
        try fresh.enableDirtyRing(byteCount: byteCount)
      }
    ])
  }

  /// `ring entry N`, and those after a reset.
  private func entry(_ words: [String]) -> RowOutcome {
    guard words.count > 2, let index = Int(words[2]), index >= 0, index < ring.shape.entryCount
    else {
      return .failed("no such entry: \(words)")
    }
    let entry = ring.entry(at: index)
    return .played([
      "operation": "flags=\(entry.flags)", "result": "slot=\(entry.slot)",
      "dirty_pages": "\(entry.offset)",
    ])
  }

  /// User space takes every dirty entry, then the rings are reset.
  private func reset() throws -> RowOutcome {
    var harvested = 0
    for index in 0..<ring.shape.entryCount {
      var entry = ring.entry(at: index)
      guard entry.flags != 0 else { continue }
      harvested += 1
      entry.flags = DirtyRing.reset
      ring.write(entry, at: index)
    }
    let count = try vm.vm.resetDirtyRings([vm.vcpu], on: &stage.host.cpu)
    return .played(["operation": "harvested=\(harvested)", "result": "\(count)"])
  }

  /// Writes to page after page until the exit is another one than DONE.
  private func fill() -> RowOutcome {
    var done = 0
    var run = ("0", "DONE")
    for page in UInt64(100)...400 {
      let made = vm.access(
        MeasuredVM.testedGPA + page << 12, write: UInt32(0x1234 + page), on: &stage.host.cpu)
      run = facts.describe(made)
      guard case .done = made else { break }
      done += 1
    }
    let dirty = (0..<ring.shape.entryCount).count { ring.entry(at: $0).flags == DirtyRing.dirty }
    return .played([
      "operation": "writes_done=\(done)", "result": "\(run.0)/\(run.1)",
      "dirty_pages": "entries_dirty=\(dirty)",
    ])
  }
}
