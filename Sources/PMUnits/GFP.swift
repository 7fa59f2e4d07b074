/// Get-free-pages flags: where an allocation may look and what it may do to succeed.
///
/// Mirrors `gfp_t`, Linux 6.1; bit values are the kernel's. Facts from the specification, 2.1.
public struct GFP: OptionSet, Hashable, Sendable, BitwiseCopyable {
  /// The kernel's bits.
  public var rawValue: UInt32

  /// Flags from the kernel's bits; bits above ``allowedMask`` are ignored by the allocator.
  @inlinable
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// `__GFP_DMA`: from zone DMA.
  @inlinable public static var dma: GFP { GFP(rawValue: 0x1) }
  /// `__GFP_HIGHMEM`: with ``movable``, zone Movable is allowed too.
  @inlinable public static var highmem: GFP { GFP(rawValue: 0x2) }
  /// `__GFP_DMA32`: from zone DMA32 or below.
  @inlinable public static var dma32: GFP { GFP(rawValue: 0x4) }
  /// `__GFP_MOVABLE`: the pages can be moved.
  @inlinable public static var movable: GFP { GFP(rawValue: 0x8) }
  /// `__GFP_RECLAIMABLE`: the pages can be reclaimed.
  @inlinable public static var reclaimable: GFP { GFP(rawValue: 0x10) }
  /// `__GFP_HIGH`: may use part of the reserves.
  @inlinable public static var high: GFP { GFP(rawValue: 0x20) }
  /// `__GFP_IO`: may start I/O.
  @inlinable public static var io: GFP { GFP(rawValue: 0x40) }
  /// `__GFP_FS`: may call into file systems.
  @inlinable public static var fs: GFP { GFP(rawValue: 0x80) }
  /// `__GFP_ZERO`: the pages are zeroed.
  @inlinable public static var zero: GFP { GFP(rawValue: 0x100) }
  /// `__GFP_ATOMIC`: order 0 ignores a watermark boost.
  @inlinable public static var atomicBit: GFP { GFP(rawValue: 0x200) }
  /// `__GFP_DIRECT_RECLAIM`: may reclaim, and so may sleep.
  @inlinable public static var directReclaim: GFP { GFP(rawValue: 0x400) }
  /// `__GFP_KSWAPD_RECLAIM`: wakes kswapd when memory is low.
  @inlinable public static var kswapdReclaim: GFP { GFP(rawValue: 0x800) }
  /// `__GFP_WRITE`: the page will be dirtied.
  @inlinable public static var write: GFP { GFP(rawValue: 0x1000) }
  /// `__GFP_NOWARN`: failure is not reported.
  @inlinable public static var noWarn: GFP { GFP(rawValue: 0x2000) }
  /// `__GFP_RETRY_MAYFAIL`.
  @inlinable public static var retryMayFail: GFP { GFP(rawValue: 0x4000) }
  /// `__GFP_NOFAIL`.
  @inlinable public static var noFail: GFP { GFP(rawValue: 0x8000) }
  /// `__GFP_NORETRY`.
  @inlinable public static var noRetry: GFP { GFP(rawValue: 0x1_0000) }
  /// `__GFP_MEMALLOC`: watermarks are ignored when everything else failed.
  @inlinable public static var memalloc: GFP { GFP(rawValue: 0x2_0000) }
  /// `__GFP_COMP`: the block becomes a compound page.
  @inlinable public static var comp: GFP { GFP(rawValue: 0x4_0000) }
  /// `__GFP_NOMEMALLOC`: no reserves.
  @inlinable public static var noMemalloc: GFP { GFP(rawValue: 0x8_0000) }
  /// `__GFP_HARDWALL`: cpuset limits hold.
  @inlinable public static var hardwall: GFP { GFP(rawValue: 0x10_0000) }
  /// `__GFP_THISNODE`: no fallback to other nodes.
  @inlinable public static var thisNode: GFP { GFP(rawValue: 0x20_0000) }
  /// `__GFP_ACCOUNT`: charged to a memory cgroup.
  @inlinable public static var account: GFP { GFP(rawValue: 0x40_0000) }

  /// `GFP_ATOMIC`.
  @inlinable public static var atomic: GFP { GFP(rawValue: 0xa20) }
  /// `GFP_NOWAIT`.
  @inlinable public static var noWait: GFP { GFP(rawValue: 0x800) }
  /// `GFP_KERNEL`.
  @inlinable public static var kernel: GFP { GFP(rawValue: 0xcc0) }
  /// `GFP_USER`.
  @inlinable public static var user: GFP { GFP(rawValue: 0x10_0cc0) }
  /// `GFP_HIGHUSER`.
  @inlinable public static var highUser: GFP { GFP(rawValue: 0x10_0cc2) }
  /// `GFP_HIGHUSER_MOVABLE`.
  @inlinable public static var highUserMovable: GFP { GFP(rawValue: 0x10_0cca) }

  /// The bits that mean something after boot (`gfp_allowed_mask`).
  @inlinable public static var allowedMask: UInt32 { 0x7ff_ffff }

  /// The highest zone the request may use. Mirrors `gfp_zone`: the low four bits through the
  /// specification's table 2.3; combinations that the kernel only asserts against give DMA.
  @inlinable
  public var highestZone: ZoneKind {
    ZoneKind(rawValue: UInt8(truncatingIfNeeded: highestZoneIndex)) ?? .dma
  }

  /// ``highestZone`` as an index, from a table of sixteen 2-bit entries.
  @inlinable @inline(__always)
  package var highestZoneIndex: Int {
    // From bits 15..0: 15..13 DMA, 12 MOVABLE|DMA32 is DMA32, 11 DMA, 10 MOVABLE|HIGHMEM is
    // Movable, 9 MOVABLE|DMA is DMA, 8 MOVABLE is Normal, 7..5 DMA, 4 DMA32 is DMA32, 3 DMA,
    // 2 HIGHMEM is Normal, 1 DMA, 0 nothing is Normal.
    let table: UInt32 = 0x0132_0122
    return Int(truncatingIfNeeded: (table >> ((rawValue & 0xf) * 2)) & 3)
  }

  /// The migratetype that the request asks for, or nil for MOVABLE together with RECLAIMABLE,
  /// which the kernel does not define. Mirrors `gfp_migratetype`.
  public var migratetype: Migratetype? {
    let raw = UInt8((rawValue >> 3) & 3)
    return raw < 3 ? Migratetype(rawValue: raw) : nil
  }
}
