internal import PMGuestMap
internal import PMRealGuest
internal import PMUnits
internal import Synchronization

/// Stress of dirty logs: a live migration of a real guest. Pages that the log names are copied while the
/// guest writes; when it has stopped and the last pages were copied, the copy must be equal to its memory.
enum RealDirtyStress {
  enum Operation: Int, CaseIterable {
    case bitmapHarvest, manualHarvest, ringHarvest, copiedPage, ringReset, migrate, zap, refused
  }

  static let ringByteCount = 16384
  private static let manualProtectCapability: UInt32 = 168
  private static let ringCapability: UInt32 = 223
  private static let ringOrder: [DirtyStress.Log] = [.ring, .bitmap, .manual, .manualInitiallySet]

  static func run(
    _ plan: StressPlan, _ control: StressControl, _ mistake: RealStress.Mistake?
  ) throws -> StressOutcome {
    let log = try chooseLog(plan)
    let world = try RealWorld(
      plan, mistake, ringByteCount: log == .ring ? ringByteCount : 0)
    if log == .manual || log == .manualInitiallySet {
      let errno = world.vm.enableCapability(
        manualProtectCapability, arguments: [log == .manual ? 1 : 3])
      guard errno == 0 else {
        throw RealGuestError.host(operation: "manual dirty log protection", errno: errno)
      }
    }
    let migration = try RealMigration(world, log, mistake)
    try migration.setSlot(logs: false)
    return try RealCrew(world, plan.begun(), control).run(
      operations: Operation.allCases.map { "\($0)" }, mutate: { try migration.step(&$0) },
      finish: { try migration.finish() })
  }

  /// The kind of log of a round: the seed's, or bitmaps where the kernel does not offer that.
  private static func chooseLog(_ plan: StressPlan) throws -> DirtyStress.Log {
    let wanted = ringOrder[Int(plan.seed % 4)]
    let probe = try RealVM(RealVM.Configuration(hasGuest: false))
    let manual = try probe.checkExtension(manualProtectCapability)
    let isOffered =
      switch wanted {
      case .bitmap: true
      case .manual: manual & 1 != 0
      case .manualInitiallySet: manual & 2 != 0
      case .ring: try probe.checkExtension(ringCapability) >= ringByteCount
      }
    return isOffered ? wanted : .bitmap
  }
}

/// The side that copies.
private final class RealMigration: @unchecked Sendable {
  // Sendable: one thread at a time uses it: the one that sets up, then the one that copies, then, after
  // that has ended, the one that compares.

  private let world: RealWorld
  private let log: DirtyStress.Log
  private let mistake: RealStress.Mistake?
  private let copy: PrivateRange
  private var hasBegun = false

  init(_ world: RealWorld, _ log: DirtyStress.Log, _ mistake: RealStress.Mistake?) throws {
    self.world = world
    self.log = log
    self.mistake = mistake
    copy = try PrivateRange(byteCount: Int(world.shape.byteCount))
    try copy.map(pages: 0..<world.shape.pageCount)
  }

  func setSlot(logs: Bool) throws {
    let errno = world.setSlot(
      RealWorld.firstSlot, regions: 0..<world.shape.regionCount, place: 1,
      flags: logs ? .logDirtyPages : [])
    guard errno == 0 else {
      throw RealGuestError.host(operation: "the slot, logging \(logs)", errno: errno)
    }
  }

  func step(_ worker: inout StressWorker) throws {
    if !hasBegun { return try begin(&worker) }
    let count = try harvest()
    let operation: RealDirtyStress.Operation =
      switch log {
      case .bitmap: .bitmapHarvest
      case .manual, .manualInitiallySet: .manualHarvest
      case .ring: .ringHarvest
      }
    worker.counts[operation.rawValue] += 1
    worker.counts[RealDirtyStress.Operation.copiedPage.rawValue] += count
    if log == .ring, count > 0 {
      worker.counts[RealDirtyStress.Operation.ringReset.rawValue] += 1
    }
    try disturb(&worker)
  }

