import PMUnits
import Testing

@testable import PMPageAllocator

/// The limits that a kernel computes from its memory (specification 1.6, 1.8, 1.9), against the
/// specification's numbers and against zones of real kernels.
@Suite struct WatermarkTests {
  /// A zone at the start of a trace of a real kernel with one CPU.
  struct TracedZone {
    var managed: UInt64
    var low: UInt64
    var batch: Int32
    var threshold: Int32?
    /// MIN, LOW, HIGH.
    var marks: [UInt64]
  }

  static let traced = [
    TracedZone(managed: 3840, low: 27, batch: 1, threshold: 2, marks: [22, 27, 32]),
    TracedZone(managed: 112_762, low: 816, batch: 31, threshold: 6, marks: [653, 816, 979]),
    TracedZone(managed: 48_346, low: 513, batch: 15, threshold: 4, marks: [411, 513, 615]),
    TracedZone(managed: 3840, low: 65, batch: 1, threshold: 2, marks: [52, 65, 78]),
    TracedZone(
      managed: 754_605, low: 12966, batch: 63, threshold: 12, marks: [10373, 12966, 15559]),
    TracedZone(managed: 469_194, low: 8086, batch: 63, threshold: 10, marks: [6469, 8086, 9703]),
    TracedZone(managed: 59_743, low: 426, batch: 15, threshold: 4, marks: [341, 426, 511]),
    TracedZone(managed: 53_167, low: 390, batch: 15, threshold: 4, marks: [312, 390, 468]),
    TracedZone(managed: 7946, low: 143, batch: 1, threshold: 2, marks: [115, 143, 171]),
    // The kernel computed this zone's threshold when it had fewer pages.
    TracedZone(managed: 33_709, low: 250, batch: 7, threshold: nil, marks: [200, 250, 300]),
    TracedZone(managed: 62_476, low: 498, batch: 15, threshold: 4, marks: [399, 498, 597]),
  ]

  @Test(arguments: traced.indices)
  func `Batch, high and threshold are those of a real kernel's zones`(_ index: Int) {
    let zone = WatermarkTests.traced[index]
    #expect(Watermarks.batch(managed: zone.managed) == zone.batch)
    #expect(
      Watermarks.high(low: zone.low, managed: zone.managed, fraction: 0, cpus: 1, batch: zone.batch)
        == Int32(zone.low))
    if let threshold = zone.threshold {
      #expect(Watermarks.statThreshold(managed: zone.managed, cpus: 1) == threshold)
    }
    // The steps between the marks are a quarter of MIN in all of these zones.
    let least = zone.marks[0]
    #expect(zone.marks == [least, least + least / 4, least + 2 * (least / 4)])
    let marks = Watermarks.marks(
      managed: zone.managed, lowmem: zone.managed, minFreeKiB: least * 4, scaleFactor: 10)
    #expect(
      [marks.min, marks.low, marks.high] == [
        least, least + max(least / 4, gap(zone.managed)),
        least + 2 * max(least / 4, gap(zone.managed)),
      ])
  }

  private func gap(_ managed: UInt64) -> UInt64 {
    managed / 10000 * 10 + managed % 10000 * 10 / 10000
  }

  @Test(arguments: [
    (UInt64(262_144), Int32(63)), (1 << 31, 63), (131_072, 31), (65_536, 15), (3900, 1), (0, 1),
  ])
  func `The batch follows the size of the zone`(_ managed: UInt64, _ batch: Int32) {
    #expect(Watermarks.batch(managed: managed) == batch)
  }

  @Test func `min_free_kbytes is a square root within limits, raised for huge pages`() {
    #expect(Watermarks.minFreeKiB(buffer: 0) == 128)
    #expect(Watermarks.minFreeKiB(buffer: 1 << 40) == 262_144)
    // The integer square root of 16 times the KiB.
    #expect(Watermarks.minFreeKiB(buffer: 262_144) == 4096)
    #expect(Watermarks.minFreeKiB(buffer: 262_143) == 4095)
    #expect(Watermarks.recommendedMinFreeKiB(populatedZones: 3, buffer: 1 << 20) == 67_584)
    #expect(Watermarks.recommendedMinFreeKiB(populatedZones: 3, buffer: 20_000) == 4000)
  }

  @Test func `high follows the fraction, the CPUs of the node and four batches`() {
    #expect(Watermarks.high(low: 816, managed: 112_762, fraction: 0, cpus: 2, batch: 31) == 408)
    #expect(Watermarks.high(low: 816, managed: 112_762, fraction: 8, cpus: 1, batch: 31) == 14095)
    #expect(Watermarks.high(low: 27, managed: 3840, fraction: 0, cpus: 64, batch: 1) == 4)
    #expect(Watermarks.high(low: 100, managed: 9999, fraction: 0, cpus: 0, batch: 1) == 100)
  }

  @Test func `The threshold grows with CPUs and memory up to 125`() {
    #expect(Watermarks.statThreshold(managed: 3840, cpus: 1) == 2)
    #expect(Watermarks.statThreshold(managed: 3840, cpus: 8) == 8)
    #expect(Watermarks.statThreshold(managed: 1 << 30, cpus: 8192) == 125)
  }

  @Test func `Lower zones keep a reserve against requests that could go higher`() {
    let managed: [UInt64] = [3840, 110_336, 62_464, 0, 0]
    let ratios: [UInt64] = [256, 256, 32, 0]
    #expect(
      Watermarks.lowmemReserve(zone: 0, managed: managed, ratios: ratios) == [
        0, 431, 675, 675, 675,
      ])
    #expect(
      Watermarks.lowmemReserve(zone: 1, managed: managed, ratios: ratios) == [0, 0, 244, 244, 244])
    #expect(
      Watermarks.lowmemReserve(zone: 2, managed: managed, ratios: ratios) == [0, 0, 0, 0, 0])
    #expect(
      Watermarks.lowmemReserve(zone: 1, managed: [0, 0, 99, 0, 0], ratios: ratios)
        == [0, 0, 0, 0, 0])
    #expect(
      Watermarks.lowmemReserve(zone: 0, managed: managed, ratios: [0, 0, 0, 0]) == [0, 0, 0, 0, 0])
  }

  @Test func `A machine of three zones with huge pages has 67584 KiB of MIN marks`() throws {
    var description = MachineDescription(memory: .mib(5000))
    description.lowMemoryEnd = .gib(3)
    let state = try Machine(description).state(withMaps: false)
    #expect(state.zones.map(\.id.kind) == [.dma, .dma32, .normal])
    let sum = state.zones.reduce(0) { $0 + $1.watermarks[0] }
    // Each zone's share is rounded down.
    #expect((67_584 / 4 - 2...67_584 / 4).contains(sum))
    #expect(state.zones.map(\.pagesetBatch) == [1, 63, 63])
    for zone in state.zones {
      #expect(Int64(zone.pagesetHigh) == zone.watermarks[1])
      #expect(zone.pagesets.map(\.high) == [zone.pagesetHigh])
    }
  }

  @Test func `A small machine keeps the square root`() throws {
    let state = try Machine(MachineDescription(memory: .mib(256))).state(withMaps: false)
    let managed = state.zones.reduce(0) { $0 + $1.managed }
    let pages = Int64(Watermarks.minFreeKiB(buffer: managed) / 4)
    let sum = state.zones.reduce(0) { $0 + $1.watermarks[0] }
    #expect((pages - 1...pages).contains(sum))
  }
}
