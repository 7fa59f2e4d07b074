import CPhysmemShim
import PMUnits
import Physmem
import Testing

@Suite struct AccessTests {
  /// Three regions that touch, a hole, one more.
  private func fixture() throws -> GuestMemory {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0x1000), byteCount: .kib(4)))
    try memory.add(.ram(at: GPA(0x2000), byteCount: .kib(12), backing: .anonymous))
    try memory.add(.ram(at: GPA(0x5000), byteCount: .kib(4)))
    try memory.add(.ram(at: GPA(0x8000), byteCount: .kib(4)))
    return memory
  }

  @Test func `Reads and writes of any size agree with an array of bytes`() throws {
    var random = seededGenerator("AccessTests.bytes")
    let memory = try fixture()
    try memory.startTrackingDirtyPages()
    var model = [UInt8](repeating: 0, count: 0x9000)
    var dirty = Set<UInt64>()
    func isMapped(_ address: Int) -> Bool {
      (0x1000..<0x6000).contains(address) || (0x8000..<0x9000).contains(address)
    }
    for step in 0..<8_000 {
      let start = random.below(0x9800)
      let count = random.below(10) == 0 ? random.below(0x3000) : 1 + random.below(40)
      let isAllowed = (start..<start + count).allSatisfy(isMapped)
      let note: Comment = "step \(step) at \(start), \(count) bytes, PHYSMEM_SEED=\(runSeed)"
      if random.below(2) == 0 {
        let bytes = (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        do {
          if random.below(4) == 0, count > 0 {
            try memory.fill(
              GuestRange(start: GPA(UInt64(start)), byteCount: UInt64(count)), with: bytes[0])
            if isAllowed { for index in 0..<count { model[start + index] = bytes[0] } }
          } else {
            try memory.write(bytes, at: GPA(UInt64(start)))
            if isAllowed { model.replaceSubrange(start..<start + count, with: bytes) }
          }
          #expect(isAllowed, note)
          if count > 0 {
            for page in start >> 12...(start + count - 1) >> 12 { dirty.insert(UInt64(page)) }
          }
        } catch { #expect(!isAllowed, note) }
      } else {
        do {
          let bytes = try memory.bytes(at: GPA(UInt64(start)), count: count)
          #expect(isAllowed, note)
          #expect(bytes == Array(model[start..<start + count]), note)
        } catch { #expect(!isAllowed, note) }
      }
    }
    let harvest = try memory.beginHarvest()
    let pages = harvest.runs.flatMap { run in
      (run.start.rawValue >> 12)..<((run.end + 4095) >> 12)
    }
    harvest.commit()
    #expect(Set(pages) == dirty)
  }

  private func words<Word: GuestWord>(_ type: Word.Type, _ random: inout SplitMix64) throws {
    let memory = try fixture()
    let size = MemoryLayout<Word>.size
    for address in 0xff0...0x9010 {
      let value = Word(truncatingIfNeeded: random.next())
      let isMapped =
        (0x1000...0x6000 - size).contains(address)
        || (0x8000...0x9000 - size).contains(address)
      let place = GPA(UInt64(address))
      do {
        try memory.store(value, at: place)
        #expect(isMapped, "\(place)")
        #expect(try memory.load(Word.self, at: place) == value)
        #expect(
          try memory.bytes(at: place, count: size) == withUnsafeBytes(of: value) { Array($0) })
      } catch { #expect(!isMapped, "\(place): \(error)") }
      do {
        let old = try memory.fetchAdd(3 as Word, at: place)
        #expect(isMapped && address % size == 0)
        #expect(old == value)
        let refused = try memory.compareExchange(expected: value, desired: 1, at: place)
        #expect(refused.exchanged == false && refused.original == value &+ 3)
        let taken = try memory.compareExchange(expected: value &+ 3, desired: 7, at: place)
        #expect(taken.exchanged && taken.original == value &+ 3)
        #expect(try memory.atomicLoad(Word.self, at: place) == 7)
        try memory.atomicStore(value, at: place)
        #expect(try memory.load(Word.self, at: place) == value)
      } catch { #expect(!isMapped || address % size != 0, "\(place): \(error)") }
    }
  }

  @Test func `Words of every size at every address`() throws {
    var random = seededGenerator("AccessTests.words")
    try words(UInt8.self, &random)
    try words(UInt16.self, &random)
    try words(UInt32.self, &random)
    try words(UInt64.self, &random)
  }

  @Test func `An access that fails names the range and the gap, and changes nothing`() throws {
    let memory = try fixture()
    func gap(_ start: UInt64, _ count: Int) -> GuestRange? {
      do {
        try memory.write([UInt8](repeating: 1, count: count), at: GPA(start))
        return nil
      } catch GuestMemoryError.unmapped(let range, let gap) {
        #expect(range == GuestRange(start: GPA(start), byteCount: UInt64(count)))
        return gap
      } catch {
        Issue.record("\(error)")
        return nil
      }
    }
    #expect(gap(0x4000, 0x4100) == GuestRange(start: GPA(0x6000), byteCount: 0x2000))
    #expect(gap(0x4000, 0x2100) == GuestRange(start: GPA(0x6000), byteCount: 0x100))
    #expect(gap(0, 0x2000) == GuestRange(start: GPA(0), byteCount: 0x1000))
    #expect(gap(0x8ff0, 0x20) == GuestRange(start: GPA(0x9000), byteCount: 0x10))
    #expect(gap(UInt64.max - 3, 16) != nil)
    #expect(gap(1 << 52, 1) != nil)
    #expect(try memory.bytes(at: GPA(0x1000), count: 0x5000).allSatisfy { $0 == 0 })
    #expect(try memory.bytes(at: GPA(0x8000), count: 0x1000).allSatisfy { $0 == 0 })
    // No bytes may be anywhere.
    #expect(throws: Never.self) { try memory.write([], at: GPA(UInt64.max)) }
  }

  @Test func `ROM is read by the guest and written by the host`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .kib(4)))
    try memory.add(.rom(at: GPA(0x1000), byteCount: .kib(4)))
    let rom = memory.regions[1].range
    try [UInt8](repeating: 5, count: 64).withUnsafeBytes { try memory.writeROM($0, at: GPA(0xff0)) }
    #expect(try memory.load(UInt8.self, at: GPA(0x102f)) == 5)
    let across = GuestRange(start: GPA(0xfff), byteCount: 2)
    #expect(throws: GuestMemoryError.readOnly(across, region: rom)) {
      try memory.write([1, 2], at: GPA(0xfff))
    }
    let word = GuestRange(start: GPA(0x1000), byteCount: 4)
    #expect(throws: GuestMemoryError.readOnly(word, region: rom)) {
      try memory.atomicStore(UInt32(1), at: GPA(0x1000))
    }
    #expect(throws: GuestMemoryError.readOnly(word, region: rom)) {
      try memory.store(UInt32(1), at: GPA(0x1000))
    }
    #expect(try memory.atomicLoad(UInt32.self, at: GPA(0x1000)) == 0x0505_0505)
    #expect(try memory.bytes(at: GPA(0xfff), count: 2) == [5, 5])
  }

  @Test func `A device is called in aligned pieces, between memory on both sides`() throws {
    let memory = GuestMemory()
    let device = RecordingDevice()
    try memory.add(.ram(at: GPA(0), byteCount: .kib(4)))
    try memory.add(.mmio(at: GPA(0x1000), byteCount: ByteCount(0x18), handler: device))
    try memory.add(.mmio(at: GPA(0x1018), byteCount: ByteCount(0xfe8), handler: RecordingDevice()))
    try memory.add(.ram(at: GPA(0x2000), byteCount: .kib(4)))
    try memory.write((0..<12).map { UInt8($0 + 1) }, at: GPA(0xffd))
    #expect(try memory.bytes(at: GPA(0xffd), count: 3) == [1, 2, 3])
    #expect(
      device.accesses == [
        .init(offset: 0, byteCount: 8, value: 0x0b0a_0908_0706_0504),
        .init(offset: 8, byteCount: 1, value: 12),
      ])
    #expect(try memory.bytes(at: GPA(0x1003), count: 7).count == 7)
    #expect(
      device.accesses.dropFirst(2).map(\.byteCount) == [1, 4, 2]
        && device.accesses.dropFirst(2).map(\.offset) == [3, 4, 8])
    #expect(try memory.load(UInt32.self, at: GPA(0x1004)) == 0x5566_778c)
    try memory.fill(GuestRange(start: GPA(0x1010), byteCount: 8), with: 0xab)
    #expect(device.accesses.last == .init(offset: 16, byteCount: 8, value: 0xabab_abab_abab_abab))
    let word = GuestRange(start: GPA(0x1000), byteCount: 8)
    #expect(
      throws: GuestMemoryError.notMemory(
        word, region: GuestRange(start: GPA(0x1000), byteCount: 0x18))
    ) {
      try memory.fetchAdd(UInt64(1), at: GPA(0x1000))
    }
  }

  @Test func `A device's refusal ends the access where it is`() throws {
    let memory = GuestMemory()
    let device = RecordingDevice(refusing: 8)
    try memory.add(.ram(at: GPA(0), byteCount: .kib(4)))
    try memory.add(.mmio(at: GPA(0x1000), byteCount: ByteCount(32), handler: device))
    let refused = GuestRange(start: GPA(0x1008), byteCount: 8)
    #expect(throws: GuestMemoryError.refused(refused, errno: 5)) {
      try memory.write([UInt8](repeating: 7, count: 48), at: GPA(0xff0))
    }
    #expect(try memory.bytes(at: GPA(0xff0), count: 16) == [UInt8](repeating: 7, count: 16))
    #expect(device.accesses.map(\.offset) == [0])
  }

  @Test func `Copies within memory arrive, and overlapping ones downwards too`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    try memory.write((0..<200_000).map { UInt8(truncatingIfNeeded: $0 &* 7 >> 3) }, at: GPA(0x1001))
    let before = try memory.bytes(at: GPA(0x1001), count: 200_000)
    try memory.copy(from: GPA(0x1001), to: GPA(0x80000), byteCount: 200_000)
    #expect(try memory.bytes(at: GPA(0x80000), count: 200_000) == before)
    try memory.copy(from: GPA(0x80000), to: GPA(0x80000 - 5), byteCount: 200_000)
    #expect(try memory.bytes(at: GPA(0x80000 - 5), count: 200_000) == before)
  }
}
