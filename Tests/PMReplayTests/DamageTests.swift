import Foundation
import PMReplay
import Testing

/// Files that are cut off, damaged, or something else: an error with a line and never more.
@Suite struct DamageTests {
  private func expectMalformed(
    _ bytes: [UInt8], line: Int? = nil, _ words: String = "", _ comment: Comment? = nil
  ) throws {
    let outcome = try TraceText.replay(bytes)
    guard case .malformed(let found, let message) = outcome else {
      Issue.record("expected an error, found: \(outcome.summary). \(comment?.rawValue ?? "")")
      return
    }
    if let line { #expect(found == line, "\(message)") }
    #expect(found >= 1)
    #expect(words.isEmpty || message.contains(words), "\(message)")
    #expect(message.utf8.count < 400)
  }

  // MARK: cut off

  @Test func `Every prefix of a trace is malformed`() throws {
    let bytes = Array(TraceMaker.small.text.utf8)
    var generator = SeededGenerator(1)
    var cuts = Set((0..<150).map { _ in Int.random(in: 0..<bytes.count, using: &generator) })
    cuts.formUnion([0, 1, 15, 16, 17, bytes.count - 1, bytes.count - 2])
    // Right after a line, where nothing of a line is missing.
    let ends = bytes.indices.filter { bytes[$0] == 10 }.map { $0 + 1 }.dropLast()
    cuts.formUnion(ends.filter { _ in Int.random(in: 0..<4, using: &generator) == 0 })
    cuts.formUnion(ends.suffix(12))
    for cut in cuts.sorted() {
      let prefix = Array(bytes[..<cut])
      let lines = prefix.count { $0 == 10 }
      let isInLine = cut > 0 && bytes[cut - 1] != 10
      // At the end of a file its last line counts.
      try expectMalformed(
        prefix, line: max(lines + (isInLine ? 1 : 0), 1),
        isInLine ? "ends within a line" : "expected", "cut at byte \(cut)")
    }
  }

  @Test(arguments: [Fixture.everything, .hazards])
  func `A cut real trace is malformed`(_ fixture: Fixture) throws {
    let bytes = Array(try fixture.trace.text.utf8)
    var generator = SeededGenerator(2)
    for _ in 0..<(runsLongTests ? 40 : 4) {
      let cut = Int.random(in: 0..<bytes.count, using: &generator)
      try expectMalformed(Array(bytes[..<cut]), "", "cut at byte \(cut)")
    }
  }

  @Test func `A cut gzip file is malformed`() throws {
    let bytes = Array(try Data(contentsOf: URL(fileURLWithPath: Fixture.everything.path)))
    var generator = SeededGenerator(3)
    var cuts = (0..<(runsLongTests ? 40 : 5)).map { _ in
      Int.random(in: 0..<bytes.count, using: &generator)
    }
    cuts += [1, 2, 3, 9, 10, 11, 18]
    cuts += [1, 4, 8, 9].map { bytes.count - $0 }
    for cut in cuts {
      let outcome = try TraceText.replay(Array(bytes[..<cut]))
      #expect(outcome.isMalformed, "cut at byte \(cut): \(outcome.summary)")
    }
  }

  @Test func `A flipped bit in a gzip file does not pass`() throws {
    let bytes = Array(try Data(contentsOf: URL(fileURLWithPath: Fixture.everything.path)))
    // The header's time, flags and name are under no checksum; the data starts after the name.
    let hasName = bytes[3] & 8 != 0
    let start = hasName ? (bytes[10...].firstIndex(of: 0) ?? 10) + 1 : 10
    var generator = SeededGenerator(4)
    var places = (0..<(runsLongTests ? 60 : 8)).map { _ in
      // The last byte before the trailer may end in bits that mean nothing.
      Int.random(in: start..<(bytes.count - 9), using: &generator)
    }
    places += Array((bytes.count - 8)..<bytes.count)
    for place in places {
      var damaged = bytes
      damaged[place] ^= 1 << UInt8.random(in: 0...7, using: &generator)
      let outcome = try TraceText.replay(damaged)
      #expect(!outcome.isSame, "byte \(place): \(outcome.summary)")
      if place >= bytes.count - 8 {
        guard case .malformed(_, let message) = outcome else {
          Issue.record("checksum or length wrong, but \(outcome.summary)")
          continue
        }
        #expect(message.contains("compressed data is damaged"))
      }
    }
  }

  // MARK: foreign

  @Test func `A program is no trace`() throws {
    let program = try Data(contentsOf: URL(fileURLWithPath: "/proc/self/exe"))
    try expectMalformed(
      Array(program.prefix(1 << 20)), line: 1, "byte 0x7f at column 1, expected 'physmem-trace 1'")
  }

  @Test(arguments: [
    ("{\"schema_version\":1}\n", 1, "expected 'physmem-trace 1'"),
    ("# tracer: nop\n#\n  bash-1 [000] d..1 1.0: mm_page_alloc:\n", 3, "two blanks in a row"),
    ("# tracer: nop\nbash-1 [000] d..1 1.0: mm_page_alloc:\n", 2, "expected 'physmem-trace 1'"),
    ("physmem-trace 2\nkernel x\n", 1, "version 2: expected 1"),
    ("physmem-trace 1 \nkernel x\n", 1, "a blank ends the line"),
    ("physmem-trace  1\nkernel x\n", 1, "two blanks in a row"),
    ("physmem-trace 1 1\n", 1, "unexpected text at column 17"),
    ("physmem-trace\n", 1, "the line ends early"),
    ("physmem-trace 1", 1, "the file ends within a line"),
    ("physmem-trace 1\n", 1, "cut off: expected 'kernel'"),
    ("physmem-trace 1\nparam profile=A\n", 2, "expected 'kernel'"),
    ("physmem-trace 1\r\nkernel x\r\n", 1, "byte 0xd"),
    ("physmem-trace 1\nkernel x\r\n", 2, "ends in CR LF: expected LF alone"),
    ("physmem-trace 1\nkernel x\0y\n", 2, "byte 0x0 at column 9: expected printable ASCII"),
    ("physmem-trace 1\nkernel \u{e4}\n", 2, "byte 0xc3 at column 8"),
    ("physmem-trace 1\nkernel x\n\nnote\n", 3, "the line ends early"),
    ("\n", 1, "the line ends early"),
    ("", 1, "the file is empty: expected 'physmem-trace 1'"),
    ("#\n", 1, "cut off: expected 'physmem-trace 1'"),
    ("op 0 drain_local_pages zone=all -> void d=0\n", 1, "expected 'physmem-trace 1'"),
  ])
  func `Another text is no trace`(_ text: String, _ line: Int, _ message: String) throws {
    try expectMalformed(Array(text.utf8), line: line, message)
  }

  @Test func `A very long line ends in an error, not in memory`() throws {
    let line = [UInt8](repeating: 97, count: runsLongTests ? 80 << 20 : 2 << 20)
    try expectMalformed(line, line: 1)
    try expectMalformed(line + [10], line: 1)
    try expectMalformed(
      try gzip([UInt8](repeating: 97, count: 3 << 20) + [10]), line: 1, "expected")
  }

  @Test func `Missing files and directories are no input`() throws {
    for path in ["/nonexistent/x.trace", "", NSTemporaryDirectory(), "/dev/null/x"] {
      let outcome = TraceText.outcome(path)
      guard case .other(.noInput(let file, let reason)) = outcome else {
        Issue.record("\(path): \(outcome.summary)")
        continue
      }
      #expect(file == path)
      #expect(!reason.isEmpty)
    }
    #expect(TraceText.outcome("/dev/null").isMalformed)
  }

  @Test func `Random bytes are malformed`() throws {
    var generator = SeededGenerator(5)
    for count in 0..<60 {
      var bytes = (0..<(count * 7)).map { _ in UInt8.random(in: 0...255, using: &generator) }
      if count % 3 == 0 { bytes = [0x1f, 0x8b, 8] + bytes }
      if count % 3 == 1 { bytes = Array("physmem-trace 1\nkernel k\n".utf8) + bytes }
      try expectMalformed(bytes)
    }
  }
}
