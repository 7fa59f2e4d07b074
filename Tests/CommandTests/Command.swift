import Foundation
import Testing

/// What a run of the built command gave.
struct CommandRun {
  var status: Int32
  var output: String
  var errors: String

  var lines: [Substring] { output.split(separator: "\n") }

  /// The one object on standard output.
  func json() throws -> [String: Any] {
    let object = try JSONSerialization.jsonObject(with: Data(output.utf8))
    return try #require(object as? [String: Any])
  }
}

/// The package's folder.
let packageFolder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
  .deletingLastPathComponent().deletingLastPathComponent()

/// Traces that come with the replay tests.
func fixture(_ name: String) -> String {
  packageFolder.appendingPathComponent("Tests/PMReplayTests/Fixtures/\(name).trace.gz").path
}

/// Lends a new folder that is gone afterwards.
func withTemporaryFolder<Result>(_ body: (URL) throws -> Result) throws -> Result {
  let folder = FileManager.default.temporaryDirectory
    .appendingPathComponent("physmem-command-\(UUID().uuidString)")
  try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(at: folder) }
  return try body(folder)
}

/// Runs the command that was built with these tests: it stands beside their bundle.
func physmem(_ arguments: String...) throws -> CommandRun { try physmem(arguments) }

/// The command that was built with these tests: it stands beside their bundle.
func command() throws -> URL {
  let bundle = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
  return URL(fileURLWithPath: bundle).deletingLastPathComponent()
    .appendingPathComponent("physmem")
}

/// The same with the arguments in an array.
func physmem(_ arguments: [String]) throws -> CommandRun {
  let command = try command()
  return try withTemporaryFolder { folder in
    // Files, not pipes: a pipe that nobody reads would stop the command.
    func open(_ name: String) throws -> FileHandle {
      let file = folder.appendingPathComponent(name)
      try Data().write(to: file)
      return try FileHandle(forWritingTo: file)
    }
    let process = Process()
    process.executableURL = command
    process.arguments = arguments
    let (output, errors) = (try open("output"), try open("errors"))
    process.standardOutput = output
    process.standardError = errors
    process.standardInput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    try output.close()
    try errors.close()
    func text(_ name: String) throws -> String {
      try String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8)
    }
    #expect(process.terminationReason == .exit)
    return CommandRun(
      status: process.terminationStatus, output: try text("output"), errors: try text("errors"))
  }
}

/// The text of a fixture, unpacked.
func unpacked(_ name: String) throws -> [String] {
  try withTemporaryFolder { folder in
    let file = folder.appendingPathComponent("text")
    try Data().write(to: file)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["gzip", "-dc", fixture(name)]
    let handle = try FileHandle(forWritingTo: file)
    process.standardOutput = handle
    try process.run()
    process.waitUntilExit()
    try handle.close()
    try #require(process.terminationStatus == 0)
    let text = try String(contentsOf: file, encoding: .utf8)
    return text.split(separator: "\n").map(String.init)
  }
}

/// Writes lines to a file of a folder and returns its path.
func write(_ lines: [String], _ name: String, in folder: URL) throws -> String {
  let file = folder.appendingPathComponent(name)
  try Data((lines.joined(separator: "\n") + "\n").utf8).write(to: file)
  return file.path
}
