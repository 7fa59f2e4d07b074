import PMUnits
import SystemPackage

/// Why an arena could not be made or used.
public enum ArenaError: Error, Equatable, Sendable {
  /// The host refused a system call.
  case host(HostError)
  /// The host's pool of huge pages is too small. `free` counts the pages that nobody has or has
  /// reserved, `remedy` is the shell command that gets the missing ones.
  case hugePagesShort(pageSize: ByteCount, free: Int, needed: Int, remedy: String)
  /// No arena can have this size.
  case invalidSize(ByteCount, reason: String)
  /// The host has no such node, or no memory on it; `available` are those that have some.
  case noSuchNode(Int, available: [Int])
  /// The range of `byteCount` bytes from `offset` does not lie in the arena.
  case outOfRange(offset: UInt64, byteCount: UInt64, arenaByteCount: UInt64)
  /// The range of `byteCount` bytes from `offset` does not begin and end at multiples of `unit`.
  case unaligned(offset: UInt64, byteCount: UInt64, unit: ByteCount)

  /// Does `body` and throws its error as one of an arena.
  static func wrapping<Result: ~Copyable>(
    _ body: () throws(HostError) -> Result
  ) throws(ArenaError) -> Result {
    do { return try body() } catch { throw .host(error) }
  }
}

extension ArenaError: CustomStringConvertible {
  /// One line: what is wrong, how much is there, and where possible how to get it.
  public var description: String {
    switch self {
    case .host(let error):
      "\(error)"
    case .hugePagesShort(let pageSize, let free, let needed, let remedy):
      "huge pages of \(pageSize): \(free) free, \(needed) needed; to get them: \(remedy)"
    case .invalidSize(let byteCount, let reason):
      "an arena cannot have \(byteCount): \(reason)"
    case .noSuchNode(let node, let available):
      "no host node \(node) with memory; there are: "
        + (available.isEmpty ? "none" : available.map(String.init).joined(separator: ", "))
    case .outOfRange(let offset, let byteCount, let arenaByteCount):
      "\(ByteCount(byteCount)) at offset 0x\(String(offset, radix: 16)) do not lie in an arena of "
        + "\(ByteCount(arenaByteCount))"
    case .unaligned(let offset, let byteCount, let unit):
      "\(ByteCount(byteCount)) at offset 0x\(String(offset, radix: 16)) do not begin and end at "
        + "multiples of \(unit)"
    }
  }
}
