public import PMUnits

/// The settings of a kernel's command line and of `/proc/sys/vm` that shape a machine.
public struct KernelParameters: Hashable, Sendable {
  /// `vm.min_free_kbytes`; nil: as the kernel computes it.
  public var minFreeKiB: UInt64?
  /// `vm.watermark_scale_factor`, in units of 1/10000 of a zone; 1 to 3000.
  public var watermarkScaleFactor: UInt64
  /// `vm.watermark_boost_factor`, in units of 1/10000 of the HIGH mark; 0 switches boosting off.
  public var watermarkBoostFactor: UInt64
  /// `vm.percpu_pagelist_high_fraction`: 0, or at least 8.
  public var perCPUPagelistHighFraction: UInt64
  /// `vm.lowmem_reserve_ratio` for DMA, DMA32, Normal, Movable.
  public var lowmemReserveRatio: [UInt64]
  /// `movablecore=`: memory kept for movable allocations, spread over the nodes.
  public var movableCore: ByteCount?
  /// `init_on_alloc=`: every allocation is zeroed.
  public var initOnAlloc: Bool
  /// Whether transparent huge pages are on, which raises `min_free_kbytes`; nil: on with at least
  /// 512 MiB, as the kernel decides.
  public var transparentHugePages: Bool?

  /// The kernel's defaults, with `init_on_alloc` off as in the traces.
  public init() {
    minFreeKiB = nil
    watermarkScaleFactor = 10
    watermarkBoostFactor = 15000
    perCPUPagelistHighFraction = 0
    lowmemReserveRatio = [256, 256, 32, 0]
    movableCore = nil
    initOnAlloc = false
    transparentHugePages = nil
  }

  /// Reads settings written as on a kernel command line: `min_free_kbytes=4096 movablecore=1G`.
  /// Names: `min_free_kbytes`, `watermark_scale_factor`, `watermark_boost_factor`,
  /// `percpu_pagelist_high_fraction`, `lowmem_reserve_ratio` (values separated by commas),
  /// `movablecore`, `init_on_alloc`, `transparent_hugepage` (`always`, `madvise` or `never`); the
  /// kernel's `vm.` prefix is allowed. Throws for an unknown name or a value out of range.
  public init(commandLine: String) throws(MachineError) {
    self.init()
    for word in commandLine.split(separator: " ") {
      let parts = word.split(separator: "=", maxSplits: 1)
      guard parts.count == 2 else {
        throw .invalidDescription("kernel parameter '\(word)': expected NAME=VALUE")
      }
      let name = parts[0].hasPrefix("vm.") ? parts[0].dropFirst(3) : parts[0]
      try set(String(name), String(parts[1]))
    }
  }

  private mutating func set(_ name: String, _ value: String) throws(MachineError) {
    func number(_ range: ClosedRange<UInt64>) throws(MachineError) -> UInt64 {
      guard let number = UInt64(value), range.contains(number) else {
        throw .invalidDescription(
          "\(name)=\(value): expected \(range.lowerBound) to \(range.upperBound)")
      }
      return number
    }
    switch name {
    case "min_free_kbytes": minFreeKiB = try number(0...(1 << 40))
    case "watermark_scale_factor": watermarkScaleFactor = try number(1...3000)
    case "watermark_boost_factor": watermarkBoostFactor = try number(0...1_000_000)
    case "percpu_pagelist_high_fraction":
      let fraction = try number(0...UInt64(Int32.max))
      guard fraction == 0 || fraction >= 8 else {
        throw .invalidDescription("\(name)=\(value): expected 0 or at least 8")
      }
      perCPUPagelistHighFraction = fraction
    case "lowmem_reserve_ratio":
      let values = value.split(separator: ",").map { UInt64($0) }
      guard values.count == 4, !values.contains(nil) else {
        throw .invalidDescription("\(name)=\(value): expected four numbers, as 256,256,32,0")
      }
      lowmemReserveRatio = values.compactMap(\.self)
    case "movablecore":
      guard let size = ByteCount(value) else {
        throw .invalidDescription("\(name)=\(value): expected a size, as 512M")
      }
      movableCore = size
    case "init_on_alloc": initOnAlloc = try number(0...1) == 1
    case "transparent_hugepage":
      guard ["always", "madvise", "never"].contains(value) else {
        throw .invalidDescription("\(name)=\(value): expected always, madvise or never")
      }
      transparentHugePages = value != "never"
    default: throw .invalidDescription("unknown kernel parameter '\(name)'")
    }
  }
}
