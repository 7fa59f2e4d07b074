import CZlib
import Foundation
import PMPageAllocator
import PMReplay
import PMUnits
import Testing

/// What a replay takes of the host. Each runs in a process of its own, where no other test opens
/// files or maps memory at the same time.
@Suite struct ResourceTests {
  @Test func `Two hundred replays, good and bad, leave no descriptor and no mapping`() async throws
  {
    await #expect(processExitsWith: .success) {
      try leaveNothing()
    }
  }

  @Test(.enabled(if: runsLongTests, "10^7 lines: set PHYSMEM_LONG=1 or test with -c release"))
  func `Ten million lines replay in bounded memory`() async throws {
    let result = await #expect(
      processExitsWith: .success, observing: [\.standardOutputContent]
    ) {
      try replayTenMillionLines()
    }
    if let output = result?.standardOutputContent {
      print(String(decoding: output, as: UTF8.self), terminator: "")
    }
  }
}

private struct Leak: Error, CustomStringConvertible {
  var description: String
}

private func count(_ path: String) throws -> Int {
  try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").count
}

private func openDescriptors() throws -> Int {
  try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
}

private func leaveNothing() throws {
  let good = TraceMaker.small
  var mismatching = good
  try mismatching.set("fh", "1", mismatching.index("ck 20 0.0"))
  var malformed = good
  malformed.lines.removeLast()
  var contradicting = good
  try contradicting.replace(contradicting.index("map 0.0"), ":B", ":U")
  let packed = try gzip(Array(good.text.utf8))
  let inputs =
    [good, mismatching, malformed, contradicting].map { Array($0.text.utf8) }
    + [packed, Array(packed.dropLast(5)), [], [0x1f, 0x8b]]
  func replayAll(_ rounds: Int) throws {
    for round in 0..<rounds {
      var options = TraceReplayer.Options()
      options.keepsGoing = round % 2 == 0
      options.measures = round % 3 == 0
      _ = try TraceText.replay(inputs[round % inputs.count], options)
    }
    _ = TraceText.outcome("/nonexistent")
    _ = TraceText.outcome("/")
  }
  try replayAll(24)
  let before = (try openDescriptors(), try count("/proc/self/maps"))
  try replayAll(200)
  let after = (try openDescriptors(), try count("/proc/self/maps"))
  guard before.0 == after.0 else {
    throw Leak(description: "descriptors: \(before.0) to \(after.0)")
  }
  // The heap may move a mapping or two; 200 leaked machines would be hundreds.
  guard after.1 <= before.1 + 8 else {
    throw Leak(description: "mappings: \(before.1) to \(after.1)")
  }
}

private func replayTenMillionLines() throws {
  try withTemporaryFile { file in
    let maker = try TraceMaker(MachineDescription(memory: .mib(20)), checkpoint: 0, dump: 0)
    maker.allocate(order: 0)
    let page = maker.held[0].pfn
    let pairs = 5_000_000
    let stream = try #require(gzopen(file.path, "wb1"))
    func write(_ text: String) {
      var text = text
      text.withUTF8 { bytes in
        precondition(gzwrite(stream, bytes.baseAddress, UInt32(bytes.count)) == bytes.count)
      }
    }
    write(maker.lines.joined(separator: "\n") + "\n")
    for pair in 0..<pairs {
      let number = 1 + 2 * pair
      write(
        "op \(number) get_page pfn=\(page) -> void d=0 ; \(page) 2\nop \(number + 1) put_page pfn=\(page) -> void d=0 ; \(page) 1\n"
      )
    }
    let last = StateWriter.lines(
      of: maker.machine.state(withMaps: true), label: "end", operations: 1 + 2 * pairs, held: 1)
    write(last.joined(separator: "\n") + "\n")
    write("held pfn=\(page) order=0 kind=nc xref=0 aux=0\nend ops=\(1 + 2 * pairs) truncated=0\n")
    precondition(gzclose(stream) == Z_OK)
    let clock = ContinuousClock()
    let started = clock.now
    let report = try TraceReplayer.replay(file.path)
    let elapsed = started.duration(to: clock.now)
    guard report.mismatches == 0, report.operations == 1 + 2 * pairs else {
      throw Leak(description: "\(report.operations) operations, \(report.mismatches) mismatches")
    }
    let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
    let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM") } ?? ""
    let peak = Int(line.filter(\.isNumber)) ?? .max
    print("\(report.operations) operations in \(elapsed), peak \(peak >> 10) MiB")
    guard peak < 3 << 19 else { throw Leak(description: "peak memory \(peak) KiB") }
  }
}
