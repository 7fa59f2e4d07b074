import PMUnits
import Testing

@Suite("Values of the field")
struct UnitsTests {
  @Test("The highest zone of a request follows the kernel's table for all sixteen combinations")
  func highestZone() {
    // Specification 2.3; combinations that the kernel only asserts against read as DMA.
    let table: [(UInt32, ZoneKind)] = [
      (0x0, .normal), (0x1, .dma), (0x2, .normal), (0x3, .dma), (0x4, .dma32), (0x5, .dma),
      (0x6, .dma), (0x7, .dma), (0x8, .normal), (0x9, .dma), (0xa, .movable), (0xb, .dma),
      (0xc, .dma32), (0xd, .dma), (0xe, .dma), (0xf, .dma),
    ]
    for (bits, zone) in table {
      #expect(GFP(rawValue: bits).highestZone == zone, "low bits \(bits)")
      #expect(GFP(rawValue: bits | 0xcc0).highestZone == zone, "GFP_KERNEL with low bits \(bits)")
    }
  }

  @Test("Composite GFP flags have the kernel's values")
  func composites() {
    #expect(GFP.atomic == [.high, .atomicBit, .kswapdReclaim])
    #expect(GFP.kernel == [.io, .fs, .directReclaim, .kswapdReclaim])
    #expect(GFP.user == GFP.kernel.union(.hardwall))
    #expect(GFP.highUserMovable == GFP.user.union([.highmem, .movable]))
    #expect(GFP.kernel.migratetype == .unmovable)
    #expect(GFP.highUserMovable.migratetype == .movable)
    #expect(GFP.reclaimable.migratetype == .reclaimable)
    #expect(GFP([.movable, .reclaimable]).migratetype == nil)
  }

  @Test("Sizes are read as on a kernel command line")
  func sizes() {
    #expect(ByteCount("512M") == .mib(512))
    #expect(ByteCount("4GiB") == .gib(4))
    #expect(ByteCount("65536") == ByteCount(65536))
    #expect(ByteCount("1t") == .tib(1))
    #expect(ByteCount("2KB") == .kib(2))
    for bad in ["", "M", "-1", "1.5G", "0x10", "99999999999T", "5 G", "G5"] {
      #expect(ByteCount(bad) == nil, "'\(bad)'")
    }
    #expect("\(ByteCount.mib(512))" == "512MiB")
    #expect("\(ByteCount(4097))" == "4097B")
  }

  @Test("The order of a size is the smallest that holds it")
  func orders() {
    #expect(Order.holding(bytes: 0) == nil)
    #expect(Order.holding(bytes: 1) == 0)
    #expect(Order.holding(bytes: 4096) == 0)
    #expect(Order.holding(bytes: 4097) == 1)
    #expect(Order.holding(bytes: 3 << 20) == 10)
    #expect(Order.holding(bytes: 4 << 20) == 10)
    #expect(Order.holding(bytes: 4 << 20 + 1) == nil)
    #expect(Order.holding(bytes: .max) == nil)
  }

  @Test("A PFN and its physical address name the same frame")
  func addresses() {
    #expect(PFN(0x1234).physicalAddress == 0x123_4000)
    #expect(PFN(physicalAddress: 0x123_4fff) == PFN(0x1234))
    #expect(PFN(physicalAddress: 1 << 43) == nil)
    #expect(PFN(physicalAddress: 1 << 43 - 1) == .max)
    #expect(PFN(5) - PFN(9) == -4)
    #expect(PFN(5) + 4 == PFN(9))
    #expect("\(PFN(0xabc))" == "abc")
  }
}
