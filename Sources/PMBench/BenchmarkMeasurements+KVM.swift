internal import PMArena
internal import PMGuestMap
internal import PMPageAllocator
internal import PMRealGuest
internal import PMUnits

extension BenchmarkMeasurements {
  /// What the real KVM takes, each beside the model's own time for the same, in the same run.
  ///
  /// `kvm.slot.add` and `kvm.slot.delete`: a slot over the memory, none of it mapped by the guest.
  /// `kvm.fault`: a write of the guest to a page that the host has and stage 2 does not, less a write to a
  /// page that it has. `kvm.dirty.clean` and `kvm.dirty.full`: KVM_GET_DIRTY_LOG of the slot, with no page
  /// and with every page written since the last. The memory is private and in 4 KiB pages.
  mutating func measureKVM(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) {
    progress("kvm: trying a guest")
    if let reason = RealVM.unavailability() {
      skip(
        "kvm",
        "\(reason); to be had with x86-64, virtualization in the firmware or of the outer machine, "
          + "the module kvm_intel or kvm_amd, and access to /dev/kvm")
      return
    }
    let rounds = options.quick ? 3 : 9
    let byteCount = options.workedByteCount
    do {
      progress("kvm: the real one")
      let real = try crew.alone { try RealBench(byteCount).run(rounds: rounds) }
      progress("kvm: the model")
      let model = try crew.alone { try ModelBench(byteCount).run(rounds: rounds) }
      for name in KVMFigures.names {
        guard let value = real.median(name) else { continue }
        kvm.append(
          KVMCost(
            name: name, unit: name == "kvm.fault" ? "ns" : "us", value: value,
            model: model.median(name), byteCount: byteCount))
      }
    } catch {
      skip("kvm", "\(error)")
    }
  }
}

/// Values by the names of what they measure.
private struct KVMFigures: Sendable {
  static let names = [
    "kvm.slot.add", "kvm.slot.delete", "kvm.fault", "kvm.dirty.clean", "kvm.dirty.full",
  ]

  private var values: [String: [Double]] = [:]

  mutating func note(_ name: String, _ value: Double) { values[name, default: []].append(value) }
  func median(_ name: String) -> Double? { values[name]?.median }

  /// The time that `body` takes, in microseconds.
  mutating func time(_ name: String, _ body: () throws -> Void) rethrows {
    note(name, try Stopwatch.seconds(body) * 1e6)
  }
}

/// A machine of the real KVM with an arena's memory.
private final class RealBench {
  private static let slot: UInt32 = 1
  private static let start: UInt64 = 1 << 30
  private let arena: Arena
  private let vm: RealVM
  private let byteCount: UInt64
  private var script: [RealAccess]
  private var bitmap: [UInt64]

  init(_ byteCount: UInt64) throws {
    self.byteCount = byteCount
    arena = try Arena(
      ArenaConfiguration(byteCount: ByteCount(byteCount), backing: .anonymous))
    try arena.prefault(0..<byteCount, threads: 1)
    let reach = (RealBench.start + byteCount + (1 << 30) - 1) >> 30
    vm = try RealVM(RealVM.Configuration(reachGiB: Int(reach)))
    bitmap = Array(repeating: 0, count: Int(byteCount >> 18))
    script = stride(from: 0, to: byteCount, by: 4096).map {
      .write($0, to: RealBench.start + $0, .eight)
    }
  }

  func run(rounds: Int) throws -> KVMFigures {
    var figures = KVMFigures()
    // The first round warms what the kernel keeps for later.
    for round in 0...rounds {
      var found = KVMFigures()
      try found.time("kvm.slot.add") { try setSlot(flags: 0, byteCount) }
      try found.time("kvm.slot.delete") { try setSlot(flags: 0, 0) }
      try setSlot(flags: 0, byteCount)
      let first = try Stopwatch.seconds { try writeAll() }
      let second = try Stopwatch.seconds { try writeAll() }
      found.note("kvm.fault", max(0, first - second) * 1e9 / Double(script.count))
      try setSlot(flags: 1, byteCount)
      try harvest(expected: nil)
      try found.time("kvm.dirty.clean") { try harvest(expected: 0) }
      try writeAll()
      try found.time("kvm.dirty.full") { try harvest(expected: .max) }
      try setSlot(flags: 0, 0)
      if round > 0 { figures.add(found) }
    }
    return figures
  }

  private func setSlot(flags: UInt32, _ size: UInt64) throws {
    let errno = vm.setMemoryRegion(
      slot: RealBench.slot, flags: flags, guestPhysicalAddress: RealBench.start, memorySize: size,
      userspaceAddress: UInt64(UInt(bitPattern: arena.base)))
    guard errno == 0 else {
      throw RealGuestError.host(operation: "KVM_SET_USER_MEMORY_REGION", errno: errno)
    }
  }

  private func writeAll() throws {
    let report = try vm.perform(script: &script)
    if let stop = report.stops.first {
      throw BenchmarkUnavailable(
        description: "the guest's write to page \(stop.index) ended as \(stop.outcome)")
    }
  }

  /// Takes the log, whose first word has to be `expected`.
  private func harvest(expected: UInt64?) throws {
    let errno = vm.dirtyLog(slot: RealBench.slot, into: &bitmap)
    guard errno == 0 else {
      throw RealGuestError.host(operation: "KVM_GET_DIRTY_LOG", errno: errno)
    }
    if let expected, bitmap.first != expected {
      throw BenchmarkUnavailable(
        description: "KVM's dirty log begins with \(bitmap.first ?? 0), expected \(expected)")
    }
  }
}

/// The same on the emulated KVM.
private final class ModelBench {
  private let guest: BenchmarkVM
  private let pageCount: Int

  init(_ byteCount: UInt64) throws {
    pageCount = Int(byteCount >> 12)
    guest = try BenchmarkVM(.packed, pageCount: pageCount)
    try guest.dirtyAll()
  }

  func run(rounds: Int) throws -> KVMFigures {
    var figures = KVMFigures()
    for round in 0...rounds {
      var found = KVMFigures()
      // A slot's end drops all of stage 2, whose size shall play no part; the host keeps its pages.
      try guest.setIdleSlot(isThere: true)
      try guest.setIdleSlot(isThere: false)
      try found.time("kvm.slot.add") { try guest.setIdleSlot(isThere: true) }
      try found.time("kvm.slot.delete") { try guest.setIdleSlot(isThere: false) }
      let first = try Stopwatch.seconds { try guest.dirtyAll() }
      let second = try Stopwatch.seconds { try guest.dirtyAll() }
      found.note("kvm.fault", max(0, first - second) * 1e9 / Double(pageCount))
      try guest.harvest()
      try found.time("kvm.dirty.clean") { try guest.harvest() }
      try guest.dirtyAll()
      try found.time("kvm.dirty.full") { try guest.harvest() }
      if round > 0 { figures.add(found) }
    }
    return figures
  }
}

extension KVMFigures {
  fileprivate mutating func add(_ other: KVMFigures) {
    values.merge(other.values, uniquingKeysWith: +)
  }
}
