import PMArena
import PMExport
import Physmem
import SystemPackage
import Testing

@testable import PMVhostUser

@Suite("Regions offered to a back end")
struct AddRegionsTests {
  static let one: VhostUserProtocolFeatures = [.configureMemSlots, .replyAck]

  /// Memory of so many regions of 64 KiB.
  private func memory(_ count: Int, backing: Backing = .memfd) throws -> GuestMemory {
    let memory = GuestMemory()
    for index in 0..<count {
      try memory.add(
        .ram(at: GPA(UInt64(index) << 20), byteCount: .kib(64), backing: backing))
    }
    return memory
  }

  private func offer(
    _ memory: GuestMemory, _ features: VhostUserProtocolFeatures, timeout: Int32 = 10_000,
    _ answer: @escaping @Sendable (FakeBackEnd.Message) -> FakeBackEnd.Answer
  ) throws -> (result: Result<Int, VhostUserError>, asked: [FakeBackEnd.Message]) {
    let backEnd = FakeBackEnd()
    let result: Result<Int, VhostUserError>
    do {
      let socket = Socket.own(try backEnd.serve(answer))
      let number = socket.rawValue
      result = Result { () throws(VhostUserError) in
        try VhostUser.addRegions(of: memory, to: number, features: features, timeout: timeout)
      }
      _ = consume socket
    }
    return (result, backEnd.finish())
  }

  private static func willing(_ message: FakeBackEnd.Message) -> FakeBackEnd.Answer {
    switch VhostUserRequest(rawValue: message.request) {
    case .getMaxMemSlots: .number(32)
    case .getFeatures: .number(1 << 30)
    default: message.needsReply ? .number(0) : .nothing
    }
  }

