internal import CPhysmemLimits
internal import PMArena
internal import PMGuestMemory
internal import PMUnits

extension BenchmarkCase {
  /// The memory of an emulator: words of 8 bytes loaded and stored at random, and addresses translated. Bars
  /// and goals are those of guest reads, see `guestCases(_:)`; with 512 regions what vm-memory takes for
  /// looking the region up alone is the bar, and the guest reads' bar is the goal.
  static var guestMemoryCases: [BenchmarkCase] {
    [(1, 5.0, 1.4), (8, 10.0, 4.6), (512, 15.0, 10.0)].flatMap { regions, most, goal in
      let goal = Bar.atMost(goal)
      return [
        BenchmarkCase(
          "guest.load.\(regions)", "loads of 8 bytes by guest address, \(regions) regions",
          bar: .atMost(most), goal: goal
        ) { try EmulatorMemory(regions: regions).loads() },
        BenchmarkCase(
          "guest.store.\(regions)", "stores of 8 bytes by guest address, \(regions) regions",
          bar: .atMost(most), goal: goal
        ) { try EmulatorMemory(regions: regions).stores() },
        BenchmarkCase(
          "guest.translate.\(regions)", "guest addresses to host addresses, \(regions) regions",
          bar: .atMost(most), goal: goal
        ) { try EmulatorMemory(regions: regions).translations() },
      ]
    }
  }
}

/// 256 KiB of guest memory in regions that are 16 MiB of guest addresses apart, and addresses in it at random:
/// it stays in a processor's second cache, so that what is timed is the way to it.
private struct EmulatorMemory {
  private static let byteCount = 256 << 10
  private static let accesses = 1 << 16

  private let memory = GuestMemory()
  private let addresses: [GPA]
  /// The same places as offsets into `plain`, for the limits.
  private let offsets: [UInt32]
  private let plain: UnsafeMutableRawPointer

  init(regions count: Int) throws {
    let share = EmulatorMemory.byteCount / count
    for index in 0..<count {
      try memory.add(
        .ram(at: GPA(UInt64(index) << 24), byteCount: ByteCount(UInt64(max(share, 4096)))))
    }
    var random = SplitMix64(seed: 11)
    offsets = (0..<EmulatorMemory.accesses).map { _ in
      UInt32(truncatingIfNeeded: random.next() % UInt64(EmulatorMemory.byteCount)) & ~7
    }
    // Of a region of which less than a page is used, another part each: the same part of every page would
    // crowd into few sets of the caches.
    addresses = offsets.map { offset in
      let (region, rest) = Int(offset).quotientAndRemainder(dividingBy: share)
      return GPA(UInt64(region) << 24 + UInt64(share < 4096 ? Int(offset) & 4095 : rest))
    }
    // All of it was touched before anything is timed, as the regions are by the first round.
    let memory = memory
    for address in addresses { try memory.store(UInt64(1), at: address) }
    plain = .allocate(byteCount: EmulatorMemory.byteCount, alignment: 4096)
    plain.initializeMemory(as: UInt8.self, repeating: 1, count: EmulatorMemory.byteCount)
  }

  func loads() -> Subject {
    let (memory, addresses) = (memory, addresses)
    let subject = Workload(operations: addresses.count) {
      var sum: UInt64 = 0
      for address in addresses {
        if let value = try? memory.load(UInt64.self, at: address) { sum &+= value }
      }
      pm_limit_keep(sum)
    }
    let (plain, offsets) = (plain, offsets)
    let limit = Workload(operations: offsets.count) {
      offsets.withUnsafeBufferPointer { offsets in
        guard let first = offsets.baseAddress else { return }
        pm_limit_keep(pm_limit_loads(plain, first, offsets.count))
      }
    }
    return .single(subject, limit: limit)
  }

  func stores() -> Subject {
    let (memory, addresses) = (memory, addresses)
    let subject = Workload(operations: addresses.count) {
      var refused: UInt64 = 0
      for address in addresses {
        do { try memory.store(UInt64(7), at: address) } catch { refused &+= 1 }
      }
      pm_limit_keep(refused)
    }
    let (plain, offsets) = (plain, offsets)
    let limit = Workload(operations: offsets.count) {
      offsets.withUnsafeBufferPointer { offsets in
        guard let first = offsets.baseAddress else { return }
        pm_limit_stores(plain, first, offsets.count)
      }
    }
    return .single(subject, limit: limit)
  }

  /// The limit is a bisection of the regions' first addresses in C, and nothing else.
  func translations() -> Subject {
    let (memory, addresses) = (memory, addresses)
    let subject = Workload(operations: addresses.count) {
      var sum: UInt = 0
      for address in addresses {
        if let host = try? memory.hostAddress(
          of: GuestRange(start: address, byteCount: 8), writing: false)
        {
          sum &+= UInt(bitPattern: host)
        }
      }
      pm_limit_keep(UInt64(sum))
    }
    let starts = memory.regions.map(\.range.start.rawValue)
    let raw = addresses.map(\.rawValue)
    let limit = Workload(operations: raw.count) {
      pm_limit_keep(pm_limit_bisect(starts, starts.count, raw, raw.count))
    }
    return .single(subject, limit: limit)
  }
}
