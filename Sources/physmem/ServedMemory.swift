internal import Foundation
internal import Logging
internal import PMArena
internal import PMExport
internal import PMGuestMemory
internal import PMUnits
internal import SystemPackage

/// The memory that `serve` holds: one file, mapped where QEMU's machine has its RAM, and offered at a socket.
final class ServedMemory: Sendable {
  /// The socket's name.
  let path: String
  private let arena: Arena
  private let server: MemoryExportServer
  private let regions: [GuestRegion]
  private let arguments: QEMUArguments
  private let options: ServedOptions

  init(_ serve: Serve) throws {
    let (configuration, threads) = ServedMemory.configuration(serve)
    arena = try Arena(configuration)
    if serve.prealloc.isOn {
      try arena.prefault(0..<configuration.byteCount.rawValue, threads: threads)
    }
    guard let file = arena.fileDescriptor else { fatalError("shared memory without a file") }
    let memory = GuestMemory()
    for run in serve.machine.runs(memory: serve.size) {
      try memory.add(
        .memory(
          .ram, at: run.range.start, byteCount: ByteCount(run.range.byteCount), file: file,
          fileOffset: run.fileOffset))
    }
    path = serve.socket ?? ServedMemory.defaultPath(of: getpid())
    server = try MemoryExportServer(memory, at: path)
    regions = memory.regions
    var properties: [String] = []
    if let merge = serve.merge { properties.append("merge=\(merge.rawValue)") }
    if let dump = serve.dump { properties.append("dump=\(dump.rawValue)") }
    arguments = QEMUArguments(
      machine: serve.machine, memory: serve.size, process: getpid(), descriptor: file,
      properties: properties)
    options = ServedOptions(
      backing: serve.backing.rawValue, pageSize: configuration.backing.pageSize.rawValue,
      hostNodes: serve.hostNodes?.nodes ?? [], policy: serve.policy.rawValue,
      prealloc: serve.prealloc.isOn, reserve: serve.reserve.isOn)
  }

  private static func configuration(_ serve: Serve) -> (ArenaConfiguration, threads: Int) {
    var configuration = ArenaConfiguration(
      byteCount: serve.size, backing: serve.backing == .memfd ? .memfd : .sharedHugeTLB,
      reserve: serve.reserve.isOn)
    let nodes = serve.hostNodes?.nodes ?? []
    switch serve.policy {
    case .default: break
    case .interleave: configuration.interleaveHostNodes = nodes
    case .bind:
      configuration.nodeRanges = [
        .init(startOffset: 0, byteCount: serve.size, hostNode: nodes.first)
      ]
    }
    return (configuration, serve.preallocThreads)
  }

  /// Where the memory of a process is offered if nothing else was said.
  static func defaultPath(of process: Int32) -> String {
    let folder = ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"] ?? "/tmp"
    return "\(folder)/physmem-\(process).sock"
  }

  /// Hands the memory to whoever connects, on a thread of its own.
  func start(_ logger: Logger) {
    Thread { [self] in
      while true {
        do {
          try server.serveOne()
          logger.info("handed the memory to a program")
        } catch ExportError.system("accept", let errno) where ServedMemory.isPassing(errno) {
          // Until somebody closes a descriptor; the program that wants to connect waits meanwhile.
          logger.warning("a program has to wait", metadata: ["error": "\(errno)"])
          _ = poll(nil, 0, 200)
        } catch ExportError.system("accept", let errno) {
          // It would fail again at once; the memory is held all the same.
          logger.error("no program can connect any more", metadata: ["error": "\(errno)"])
          return
        } catch {
          logger.warning("a program went away", metadata: ["error": "\(error)"])
        }
      }
    }.start()
  }

  /// Whether it may be otherwise in a moment.
  private static func isPassing(_ errno: Errno) -> Bool {
    [.tooManyOpenFiles, .tooManyOpenFilesInSystem, .noMemory, .noBufferSpace].contains(errno)
  }

  /// Nobody can connect any more. Only the name goes, whatever it names by now.
  func removeName() { unlink(path) }

  func printText() {
    for region in regions {
      Output.line("\(region.range) at offset 0x\(String(region.fileOffset, radix: 16))")
    }
    Output.line("socket \(path)")
    Output.line("qemu-system-x86_64 \(arguments.line)")
  }

  func printJSON() throws {
    let report = ServeJSON(
      pid: getpid(), memory: arguments.memory.rawValue, machine: arguments.machine.rawValue,
      socket: path, options: options,
      regions: regions.map { region in
        ServeJSON.Region(
          gpa: region.range.start.rawValue, len: region.range.byteCount, path: arguments.path,
          fdOffset: region.fileOffset, pageSize: options.pageSize, kind: "ram", share: true)
      }, qemu: arguments.words)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    Output.line(String(decoding: try encoder.encode(report), as: UTF8.self))
  }
}

/// What was asked of the memory.
struct ServedOptions: Encodable {
  enum CodingKeys: String, CodingKey {
    case backing, policy, prealloc, reserve
    case pageSize = "page_size"
    case hostNodes = "host_nodes"
  }

  var backing: String
  var pageSize: UInt64
  var hostNodes: [Int]
  var policy: String
  var prealloc: Bool
  var reserve: Bool
}

/// The object that `serve --json` prints.
struct ServeJSON: Encodable {
  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case pid, memory, machine, socket, options, regions, qemu
  }

  /// A run of memory.
  struct Region: Encodable {
    enum CodingKeys: String, CodingKey {
      case gpa, len, path, kind, share
      case fdOffset = "fd_offset"
      case pageSize = "page_size"
    }

    var gpa: UInt64
    var len: UInt64
    /// What to open.
    var path: String
    var fdOffset: UInt64
    var pageSize: UInt64
    var kind: String
    var share: Bool
  }

  var schemaVersion = 1
  var pid: Int32
  var memory: UInt64
  var machine: String
  var socket: String
  var options: ServedOptions
  var regions: [Region]
  /// QEMU's arguments.
  var qemu: [String]
}
