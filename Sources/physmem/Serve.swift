public import ArgumentParser
internal import Foundation
internal import Logging
public import PMExport
public import PMUnits

/// `physmem serve`.
struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Holds the RAM of a guest for QEMU and any other program.",
    discussion: """
      Prints the arguments that make QEMU run on it, and holds it until SIGINT or SIGTERM (exit codes 130 and \
      143). The options of the memory have the names that QEMU's memory-backend-memfd gives them. Programs that \
      connect to the socket get the regions and their descriptors; physmem peek is one.

      Below 4 GiB QEMU keeps room for devices: --machine says which of QEMU's machines it is, so that physmem \
      and QEMU agree on the addresses of a memory that reaches beyond.
      """)

  /// QEMU's words for a flag.
  enum Switch: String, CaseIterable, ExpressibleByArgument {
    case on, off
    var isOn: Bool { self == .on }
  }

  /// What the memory is.
  enum Kind: String, CaseIterable, ExpressibleByArgument { case memfd, hugetlb }

  /// How `--host-nodes` are used.
  enum Policy: String, CaseIterable, ExpressibleByArgument { case `default`, bind, interleave }

  @Option(name: [.customShort("m"), .long], help: "The memory's size, as 512M or 4G.")
  var size: ByteCount

  @Option(help: "QEMU's machine: q35 or pc.")
  var machine: QEMUMachine = .q35

  @Option(help: "What the memory is: memfd, or hugetlb for pages from the host's pool.")
  var backing: Kind = .memfd

  @Option(help: "The size of pages from the pool: 2M.")
  var hugetlbsize: ByteCount = .mib(2)

  @Option(help: "Must be on: private memory would be seen by nobody else.")
  var share: Switch = .on

  @Option(help: "Take all pages from the host now.")
  var prealloc: Switch = .off

  @Option(help: "On so many threads.")
  var preallocThreads = 1

  @Option(help: "The host has to set the memory aside now.")
  var reserve: Switch = .off

  @Option(help: "The host's nodes that pages come from, as 0 or 0,2-3.")
  var hostNodes: NodeList?

  @Option(help: "How --host-nodes are used: default, bind (one node) or interleave.")
  var policy: Policy = .default

  @Option(help: "Passed on to QEMU: whether it lets the host merge pages.")
  var merge: Switch?

  @Option(help: "Passed on to QEMU: whether its core dumps have the memory.")
  var dump: Switch?

  @Option(
    help: "Where other programs get the memory; a name with the process's number if none is given.")
  var socket: String?

  @Option(help: "What is logged on standard error: \(LogLevel.names).")
  var logLevel: LogLevel = .info

  @Flag(help: "Print one JSON object on one line.")
  var json = false

  func validate() throws {
    guard share.isOn else {
      throw ValidationError(
        "share=off makes the memory private to each program that maps it: nobody would see the guest's."
      )
    }
    guard hugetlbsize == .mib(2) else {
      throw ValidationError("pages from the pool have 2M each: expected --hugetlbsize 2M.")
    }
    guard (1...256).contains(preallocThreads) else {
      throw ValidationError("--prealloc-threads \(preallocThreads): expected 1 to 256.")
    }
    guard size >= .mib(1), size.rawValue & 0xfff == 0 else {
      throw ValidationError("--size \(size): expected at least 1M, in whole pages.")
    }
    let count = hostNodes?.nodes.count ?? 0
    switch policy {
    case .default where count > 0:
      throw ValidationError("--host-nodes need --policy bind or --policy interleave.")
    case .bind where count != 1:
      throw ValidationError("--policy bind needs one node in --host-nodes.")
    case .interleave where count == 0:
      throw ValidationError("--policy interleave needs --host-nodes.")
    default: break
    }
  }

  func run() throws {
    // Before any thread is made, which all inherit it.
    let signals = ServeSignals()
    var logger = Logger(label: "physmem.serve") { StreamLogHandler.standardError(label: $0) }
    logger.logLevel = logLevel.level
    let served: ServedMemory
    do {
      served = try ServedMemory(self)
    } catch {
      Output.error("\(error)")
      throw ExitCode.unavailable
    }
    if json { try served.printJSON() } else { served.printText() }
    logger.info(
      "holding memory",
      metadata: ["size": "\(size)", "backing": "\(backing.rawValue)", "socket": "\(served.path)"])
    served.start(logger)
    let signal = signals.wait()
    logger.info("ended by a signal", metadata: ["signal": "\(signal)"])
    served.removeName()
    throw ExitCode(128 + signal)
  }
}

/// SIGINT and SIGTERM, blocked in the calling thread and in all that it starts.
struct ServeSignals {
  private let signals: sigset_t

  init() {
    var signals = sigset_t()
    sigemptyset(&signals)
    sigaddset(&signals, SIGINT)
    sigaddset(&signals, SIGTERM)
    sigaddset(&signals, SIGHUP)
    pthread_sigmask(SIG_BLOCK, &signals, nil)
    self.signals = signals
  }

  /// Waits for one of them.
  func wait() -> Int32 {
    var (signals, number): (sigset_t, Int32) = (signals, 0)
    while sigwait(&signals, &number) != 0 {}
    return number
  }
}

/// A list as `0,2-3`.
struct NodeList: ExpressibleByArgument {
  /// In the order given, each once.
  let nodes: [Int]

  init?(argument: String) {
    var nodes: [Int] = []
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
      guard ends.count <= 2, let first = ends.first ?? nil, let last = ends.last ?? nil,
        (0...last).contains(first), last < 1024
      else { return nil }
      nodes += (first...last).filter { !nodes.contains($0) }
    }
    guard !nodes.isEmpty else { return nil }
    self.nodes = nodes
  }
}

/// How much is logged.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
  case debug, info, warning, error

  static var names: String { allCases.map(\.rawValue).joined(separator: ", ") }

  var level: Logger.Level {
    switch self {
    case .debug: .debug
    case .info: .info
    case .warning: .warning
    case .error: .error
    }
  }
}

extension ByteCount: ExpressibleByArgument {
  /// As `512M`.
  public init?(argument: String) { self.init(argument) }
}

extension QEMUMachine: ExpressibleByArgument {}
