import ArenaRecords
import Foundation
import Testing

/// A run of the program ArenaPeer, which was built with these tests and stands beside their bundle.
///
/// What it does and what it answers is said there. Its end is waited for, never its time.
final class PeerProcess {
  private let process = Process()
  private let input: Pipe?
  private let output = Pipe()
  private var unread: [UInt8] = []

  /// Starts the program. `standardInput` is a descriptor that it gets as its standard input; without
  /// one it gets lines of ``send(_:)``.
  init(_ arguments: [String], standardInput: Int32? = nil) throws {
    let bundle = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
    process.executableURL = URL(fileURLWithPath: bundle).deletingLastPathComponent()
      .appendingPathComponent("ArenaPeer")
    process.arguments = arguments
    process.standardOutput = output
    if let standardInput {
      input = nil
      process.standardInput = FileHandle(fileDescriptor: standardInput, closeOnDealloc: false)
    } else {
      let lines = Pipe()
      input = lines
      process.standardInput = lines
    }
    try process.run()
  }

  deinit {
    guard process.isRunning else { return }
    kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
  }

  /// The number of the process.
  var identifier: Int32 { process.processIdentifier }

  /// Writes a line to its standard input.
  func send(_ line: String) throws {
    try #require(input).fileHandleForWriting.write(contentsOf: Data((line + "\n").utf8))
  }

  /// The next answer, waited for; nil where the process has ended and all answers are read.
  func nextAnswer() throws -> UInt64? {
    while unread.count < 8 {
      var buffer = [UInt8](repeating: 0, count: 4096)
      let count = read(output.fileHandleForReading.fileDescriptor, &buffer, buffer.count)
      if count < 0, errno == EINTR { continue }
      try #require(count >= 0, "read: errno \(errno)")
      if count == 0 {
        #expect(unread.isEmpty, "half an answer")
        return nil
      }
      unread += buffer[0..<count]
    }
    let word = unread.prefix(8).enumerated().reduce(UInt64(0)) {
      $0 | UInt64($1.element) << UInt64(8 * $1.offset)
    }
    unread.removeFirst(8)
    return word
  }

  /// The next answer of a process that cannot have ended.
  func answer() throws -> UInt64 {
    let answer = try nextAnswer()
    return try #require(answer, "the process has ended")
  }

  /// Kills it (SIGKILL: it cannot do anything any more) and gives the last of the answers that it had
  /// still written.
  func killAndDrain() throws -> UInt64? {
    kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
    #expect(process.terminationReason == .uncaughtSignal)
    #expect(process.terminationStatus == SIGKILL)
    var last: UInt64?
    while let answer = try nextAnswer() { last = answer }
    return last
  }
}

/// A watcher of an arena: another process that has all of it mapped before anything happens.
struct Watcher {
  private let peer: PeerProcess

  /// Starts it; it has mapped the memory when this returns.
  init(_ path: String, byteCount: Int) throws {
    peer = try PeerProcess(["watch", path, "\(byteCount)"])
    _ = try peer.answer()
  }

  /// A hash of a page as it sees it.
  func hash(page: Int) throws -> UInt64 {
    try peer.send("\(page)")
    return try peer.answer()
  }

  /// Has it write a record into a page.
  func write(_ record: UInt64, page: Int) throws {
    try peer.send("\(page) \(record)")
    _ = try peer.answer()
  }

  /// Expects that it sees what stands in these pages here.
  func expectSame(
    _ pages: Range<Int>, at base: UnsafeRawPointer, _ location: SourceLocation = #_sourceLocation
  ) throws {
    // One line and one answer at a time, so that neither pipe can fill up.
    var different: [Int] = []
    for page in pages where try hash(page: page) != Record.hash(of: base + page * Record.byteCount)
    {
      different.append(page)
    }
    #expect(different.isEmpty, "pages", sourceLocation: location)
  }
}
