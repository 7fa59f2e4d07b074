import CZlib
import Foundation
import PMReplay
import PMUnits
import Testing

/// A trace as lines that a test can change before it is replayed.
struct TraceText: Sendable {
  var lines: [String]

  var text: String { lines.joined(separator: "\n") + "\n" }

  /// The index of the first line that all of these stand in, the first of them at its start.
  func index(_ words: String..., after start: Int = -1) throws -> Int {
    try #require(
      lines.indices.first { index in
        index > start && lines[index].hasPrefix(words[0]) && words.allSatisfy(lines[index].contains)
      }, "no line with \(words)")
  }

  /// Replaces text in a line; the text has to be there.
  mutating func replace(_ index: Int, _ old: String, _ new: String) throws {
    let range = try #require(lines[index].range(of: old), "no '\(old)' in '\(lines[index])'")
    lines[index].replaceSubrange(range, with: new)
  }

  /// The value of `key=` in a line.
  func value(_ key: String, _ index: Int) throws -> String {
    let field = try #require(
      lines[index].split(separator: " ").first { $0.hasPrefix("\(key)=") }, "no \(key)=")
    return String(field.dropFirst(key.count + 1))
  }

  /// Gives `key=` another value.
  mutating func set(_ key: String, _ value: String, _ index: Int) throws {
    try replace(index, " \(key)=\(self.value(key, index))", " \(key)=\(value)")
  }

  /// Adds to the number of `key=`.
  mutating func add(_ key: String, _ difference: Int, _ index: Int) throws {
    let number = try #require(try Int(value(key, index)))
    try set(key, "\(number + difference)", index)
  }

  // MARK: replaying

  /// What came of a replay.
  enum Outcome: Sendable {
    case same(ReplayReport)
    case mismatch(ReplayReport)
    case malformed(line: Int, message: String)
    case other(TraceError)

    /// In one line, for the message of a failed expectation.
    var summary: String {
      switch self {
      case .same: "no mismatch"
      case .mismatch(let report):
        "mismatch at line \(report.firstMismatch?.line ?? 0): \(report.firstMismatch?.what ?? "")"
      case .malformed(let line, let message): "malformed, line \(line): \(message)"
      case .other(let error): "\(error)"
      }
    }

    var isSame: Bool {
      if case .same = self { true } else { false }
    }
    var isMalformed: Bool {
      if case .malformed = self { true } else { false }
    }
  }

  func replay(_ options: TraceReplayer.Options = .comparing) throws -> Outcome {
    try TraceText.replay(Array(text.utf8), options)
  }

  static func replay(
    _ bytes: [UInt8], _ options: TraceReplayer.Options = .comparing
  ) throws -> Outcome {
    try withTemporaryFile { file in
      try Data(bytes).write(to: file)
      return outcome(file.path, options)
    }
  }

  static func outcome(
    _ path: String, _ options: TraceReplayer.Options = .comparing
  ) -> Outcome {
    do throws(TraceError) {
      let report = try TraceReplayer.replay(path, options: options)
      return report.mismatches == 0 ? .same(report) : .mismatch(report)
    } catch {
      guard case .malformed(let file, let line, let message) = error else { return .other(error) }
      if file != path { Issue.record("\(error) names another file than \(path)") }
      return .malformed(line: line, message: message)
    }
  }
}

extension TraceReplayer.Options {
  /// Comparison without the second pass.
  static var comparing: TraceReplayer.Options {
    var options = TraceReplayer.Options()
    options.measures = false
    return options
  }
}

/// Lends a file name that nothing else uses; the file is gone afterwards.
func withTemporaryFile<Result>(_ body: (URL) throws -> Result) throws -> Result {
  let file = FileManager.default.temporaryDirectory
    .appendingPathComponent("physmem-test-\(UUID().uuidString)")
  defer { try? FileManager.default.removeItem(at: file) }
  return try body(file)
}

// MARK: gzip

/// Bytes as a gzip file.
func gzip(_ bytes: [UInt8]) throws -> [UInt8] {
  try withTemporaryFile { file in
    let stream = try #require(gzopen(file.path, "wb6"))
    let count = gzwrite(stream, bytes, UInt32(bytes.count))
    #expect(Int(count) == bytes.count)
    #expect(gzclose(stream) == Z_OK)
    return Array(try Data(contentsOf: file))
  }
}

/// The contents of a gzip file, as text.
func gunzip(_ path: String) throws -> String {
  let stream = try #require(gzopen(path, "rb"), "cannot open \(path)")
  defer { gzclose(stream) }
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 1 << 20)
  while true {
    let count = gzread(stream, &chunk, UInt32(chunk.count))
    if count <= 0 { break }
    bytes.append(contentsOf: chunk[0..<Int(count)])
  }
  return String(decoding: bytes, as: UTF8.self)
}

// MARK: what there is to replay

/// Traces of a real kernel that come with the tests.
enum Fixture: String, CaseIterable, Sendable {
  /// Everything, 96 MiB, a checkpoint after every operation.
  case everything = "G-m96-s107"
  /// Hazards: freed blocks with referenced tails.
  case hazards = "H-m512-s110"
  /// Single pages.
  case singlePages = "A-m512-s101"

  var path: String {
    let folder = Bundle.module.resourceURL ?? Bundle.module.bundleURL
    return folder.appendingPathComponent("Fixtures/\(rawValue).trace.gz").path
  }

  /// Read once; most tests change copies of the same few traces.
  var trace: TraceText {
    get throws { try #require(Fixture.texts[self], "\(path) cannot be read") }
  }

  private static let texts: [Fixture: TraceText] = Dictionary(
    uniqueKeysWithValues: allCases.compactMap { fixture in
      guard let text = try? gunzip(fixture.path) else { return nil }
      let lines = text.split(separator: "\n", omittingEmptySubsequences: true).map(String.init)
      return (fixture, TraceText(lines: lines))
    })
}

/// Whether tests that need an optimized build or a lot of time run.
var runsLongTests: Bool {
  #if DEBUG
    ProcessInfo.processInfo.environment["PHYSMEM_LONG"] == "1"
  #else
    true
  #endif
}

/// A small generator whose runs can be repeated from a seed.
struct SeededGenerator: RandomNumberGenerator {
  private var numbers: SplitMix64
  init(_ seed: UInt64) { numbers = SplitMix64(seed: seed) }
  mutating func next() -> UInt64 {
    numbers.next()
  }
}
