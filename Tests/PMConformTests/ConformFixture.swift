import Foundation
import PMUnits
import Testing

@testable import PMConform

/// Tables that come with the tests.
enum ConformFixture {
  /// The bytes of a table by its name without the ending.
  static func bytes(_ name: String) throws -> [UInt8] {
    let url = try #require(
      Bundle.module.url(forResource: name, withExtension: "tsv", subdirectory: "Fixtures"))
    return try [UInt8](Data(contentsOf: url))
  }

  /// The same, read.
  static func table(_ name: String) throws -> TruthTable {
    try TruthTable.parse(bytes(name), name: "\(name).tsv")
  }

  /// A table from lines, whose cells have a `|` between them.
  static func table(_ lines: [String], name: String = "x.tsv") throws(TableError) -> TruthTable {
    let text = lines.joined(separator: "\n").replacing("|", with: "\t") + "\n"
    return try TruthTable.parse([UInt8](text.utf8), name: name)
  }

  /// The columns of each kind, as the measured tables have them.
  static let columns: [TableKind: String] = [
    .truth: "kind|vma|vma_prot|pos|idx|slot|access|teardown|map_err|slot_err|run_err|run_exit|S0",
    .free: "experiment|step|idx|ref|href|flags|PageBuddy|buddy_head_off|buddy_order|raw_mapcount",
    .freeEvents: "experiment|step|event",
    .memslotErrno: "case|slots_before|operation|result|note",
    .faults: "case|slot|access|KVM_RUN|exit|detail|value_read|note",
    .dirtylog: "scenario|step|operation|result|dirty_pages|pages_4k|pages_2m",
    .kpage: "backing|slot|access|slot_err|run_err|run_exit|pages_4k|pages_2m|S1_before|refcount",
  ]
}

/// A small generator whose whole state is its seed (SplitMix64).
struct ConformRandom {
  private var numbers: SplitMix64

  /// `PHYSMEM_SEED`, or another one each time; prints how to repeat the run.
  init(_ test: String) {
    let seed =
      ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
      ?? UInt64.random(in: 1...999_999_999)
    print("\(test): seed \(seed); replay: env PHYSMEM_SEED=\(seed) swift test --filter \(test)")
    numbers = SplitMix64(seed: seed)
  }

  mutating func next() -> UInt64 {
    numbers.next()
  }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}
