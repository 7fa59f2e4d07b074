import Foundation
import PMReplay
import Testing

/// Random damage to the bytes of a trace: never a crash, never a hang, and it passes only where the
/// damaged bytes say nothing.
@Suite(.timeLimit(.minutes(5))) struct FuzzTests {
  private static let seed: UInt64 =
    ProcessInfo.processInfo.environment["PHYSMEM_FUZZ_SEED"].flatMap { UInt64($0) } ?? 20_260_701

  @Test func `A damaged small trace does not pass`() throws {
    try fuzz(TraceMaker.small, "small", runsLongTests ? 10_000 : 600)
  }

  @Test func `A damaged real trace does not pass`() throws {
    try fuzz(Fixture.everything.trace, "real", runsLongTests ? 2000 : 20)
  }

  private func fuzz(_ trace: TraceText, _ name: String, _ count: Int) throws {
    let original = Array(trace.text.utf8)
    let again = "PHYSMEM_FUZZ_SEED=\(Self.seed) swift test --filter FuzzTests"
    print("fuzz \(name): \(count) mutations, again: \(again)")
    // A crash leaves the file that did it.
    let file = FileManager.default.temporaryDirectory
      .appendingPathComponent("physmem-fuzz-\(name)-\(UUID().uuidString).trace")
    defer { try? FileManager.default.removeItem(at: file) }
    var passed = 0
    for round in 0..<count {
      var generator = SeededGenerator(Self.seed &+ UInt64(round) &* 1_000_003)
      let bytes = mutated(original, &generator)
      try Data(bytes).write(to: file)
      // Going on means performing operations on a machine that is no longer the trace's.
      var options = TraceReplayer.Options.comparing
      options.keepsGoing = round % 2 == 1
      let outcome = TraceText.outcome(file.path, options)
      switch outcome {
      case .mismatch, .malformed: break
      case .other(let error): Issue.record("round \(round) of \(again): \(error)")
      case .same:
        passed += 1
        let changed = TraceText(
          lines: String(decoding: bytes, as: UTF8.self).split(
            separator: "\n", omittingEmptySubsequences: false
          ).map(String.init))
        let difference = firstDifference(trace.lines, changed.lines.dropLast())
        if let difference {
          Issue.record("round \(round) of \(again) passes: \(difference)")
        }
      }
    }
    print("fuzz \(name): \(passed) of \(count) mutations touched only what replay does not read")
  }

  private func mutated(_ original: [UInt8], _ generator: inout SeededGenerator) -> [UInt8] {
    var bytes = original
    // Half of the changes to a byte stay in the alphabet of traces, so that they get far.
    let alphabet = Array("0123456789abcdefx-=,;:.*!/+ >hthtbUBPRLS\n".utf8)
    for _ in 0..<Int.random(in: 1...2, using: &generator) {
      let place = Int.random(in: bytes.indices, using: &generator)
      let letter = alphabet[Int.random(in: alphabet.indices, using: &generator)]
      switch Int.random(in: 0..<8, using: &generator) {
      case 0: bytes[place] ^= 1 << UInt8.random(in: 0...7, using: &generator)
      case 1: bytes[place] = UInt8.random(in: 0...255, using: &generator)
      case 2, 3: bytes[place] = letter
      case 4: bytes.insert(letter, at: place)
      case 5: bytes.remove(at: place)
      case 6: if place > 0 { bytes.swapAt(place, place - 1) }
      default:
        let end = min(bytes.count, place + Int.random(in: 1...60, using: &generator))
        if Bool.random(using: &generator) {
          bytes.removeSubrange(place..<end)
        } else {
          bytes.insert(contentsOf: bytes[place..<end], at: place)
        }
      }
    }
    return bytes
  }

  /// Where two traces differ in what replay reads; nil where they say the same.
  private func firstDifference(
    _ first: some Sequence<String>, _ second: some Sequence<String>
  ) -> String? {
    let meanings = (first.compactMap(meaning), second.compactMap(meaning))
    for (left, right) in zip(meanings.0, meanings.1) where left != right {
      return "'\(left.prefix(160))' | '\(right.prefix(160))'"
    }
    return meanings.0.count == meanings.1.count ? nil : "another number of lines"
  }

  /// A line without what replay does not interpret:
  /// - comments, the kernel's name, the note, `sym=`;
  /// - the generator's seed and number of operations (only a lower limit), `truncated=`;
  /// - constants, sysctls and static keys that bear on no page choice; of the others 0 and absent
  ///   are the same;
  /// - memory sizes, the task's flags and priority, node distances (zonelists say what counts);
  /// - the boost factor and an operation's arguments: another one with the same results, counts and
  ///   later states is no difference (as `__GFP_IO`, or a tail's PFN instead of its head's);
  /// - counts behind the first where an operation is on a page: the page alone may be logged, or its
  ///   block, and which one only the kernel's generator knew.
  private func meaning(_ line: String) -> String? {
    if line.hasPrefix("#") { return nil }
    var fields = line.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
    func drop(_ keys: String...) {
      fields.removeAll { field in keys.contains { field.hasPrefix("\($0)=") } }
    }
    switch fields[0] {
    case "kernel", "note": return fields[0]
    case "param": drop("seed", "ops")
    case "const":
      let read = [
        "page_shift", "max_order", "pageblock_order", "migrate_types", "pcptypes", "nr_pcp_lists",
        "nr_loworder_pcp_lists", "max_nr_zones", "costly_order", "pcp_batch_scale_max",
      ]
      fields.removeAll { field in !read.contains { field.hasPrefix("\($0)=") } }
      fields.sort()
    case "sysctl":
      let read = ["watermark_boost_factor", "page_group_by_mobility_disabled"]
      if fields.count > 1, !read.contains(fields[1]) { return nil }
      if fields.count == 3, fields[1] == "watermark_boost_factor", Int(fields[2]) != nil {
        return "boost factor"
      }
    case "static_key":
      let read = [
        "deferred_pages", "page_alloc_shuffle_key", "cpusets_enabled_key", "page_reporting_enabled",
      ]
      if fields.count > 1, !read.contains(fields[1]) { return nil }
      if fields.last == "absent" { fields[fields.count - 1] = "0" }
    case "cpus": drop("totalram", "totalreserve")
    case "task": drop("flags", "prio")
    case "distance": return "distance"
    case "op":
      guard let arrow = fields.firstIndex(of: "->"), arrow > 2 else { return line }
      fields.removeSubrange(3..<arrow)
      if fields[2].hasSuffix("_page") || fields[2].hasPrefix("page_ref_")
        || fields[2] == "get_page_unless_zero", fields.count > 2, let counts = fields.last
      {
        fields[fields.count - 1] = String(counts.prefix { $0 != "," && $0 != "*" })
      }
    case "held":
      // Bytes count as pages.
      if fields.contains("kind=exact"), let bytes = fields.last.flatMap({ Int($0.dropFirst(4)) }) {
        fields[fields.count - 1] = "pages=\((bytes + 4095) >> 12)"
      }
    case "end": drop("truncated")
    default: break
    }
    return fields.joined(separator: " ")
  }
}
