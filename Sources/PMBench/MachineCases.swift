internal import CPhysmemLimits
internal import Foundation
internal import PMFrames
internal import PMPageAllocator
internal import PMReplay
internal import PMUnits

/// Why a case could not run.
struct BenchmarkUnavailable: Error, CustomStringConvertible {
  var description: String
}

extension BenchmarkCase {
  /// Traces that `replay.ops` performs: those named by the environment variable PHYSMEM_TRACES
  /// (separated by colons), else those of this project and beside it.
  private static func traces() throws -> [String] {
    if let named = ProcessInfo.processInfo.environment["PHYSMEM_TRACES"] {
      return named.split(separator: ":").map(String.init)
    }
    for folder in ["../shared/oracle/traces", "Tests/PMReplayTests/Fixtures"] {
      let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
      let traces = names.filter { $0.hasSuffix(".trace.gz") }.sorted()
      if !traces.isEmpty { return traces.map { "\(folder)/\($0)" } }
    }
    throw BenchmarkUnavailable(
      description:
        "no trace found: run in the project's folder, or name traces in PHYSMEM_TRACES=A:B")
  }

  /// Resident bytes of this process.
  private static func residentBytes() -> Int {
    guard let text = try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8),
      let pages = text.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
    else { return 0 }
    return pages * 4096
  }

  static func machineCases(_ machine: BenchmarkMachines) -> [BenchmarkCase] {
    [
      BenchmarkCase(
        "replay.ops", "operations of real-kernel traces per second", unit: "Mops/s",
        bar: .atLeast(3), goal: .atLeast(10)
      ) {
        let files = try traces()
        return .figure {
          var options = TraceReplayer.Options()
          options.passes = 3
          options.refcountLayout = machine.refcountLayout
          var operations = 0
          var seconds = 0.0
          for file in files {
            let report = try TraceReplayer.replay(file, options: options)
            guard report.mismatches == 0 else {
              throw BenchmarkUnavailable(description: "\(file): \(report.mismatches) mismatches")
            }
            operations += report.operations
            seconds += report.seconds
          }
          return (Double(operations) / seconds / 1e6, nil)
        }
      },
      BenchmarkCase(
        "machine.create.1t", "a machine of 1 TiB created, beside reserving 1 TiB", unit: "us",
        bar: .atMost(1000), goal: .atMost(50)
      ) {
        .figure {
          var made: Machine?
          let seconds = Stopwatch.seconds { made = try? machine(.tib(1)) }
          guard made != nil else {
            throw BenchmarkUnavailable(description: "1 TiB of address space is not to be had")
          }
          var status: Int32 = 0
          let reserve = Stopwatch.seconds { status = pm_limit_reserve(1 << 40) }
          guard status == 0 else {
            throw BenchmarkUnavailable(description: "1 TiB of address space is not to be had")
          }
          return (seconds * 1e6, reserve * 1e6)
        }
      },
      BenchmarkCase(
        "machine.create.1t.resident", "memory that creating a machine of 1 TiB makes resident",
        unit: "KiB", bar: .atMost(1024), goal: .atMost(64)
      ) {
        .figure {
          let before = residentBytes()
          let machine = try machine(.tib(1))
          let grown = residentBytes() - before
          return withExtendedLifetime(machine) { (Double(grown) / 1024, nil) }
        }
      },
      BenchmarkCase(
        "machine.metadata", "address space for metadata per frame of a 1 TiB machine", unit: "B",
        bar: .atMost(16), goal: .atMost(8.5)
      ) {
        .figure {
          let machine = try machine(.tib(1))
          return (Double(machine.metadataByteCount) / Double(machine.frames.frameCount), nil)
        }
      },
    ]
  }
}
