import Foundation
import PMArena
import PMUnits
import Testing

@testable import PMBench

private typealias Measurements = BenchmarkMeasurements

/// The smallest run there is.
private func look(_ groups: [Measurements.Group]) -> Measurements {
  let options = Measurements.Options(
    seconds: 0.002, quick: true, maximumThreads: 2, memory: .mib(64))
  return Measurements.run(groups: groups, options: options)
}

/// One thread, and two where there are as many CPUs.
private let threadCounts = (try? Host.allowedCPUs().count) ?? 1 > 1 ? [1, 2] : [1]

/// Values are compared with each other, never with a time.
@Suite(.serialized) struct MeasurementTests {
  @Test func `The contention sweep has a point for each layout, number of pages and of threads`() {
    let measured = look([.contention])
    #expect(measured.skipped.isEmpty)
    let points = measured.contention
    #expect(points.count == 2 * 4 * threadCounts.count)
    #expect(Set(points.map { [$0.layout, "\($0.pages)", "\($0.threads)"] }).count == points.count)
    #expect(Set(points.map(\.layout)) == ["packed", "strided"])
    #expect(Set(points.map(\.pages)) == [1, 8, 64, 4096])
    for point in points {
      #expect(point.nanoseconds > 0 && point.limitNanoseconds > 0)
      let rate = 1e9 * Double(point.threads) / point.nanoseconds
      #expect(abs(rate / point.pairsPerSecond - 1) < 1e-6)
    }
    #expect(measured.latency.isEmpty && measured.kvm.isEmpty)
  }

