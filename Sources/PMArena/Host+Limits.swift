import PMUnits
import SystemPackage

/// How far the host promises more memory than it has.
public struct OvercommitPolicy: Equatable, Sendable {
  /// What `/proc/sys/vm/overcommit_memory` says.
  public enum Mode: Int, Sendable {
    /// Obvious excess is refused; unreserved mappings do not count.
    case heuristic = 0
    /// Everything is promised.
    case always = 1
    /// Promises are limited, and unreserved mappings count as well.
    case never = 2
  }

  /// The mode; nil for one that this library does not know.
  public let mode: Mode?
  /// The share of the memory, in percent, that may be promised in mode `never`.
  public let ratio: Int
}

extension Host {
  /// How far the host promises more memory than it has.
  public static func overcommitPolicy() throws(HostError) -> OvercommitPolicy {
    let mode = try integer(in: "/proc/sys/vm/overcommit_memory")
    return OvercommitPolicy(
      mode: mode.flatMap(OvercommitPolicy.Mode.init(rawValue:)),
      ratio: try integer(in: "/proc/sys/vm/overcommit_ratio") ?? 0)
  }

  /// Memory that programs can have without swapping, by the kernel's estimate; nil if it gives
  /// none.
  public static func availableMemory() throws(HostError) -> ByteCount? {
    try memoryInfo("MemAvailable:")
  }

  /// A line of `/proc/meminfo`, which counts in KiB.
  static func memoryInfo(_ key: String) throws(HostError) -> ByteCount? {
    for line in (try text(of: "/proc/meminfo") ?? "").split(separator: "\n") {
      let words = line.split(separator: " ")
      guard words.count > 1, words[0] == key else { continue }
      return UInt64(words[1]).map(ByteCount.kib)
    }
    return nil
  }

  /// A text file's contents, or nil if there is no such file.
  static func text(of path: String) throws(HostError) -> String? {
    do {
      return String(decoding: try readFile(path, maxByteCount: 1 << 16), as: UTF8.self)
    } catch {
      if error.errno == .noSuchFileOrDirectory { return nil }
      throw error
    }
  }

  /// The integer that a file holds, or nil if there is no such file or it holds something else.
  static func integer(in path: String) throws(HostError) -> Int? {
    try text(of: path).flatMap { Int($0.filter { !$0.isWhitespace }) }
  }
}
