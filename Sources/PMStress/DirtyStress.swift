internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

/// Stress of dirty logs: a live migration. Pages that the log names are copied while guests write; when
/// the guests have stopped and the last pages were copied, the copy must be equal to the memory.
enum DirtyStress {
  /// How dirty pages are found.
  enum Log: Int, CaseIterable {
    /// `KVM_GET_DIRTY_LOG` alone, which protects pages again.
    case bitmap
    /// With `KVM_CLEAR_DIRTY_LOG`, all pages clean at first.
    case manual
    /// The same, all pages dirty at first.
    case manualInitiallySet
    /// Rings.
    case ring
  }

  enum Operation: Int, CaseIterable { case harvest, copiedPage, ringReset, age, migrate }

  static let ringByteCount: UInt64 = 4096

  static func run(_ plan: StressPlan, control: StressControl) throws -> StressOutcome {
    let log = Log(rawValue: Int(plan.seed / 2 % 4)) ?? .bitmap
    let world = try GuestWorld(plan, ring: log == .ring ? ringByteCount : nil)
    switch log {
    case .manual: try world.vm.enableManualDirtyLogProtect(1)
    case .manualInitiallySet: try world.vm.enableManualDirtyLogProtect(3)
    case .bitmap, .ring: break
    }
    let crew = GuestCrew(world, plan.begun(), control, places: 1)
    let migration = try DirtyMigration(world, log, plan, crew)
    do {
      var cpu = try world.machine.claimCPU(world.mutatorCPU)
      try world.vm.setUserMemoryRegion(
        world.slot(1, regions: 0..<world.regionCount, place: 1, flags: .logDirtyPages), on: &cpu)
    }
    return try crew.run(
      operations: Operation.allCases.map { "\($0)" },
      mutate: { worker, cpu in migration.step(&worker, &cpu) },
      finish: { cpu in migration.finish(on: &cpu) })
  }
}

/// The side that copies.
private final class DirtyMigration: @unchecked Sendable {
  // Sendable: one thread at a time uses it: the one that sets up, then the one that copies, then, after
  // that has ended, the one that compares.

  private let world: GuestWorld
  private let log: DirtyStress.Log
  private let crew: GuestCrew
  private let wordsPerPage: Int
  private let reader: VCPU
  private var bits: [UInt64]
  private var copy: [UInt64]
  /// Where each vCPU's ring is read next.
  private var nextEntries: [ObjectIdentifier: UInt32] = [:]
  /// Pages that rings named and that were not copied yet.
  private var pending: Set<Int> = []

  init(_ world: GuestWorld, _ log: DirtyStress.Log, _ plan: StressPlan, _ crew: GuestCrew) throws {
    self.world = world
    self.log = log
    self.crew = crew
    wordsPerPage = GuestShadow.wordsPerPage * plan.options.vcpus
    reader = try VCPU(world.vm, index: plan.options.vcpus)
    bits = .init(repeating: 0, count: (world.pageCount + 63) / 64)
    copy = .init(repeating: 0, count: world.pageCount * wordsPerPage)
  }

  func step(_ worker: inout StressWorker, _ cpu: inout CPU) {
    reader.bind()
    do throws(KernelErrno) {
      worker.counts[DirtyStress.Operation.copiedPage.rawValue] += try harvest(on: &cpu)
      worker.counts[DirtyStress.Operation.harvest.rawValue] += 1
    } catch {
      worker.fail("\(log): the log could not be read: \(error)")
    }
    let region = worker.random.below(world.regionCount)
    if worker.random.next() & 3 == 0 {
      _ = world.process.clearYoung(world.addresses(region), on: &cpu)
      worker.counts[DirtyStress.Operation.age.rawValue] += 1
    } else {
      let result = world.process.migrate(world.addresses(region), on: &cpu)
      worker.counts[DirtyStress.Operation.migrate.rawValue] += result.moved
    }
  }

