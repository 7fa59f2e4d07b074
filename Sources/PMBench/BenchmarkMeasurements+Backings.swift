internal import CPhysmemLimits
internal import PMArena
internal import PMUnits

extension BenchmarkMeasurements {
  /// First touch, random reads and release of an arena's memory, per backing, on one pinned thread.
  ///
  /// The names are those of `physmem stress -s`; `anonymous_hugetlb` is left out, being one of the two
  /// sizes. Touched is a word per 4 KiB, in order; how many bytes a fault brings is counted, not assumed:
  /// transparent huge pages may not be there. Reads depend on one another. Released is in ranges of 2 MiB,
  /// or of a page where that is larger.
  mutating func measureBackings(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) {
    let backings: [PMArena.Backing] = [
      .anonymous, .anonymousTHP, .anonymousHugeTLB2MiB, .anonymousHugeTLB1GiB, .shmem,
      .sharedHugeTLB,
    ]
    for backing in backings {
      progress("backings: \(backing.rawValue)")
      let page = backing.pageSize.rawValue
      let byteCount = (options.workedByteCount + page - 1) / page * page
      do {
        let bench = try BackingBench(backing, byteCount, rounds: options.quick ? 1 : 5)
        self.backings.append(try crew.alone { try bench.run() })
      } catch {
        skip("backings.\(backing.rawValue)", "\(error)")
      }
    }
  }
}

/// What memory of one backing costs.
private struct BackingBench: Sendable {
  private let backing: PMArena.Backing
  private let byteCount: UInt64
  private let rounds: Int

  /// Throws where this host cannot give such memory.
  init(_ backing: PMArena.Backing, _ byteCount: UInt64, rounds: Int) throws {
    self.backing = backing
    self.byteCount = byteCount
    self.rounds = rounds
    if backing == .anonymousTHP {
      let setting = try Host.transparentHugePages().anonymous
      guard let setting, setting != "never" else {
        throw BenchmarkUnavailable(
          description: "transparent huge pages are \(setting ?? "not in this kernel"): "
            + "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
      }
    }
    // Beyond what it has the kernel does not refuse ordinary memory: it ends processes.
    if !backing.isHuge, let available = try Host.availableMemory(),
      available.rawValue / 2 < byteCount
    {
      throw BenchmarkUnavailable(
        description: "\(ByteCount(byteCount)) with \(available) available, of which half is let "
          + "alone: give the benchmark less memory")
    }
  }

  func run() throws -> BenchmarkMeasurements.Backing {
    let arena = try Arena(
      ArenaConfiguration(byteCount: ByteCount(byteCount), backing: backing))
    let pages = Double(byteCount / 4096)
    var faults: [Double] = []
    var reads: [Double] = []
    var releases: [Double] = []
    var faultBytes: [Double] = []
    for round in 0..<rounds {
      var count = 0
      let touched = Stopwatch.seconds { count = pm_limit_touch(arena.base, Int(byteCount)) }
      faults.append(touched * 1e9 / pages)
      faultBytes.append(Double(byteCount) / Double(max(count, 1)))
      let loads = 1 << 18
      let read = Stopwatch.seconds {
        pm_limit_keep(pm_limit_chase(arena.base, Int(byteCount), UInt64(round) + 1, loads))
      }
      reads.append(read * 1e9 / Double(loads))
      let step = max(2 << 20, backing.pageSize.rawValue)
      let released = try Stopwatch.seconds {
        for start in stride(from: 0, to: byteCount, by: Int(step)) {
          try arena.discard(start..<min(start + step, byteCount))
        }
      }
      releases.append(released * 1e9 / pages)
    }
    return BenchmarkMeasurements.Backing(
      backing: backing.rawValue, byteCount: byteCount, faultNanoseconds: faults.median,
      pageByteCount: max(1, UInt64((faultBytes.median / 4096).rounded())) * 4096,
      randomReadNanoseconds: reads.median, releaseNanoseconds: releases.median)
  }
}
