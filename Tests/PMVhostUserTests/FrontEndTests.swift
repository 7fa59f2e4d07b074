import PMExport
import Physmem
import Testing

@testable import PMVhostUser

@Suite("A front end's messages")
struct FrontEndTests {
  /// A device with these features.
  private static func device(
    features: UInt64, protocol protocolFeatures: UInt64
  ) -> @Sendable (FakeBackEnd.Message) -> FakeBackEnd.Answer {
    { message in
      switch VhostUserRequest(rawValue: message.request) {
      case .getFeatures: .number(features)
      case .getProtocolFeatures: .number(protocolFeatures)
      case .getQueueNum: .number(3)
      case .getMaxMemSlots: .number(8)
      case .getVringBase: .number(UInt64(7) << 32)
      default: message.needsReply ? .number(0) : .nothing
      }
    }
  }

  private func frontEnd(
    _ backEnd: FakeBackEnd,
    _ answer: @escaping @Sendable (FakeBackEnd.Message) -> FakeBackEnd.Answer
  ) throws -> VhostUserFrontEnd {
    try VhostUserFrontEnd(
      Socket.own(try backEnd.serve(answer)), deviceFeatures: VhostUserDeviceFeature.version1,
      protocolFeatures: .all, timeout: 10_000)
  }

  @Test("What both sides have is what is used")
  func negotiation() throws {
    let backEnd = FakeBackEnd()
    do {
      let front = try frontEnd(
        backEnd, FrontEndTests.device(features: 1 << 32 | 1 << 30 | 1 << 9, protocol: .max))
      #expect(front.deviceFeatures == 1 << 32 | 1 << 30)
      #expect(front.protocolFeatures == .all)
      #expect(try front.queueCount() == 3)
      #expect(try front.stop(index: 0) == 7)
      #expect(throws: VhostUserError.malformedReply(.getVringBase, "it is of queue 0: expected 1"))
      {
        try front.stop(index: 1)
      }
    }
    let asked = backEnd.finish()
    #expect(
      asked.map(\.name) == [
        "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "SET_OWNER",
        "SET_FEATURES", "GET_QUEUE_NUM", "GET_VRING_BASE", "GET_VRING_BASE",
      ])
    // Before REPLY_ACK is agreed on nothing asks for an acknowledgement.
    #expect(asked.map(\.needsReply) == [false, false, false, true, true, false, false, false])
    #expect(asked[2].word(0) == VhostUserProtocolFeatures.all.rawValue)
    #expect(asked[4].word(0) == 1 << 32 | 1 << 30)
  }

  @Test("A device without features of the protocol")
  func plain() throws {
    let backEnd = FakeBackEnd()
    do {
      let front = try frontEnd(backEnd, FrontEndTests.device(features: 1 << 32, protocol: 0))
      #expect(front.protocolFeatures == [])
      #expect(try front.queueCount() == 1)
      #expect(throws: VhostUserError.self) { try front.configuration(byteCount: 8) }
      let memory = GuestMemory()
      try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
      let region = try #require(memory.regions.first)
      #expect(throws: VhostUserError.self) { try front.add(region) }
      #expect(try front.addRegions(of: memory) == 1)
      try front.start(try SplitQueue(in: memory, at: GPA(0x1000), size: 8), index: 0)
    }
    #expect(
      backEnd.finish().map(\.name) == [
        "GET_FEATURES", "SET_OWNER", "SET_FEATURES", "SET_MEM_TABLE", "GET_FEATURES",
        "SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_CALL",
      ])
  }

  @Test("The device's configuration: as long as asked, or a refusal")
  func configuration() throws {
    let backEnd = FakeBackEnd()
    let front = try frontEnd(backEnd) { message in
      guard message.name == "GET_CONFIG" else {
        return FrontEndTests.device(features: 1 << 30, protocol: .max)(message)
      }
      guard message.payload.word(UInt32.self, at: 0) == 0 else {
        return .raw(FakeBackEnd.reply(24, []))
      }
      var bytes = FakeBackEnd.reply(24, [], size: UInt32(message.payload.count))
      bytes += message.payload.prefix(12) + Array(1...UInt8(message.payload.count - 12))
      return .raw(bytes)
    }
    #expect(try front.configuration(byteCount: 5) == [1, 2, 3, 4, 5])
    #expect(throws: VhostUserError.refused(.getConfig, code: 0)) {
      try front.configuration(offset: 4096, byteCount: 5)
    }
  }
}

@Suite("A queue from the driver's side")
struct SplitQueueTests {
  private let memory = GuestMemory()
  private let start = GPA(0x1000)

  init() throws { try memory.add(.ram(at: GPA(0), byteCount: .mib(2))) }

  private func buffers(_ count: Int) -> [SplitQueue.Buffer] {
    (0..<count).map {
      .init(
        GuestRange(start: GPA(UInt64(0x10_0000 + $0 * 512)), byteCount: 512),
        isWritable: $0 % 2 == 1)
    }
  }

  /// What a device does: gives chain `head` back as number `index` of the used ring.
  private func giveBack(_ head: UInt32, index: UInt16, size: Int, count: UInt16 = 1) throws {
    let used = start + ((16 * size + 6 + 2 * size + 3) & ~3)
    try memory.store(head, at: used + 4 + 8 * (Int(index) % size))
    try memory.store(UInt32(99), at: used + 8 + 8 * (Int(index) % size))
    try memory.atomicStore(index &+ count, at: used + 2)
  }

