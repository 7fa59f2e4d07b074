import CPhysmemShim
import Foundation
import PMUnits
import Physmem
import SystemPackage
import Testing

@Suite struct RegionTests {
  @Test func `A machine's frames are regions at their physical addresses`() throws {
    var description = MachineDescription(memory: .mib(64), cpus: 1)
    description.lowMemoryEnd = .mib(32)
    let machine = try Machine(description)
    let memory = GuestMemory(machine)
    let regions = memory.regions
    #expect(regions.map(\.range.start) == [GPA(0), GPA(4 << 30)])
    #expect(regions.map(\.range.byteCount) == [32 << 20, 32 << 20])
    #expect(regions.allSatisfy { $0.fileOffset == $0.range.start.rawValue && $0.kind == .ram })
    #expect(memory.byteCount == 64 << 20)
    try machine.arena.storeWord(77, at: (4 << 30) + 8)
    #expect(try memory.load(UInt64.self, at: GPA((4 << 30) + 8)) == 77)
    #expect(throws: GuestMemoryError.self) { try memory.load(UInt64.self, at: GPA(32 << 20)) }
  }

  @Test func `The generation grows with each region that comes or goes, else never`() throws {
    let memory = GuestMemory()
    #expect(memory.generation == 0)
    try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
    try memory.add(.ram(at: GPA(4 << 20), byteCount: .mib(2)))
    #expect(memory.generation == 2)
    #expect(throws: GuestMemoryError.self) {
      try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
    }
    #expect(throws: GuestMemoryError.self) { try memory.removeRegion(at: GPA(1 << 20)) }
    try memory.startTrackingDirtyPages()
    try memory.beginHarvest().commit()
    try memory.stopTrackingDirtyPages()
    _ = try memory.mergePages()
    #expect(memory.generation == 2)
    let snapshot = memory.snapshot()
    try memory.removeRegion(at: GPA(0))
    #expect(memory.generation == 3)
    #expect(snapshot.generation == 2)
    #expect(memory.snapshot().generation == 3)
  }

  @Test func `Every kind of region says what it is`() throws {
    let memory = GuestMemory()
    let path = NSTemporaryDirectory() + "physmem-\(UUID().uuidString)"
    let file = open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
    try #require(file >= 0)
    defer { close(file) }
    unlink(path)
    try #require(ftruncate(file, 3 * 4096) == 0)
    try memory.add(.pmem(at: GPA(0x40_0000), byteCount: .kib(8), file: file, fileOffset: 4096))
    try memory.add(.rom(at: GPA(0xf000_1000), byteCount: .kib(4)))
    try memory.add(.ram(at: GPA(0x1000), byteCount: .mib(3), hostNode: nil))
    try memory.add(
      .mmio(at: GPA(0xfee0_0008), byteCount: ByteCount(24), handler: RecordingDevice()))
    let regions = memory.regions
    #expect(regions.map(\.kind) == [.ram, .pmem, .rom, .mmio])
    for region in regions where region.kind != .mmio {
      let host = try #require(region.hostAddress)
      #expect(region.fileDescriptor != nil)
      if region.kind != .pmem {
        let mask = UInt64(2 << 20) - 1
        #expect(UInt64(UInt(bitPattern: host)) & mask == region.range.start.rawValue & mask)
        #expect(region.fileOffset == region.range.start.rawValue & mask)
      }
      #expect(memory.snapshot().guestAddress(of: host + 5) == region.range.start + 5)
    }
    #expect(regions[3].hostAddress == nil && regions[3].fileDescriptor == nil)
    // What the guest writes is in the file.
    try memory.store(UInt64(0x6162_6364), at: GPA(0x40_0010))
    var word: UInt64 = 0
    #expect(pread(file, &word, 8, 4096 + 16) == 8 && word == 0x6162_6364)
  }

  @Test func `What cannot be a region is refused, and both ranges are named`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0x20_0000), byteCount: .mib(2)))
    func range(_ start: UInt64, _ byteCount: UInt64) -> GuestRange {
      GuestRange(start: GPA(start), byteCount: byteCount)
    }
    let existing = range(0x20_0000, 2 << 20)
    let before = LiveCounts()
    for (start, count) in [
      (0x1f_f000, 0x2000), (0x30_0000, 0x1000), (0x3f_f000, 0x2000), (0, 1 << 30),
    ]
      as [(UInt64, UInt64)]
    {
      let error = #expect(throws: GuestMemoryError.self) {
        try memory.add(.ram(at: GPA(start), byteCount: ByteCount(count)))
      }
      #expect(error == .overlap(range(start, count), existing: existing))
      let text = try #require(error.map { "\($0)" })
      #expect(text.contains("\(range(start, count))") && text.contains("\(existing)"))
    }
    #expect(throws: GuestMemoryError.unaligned(range(0x800, 4096), unit: .kib(4))) {
      try memory.add(.ram(at: GPA(0x800), byteCount: .kib(4)))
    }
    #expect(throws: GuestMemoryError.unaligned(range(4, 8), unit: ByteCount(8))) {
      try memory.add(.mmio(at: GPA(4), byteCount: ByteCount(8), handler: RecordingDevice()))
    }
    for impossible in [
      range(0, 0), range(1 << 52, 4096), range((1 << 52) - 4096, 8192), range(~0 << 12, 4096),
    ] {
      let error = #expect(throws: GuestMemoryError.self) {
        try memory.add(.ram(at: impossible.start, byteCount: ByteCount(impossible.byteCount)))
      }
      guard case .invalidRegion(impossible, _)? = error else {
        Issue.record("\(impossible): \(String(describing: error))")
        continue
      }
    }
    #expect(throws: GuestMemoryError.noRegion(at: GPA(0x20_1000))) {
      try memory.removeRegion(at: GPA(0x20_1000))
    }
    // A file that is too short.
    let file = try #require(memory.regions[0].fileDescriptor)
    #expect(throws: GuestMemoryError.self) {
      try memory.add(.pmem(at: GPA(0), byteCount: .mib(4), file: file))
    }
    #expect(memory.regions.count == 1)
    #expect(LiveCounts() == before)
  }

  @Test func `A snapshot keeps what was removed, and the last one gives it back`() throws {
    let before = LiveCounts()
    do {
      let memory = GuestMemory()
      try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
      try memory.store(UInt32(9), at: GPA(16))
      let snapshot = memory.snapshot()
      let address = try snapshot.hostAddress(
        of: GuestRange(start: GPA(16), byteCount: 4), writing: false)
      #expect(try memory.removeRegion(at: GPA(0)).byteCount == 2 << 20)
      #expect(throws: GuestMemoryError.self) { try memory.load(UInt32.self, at: GPA(16)) }
      #expect(memory.regions.isEmpty)
      #expect(address.load(as: UInt32.self) == 9)
      #expect(LiveCounts() != before)
    }
    #expect(LiveCounts() == before)
  }

  @Test func `Host addresses are given where they may be`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .kib(8)))
    try memory.add(.rom(at: GPA(0x2000), byteCount: .kib(4)))
    try memory.add(.mmio(at: GPA(0x3000), byteCount: .kib(4), handler: RecordingDevice()))
    let snapshot = memory.snapshot()
    func address(_ start: UInt64, _ count: UInt64, writing: Bool) throws -> UnsafeMutableRawPointer
    {
      let range = GuestRange(start: GPA(start), byteCount: count)
      let direct = Result { try memory.hostAddress(of: range, writing: writing) }
      let held = Result { try snapshot.hostAddress(of: range, writing: writing) }
      #expect("\(direct)" == "\(held)")
      return try direct.get()
    }
    #expect(try address(8, 0x1ff8, writing: true) == snapshot.regions[0].hostAddress.map { $0 + 8 })
    #expect(try address(0x2000, 0x1000, writing: false) == snapshot.regions[1].hostAddress)
    func refusal(_ start: UInt64, _ count: UInt64, writing: Bool) -> GuestMemoryError? {
      do {
        _ = try address(start, count, writing: writing)
        return nil
      } catch { return error as? GuestMemoryError }
    }
    let ram = snapshot.regions[0].range
    let rom = snapshot.regions[1].range
    let device = snapshot.regions[2].range
    let across = GuestRange(start: GPA(0x1000), byteCount: 0x1001)
    #expect(refusal(0x1000, 0x1001, writing: false) == .crossesRegion(across, region: ram))
    #expect(refusal(0x2000, 0x1000, writing: true) == .readOnly(rom, region: rom))
    #expect(refusal(0x3000, 0x1000, writing: false) == .notMemory(device, region: device))
    let beyond = GuestRange(start: GPA(0x4000), byteCount: 1)
    #expect(refusal(0x4000, 1, writing: false) == .unmapped(beyond, gap: beyond))
    #expect(refusal(8, 0, writing: false) != nil)
    #expect(refusal(8, .max, writing: false) != nil)
  }

  @Test(arguments: [1, 2, 7, 100, 512])
  func `Regions are found at every edge, however they are spread`(_ count: Int) throws {
    var random = seededGenerator("RegionTests.\(count)")
    for spread in 0..<4 {
      let memory = GuestMemory()
      var ranges: [GuestRange] = []
      var next: UInt64 = UInt64(random.below(1000)) << 3
      for index in 0..<count {
        switch spread {
        case 0: next += 0  // touching
        case 1: next += UInt64(random.below(8)) << 3
        case 2: next += 1 << UInt64(3 + random.below(30))
        default: next += index == count / 2 ? 1 << 45 : 8
        }
        let byteCount = UInt64(1 + random.below(64)) << 3
        ranges.append(GuestRange(start: GPA(next), byteCount: byteCount))
        next += byteCount
      }
      // In any order.
      let device = RecordingDevice()
      for index in ranges.indices.reversed() {
        let range = ranges[index]
        try memory.add(
          .mmio(at: range.start, byteCount: ByteCount(range.byteCount), handler: device))
      }
      let snapshot = memory.snapshot()
      #expect(snapshot.regions.map(\.range) == ranges)
      for range in ranges {
        for address in [range.start.rawValue, range.end - 1, range.end, range.start.rawValue &- 1] {
          let expected = ranges.first { $0.contains(GPA(address)) }
          let found = snapshot.region(containing: GPA(address))?.range
          #expect(found == expected, "0x\(String(address, radix: 16)), seed \(runSeed)")
        }
      }
      for address in [0, UInt64.max, 1 << 52, 1 << 63] {
        let expected = ranges.first { $0.contains(GPA(address)) }
        #expect(snapshot.region(containing: GPA(address))?.range == expected)
      }
      // Half of them go.
      for (index, range) in ranges.enumerated() where index % 2 == 0 {
        try memory.removeRegion(at: range.start)
      }
      #expect(
        memory.regions.map(\.range) == ranges.indices.filter { $0 % 2 == 1 }.map { ranges[$0] })
    }
  }
}