  /// The log begins on a running guest, and all pages are copied once.
  private func begin(_ worker: inout StressWorker) throws {
    try setSlot(logs: true)
    for page in 0..<world.shape.pageCount { copyPage(page) }
    hasBegun = true
    worker.counts[RealDirtyStress.Operation.copiedPage.rawValue] += world.shape.pageCount
  }

  /// What the host does to the memory beside: the guest does not notice, and the log must not.
  private func disturb(_ worker: inout StressWorker) throws {
    let region = worker.random.below(world.shape.regionCount)
    world.busyRegion.store(region, ordering: .relaxed)
    if world.memory.canZap, worker.random.next() & 3 == 0 {
      try world.memory.zap(region: region)
      worker.counts[RealDirtyStress.Operation.zap.rawValue] += 1
      return
    }
    let chunks = world.shape.chunks(ofRegion: region)
    var isMoved = false
    try world.change(region) { _ in
      isMoved = try world.memory.migrate(
        chunk: chunks.lowerBound + worker.random.below(chunks.count))
    }
    let operation: RealDirtyStress.Operation = isMoved ? .migrate : .refused
    worker.counts[operation.rawValue] += 1
  }

  // MARK: harvesting

  /// Takes the log and copies what it names; returns how many pages.
  private func harvest() throws -> Int {
    if log == .ring { return try harvestRings() }
    let pageCount = world.shape.pageCount
    let found = world.vm.dirtyLog(slot: RealWorld.firstSlot, pageCount: pageCount)
    guard found.errno == 0 else {
      throw RealGuestError.host(operation: "KVM_GET_DIRTY_LOG (\(log))", errno: found.errno)
    }
    if log != .bitmap, found.bitmap.contains(where: { $0 != 0 }) {
      // Cleared before the copy: what is written from now on shows again.
      let errno = world.vm.clearDirtyLog(
        slot: RealWorld.firstSlot, firstPage: 0, pageCount: UInt32(pageCount),
        bitmap: found.bitmap)
      guard errno == 0 else {
        throw RealGuestError.host(operation: "KVM_CLEAR_DIRTY_LOG (\(log))", errno: errno)
      }
    }
    var count = 0
    for (index, word) in found.bitmap.enumerated() where word != 0 {
      var left = word
      while left != 0 {
        copyNamed(index * 64 + left.trailingZeroBitCount)
        left &= left - 1
        count += 1
      }
    }
    return count
  }

  private func harvestRings() throws -> Int {
    world.isRingFull.store(false, ordering: .relaxed)
    var pages: Set<Int> = []
    for vcpu in 0..<world.shape.vcpus {
      for page in world.vm.harvestDirtyRing(vcpu: vcpu) where page.slot == RealWorld.firstSlot {
        pages.insert(Int(page.page))
      }
    }
    if pages.isEmpty { return 0 }
    let reset = world.vm.resetDirtyRings()
    guard reset.errno == 0 else {
      throw RealGuestError.host(operation: "KVM_RESET_DIRTY_RINGS", errno: reset.errno)
    }
    for page in pages { copyNamed(page) }
    return pages.count
  }

  private func copyNamed(_ page: Int) {
    if mistake == .forgetsHarvestedPages, page & 1 == 0 { return }
    copyPage(page)
  }

  private func copyPage(_ page: Int) {
    guard let bytes = world.memory.bytes(ofPage: page) else { return }
    (copy.base + page << 12).copyMemory(from: bytes, byteCount: 4096)
  }

  // MARK: the end

  /// The last copy, with the guest at rest, and the comparison.
  func finish() throws -> [String] {
    guard hasBegun else { return [] }
    while try harvest() > 0 {}
    for page in 0..<world.shape.pageCount {
      guard let bytes = world.memory.bytes(ofPage: page) else {
        return ["page \(page) cannot be read at the end"]
      }
      for offset in stride(from: 0, to: 4096, by: 8) {
        let value = bytes.load(fromByteOffset: offset, as: UInt64.self)
        let copied = (copy.base + page << 12).load(fromByteOffset: offset, as: UInt64.self)
        if value == copied { continue }
        return [
          "page \(page), byte \(offset): the copy has 0x\(String(copied, radix: 16)), the guest "
            + "0x\(String(value, radix: 16)): a write was lost by the log (\(log))"
        ]
      }
    }
    return []
  }
}