  @Test("Chains are laid out as virtio has it")
  func layout() throws {
    let queue = try SplitQueue(in: memory, at: start, size: 8)
    #expect(try queue.push(buffers(3)) == 0)
    #expect(try queue.push(buffers(1)) == 3)
    // Descriptor 1: address, length, flags (next, writable), next.
    #expect(try memory.load(UInt64.self, at: start + 16) == 0x10_0200)
    #expect(try memory.load(UInt32.self, at: start + 24) == 512)
    #expect(try memory.load(UInt16.self, at: start + 28) == 3)
    #expect(try memory.load(UInt16.self, at: start + 30) == 2)
    // Descriptor 2 is the last: no next.
    #expect(try memory.load(UInt16.self, at: start + 44) == 0)
    // The available ring: two chains, 0 and 3.
    #expect(try memory.load(UInt16.self, at: start + 130) == 2)
    #expect(try memory.load(UInt16.self, at: start + 132) == 0)
    #expect(try memory.load(UInt16.self, at: start + 134) == 3)
  }

  @Test("Around the ring, and around the counters, many times")
  func wrap() throws {
    let queue = try SplitQueue(in: memory, at: start, size: 4)
    for round in 0..<70_000 {
      let head = try queue.push(buffers(1 + round % 4))
      #expect(try queue.pop() == nil)
      try giveBack(UInt32(head), index: UInt16(truncatingIfNeeded: round), size: 4)
      #expect(try queue.pop() == SplitQueue.Used(head: head, byteCount: 99))
    }
  }

  /// The pages that are dirty now, and none of them afterwards.
  private func harvest() throws -> [GuestRange] {
    let harvest = try memory.beginHarvest()
    let runs = harvest.runs
    harvest.commit()
    return runs
  }

  @Test("What the device may have written is dirty when it gives the chain back")
  func dirty() throws {
    let queue = try SplitQueue(in: memory, at: start, size: 8)
    try memory.startTrackingDirtyPages()
    let mine = GuestRange(start: GPA(0x4000), byteCount: 512)
    let its = GuestRange(start: GPA(0x8e00), byteCount: 8192)
    let head = try queue.push([
      .init(mine, isWritable: false), .init(its, isWritable: true),
    ])
    try giveBack(UInt32(head), index: 0, size: 8)
    let ring = GuestRange(start: start, byteCount: 4096)
    #expect(try harvest() == [ring])
    // The device's bytes come by another way than this memory's functions.
    #expect(try queue.pop()?.head == head)
    let written = GuestRange(start: GPA(0x8000), byteCount: 3 * 4096)
    #expect(try harvest() == [ring, written])
    // Without an answer they may be written, too.
    let late = try queue.push([.init(its, isWritable: true)])
    #expect(throws: VhostUserError.self) { try queue.waitForUsed(peer: -1, timeout: 1) }
    #expect(try harvest() == [ring, written])
    // With no record there is nothing to mark, and with no region.
    try memory.stopTrackingDirtyPages()
    try giveBack(UInt32(late), index: 1, size: 8)
    #expect(try queue.pop()?.head == late)
  }

  @Test("More buffers than descriptors, sizes and places that cannot be")
  func limits() throws {
    let queue = try SplitQueue(in: memory, at: start, size: 4)
    try queue.push(buffers(3))
    #expect(throws: VhostUserError.self) { try queue.push(buffers(2)) }
    #expect(throws: VhostUserError.self) { try queue.push([]) }
    let huge = GuestRange(start: GPA(0), byteCount: 1 << 32)
    #expect(throws: VhostUserError.self) { try queue.push([.init(huge, isWritable: true)]) }
    try queue.push(buffers(1))
    for size: UInt16 in [0, 3, 65535] {
      #expect(throws: VhostUserError.self) { try SplitQueue(in: memory, at: start, size: size) }
    }
    #expect(throws: VhostUserError.self) { try SplitQueue(in: memory, at: start + 8, size: 4) }
    #expect(throws: VhostUserError.self) {
      try SplitQueue(in: memory, at: GPA(0x1f_fff0), size: 4)
    }
  }

  @Test("A device that writes nonsense is an error, not a crash")
  func nonsense() throws {
    for (head, count): (UInt32, UInt16) in [(1, 1), (7, 1), (0xffff_0000, 1), (0, 2), (0, 0xffff)] {
      let queue = try SplitQueue(in: memory, at: start, size: 4)
      try queue.push(buffers(2))
      try giveBack(head, index: 0, size: 4, count: count)
      #expect(throws: VhostUserError.self) { try queue.pop() }
    }
    // The same chain twice.
    let queue = try SplitQueue(in: memory, at: start, size: 4)
    try queue.push(buffers(2))
    try queue.push(buffers(2))
    try giveBack(0, index: 0, size: 4)
    #expect(try queue.pop()?.head == 0)
    try giveBack(0, index: 1, size: 4)
    #expect(
      throws: VhostUserError.malformedQueue("the device gave back chain 0, which it did not have")
    ) {
      try queue.pop()
    }
  }
}
