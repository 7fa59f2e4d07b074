import Foundation
import PMPageAllocator
import PMReplay
import PMUnits
import Testing

/// Lines that say what cannot be: an error with that line and what was expected there.
@Suite struct MalformedTests {
  private func expectMalformed(_ change: Change) throws {
    var trace = TraceMaker.small
    let index = try change.apply(&trace)
    let outcome = try trace.replay()
    guard case .malformed(let line, let message) = outcome else {
      Issue.record("expected an error with '\(change.expected)', found: \(outcome.summary)")
      return
    }
    #expect(message.contains(change.expected), "\(message)")
    if let index { #expect(line == index + 1, "\(message)") }
    #expect(message.utf8.count < 400)
  }

  @Test(arguments: headerChanges)
  func `A wrong header line is malformed`(_ change: Change) throws { try expectMalformed(change) }

  @Test(arguments: operationLineChanges)
  func `A wrong operation line is malformed`(_ change: Change) throws {
    try expectMalformed(change)
  }

  @Test(arguments: stateLineChanges)
  func `A wrong line of a state is malformed`(_ change: Change) throws {
    try expectMalformed(change)
  }

  @Test(arguments: orderChanges)
  func `A record where it does not belong is malformed`(_ change: Change) throws {
    try expectMalformed(change)
  }

  @Test(arguments: lastLineChanges)
  func `A wrong line about the end is malformed`(_ change: Change) throws {
    try expectMalformed(change)
  }

  @Test(arguments: [
    ("get_page pfn=0 -> void d=0 ; 0 1", "PFN 0 is in no zone"),
    ("get_page pfn=1400 -> void d=0 ; 1400 1", "PFN 1400 is in no zone"),
    ("get_page pfn=15ff -> void d=0 ; 15ff 1", "PFN 15ff is in no zone"),
    ("put_page pfn=1800 -> void d=0 ; 1800 1", "PFN 1800 is in no zone"),
    ("get_page pfn=7fffffff -> void d=0 ; 1 1", "PFN 7fffffff is in no zone"),
    ("get_page pfn=80000000 -> void d=0 ; 1 1", "expected at most 7fffffff"),
    ("get_page pfn=10000000000000000 -> void d=0 ; 1 1", "at most 16 digits"),
    ("__free_pages pfn=0 order=3 -> void d=0 ; 0 1", "block of 8 frames at 0 is in no zone"),
    ("free_pages_exact pfn=13ff bytes=8192 -> void d=2 ; 1 1", "block of 2 frames at 13ff"),
    ("free_pages_exact pfn=13ff bytes=3145728 -> void d=2 ; 1 1", "block of 768 frames at 13ff"),
    ("free_pages_exact pfn=fff bytes=8192 -> void d=2 ; 1 1", "block of 2 frames at fff"),
    ("split_page pfn=1400 order=10 -> void d=0 ; 1 1", "block of 1024 frames at 1400"),
    ("__free_pages pfn=1600 order=10 -> void d=0 ; 1 1", "is not aligned to order 10"),
  ])
  func `A frame outside every zone or in a hole is malformed, and so is a block across one`(
    _ text: String, _ words: String
  ) throws {
    // The second zone gets a hole from 1400 to 15ff, with frames in use behind it.
    var trace = TraceMaker.small
    trace.lines.removeSubrange((try trace.index("endstate begin") + 1)...)
    try trace.set("checkpoint", "0", trace.index("param"))
    try trace.add("spanned", 0x400, trace.index("zone 0.1"))
    try trace.replace(trace.index("pb 0.1"), "1000+2:1", "1000+4:1")
    trace.lines[try trace.index("map 0.1")] += " 1400+200:x 1600+200:U"
    trace.lines.append("op 0 \(text)")
    let outcome = try trace.replay()
    guard case .malformed(let line, let message) = outcome else {
      Issue.record("\(outcome.summary)")
      return
    }
    #expect(line == trace.lines.count)
    #expect(message.contains(words), "\(message)")
  }

  @Test func `A checkpoint between two intervals can only be the last`() throws {
    let maker = try TraceMaker(MachineDescription(memory: .mib(20)), checkpoint: 10, dump: 0)
    for _ in 0..<3 { maker.allocate(order: 0) }
    maker.writeCheckpoint()
    maker.allocate(order: 0)
    let trace = maker.end()
    guard case .malformed(let line, let message) = try trace.replay() else {
      Issue.record("the checkpoint passes")
      return
    }
    #expect(try line == trace.index("op 3 ") + 1)
    #expect(message == "an operation after the checkpoint that the last state follows")
  }
}
