internal import CPhysmemLimits
internal import PMArena
internal import PMGuestMap
internal import PMUnits

extension BenchmarkCase {
  /// 1 GiB of guest frames, whose tables fit the second-level cache.
  private static let frames = 262_144
  private static let range = GFN(0)..<GFN(UInt64(frames))

  static var stage2Cases: [BenchmarkCase] {
    [
      BenchmarkCase(
        "stage2.map", "stage-2 install in order, tables included", bar: .ratio(1.3), goal: .ratio(1)
      ) { try stage2Map() },
      BenchmarkCase("stage2.unmap", "stage-2 zap in order", bar: .ratio(1.3), goal: .ratio(1)) {
        try stage2Unmap()
      },
      BenchmarkCase("stage2.lookup", "stage-2 walk in order", bar: .ratio(1.3), goal: .ratio(1)) {
        try stage2Lookup()
      },
      BenchmarkCase(
        "stage2.range", "stage-2 install of 1 GiB in one call, per page", bar: .ratio(1.3),
        goal: .ratio(1)
      ) { try stage2Range() },
    ]
  }

  /// The C table, which lives as long as the workloads that use it.
  private final class Radix {
    let pointer: OpaquePointer
    init() throws(BenchmarkFailure) {
      guard let pointer = pm_limit_radix_create(600) else { throw BenchmarkFailure.noMemory }
      self.pointer = pointer
    }
    deinit { pm_limit_radix_destroy(pointer) }
  }

  private enum BenchmarkFailure: Error, CustomStringConvertible {
    case noMemory
    var description: String { "no memory for the C table" }
  }

  private static func fill(_ table: Stage2Table) {
    pm_limit_keep(UInt64(table.mapRange(GFN(0), PFN(0x1000), count: frames, .readWrite)))
  }

  private static func empty(_ table: Stage2Table) {
    table.zapAll()
    table.reclaimDetachedTables()
  }

  private static func stage2Map() throws -> Subject {
    let table = try Stage2Table()
    let radix = try Radix()
    let subject = Workload(
      operations: frames, after: { empty(table) },
      run: {
        var cursor = Stage2Cursor()
        var failures = 0
        for index in 0..<frames {
          let pfn = PFN(UInt32(truncatingIfNeeded: 0x1000 &+ index))
          let result = table.map(GFN(UInt64(index)), pfn, .readWrite, &cursor)
          if result != .installed { failures += 1 }
        }
        pm_limit_keep(UInt64(failures))
      })
    let limit = Workload(
      operations: frames, after: { pm_limit_radix_reset(radix.pointer) },
      run: { pm_limit_keep(UInt64(pm_limit_radix_map(radix.pointer, 0, 0x1000, frames))) })
    return .single(subject, limit: limit)
  }

  private static func stage2Unmap() throws -> Subject {
    let table = try Stage2Table()
    let radix = try Radix()
    let subject = Workload(
      operations: frames, before: { fill(table) },
      run: {
        var cursor = Stage2Cursor()
        var dropped = 0
        for index in 0..<frames where table.unmap(GFN(UInt64(index)), &cursor) != nil {
          dropped += 1
        }
        pm_limit_keep(UInt64(dropped))
      })
    let limit = Workload(
      operations: frames,
      before: {
        pm_limit_radix_reset(radix.pointer)
        pm_limit_keep(UInt64(pm_limit_radix_range(radix.pointer, 0, 0x1000, frames)))
      },
      run: { pm_limit_keep(UInt64(pm_limit_radix_unmap(radix.pointer, 0, frames))) })
    return .single(subject, limit: limit)
  }

  private static func stage2Lookup() throws -> Subject {
    let table = try Stage2Table()
    let radix = try Radix()
    fill(table)
    pm_limit_keep(UInt64(pm_limit_radix_range(radix.pointer, 0, 0x1000, frames)))
    let subject = Workload(operations: frames) {
      var sum: UInt64 = 0
      for index in 0..<frames {
        if let (spte, _) = table.lookup(GFN(UInt64(index))) { sum &+= spte.rawValue }
      }
      pm_limit_keep(sum)
    }
    let limit = Workload(operations: frames) {
      pm_limit_keep(pm_limit_radix_lookup(radix.pointer, 0, frames))
    }
    return .single(subject, limit: limit)
  }

  private static func stage2Range() throws -> Subject {
    let table = try Stage2Table()
    let radix = try Radix()
    let subject = Workload(
      operations: frames, after: { empty(table) },
      run: { pm_limit_keep(UInt64(table.mapRange(GFN(0), PFN(0x1000), count: frames, .readWrite))) }
    )
    let limit = Workload(
      operations: frames, after: { pm_limit_radix_reset(radix.pointer) },
      run: { pm_limit_keep(UInt64(pm_limit_radix_range(radix.pointer, 0, 0x1000, frames))) })
    return .single(subject, limit: limit)
  }
}
