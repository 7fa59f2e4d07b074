internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// A sequence of accesses and changes on one VM: slot 1 over 16 pages of touched anonymous memory.
///
/// The whole sequence is played when it is made; rows pick their step.
final class FaultSequence {
  private var steps: [[String: String]] = []
  /// Rows that are no access, by what stands in their access column.
  private var others: [String: [String: String]] = [:]
  private var failure: String?

  private let facts: HostFacts
  private let host: MeasuredHost
  private let process: HostProcess
  private let vm: MeasuredVM
  private let hva: UInt64
  private let byteCount = FaultRow.pages << 12
  private var range: Range<UInt64> { hva..<(hva + byteCount) }

  convenience init(_ name: String, on facts: HostFacts) {
    do {
      try self.init(playing: name, on: facts)
    } catch {
      // Anonymous memory of 64 KiB in a fresh machine of 1 GiB cannot fail for want of anything.
      fatalError("a fresh machine refused 64 KiB: \(error)")
    }
  }

  private init(playing name: String, on facts: HostFacts) throws {
    self.facts = facts
    host = try MeasuredHost.make(facts)
    process = HostProcess(kernel: host.kernel)
    hva = try process.map(.init(byteCount: FaultRow.pages << 12), on: &host.cpu)
    vm = try MeasuredVM(facts, process: process, on: &host.cpu)
    if !name.hasSuffix("userfaultfd") {
      try process.fill(hva..<(hva + byteCount), 0x11, on: &host.cpu)
    }
    vm.warmUp(on: &host.cpu)
    _ = vm.set(
      slot: 1, gpa: MeasuredVM.testedGPA, byteCount: byteCount, hva: hva, on: &host.cpu)
    do {
      try play(String(name.dropFirst("seq.".count)))
    } catch {
      failure = "\(name): \(error)"
    }
  }

  /// What a row of the sequence is compared with: the step of its number, else the one of its place.
  func outcome(access: String, note: String, place: Int) -> RowOutcome {
    if let failure { return .failed(failure) }
    if access != "read", access != "write" {
      guard var cells = others[access] ?? others.first?.value else {
        return .failed("the sequence has no row \(access)")
      }
      cells["note"] = cells["note"] ?? note
      return .played(cells)
    }
    let number = Int(note.prefix { $0.isNumber }) ?? (place + 1)
    guard steps.indices.contains(number - 1) else {
      return .failed("the sequence has no step \(number)")
    }
    // The rest of a note is for people.
    return .played(steps[number - 1].merging(["note": note]) { $1 })
  }

  private func read(_ offset: UInt64 = 0, gpa: UInt64 = MeasuredVM.testedGPA) {
    let made = vm.access(gpa + offset, on: &host.cpu)
    steps.append(FaultCells(made, isRead: true, on: facts).cells)
  }

  private func write(_ value: UInt32, _ offset: UInt64 = 0) {
    let made = vm.access(MeasuredVM.testedGPA + offset, write: value, on: &host.cpu)
    steps.append(FaultCells(made, isRead: false, on: facts).cells)
  }

  private func play(_ name: String) throws {
    switch name {
    case "dontneed":
      write(0xabcd_1234)
      read()
      try process.discard(range, on: &host.cpu)
      read()
      write(0x77)
      read()
    case "remap":
      read()
      try process.unmap(range, on: &host.cpu)
      read()
      try process.map(.init(byteCount: byteCount, address: hva), on: &host.cpu)
      try process.fill(range, 0x44, on: &host.cpu)
      read()
    case "mprotect": try playProtect()
    case "fork": try playFork()
    case "slotdel": playSlotDelete()
    case "cross_end": try playCrossEnd()
    case "cross_page":
      read(4094)
      write(0x9988_7766, 4094)
    case "mremap_away":
      _ = try process.remap(range, on: &host.cpu)
      read()
    case "halfhole":
      try process.unmap((hva + 8 << 12)..<(hva + byteCount), on: &host.cpu)
      read()
      read(8 << 12)
      write(1, 8 << 12)
    case "userfaultfd": try playUserfault()
    default: throw FaultSequenceError.unknown(name)
    }
  }

  private enum FaultSequenceError: Error {
    case unknown(String)
  }

  private func playProtect() throws {
    write(1)
    try process.protect(range, rights: .read, on: &host.cpu)
    read()
    write(2)
    read()
    try process.protect(range, rights: [], on: &host.cpu)
    read()
    write(3)
    try process.protect(range, rights: [.read, .write], on: &host.cpu)
    write(4)
    read()
  }

  private func playFork() throws {
    write(0x100_0001)
    let child = process.fork(on: &host.cpu)
    write(0x200_0002)
    read()
    let seen = try child.read32(hva, on: &host.cpu)
    others["child"] = [
      "KVM_RUN": "-", "exit": "-",
      "detail": "child_sees_old_value=\(seen == 0x100_0001 ? "yes" : "no")",
    ]
    child.exit(on: &host.cpu)
  }

  private func playSlotDelete() {
    let gpa = MeasuredVM.testedGPA
    func set(_ gpa: UInt64, _ byteCount: UInt64) {
      _ = vm.set(slot: 1, gpa: gpa, byteCount: byteCount, hva: hva, on: &host.cpu)
    }
    read()
    set(gpa, 0)
    read()
    write(1)
    set(gpa, byteCount)
    read()
    set(gpa + 0x10_0000, byteCount)
    read()
    read(gpa: gpa + 0x10_0000)
  }

  private func playCrossEnd() throws {
    read(byteCount - 2)
    write(0x9988_7766, byteCount - 2)
    let word = try process.read32(hva + byteCount - 4, on: &host.cpu)
    others["host"] = [
      "KVM_RUN": "-", "exit": "-",
      "detail": "last_two_bytes=0x\(String(word >> 16, radix: 16))",
    ]
  }

  private func playUserfault() throws {
    // The first wait is ended by the signal, the second finds the page that came meanwhile.
    let answers = UserfaultAnswers()
    try process.registerMissingHandler(range, on: &host.cpu) { _ in answers.next() }
    read()
    read()
  }
}

/// A monitor that lets a signal come first.
private final class UserfaultAnswers: Sendable {
  private let isFirst = Mutex(true)

  func next() -> MissingAnswer {
    isFirst.withLock { isFirst in
      defer { isFirst = false }
      return isFirst ? .signal : .page(pattern: 0x66)
    }
  }
}
