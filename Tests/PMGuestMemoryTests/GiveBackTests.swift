import Foundation
import PMUnits
import Physmem
import Testing

@Suite struct GiveBackTests {
  private func fillWords(_ memory: GuestMemory, _ range: GuestRange) throws {
    for address in stride(from: range.start.rawValue, to: range.end, by: 4096) {
      try memory.store(address | 1, at: GPA(address))
    }
  }

  @Test func `The balloon gives pages to the host and takes them back zeroed`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(4)))
    try memory.add(.ram(at: GPA(4 << 20), byteCount: .mib(4)))
    let regions = memory.snapshot().regions
    let files = try regions.map { try #require($0.fileDescriptor) }
    func allocated() throws -> UInt64 { try files.map(allocatedByteCount).reduce(0, +) }
    try fillWords(memory, GuestRange(start: GPA(0), byteCount: 8 << 20))
    #expect(try allocated() == 8 << 20)
    let middle = GuestRange(start: GPA(3 << 20), byteCount: 2 << 20)
    for _ in 0..<2 {
      try memory.inflateBalloon(middle)
      #expect(memory.balloonedByteCount == 2 << 20)
      #expect(try allocated() == 6 << 20)
    }
    #expect(try memory.load(UInt64.self, at: GPA(0x30_0000 - 4096)) == 0x2f_f001)
    #expect(try memory.load(UInt64.self, at: GPA(4 << 20)) == 0)
    try memory.deflateBalloon(GuestRange(start: GPA(3 << 20), byteCount: 1 << 20))
    #expect(memory.balloonedByteCount == 1 << 20)
    #expect(
      throws: GuestMemoryError.unaligned(GuestRange(start: GPA(1), byteCount: 4096), unit: .kib(4))
    ) {
      try memory.inflateBalloon(GuestRange(start: GPA(1), byteCount: 4096))
    }
    let beyond = GuestRange(start: GPA(7 << 20), byteCount: 2 << 20)
    #expect(
      throws: GuestMemoryError.unmapped(
        beyond, gap: GuestRange(start: GPA(8 << 20), byteCount: 1 << 20))
    ) { try memory.inflateBalloon(beyond) }
    #expect(try memory.load(UInt64.self, at: GPA(7 << 20)) == 7 << 20 | 1)
  }

  @Test func `Free blocks of the allocator go to the host and stay free`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    let memory = GuestMemory(machine)
    var cpu = try machine.claimCPU(0)
    try fillWords(memory, GuestRange(start: GPA(0), byteCount: 64 << 20))
    let held = try cpu.allocatePages(order: 9)
    try fillWords(memory, GuestRange(start: GPA(held.physicalAddress), byteCount: 2 << 20))
    let file = machine.arena.fileDescriptor
    let descriptor = try #require(file)
    let before = try allocatedByteCount(of: descriptor)
    let reported = try memory.reportFreePages(maxByteCount: 16 << 20, on: &cpu)
    #expect(reported == 16 << 20)
    #expect(try allocatedByteCount(of: descriptor) == before - reported)
    _ = try memory.reportFreePages(minOrder: 5, on: &cpu)
    #expect(try allocatedByteCount(of: descriptor) < 16 << 20)
    // Nothing that is in use was touched, and the same can be allocated as before.
    for address in stride(from: held.physicalAddress, to: held.physicalAddress + 2 << 20, by: 4096)
    { #expect(try memory.load(UInt64.self, at: GPA(address)) == address | 1) }
    cpu.freePages(held, order: 9)
    #expect(machine.invariantViolations().isEmpty)
    #expect(machine.findings.findings.isEmpty)
    let other = GuestMemory()
    #expect(throws: GuestMemoryError.otherMachine) { _ = try other.reportFreePages(on: &cpu) }
  }

  @Test(arguments: [Backing.memfd, .anonymous])
  func `A fork has the bytes of its moment, and neither sees the other's writes`(
    _ backing: Backing
  ) throws {
    var random = seededGenerator("GiveBackTests.fork")
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1), backing: backing))
    try memory.add(.rom(at: GPA(1 << 20), byteCount: .kib(4), backing: backing))
    try memory.add(.mmio(at: GPA(2 << 20), byteCount: .kib(4), handler: RecordingDevice()))
    let address = memory.regions[0].hostAddress
    var family: [(memory: GuestMemory, model: [UInt8])] = [
      (memory, [UInt8](repeating: 0, count: 1 << 20))
    ]
    for step in 0..<400 {
      let index = random.below(family.count)
      let place = random.below((1 << 20) - 64)
      switch random.below(20) {
      case 0 where family.count < 8:
        family.append((try family[index].memory.fork(), family[index].model))
      case 1:
        let page = place & ~4095
        try family[index].memory.discard(
          GuestRange(start: GPA(UInt64(page)), byteCount: 4096))
        for offset in page..<page + 4096 { family[index].model[offset] = 0 }
      case 2 where family.count > 2:
        if index > 0 { family.remove(at: index) }
      case 3:
        _ = try family[index].memory.mergePages()
      default:
        let bytes = (0..<64).map { _ in UInt8(truncatingIfNeeded: random.next() & 1) }
        try family[index].memory.write(bytes, at: GPA(UInt64(place)))
        family[index].model.replaceSubrange(place..<place + 64, with: bytes)
      }
      guard step % 20 == 0 else { continue }
      for (member, model) in family {
        #expect(
          try member.bytes(at: GPA(0), count: 1 << 20) == model,
          "step \(step), PHYSMEM_SEED=\(runSeed)")
      }
    }
    let child = try memory.fork()
    #expect(memory.regions[0].hostAddress == address)
    #expect(memory.regions[0].fileDescriptor == nil && child.regions[0].fileDescriptor == nil)
    #expect(try child.load(UInt64.self, at: GPA(2 << 20)) == 0x1122_3344_5566_7788)
  }

  @Test func `A range beyond all memory is refused, not added up`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    for byteCount in [UInt64.max, UInt64.max - 0x1000, 1 << 63] {
      let range = GuestRange(start: GPA(0x1000), byteCount: byteCount)
      #expect(throws: GuestMemoryError.self) { try memory.fill(range, with: 1) }
      #expect(throws: GuestMemoryError.self) { try memory.discard(range) }
      #expect(throws: GuestMemoryError.self) {
        _ = try memory.hostAddress(of: range, writing: true)
      }
    }
  }

  @Test func `A fork of a machine's memory has a machine of its own`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    let memory = GuestMemory(machine)
    var cpu = try machine.claimCPU(0)
    let held = try cpu.allocatePages(order: 3)
    let address = GPA(held.physicalAddress)
    try memory.store(UInt64(1), at: address)

    let child = try memory.fork()
    let other = try #require(child.machine)
    #expect(other !== machine && memory.machine === machine)
    #expect(other.frames.refcount(held) == 1)
    var otherCPU = try other.claimCPU(0)
    otherCPU.freePages(held, order: 3)
    #expect(machine.frames.refcount(held) == 1)
    try child.store(UInt64(2), at: address)
    #expect(try memory.load(UInt64.self, at: address) == 1)
    #expect(try child.load(UInt64.self, at: address) == 2)
    #expect(machine.invariantViolations().isEmpty && other.invariantViolations().isEmpty)
  }

  @Test func `Memory in somebody's file is not forked and not discarded`() throws {
    let memory = GuestMemory()
    let owner = GuestMemory()
    try owner.add(.ram(at: GPA(0), byteCount: .kib(64)))
    let file = try #require(owner.regions[0].fileDescriptor)
    try memory.add(.ram(at: GPA(0), byteCount: .kib(4)))
    try memory.add(
      .memory(.ram, at: GPA(0x1000), byteCount: .kib(32), file: file, fileOffset: 0x4000))
    let region = memory.regions[1].range
    #expect(throws: GuestMemoryError.foreignFile(region: region)) { _ = try memory.fork() }
    #expect(throws: GuestMemoryError.foreignFile(region: region)) { try memory.discard(region) }
    #expect(memory.regions[0].fileDescriptor != nil)
    try memory.store(UInt32(8), at: GPA(0x1004))
    #expect(try owner.load(UInt32.self, at: GPA(0x4004)) == 8)
  }

  @Test func `Equal pages share memory, and pages of zeroes take none`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(4), backing: .anonymous))
    try memory.add(.ram(at: GPA(4 << 20), byteCount: .mib(1)))
    // 256 pages of each of 3 kinds, 128 that are all different, and zeroes that were touched.
    func value(_ page: UInt64) -> UInt64 {
      page < 768 ? page & 3 : page < 896 ? page : 0
    }
    for page in 0..<UInt64(1280) {
      let word = withUnsafeBytes(of: value(page)) { Array($0) }
      try memory.write((0..<512).flatMap { _ in word }, at: GPA(page << 12))
    }
    func resident() throws -> Int {
      let text = try String(contentsOfFile: "/proc/self/smaps_rollup", encoding: .utf8)
      let line = try #require(text.split(separator: "\n").first { $0.hasPrefix("Pss_Anon:") })
      return try #require(Int(line.split(separator: " ")[1]))
    }
    let before = try resident()
    let result = try memory.mergePages()
    #expect(result.scannedPages == 1280)
    // Every fourth page of the first 768 is of zeroes, and all of the last 384.
    #expect(result.zeroPages == 192 + 384)
    #expect(result.mergedPages == 576)
    #expect(result.freedByteCount == UInt64(192 + 384 + 576 - 3) << 12)
    let file = try #require(memory.regions[1].fileDescriptor)
    #expect(try allocatedByteCount(of: file) == 0)
    // 768 pages of private memory, of the process; other tests run beside this one.
    print(
      "GiveBackTests: private memory of the process went from \(before) to \(try resident()) KiB")
    func check() throws {
      for page in 0..<UInt64(1280) {
        #expect(try memory.load(UInt64.self, at: GPA(page << 12 + 8)) == value(page))
      }
    }
    try check()
    // A write changes one page alone.
    try memory.store(UInt64(99), at: GPA(5 << 12 + 16))
    #expect(try memory.load(UInt64.self, at: GPA(9 << 12 + 16)) == 1)
    try check()
    let again = try memory.mergePages()
    #expect(again.mergedPages == 0)
    // What was shared can be given back, and is zero then.
    try memory.discard(GuestRange(start: GPA(9 << 12), byteCount: 4096))
    #expect(try memory.load(UInt64.self, at: GPA(9 << 12)) == 0)
    #expect(try memory.load(UInt64.self, at: GPA(13 << 12)) == 1)
  }
}
