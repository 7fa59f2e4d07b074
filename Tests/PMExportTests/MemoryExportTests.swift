import Foundation
import Physmem
import SystemPackage
import Testing

@testable import PMExport

@Suite("Memory handed over a socket")
struct MemoryExportTests {
  private func memory() throws -> GuestMemory {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(4)))
    try memory.add(.ram(at: GPA(4 << 30), byteCount: .mib(2)))
    try memory.add(.rom(at: GPA(0xf000_0000), byteCount: .kib(64)))
    return memory
  }

  @Test("What one side writes the other reads")
  func shared() throws {
    let memory = try memory()
    let (first, second) = try Socket.pair()
    let here = Socket.own(first)
    let there = Socket.own(second)
    try MemoryExport.send(memory, to: here.rawValue)
    let copy = try MemoryExport.receive(from: there.rawValue)
    #expect(copy.regions.map(\.range) == memory.regions.map(\.range))
    #expect(copy.regions.map(\.kind) == [.ram, .rom, .ram])
    try memory.store(UInt64(0x1234_5678_9abc_def0), at: GPA(0x3f_fff8))
    #expect(try copy.load(UInt64.self, at: GPA(0x3f_fff8)) == 0x1234_5678_9abc_def0)
    try copy.store(UInt32(77), at: GPA(4 << 30))
    #expect(try memory.load(UInt32.self, at: GPA(4 << 30)) == 77)
  }

  @Test("A server hands it to one client after the other, and only this user may connect")
  func server() throws {
    let memory = try memory()
    try memory.store(UInt16(4242), at: GPA(2))
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent("pm-\(UUID().uuidString).sock").path
    do {
      let server = try MemoryExportServer(memory, at: path)
      let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions]
      #expect(mode as? Int == 0o600)
      #expect(throws: ExportError.self) { _ = try MemoryExportServer(memory, at: path) }
      // It looked whether anybody listens: a client that is gone.
      try? server.serveOne(timeout: 10_000)
      for _ in 0..<3 {
        let client = try Socket.connect(to: path)
        try server.serveOne(timeout: 10_000)
        let copy = try MemoryExport.receive(from: client.rawValue)
        #expect(try copy.load(UInt16.self, at: GPA(2)) == 4242)
      }
      // One that goes at once harms nobody.
      _ = try Socket.connect(to: path)
      try? server.serveOne(timeout: 10_000)
      let client = try Socket.connect(to: path)
      try server.serveOne(timeout: 10_000)
      #expect(try MemoryExport.receive(from: client.rawValue).regions.count == 3)
      #expect(throws: ExportError.self) { try server.serveOne(timeout: 1) }
    }
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test("A name that a killed server left behind is taken over, and nothing else is")
  func abandoned() throws {
    let memory = try memory()
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent("pm-\(UUID().uuidString.prefix(8)).sock").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    do { _ = try Socket.listen(at: path) }
    do {
      let server = try MemoryExportServer(memory, at: path)
      let client = try Socket.connect(to: path)
      try server.serveOne(timeout: 10_000)
      #expect(try MemoryExport.receive(from: client.rawValue).regions.count == 3)
    }
    try Data("mine".utf8).write(to: URL(fileURLWithPath: path))
    #expect(throws: ExportError.system("listening at \(path)", .addressInUse)) {
      _ = try MemoryExportServer(memory, at: path)
    }
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "mine")
  }

  @Test("Private memory stays private")
  func privateMemory() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(2), backing: .anonymous))
    let (first, second) = try Socket.pair()
    let here = Socket.own(first)
    _ = Socket.own(second)
    let range = GuestRange(start: GPA(0), byteCount: 2 << 20)
    let number = here.rawValue
    #expect(throws: ExportError.privateMemory(range)) {
      try MemoryExport.send(memory, to: number)
    }
  }

  /// A message with a header of these words, and the descriptors of an event each.
  private func receive(
    magic: String = "PMEXPORT", _ words: [UInt32], regions: [UInt64] = [], descriptors count: Int
  ) throws -> GuestMemory {
    let (first, second) = try Socket.pair()
    let there = Socket.own(second)
    let event = try Event()
    do {
      let here = Socket.own(first)
      var bytes = Array(magic.utf8)
      for word in words { bytes.append(word: word) }
      for word in regions { bytes.append(word: word) }
      try Socket.send(
        bytes, descriptors: Array(repeating: event.rawValue, count: count), to: here.rawValue,
        timeout: 1000)
    }
    return try MemoryExport.receive(from: there.rawValue)
  }

  @Test("What is no export is refused, and its descriptors are closed")
  func malformed() throws {
    func reason(_ body: () throws -> GuestMemory) -> String? {
      do { return "\(try body().regions.count) regions" } catch { return "\(error)" }
    }
    let start = "no export of guest memory: "
    #expect(
      reason { try receive(magic: "PMEXPURT", [1, 0], descriptors: 0) }
        == start + "it does not begin with PMEXPORT")
    #expect(
      reason { try receive(magic: "PM", [], descriptors: 1) }
        == start + "it does not begin with PMEXPORT")
    #expect(
      reason { try receive([2, 0], descriptors: 0) } == start + "version 2: expected 1")
    #expect(
      reason { try receive([1, 2], descriptors: 1) } == start + "2 regions with 1 descriptors")
    #expect(
      reason { try receive([1, .max], descriptors: 1) }
        == start + "4294967295 regions with 1 descriptors")
    #expect(
      reason { try receive([1, 1], regions: [0, 0], descriptors: 1) }
        == start + "it ends after 16 of 32 bytes of regions")
    #expect(
      reason { try receive([1, 1], regions: [0, 4096, 0, 2], descriptors: 1) }
        == start + "a region of kind 2")
    // An event is no file that has bytes.
    #expect(
      reason { try receive([1, 1], regions: [0, 4096, 0, 0], descriptors: 1) }?
        .contains("the file has 0 bytes") == true)
    #expect(
      reason { try receive([1, 1], regions: [1, 4096, 0, 0], descriptors: 1) }?
        .contains("multiples of 4KiB") == true)
    #expect(
      reason { try receive([1, 1], regions: [0, .max, .max, 0], descriptors: 1) } != nil)
  }
}
