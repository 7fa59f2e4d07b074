import CPhysmemShim
import Foundation
import PMUnits
import Physmem
import Synchronization
import SystemPackage
import Testing

/// What the environment says about random tests: `PHYSMEM_SEED`, or another one each time.
let runSeed: UInt64 =
  ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
  ?? UInt64.random(in: 1...999_999_999)

/// Prints the seed, and returns a generator that starts from it.
func seededGenerator(_ test: String) -> SplitMix64 {
  print("\(test): PHYSMEM_SEED=\(runSeed) repeats this run")
  return SplitMix64(seed: runSeed)
}

extension SplitMix64 {
  mutating func below(_ bound: Int) -> Int { Int(next() >> 11) % bound }
}

/// Runs `body` on so many threads at once, and waits for all of them.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  let group = DispatchGroup()
  for index in 0..<count {
    group.enter()
    let thread = Thread {
      body(index)
      group.leave()
    }
    thread.start()
  }
  group.wait()
}

/// A device that remembers what was asked of it.
final class RecordingDevice: MMIOHandler {
  struct Access: Equatable {
    var offset: UInt64
    var byteCount: Int
    var value: UInt64?
  }
  private let log = Mutex<[Access]>([])
  private let refusedOffset: UInt64?

  init(refusing offset: UInt64? = nil) { refusedOffset = offset }

  var accesses: [Access] { log.withLock { $0 } }

  func read(offset: UInt64, byteCount: Int) throws(MMIORefusal) -> UInt64 {
    if offset == refusedOffset { throw MMIORefusal(errno: 5) }
    log.withLock { $0.append(Access(offset: offset, byteCount: byteCount, value: nil)) }
    return 0x1122_3344_5566_7788 &+ offset
  }

  func write(offset: UInt64, byteCount: Int, value: UInt64) throws(MMIORefusal) {
    if offset == refusedOffset { throw MMIORefusal(errno: 5) }
    log.withLock { $0.append(Access(offset: offset, byteCount: byteCount, value: value)) }
  }
}

extension GuestMemory {
  func bytes(at address: GPA, count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xa5, count: count)
    try bytes.withUnsafeMutableBytes { try read(into: $0, at: address) }
    return bytes
  }

  func write(_ bytes: [UInt8], at address: GPA) throws {
    try bytes.withUnsafeBytes { try write($0, at: address) }
  }
}

/// Bytes that a memory file has pages for.
func allocatedByteCount(of file: Int32) throws -> UInt64 {
  var status = stat()
  try #require(fstat(file, &status) == 0)
  return UInt64(status.st_blocks) * 512
}

/// What the calling thread has made through the shim and not ended.
struct LiveCounts: Equatable {
  let mappings = pm_host_thread_live_mappings()
  let descriptors = pm_host_thread_live_fds()
}

/// Does `operation` with the first system call failing, then the second, until it makes fewer; after each time
/// nothing may be left that was not there before. Returns how many calls were made to fail.
func failEachCall(
  with errno: Errno, _ operation: () throws -> Void,
  sourceLocation: SourceLocation = #_sourceLocation
) -> Int {
  for ordinal in 1...1000 {
    let before = LiveCounts()
    pm_host_fault_arm(.PM_HOST_CALL_ANY, UInt32(ordinal), errno.rawValue)
    var failure: (any Error)?
    do { try operation() } catch { failure = error }
    pm_host_fault_disarm()
    #expect(LiveCounts() == before, "call \(ordinal)", sourceLocation: sourceLocation)
    guard pm_host_fault_fired() else {
      #expect(failure == nil, "no call failed", sourceLocation: sourceLocation)
      return ordinal - 1
    }
    if let failure {
      guard case .arena(.host(let error))? = failure as? GuestMemoryError else {
        Issue.record("call \(ordinal): \(failure)", sourceLocation: sourceLocation)
        continue
      }
      #expect(error.errno == errno, "call \(ordinal): \(error)", sourceLocation: sourceLocation)
    }
  }
  Issue.record("the operation never ended", sourceLocation: sourceLocation)
  return 1000
}
