internal import ArgumentParser
internal import Foundation
internal import PMExport
internal import PMGuestMemory
internal import PMUnits

/// `physmem peek`.
struct Peek: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Reads the memory of a running guest at a physical address.",
    discussion: """
      The memory is one that physmem serve holds. Addresses and lengths are decimal, hexadecimal with 0x, or have \
      a unit, as 1M. Words are in the host's byte order, each read at once.

      Exit codes: 0, 64 usage, 65 no memory at that address, 66 nobody serves there.
      """)

  @Argument(help: "The guest physical address.")
  var address: Number

  @Argument(help: "How many bytes.")
  var length: Number = Number(16)

  @Option(help: "The process of physmem serve.")
  var pid: Int32?

  @Option(help: "Or its socket.")
  var socket: String?

  @Option(help: "Print words of 1, 2, 4 or 8 bytes, one a line, instead of a dump.")
  var width: Int?

  @Flag(help: "Write the bytes as they are.")
  var raw = false

  @Flag(help: "Print one JSON object.")
  var json = false

  private static let maxByteCount: UInt64 = 1 << 30

  func validate() throws {
    guard (pid == nil) != (socket == nil) else {
      throw ValidationError("say whose memory: --pid PID or --socket PATH.")
    }
    if let width {
      guard [1, 2, 4, 8].contains(width), length.value % UInt64(width) == 0 else {
        throw ValidationError(
          "--width \(width): expected 1, 2, 4 or 8, and a length in whole words.")
      }
    }
    guard (raw ? 1 : 0) + (json ? 1 : 0) + (width == nil ? 0 : 1) < 2 else {
      throw ValidationError("--raw, --json and --width exclude each other.")
    }
    guard (1...Peek.maxByteCount).contains(length.value) else {
      throw ValidationError("\(length.value) bytes: expected 1 to 1G.")
    }
  }

  func run() throws {
    let memory: GuestMemory
    do {
      memory = try MemoryExport.open(
        socket ?? ServedMemory.defaultPath(of: pid ?? 0))
    } catch ExportError.system(let operation, let errno) {
      Output.error("\(operation): \(errno)")
      throw ExitCode.noInput
    } catch {
      Output.error("\(error)")
      throw ExitCode.malformedInput
    }
    do {
      if let width { return try printWords(memory, width) }
      var bytes = [UInt8](repeating: 0, count: Int(length.value))
      try bytes.withUnsafeMutableBytes { buffer in
        try memory.read(into: buffer, at: GPA(address.value))
      }
      if raw {
        try? FileHandle.standardOutput.write(contentsOf: Data(bytes))
      } else if json {
        try Output.json(PeekJSON(gpa: address.value, hex: bytes.map(Peek.hex).joined()))
      } else {
        dump(bytes)
      }
    } catch let error as GuestMemoryError {
      Output.error("\(error)")
      throw ExitCode.malformedInput
    }
  }

  private func printWords(_ memory: GuestMemory, _ width: Int) throws {
    for offset in stride(from: 0, to: length.value, by: width) {
      let place = GPA(address.value &+ offset)
      let value: UInt64 =
        switch width {
        case 1: UInt64(try memory.load(UInt8.self, at: place))
        case 2: UInt64(try memory.load(UInt16.self, at: place))
        case 4: UInt64(try memory.load(UInt32.self, at: place))
        default: try memory.load(UInt64.self, at: place)
        }
      let digits = String(value, radix: 16)
      Output.line("0x" + String(repeating: "0", count: width * 2 - digits.count) + digits)
    }
  }

  private static func hex(_ byte: UInt8) -> String {
    (byte < 16 ? "0" : "") + String(byte, radix: 16)
  }

  /// 16 bytes a line: address, bytes, what is printable.
  private func dump(_ bytes: [UInt8]) {
    for start in stride(from: 0, to: bytes.count, by: 16) {
      let part = bytes[start..<min(start + 16, bytes.count)]
      let address = String(self.address.value + UInt64(start), radix: 16)
      let padding = String(repeating: "0", count: max(0, 12 - address.count))
      let hex = part.map(Peek.hex).joined(separator: " ")
      let space = String(repeating: " ", count: 47 - hex.count)
      let text = part.map { (32..<127).contains($0) ? String(UnicodeScalar($0)) : "." }.joined()
      Output.line("\(padding)\(address)  \(hex)\(space)  |\(text)|")
    }
  }
}

/// A number as people write addresses.
struct Number: ExpressibleByArgument {
  var value: UInt64

  init(_ value: UInt64) { self.value = value }

  init?(argument: String) {
    if argument.hasPrefix("0x") || argument.hasPrefix("0X") {
      guard let value = UInt64(argument.dropFirst(2), radix: 16) else { return nil }
      self.value = value
    } else {
      guard let value = ByteCount(argument) else { return nil }
      self.value = value.rawValue
    }
  }

  var defaultValueDescription: String { "\(value)" }
}

/// The object that `peek --json` prints.
struct PeekJSON: Encodable {
  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case gpa, hex
  }

  var schemaVersion = 1
  var gpa: UInt64
  /// The bytes, two digits each.
  var hex: String
}
