import Foundation
import Physmem
import Testing

@testable import PMVhostUser

@Suite(
  "A real back end: qemu-storage-daemon",
  .enabled(
    if: RealBackEnd.path != nil, "qemu-storage-daemon is not there: apt-get install qemu-utils"))
struct RealBackEndTests {
  private static let sectors = 64

  /// A disk whose sectors differ, and memory of two regions with a hole between them.
  private func world() throws -> (RealBackEnd, GuestMemory, [UInt8]) {
    let bytes = (0..<RealBackEndTests.sectors * 512).map {
      UInt8(truncatingIfNeeded: $0 &* 167 >> 3)
    }
    let path = try #require(RealBackEnd.path)
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
    try memory.add(.ram(at: GPA(4 << 30), byteCount: .mib(2)))
    return (try RealBackEnd(path, disk: bytes), memory, bytes)
  }

  private func bytes(_ memory: GuestMemory, _ range: GuestRange) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(range.byteCount))
    try bytes.withUnsafeMutableBytes { try memory.read(into: $0, at: range.start) }
    return bytes
  }

  private func roundTrip(_ features: VhostUserProtocolFeatures) throws {
    let (backEnd, memory, contents) = try world()
    let front = try VhostUserFrontEnd(
      connectingTo: backEnd.socket, protocolFeatures: features)
    #expect(front.deviceFeatures & VhostUserDeviceFeature.version1 != 0)
    let block = try VirtioBlock(front, memory: memory, queueAt: GPA(0x1000))
    if features.contains(.configuration) {
      #expect(try block.sectorCount() == UInt64(RealBackEndTests.sectors))
    }
    // The device's bytes arrive in guest memory, in either region.
    for (index, start) in [GPA(0x10_0000), GPA((4 << 30) + 0x800)].enumerated() {
      let range = GuestRange(start: start, byteCount: 4096)
      try block.read(sector: UInt64(index) * 8, into: range)
      #expect(try bytes(memory, range) == Array(contents[index * 4096..<(index + 1) * 4096]))
    }
    // The guest's bytes arrive on the device. More requests than the queue has descriptors.
    for sector in 0..<32 {
      let range = GuestRange(start: GPA((4 << 30) + 0x1_0000), byteCount: 512)
      try memory.fill(range, with: UInt8(sector + 1))
      try block.write(sector: UInt64(sector), from: range)
    }
    // 32 chains were taken.
    #expect(try block.frontEnd.stop(index: 0) == 32 + 2)
    _ = consume block
    backEnd.stop()
    let disk = try backEnd.diskBytes()
    for sector in 0..<32 {
      #expect(disk[sector * 512..<(sector + 1) * 512].allSatisfy { $0 == UInt8(sector + 1) })
    }
    #expect(disk[(32 * 512)...] == contents[(32 * 512)...])
  }

  @Test("Regions one by one: a disk is read and written from memory in the arena")
  func oneByOne() throws { try roundTrip(.all) }

  @Test("Regions as one table, nothing acknowledged")
  func table() throws { try roundTrip([]) }

  @Test("Regions one by one, nothing acknowledged")
  func unacknowledged() throws { try roundTrip([.configureMemSlots, .configuration]) }

  @Test("A machine's own memory serves as well")
  func machine() throws {
    let (backEnd, _, contents) = try world()
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    let memory = GuestMemory(machine)
    let block = try VirtioBlock(
      try VhostUserFrontEnd(connectingTo: backEnd.socket), memory: memory, queueAt: GPA(0x20_0000))
    let range = GuestRange(start: GPA(0x30_0000), byteCount: 1024)
    try block.read(sector: 62, into: range)
    #expect(try bytes(memory, range) == Array(contents.suffix(1024)))
  }

  @Test("Memory comes and goes while the device runs")
  func hotplug() throws {
    let (backEnd, memory, contents) = try world()
    let block = try VirtioBlock(
      try VhostUserFrontEnd(connectingTo: backEnd.socket), memory: memory, queueAt: GPA(0))
    let range = GuestRange(start: GPA(8 << 30), byteCount: 512)
    try memory.add(.ram(at: range.start, byteCount: .mib(2)))
    let region = try #require(memory.snapshot().region(containing: range.start))
    try block.frontEnd.add(region)
    try block.read(sector: 1, into: range)
    #expect(try bytes(memory, range) == Array(contents[512..<1024]))
    try block.frontEnd.remove(region)
    try memory.removeRegion(at: range.start)
    // The rest still serves.
    try block.read(sector: 0, into: GuestRange(start: GPA(0x1_0000), byteCount: 512))
    #expect(
      try bytes(memory, GuestRange(start: GPA(0x1_0000), byteCount: 512))
        == Array(contents[..<512]))
  }

  @Test("Requests that the device refuses, and memory that it was not offered")
  func refusals() throws {
    let (backEnd, memory, _) = try world()
    let block = try VirtioBlock(
      try VhostUserFrontEnd(connectingTo: backEnd.socket), memory: memory, queueAt: GPA(0))
    // Beyond the disk's end.
    #expect(throws: VhostUserError.deviceFailed(status: 1)) {
      try block.read(sector: 1 << 40, into: GuestRange(start: GPA(0x1000), byteCount: 512))
    }
    #expect(throws: VhostUserError.self) {
      try block.read(sector: 0, into: GuestRange(start: GPA(0x1000), byteCount: 500))
    }
    // It still serves.
    try block.read(sector: 0, into: GuestRange(start: GPA(0x1000), byteCount: 512))
  }

  @Test("A back end that dies is told at once, not after the timeout")
  func death() throws {
    let (backEnd, memory, _) = try world()
    let block = try VirtioBlock(
      try VhostUserFrontEnd(connectingTo: backEnd.socket), memory: memory, queueAt: GPA(0),
      timeout: 60_000)
    backEnd.stop()
    let begin = ContinuousClock.now
    #expect(throws: VhostUserError.noAnswer("the back end hung up")) {
      try block.read(sector: 0, into: GuestRange(start: GPA(0x1000), byteCount: 512))
    }
    #expect(ContinuousClock.now - begin < .seconds(30))
    #expect(throws: VhostUserError.hungUp(.getConfig)) { try block.sectorCount() }
  }

  @Test("Nobody listens")
  func nobody() {
    #expect(throws: VhostUserError.self) {
      _ = try VhostUserFrontEnd(connectingTo: "/nonexistent/socket")
    }
  }
}
