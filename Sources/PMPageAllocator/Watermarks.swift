internal import PMUnits

/// The formulas by which the kernel derives a machine's limits from its size (specification 1.8 and
/// 1.9). Pages throughout. Mirrors the functions named at each, Linux 6.1.
enum Watermarks {
  /// What the formulas need of a zone.
  struct Zone {
    var id: ZoneID
    var managed: UInt64
    var present: UInt64
    var high: UInt64 = 0
  }

  /// Mirrors `calculate_min_free_kbytes`; `buffer` is `nr_free_buffer_pages`.
  static func minFreeKiB(buffer: UInt64) -> UInt64 {
    min(max(squareRoot(buffer * 4 * 16), 128), 262_144)
  }

  /// What transparent huge pages raise it to. Mirrors `set_recommended_min_free_kbytes`.
  static func recommendedMinFreeKiB(populatedZones: Int, buffer: UInt64) -> UInt64 {
    min(UInt64(11 * 512 * populatedZones), buffer / 20) * 4
  }

  /// MIN, LOW, HIGH of a zone. Mirrors `__setup_per_zone_wmarks`.
  static func marks(
    managed: UInt64, lowmem: UInt64, minFreeKiB: UInt64, scaleFactor: UInt64
  ) -> (min: UInt64, low: UInt64, high: UInt64) {
    let pages = minFreeKiB / 4
    let least =
      lowmem == 0
      ? 0 : UInt64(lowmem.dividingFullWidth(pages.multipliedFullWidth(by: managed)).quotient)
    let gap = max(least / 4, managed / 10000 * scaleFactor + managed % 10000 * scaleFactor / 10000)
    return (least, least + gap, least + 2 * gap)
  }

  /// The reserve of zone `index` of a node's zones against requests by their highest zone index.
  /// `managed` is by zone index 0...4. Mirrors `setup_per_zone_lowmem_reserve`.
  static func lowmemReserve(zone index: Int, managed: [UInt64], ratios: [UInt64]) -> [Int64] {
    var reserve = [Int64](repeating: 0, count: 5)
    guard index < 4 else { return reserve }
    var above: UInt64 = 0
    for highest in (index + 1)..<5 {
      above += managed[highest]
      let ratio = ratios[index]
      reserve[highest] = ratio == 0 || managed[index] == 0 ? 0 : Int64(above / ratio)
    }
    return reserve
  }

  /// Mirrors `zone_batchsize`.
  static func batch(managed: UInt64) -> Int32 {
    let quarter = max(min(managed >> 10, 256) / 4, 1)
    let sum = quarter + quarter / 2
    let power = UInt64(1) << UInt64(63 - sum.leadingZeroBitCount)
    return Int32(max(power - 1, 1))
  }

  /// Mirrors `zone_highsize`; `cpus` are those of the zone's node, or all where it has none.
  static func high(
    low: UInt64, managed: UInt64, fraction: UInt64, cpus: Int, batch: Int32
  ) -> Int32 {
    let base = fraction == 0 ? low : managed / fraction
    return Int32(clamping: max(base / UInt64(max(cpus, 1)), UInt64(batch) * 4))
  }

  /// How far a CPU's counter difference may grow. Mirrors `calculate_normal_threshold`.
  static func statThreshold(managed: UInt64, cpus: Int) -> Int32 {
    func lastBit(_ value: UInt64) -> Int { 64 - value.leadingZeroBitCount }
    return Int32(min(125, 2 * lastBit(UInt64(cpus)) * (1 + lastBit(managed >> 15))))
  }

  /// Below this many free pages the kernel counts exactly. Mirrors `refresh_zone_stat_thresholds`.
  static func driftMark(min: UInt64, low: UInt64, high: UInt64, threshold: Int32, cpus: Int)
    -> UInt32
  {
    let drift = UInt64(cpus) * UInt64(threshold)
    return drift > low - min ? UInt32(clamping: high + drift) : 0
  }

  private static func squareRoot(_ value: UInt64) -> UInt64 {
    var root = UInt64(Double(value).squareRoot())
    while root * root > value { root -= 1 }
    while (root + 1) * (root + 1) <= value { root += 1 }
    return root
  }
}