  /// Takes the log and copies what it names; returns how many pages.
  private func harvest(on cpu: inout CPU) throws(KernelErrno) -> Int {
    if log == .ring { return try harvestRings(on: &cpu) }
    var failure: KernelErrno?
    bits.withUnsafeMutableBufferPointer { words in
      do throws(KernelErrno) {
        try world.vm.getDirtyLog(slot: 1, into: words, on: &cpu)
      } catch { failure = error }
    }
    if let failure { throw failure }
    if log != .bitmap, bits.contains(where: { $0 != 0 }) {
      // Cleared before the copy: what is written from now on shows again.
      try world.vm.clearDirtyLog(
        DirtyLogRange(slot: 1, firstPage: 0, pageCount: UInt32(world.pageCount)), bits: bits,
        on: &cpu)
    }
    var pages = 0
    for (index, word) in bits.enumerated() where word != 0 {
      var left = word
      while left != 0 {
        try copyPage(index * 64 + left.trailingZeroBitCount, on: &cpu)
        left &= left - 1
        pages += 1
      }
    }
    return pages
  }

  private func harvestRings(on cpu: inout CPU) throws(KernelErrno) -> Int {
    try takeRings(on: &cpu)
    let pages = pending
    pending.removeAll(keepingCapacity: true)
    for page in pages { try copyPage(page, on: &cpu) }
    return pages.count
  }

  /// What all rings hold becomes pending, and protected again. The reader has a ring too: its read
  /// faults map pages for writing where they may be written, and that is what a ring notes.
  private func takeRings(on cpu: inout CPU) throws(KernelErrno) {
    let seats = [GuestCrew.Seat(vcpu: reader)] + crew.vcpus
    var isEmpty = true
    for seat in seats {
      guard let ring = seat.vcpu.ring else { continue }
      for entry in ring.harvest(next: &nextEntries[ObjectIdentifier(seat.vcpu), default: 0]) {
        pending.insert(Int(entry.offset))
        isEmpty = false
      }
    }
    if !isEmpty { _ = try world.vm.resetDirtyRings(seats.map(\.vcpu), on: &cpu) }
    // What was dead before its ring was taken puts nothing more into it.
    for seat in seats where seat.isDead {
      nextEntries[ObjectIdentifier(seat.vcpu)] = nil
      crew.forget(seat.vcpu)
    }
  }

  private func copyPage(_ page: Int, on cpu: inout CPU) throws(KernelErrno) {
    for word in 0..<wordsPerPage {
      copy[page * wordsPerPage + word] = try read(page, word, on: &cpu)
    }
  }

  /// A word as the guest sees it. Throws what the access failed with at last: an allocation may fail on
  /// purpose under a read, and the next try has another chance.
  private func read(_ page: Int, _ word: Int, on cpu: inout CPU) throws(KernelErrno) -> UInt64 {
    let address = world.guestAddress(page, place: 1) + UInt64(word * 8)
    var failure = KernelErrno.efault
    for _ in 0..<1000 {
      if let value = reader.loadUInt64(at: address) { return value }
      switch reader.read(address, byteCount: 8, on: &cpu) {
      case .done(let value): return value
      case .dirtyRingFull: try takeRings(on: &cpu)
      case .failed(let errno, _): failure = errno
      case .mmio, .interrupted: throw .efault
      }
    }
    throw failure
  }

  /// The last copy, with the guests at rest, and the comparison.
  func finish(on cpu: inout CPU) -> [String] {
    reader.bind()
    defer { reader.unbind() }
    // Reading needs memory: no more failures on purpose.
    cpu.failPageAlloc = nil
    do throws(KernelErrno) {
      while try harvest(on: &cpu) > 0 {}
    } catch { return ["\(log): the log could not be read: \(error)"] }
    for page in 0..<world.pageCount {
      for word in 0..<wordsPerPage {
        let value: UInt64
        do throws(KernelErrno) { value = try read(page, word, on: &cpu) } catch {
          return ["page \(page) cannot be read at the end: \(error)"]
        }
        let copied = copy[page * wordsPerPage + word]
        if value != copied {
          return [
            "page \(page), word \(word): the copy has 0x\(String(copied, radix: 16)), the guest "
              + "0x\(String(value, radix: 16)): a write was lost by the log (\(log))"
          ]
        }
      }
    }
    return []
  }
}
