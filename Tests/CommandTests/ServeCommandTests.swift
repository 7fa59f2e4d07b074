import Foundation
import Testing

/// `physmem serve` as a process of the tests, which ends with them.
private final class Server {
  let process = Process()
  let json: [String: Any]
  let socket: String

  init(_ options: [String], in folder: URL) throws {
    socket = folder.appendingPathComponent("memory.sock").path
    process.executableURL = try command()
    process.arguments = ["serve", "--json", "--log-level", "error", "--socket", socket] + options
    let output = Pipe()
    process.standardOutput = output
    process.standardInput = FileHandle.nullDevice
    try process.run()
    // It prints one line when everything is there, and the pipe stays open.
    var line = Data()
    while line.last != 10 {
      let more = output.fileHandleForReading.availableData
      try #require(!more.isEmpty, "physmem serve ended by itself")
      line += more
    }
    json = try #require(try JSONSerialization.jsonObject(with: line) as? [String: Any])
  }

  /// Sends a signal, and returns the exit code.
  func end(_ signal: Int32) -> Int32 {
    kill(process.processIdentifier, signal)
    process.waitUntilExit()
    return process.terminationStatus
  }

  deinit { if process.isRunning { _ = end(SIGKILL) } }
}

@Suite("physmem serve and peek")
struct ServeCommandTests {
  @Test("The memory is held, offered, and read live at the addresses that QEMU gives it")
  func live() throws {
    try withTemporaryFolder { folder in
      let server = try Server(["-m", "5G"], in: folder)
      let regions = try #require(server.json["regions"] as? [[String: Any]])
      #expect(regions.map { $0["gpa"] as? Int } == [0, 4 << 30])
      #expect(regions.map { $0["len"] as? Int } == [2 << 30, 3 << 30])
      #expect(regions.map { $0["fd_offset"] as? Int } == [0, 2 << 30])
      let path = try #require(regions[0]["path"] as? String)
      #expect(
        server.json["qemu"] as? [String] == [
          "-machine", "q35,memory-backend=mem0", "-m", "5G", "-object",
          "memory-backend-file,id=mem0,size=5G,mem-path=\(path),share=on",
        ])
      // As another program does that opens the path: bytes of the second region.
      let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
      try file.seek(toOffset: (2 << 30) + 0x1000)
      try file.write(contentsOf: Data("0123456789abcdefgh".utf8))
      func peek(_ arguments: String...) throws -> CommandRun {
        try physmem(["peek", "--socket", server.socket] + arguments)
      }
      #expect(
        try peek("0x100001000", "18").output == """
          000100001000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  |0123456789abcdef|
          000100001010  67 68                                            |gh|

          """)
      #expect(
        try peek("0x100001008", "8", "--width", "4").output == "0x62613938\n0x66656463\n")
      #expect(try peek("4294971392", "4", "--raw").output == "0123")
      #expect(try peek("0x100001001", "2", "--json").json()["hex"] as? String == "3132")
      let hole = try peek("2G", "8")
      #expect(hole.status == 65)
      #expect(hole.errors.contains("lies in no region"))
      // Across the end of the first region.
      #expect(try peek("0x7ffffffc", "8").status == 65)
      #expect(server.end(SIGTERM) == 143)
      #expect(!FileManager.default.fileExists(atPath: server.socket))
      #expect(try peek("0", "8").status == 66)
    }
  }

  @Test("SIGINT ends it with 130, and the memory is taken now where that was asked for")
  func interrupted() throws {
    try withTemporaryFolder { folder in
      let server = try Server(
        ["-m", "8M", "--machine", "pc", "--prealloc", "on", "--reserve", "on", "--merge", "off"],
        in: folder)
      let words = try #require(server.json["qemu"] as? [String])
      #expect(words[1] == "pc,memory-backend=mem0")
      #expect(words[5].hasSuffix("share=on,merge=off"))
      let regions = try #require(server.json["regions"] as? [[String: Any]])
      let path = try #require(regions[0]["path"] as? String)
      var status = stat()
      #expect(stat(path, &status) == 0)
      #expect(status.st_blocks * 512 >= 8 << 20)
      #expect(server.end(SIGINT) == 130)
    }
  }

  @Test(
    "What cannot be is refused",
    arguments: [
      (["serve"], 64, "size"), (["serve", "-m", "5x"], 64, "size"),
      (["serve", "-m", "4097"], 64, "whole pages"),
      (["serve", "-m", "1M", "--share", "off"], 64, "nobody would see"),
      (["serve", "-m", "1M", "--hugetlbsize", "1G"], 64, "2M"),
      (["serve", "-m", "1M", "--policy", "bind"], 64, "one node"),
      (["serve", "-m", "1M", "--host-nodes", "0"], 64, "--policy"),
      (["serve", "-m", "1M", "--host-nodes", "3-1", "--policy", "interleave"], 64, "host-nodes"),
      (["serve", "-m", "1M", "--host-nodes", "900", "--policy", "bind"], 69, "no host node 900"),
      (["serve", "-m", "9T"], 69, "8TiB"),
      (["serve", "-m", "1M", "--socket", "/nonexistent/socket"], 69, "/nonexistent/socket"),
      (["peek", "0"], 64, "--pid"), (["peek", "0", "0", "--pid", "1"], 64, "expected 1 to 1G"),
      (["peek", "0", "7", "--width", "4", "--pid", "1"], 64, "whole words"),
      (["peek", "0", "--socket", "/nonexistent/socket"], 66, "/nonexistent/socket"),
    ])
  func refusals(arguments: [String], status: Int32, text: String) throws {
    let run = try physmem(arguments)
    #expect(run.status == status)
    #expect(run.errors.contains(text), "\(run.errors)")
    #expect(run.output.isEmpty)
  }
}
