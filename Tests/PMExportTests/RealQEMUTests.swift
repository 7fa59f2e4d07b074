import Foundation
import PMExport
import Physmem
import Testing

private let qemu = ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"]
  .first { FileManager.default.isExecutableFile(atPath: $0) }

@Suite(
  "QEMU itself",
  .enabled(if: qemu != nil, "qemu-system-x86_64 is not there: apt-get install qemu-system-x86"))
struct RealQEMUTests {
  /// What QEMU's monitor says to these commands, before the guest runs.
  private func monitor(_ commands: [String], _ arguments: [String]) throws -> String {
    let folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("pm-qemu-\(UUID().uuidString.prefix(8))")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let (input, output) = (
      folder.appendingPathComponent("in"), folder.appendingPathComponent("out")
    )
    try Data((commands + ["quit", ""]).joined(separator: "\n").utf8).write(to: input)
    try Data().write(to: output)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try #require(qemu))
    process.arguments =
      arguments + ["-S", "-accel", "tcg", "-display", "none", "-monitor", "stdio"]
    process.standardInput = try FileHandle(forReadingFrom: input)
    process.standardOutput = try FileHandle(forWritingTo: output)
    try process.run()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    return try String(contentsOf: output, encoding: .utf8)
  }

  @Test(
    "Its RAM is where QEMUMachine says, and is the file that was named",
    arguments: [
      (QEMUMachine.q35, ByteCount.mib(64)), (.q35, .mib(2815)), (.q35, .mib(2816)), (.q35, .gib(5)),
      (.pc, .mib(3583)), (.pc, .mib(3584)), (.pc, .gib(5)),
    ])
  func layout(machine: QEMUMachine, size: ByteCount) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: size))
    let runs = machine.runs(memory: size)
    // A word in each run, which QEMU is to read at the run's address.
    for (index, run) in runs.enumerated() {
      try arena.storeWord(0x1122_3344_5500_0000 + UInt64(index), at: run.fileOffset + 0x8_0000)
    }
    let file = arena.fileDescriptor
    let arguments = QEMUArguments(
      machine: machine, memory: size, process: getpid(), descriptor: try #require(file))
    let words = runs.map { "xp /1gx 0x\(String($0.range.start.rawValue + 0x8_0000, radix: 16))" }
    let text = try monitor(["info mtree -f"] + words, arguments.words)
    for index in runs.indices {
      #expect(text.contains("0x112233445500000\(index)"), "run \(index) in: \(text.suffix(400))")
    }
    // As `0000000100000000-000000013fffffff (prio 0, ram): mem0 @0000000080000000 KVM`.
    let seen = Set(
      text.split(whereSeparator: \.isNewline).filter { $0.contains(": mem0") }.compactMap { line in
        line.split(separator: " ").first?.split(separator: "-").last.flatMap {
          UInt64($0, radix: 16)
        }
      })
    for run in runs { #expect(seen.contains(run.range.end - 1), "\(run.range) in \(seen)") }
    #expect(seen.max() == runs.last.map { $0.range.end - 1 })
  }
}