  @Test("One by one, each with its descriptor, acknowledged")
  func oneByOne() throws {
    let memory = try memory(3)
    try memory.add(.rom(at: GPA(0xf000_0000), byteCount: .kib(64)))
    let (result, asked) = try offer(memory, AddRegionsTests.one, AddRegionsTests.willing)
    #expect(try result.get() == 3)
    #expect(
      asked.map(\.name) == ["GET_MAX_MEM_SLOTS", "ADD_MEM_REG", "ADD_MEM_REG", "ADD_MEM_REG"])
    for (message, region) in zip(asked.dropFirst(), memory.regions) {
      #expect(message.descriptorCount == 1)
      #expect(message.payload.count == 40)
      #expect(message.word(8) == region.range.start.rawValue)
      #expect(message.word(16) == region.range.byteCount)
      #expect(message.word(24) == UInt64(UInt(bitPattern: region.hostAddress)))
      #expect(message.word(32) == region.fileOffset)
      #expect(message.flags == 9)
    }
  }

  @Test("Without acknowledgements a round trip at the end makes sure")
  func barrier() throws {
    let (result, asked) = try offer(
      memory(2), .configureMemSlots, AddRegionsTests.willing)
    #expect(try result.get() == 2)
    #expect(
      asked.map(\.name) == ["GET_MAX_MEM_SLOTS", "ADD_MEM_REG", "ADD_MEM_REG", "GET_FEATURES"])
    #expect(asked.allSatisfy { $0.flags == 1 })
  }

  @Test(
    "As one table where they cannot come one by one",
    arguments: [[], VhostUserProtocolFeatures.replyAck])
  func table(features: VhostUserProtocolFeatures) throws {
    let memory = try memory(8)
    let (result, asked) = try offer(memory, features, AddRegionsTests.willing)
    #expect(try result.get() == 8)
    let table = try #require(asked.first)
    #expect(table.name == "SET_MEM_TABLE")
    #expect(asked.count == (features.isEmpty ? 2 : 1))
    #expect(table.descriptorCount == 8)
    #expect(table.payload.count == 8 + 8 * 32)
    #expect(table.payload.word(UInt32.self, at: 0) == 8)
    #expect(table.word(8 + 7 * 32) == 7 << 20)
  }

  @Test("More than it takes: nothing is offered")
  func tooMany() throws {
    let table = try offer(memory(9), .replyAck, AddRegionsTests.willing)
    #expect(table.result == .failure(.tooManyRegions(count: 9, max: 8)))
    #expect(table.asked.isEmpty)
    let slots = try offer(memory(33), AddRegionsTests.one, AddRegionsTests.willing)
    #expect(slots.result == .failure(.tooManyRegions(count: 33, max: 32)))
    #expect(slots.asked.map(\.name) == ["GET_MAX_MEM_SLOTS"])
    #expect(VhostUserError.tooManyRegions(count: 9, max: 8).errno == .noSpace)
  }

  @Test("Private memory cannot be offered")
  func privateMemory() throws {
    let (result, asked) = try offer(
      memory(1, backing: .anonymous), AddRegionsTests.one, AddRegionsTests.willing)
    let range = GuestRange(start: GPA(0), byteCount: 65536)
    #expect(result == .failure(.privateMemory(range)))
    #expect(asked.isEmpty)
  }

  @Test("A refusal takes back what was taken")
  func refusal() throws {
    let (result, asked) = try offer(memory(3), AddRegionsTests.one) { message in
      message.name == "ADD_MEM_REG" && message.word(8) == 2 << 20
        ? .number(22) : AddRegionsTests.willing(message)
    }
    #expect(result == .failure(.refused(.addMemReg, code: 22)))
    #expect(
      asked.map(\.name) == [
        "GET_MAX_MEM_SLOTS", "ADD_MEM_REG", "ADD_MEM_REG", "ADD_MEM_REG", "REM_MEM_REG",
        "REM_MEM_REG",
      ])
    #expect(asked.suffix(2).map { $0.word(8) } == [0, 1 << 20])
  }

  @Test("It hangs up: before, between, instead of an answer")
  func hangUps() throws {
    let early = try offer(memory(1), AddRegionsTests.one) { _ in .hangUp }
    #expect(early.result == .failure(.hungUp(.getMaxMemSlots)))
    let late = try offer(memory(2), AddRegionsTests.one) { message in
      message.name == "ADD_MEM_REG" ? .hangUp : AddRegionsTests.willing(message)
    }
    #expect(late.result == .failure(.hungUp(.addMemReg)))
    #expect(VhostUserError.hungUp(.addMemReg).errno == .brokenPipe)
    let silent = try offer(memory(2), .configureMemSlots) { message in
      message.name == "GET_FEATURES" ? .hangUp : AddRegionsTests.willing(message)
    }
    #expect(silent.result == .failure(.hungUp(.getFeatures)))
  }

  @Test("It does not answer")
  func silence() throws {
    let (result, _) = try offer(memory(1), AddRegionsTests.one, timeout: 50) { _ in .nothing }
    #expect(result == .failure(.timedOut(.getMaxMemSlots)))
  }

  @Test(
    "Replies that the protocol does not have",
    arguments: [
      (FakeBackEnd.reply(35, [0]), "it answers request 35"),
      (FakeBackEnd.reply(37, [0]), "it answers ADD_MEM_REG"),
      (FakeBackEnd.reply(36, [0], flags: 6), "version 2: expected 1"),
      (FakeBackEnd.reply(36, [0], flags: 1), "it is not marked as a reply"),
      (FakeBackEnd.reply(36, [0], size: 4), "4 bytes: expected 8"),
      (FakeBackEnd.reply(36, [0], size: .max), "4294967295 bytes: expected 8"),
      (FakeBackEnd.reply(36, []), "0 bytes: expected 8"),
    ])
  func malformed(bytes: [UInt8], reason: String) throws {
    let (result, _) = try offer(memory(1), AddRegionsTests.one) { _ in .raw(bytes) }
    #expect(result == .failure(.malformedReply(.getMaxMemSlots, reason)))
  }

  @Test("Replies that end too early", arguments: [1, 11, 12, 19])
  func short(count: Int) throws {
    let backEnd = FakeBackEnd()
    let socket = Socket.own(
      try backEnd.serve { message in
        message.name == "GET_MAX_MEM_SLOTS"
          ? .raw(Array(FakeBackEnd.reply(36, [32]).prefix(count))) : .hangUp
      })
    // The back end waits for more; another message makes it hang up after the short reply.
    var hint: [UInt8] = []
    for word: UInt32 in [36, 1, 0, 3, 1, 0] { hint.append(word: word) }
    try Socket.send(hint, to: socket.rawValue, timeout: 1000)
    let channel = VhostUserChannel(socket: socket.rawValue, timeout: 10_000)
    #expect(throws: VhostUserError.self) {
      try channel.reply(to: .getMaxMemSlots, sizes: 8...8)
    }
  }

  @Test("A descriptor that is no socket")
  func noSocket() throws {
    let event = try Event()
    let memory = try memory(1)
    let number = event.rawValue
    #expect {
      try VhostUser.addRegions(of: memory, to: number, features: AddRegionsTests.one)
    } throws: {
      guard case .host(let error) = $0 as? VhostUserError else { return false }
      return error.errno == Errno(rawValue: 88)  // ENOTSOCK
    }
  }
}
