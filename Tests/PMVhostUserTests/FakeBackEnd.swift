import Dispatch
import PMArena
import PMExport
import Physmem
import Synchronization

@testable import PMVhostUser

/// A back end in a thread of the tests: answers as it is told, right or wrong, and notes what it was asked.
final class FakeBackEnd: Sendable {
  /// A message as it came.
  struct Message: Sendable {
    var request: UInt32
    var flags: UInt32
    var payload: [UInt8]
    var descriptorCount: Int

    var name: String { VhostUserRequest(rawValue: request)?.description ?? "\(request)" }
    var needsReply: Bool { flags & 8 != 0 }
    func word(_ offset: Int) -> UInt64 { payload.word(UInt64.self, at: offset) }
  }

  /// What it does when a message has come.
  enum Answer: Sendable {
    case nothing
    case number(UInt64)
    /// These bytes as they are.
    case raw([UInt8])
    case hangUp
  }

  private let messages = Mutex<[Message]>([])
  private let done = DispatchSemaphore(value: 0)

  /// Everything that it was asked. Waits until the front end has closed or this has hung up.
  func finish() -> [Message] {
    done.wait()
    return messages.withLock { $0 }
  }

  /// Serves one connection, and returns the front end's end of it.
  func serve(_ answer: @escaping @Sendable (Message) -> Answer) throws -> Int32 {
    let (front, back) = try Socket.pair()
    DispatchQueue.global().async {
      self.run(Socket.own(back), answer)
      self.done.signal()
    }
    return front
  }

  private func run(
    _ socket: consuming OwnedFile, _ answer: @Sendable (Message) -> Answer
  ) {
    while let message = FakeBackEnd.receive(from: socket.rawValue) {
      messages.withLock { $0.append(message) }
      let bytes: [UInt8]
      switch answer(message) {
      case .nothing: continue
      case .number(let number): bytes = FakeBackEnd.reply(message.request, [number])
      case .raw(let raw): bytes = raw
      case .hangUp: return
      }
      do { try Socket.send(bytes, to: socket.rawValue, timeout: 5000) } catch { return }
    }
  }

  private static func receive(from socket: Int32) -> Message? {
    guard let head = try? Socket.receive(12, maxDescriptors: 16, from: socket, timeout: 20_000),
      head.bytes.count == 12
    else { return nil }
    // Owned and closed here: only their number is of interest.
    for descriptor in head.descriptors { _ = Socket.own(descriptor) }
    let size = Int(head.bytes.word(UInt32.self, at: 8))
    let payload =
      size == 0 ? [] : try? Socket.receive(size, from: socket, timeout: 20_000).bytes
    guard let payload else { return nil }
    return Message(
      request: head.bytes.word(UInt32.self, at: 0), flags: head.bytes.word(UInt32.self, at: 4),
      payload: payload, descriptorCount: head.descriptors.count)
  }

  /// A well-formed reply.
  static func reply(
    _ request: UInt32, _ numbers: [UInt64], flags: UInt32 = 5, size: UInt32? = nil
  ) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(word: request)
    bytes.append(word: flags)
    bytes.append(word: size ?? UInt32(numbers.count * 8))
    for number in numbers { bytes.append(word: number) }
    return bytes
  }
}