  @Test func `Percentiles ascend and bins contain every operation`() {
    let measured = look([.latency])
    #expect(measured.skipped.isEmpty)
    #expect(
      measured.latency.map(\.name) == [
        "clock", "refcount.pair", "alloc.pair.o0", "alloc.pair.o9", "stage2.map", "guest.read",
        "notifier.page",
      ])
    for latency in measured.latency {
      #expect(latency.count >= 10_000)
      let values = [
        latency.p50, latency.p90, latency.p99, latency.p999, latency.p9999, latency.max,
      ]
      #expect(values == values.sorted(), "\(latency.name)")
      #expect(latency.mean >= 0 && latency.mean <= Double(latency.max))
      #expect(latency.bins.map(\.count).reduce(0, +) == latency.count)
      #expect(latency.bins.allSatisfy { $0.count > 0 })
      let ends = latency.bins.map(\.upTo)
      #expect(zip(ends, ends.dropFirst()).allSatisfy { $0 < $1 })
      #expect(ends.last ?? 0 >= latency.max)
    }
  }

  @Test func `Every case of the scaling sweep runs with every number of threads`() {
    let measured = look([.scaling])
    let names = [
      "alloc.pair.o0", "alloc.bulk.o0", "alloc.pair.o9", "refcount.own", "refcount.shared",
      "stage2.map",
    ]
    #expect(
      measured.scaling.map { "\($0.name) \($0.threads)" }
        == names.flatMap { name in threadCounts.map { "\(name) \($0)" } }
        + threadCounts.dropFirst().map { "line.transfer \($0)" })
    for point in measured.scaling {
      #expect(point.operationsPerSecond > 0)
      #expect(point.idlePercent >= 0 && point.idlePercent <= 100)
    }
  }

  @Test func `Each allocator runs every benchmark or is skipped with what to install`() {
    let measured = look([.allocators])
    for peer in BufferPeer.allCases {
      let rows = measured.allocators.filter { $0.allocator == peer.rawValue }
      if let skip = measured.skipped.first(where: { $0.name == "allocators.\(peer.rawValue)" }) {
        #expect(peer == .jemalloc || peer == .mimalloc)
        #expect(
          skip.reason.contains("apt-get install") || skip.reason.contains("GLIBC_TUNABLES"))
        continue
      }
      // Three benchmarks, two orders, two repetitions.
      #expect(rows.count == 3 * 2 * 2 * threadCounts.count, "\(peer)")
      for row in rows {
        #expect(row.getMin <= row.getAverage && row.getAverage <= row.getMax)
        #expect(row.putMin <= row.putAverage && row.putAverage <= row.putMax)
        #expect(row.total > 0 && row.allocations > 0 && row.memory == 64 << 20)
        #expect([0, 9].contains(row.order) && [0, 1].contains(row.iteration))
        if row.benchmark != "bulk" { #expect(row.putMax == 0) }
      }
    }
  }

  @Test func `Each backing is measured or skipped with the command that gets its pages`() {
    let measured = look([.backings])
    let names = [
      "anonymous", "anonymous_thp", "anonymous_hugetlb_2mb", "anonymous_hugetlb_1gb", "shmem",
      "shared_hugetlb",
    ]
    let skipped = measured.skipped.map { String($0.name.dropFirst("backings.".count)) }
    #expect((measured.backings.map(\.backing) + skipped).sorted() == names.sorted())
    for backing in measured.backings {
      #expect(backing.faultNanoseconds > 0 && backing.randomReadNanoseconds > 0)
      #expect(backing.releaseNanoseconds > 0)
      #expect(backing.pageByteCount >= 4096 && backing.pageByteCount % 4096 == 0)
      #expect(backing.byteCount >= 16 << 20)
      if backing.backing == "anonymous" { #expect(backing.pageByteCount == 4096) }
    }
    for skip in measured.skipped where skip.name.contains("hugetlb") {
      #expect(skip.reason.contains("nr_hugepages") || skip.reason.contains("mmap"))
    }
  }

  @Test(.aloneWithKVM)
  func `The real KVM is measured beside the model, or skipped with what it takes`() {
    let measured = look([.kvm])
    guard !measured.kvm.isEmpty else {
      #expect(measured.skipped.first?.reason.contains("/dev/kvm") == true)
      return
    }
    #expect(
      measured.kvm.map(\.name) == [
        "kvm.slot.add", "kvm.slot.delete", "kvm.fault", "kvm.dirty.clean", "kvm.dirty.full",
      ])
    for cost in measured.kvm {
      #expect(cost.value >= 0 && cost.model ?? -1 >= 0)
      #expect(cost.unit == (cost.name == "kvm.fault" ? "ns" : "us"))
      #expect(cost.byteCount == 16 << 20)
    }
  }

  @Test func `Progress is told before each point, and no group means no work`() {
    var told: [String] = []
    let options = Measurements.Options(seconds: 0.001, quick: true, maximumThreads: 1)
    let measured = Measurements.run(groups: [.scaling], options: options) { told.append($0) }
    #expect(told.count == measured.scaling.count)
    #expect(Measurements.run(groups: [], options: options) == Measurements())
  }

  @Test func `Options out of range are named`() {
    #expect(Measurements.Options().problem == nil)
    #expect(Measurements.Options(quick: true).problem == nil)
    #expect(Measurements.Options(seconds: 0).problem?.contains("0.0 seconds") == true)
    #expect(Measurements.Options(maximumThreads: 0).problem?.contains("threads") == true)
    #expect(Measurements.Options(memory: .mib(33)).problem?.contains("33MiB") == true)
    #expect(Measurements.Options(memory: .mib(30)).problem?.contains("32 MiB") == true)
  }

  // A process of its own: other tests make machines at the same time.
  @Test func `A run gives all machines, guests and threads back`() async {
    await #expect(processExitsWith: .success) {
      let groups = BenchmarkMeasurements.Group.allCases
      let options = BenchmarkMeasurements.Options(
        seconds: 0.001, quick: true, maximumThreads: 2, memory: .mib(64))
      // What is made once and kept (libraries, the try of a guest) is there after the first run.
      _ = BenchmarkMeasurements.run(groups: [.allocators, .kvm], options: options)
      let before = openFiles()
      _ = BenchmarkMeasurements.run(groups: groups, options: options)
      let after = openFiles()
      guard before == after else { throw Leak(description: "\(before) before, \(after) after") }
    }
  }
}

private struct Leak: Error, CustomStringConvertible {
  var description: String
}

/// Mappings of arenas and descriptors of this process.
private func openFiles() -> [Int] {
  let maps = (try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8)) ?? ""
  let arenas = maps.split(separator: "\n").filter { $0.contains("memfd:physmem") }
  let descriptors = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
  return [arenas.count, descriptors.count]
}
