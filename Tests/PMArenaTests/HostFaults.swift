import CPhysmemShim
import PMArena
import SystemPackage
import Testing

// Makes system calls fail, one at a time, and watches that nothing is left behind.

/// What the calling thread has made through the shim and not ended.
struct LiveCounts: Equatable {
  let mappings = pm_host_thread_live_mappings()
  let descriptors = pm_host_thread_live_fds()
}

/// The refusals to try: a retry, two fallbacks, and some that only can be passed on.
let forcedErrors: [Errno] = [
  .interrupted, .invalidArgument, .noFunction, .noMemory, .notPermitted,
  .resourceTemporarilyUnavailable, .tooManyOpenFilesInSystem,
]

/// Does `operation` again and again, with the first system call failing, then the second, until it
/// makes fewer calls than that. After each time nothing may be left that was not there before.
///
/// The operation must call `pm_host_fault_disarm()` before it ends what it made. Returns how many
/// calls could be made to fail without the operation failing.
@discardableResult
func failEachCall(
  with errno: Errno, _ operation: () throws -> Void,
  sourceLocation: SourceLocation = #_sourceLocation
) -> (calls: Int, survived: Int) {
  var survived = 0
  for ordinal in 1...10_000 {
    let before = LiveCounts()
    pm_host_fault_arm(.PM_HOST_CALL_ANY, UInt32(ordinal), errno.rawValue)
    var failure: (any Error)?
    do { try operation() } catch { failure = error }
    pm_host_fault_disarm()
    #expect(LiveCounts() == before, "call \(ordinal), \(errno)", sourceLocation: sourceLocation)
    guard pm_host_fault_fired() else {
      #expect(failure == nil, "no call failed", sourceLocation: sourceLocation)
      return (ordinal - 1, survived)
    }
    guard let failure else {
      survived += 1
      continue
    }
    let found = hostErrno(of: failure)
    #expect(found == errno, "call \(ordinal): \(failure)", sourceLocation: sourceLocation)
  }
  Issue.record("the operation never ended", sourceLocation: sourceLocation)
  return (10_000, survived)
}

/// The errno inside any error of this module.
func hostErrno(of error: any Error) -> Errno? {
  switch error {
  case let error as HostError: error.errno
  case ArenaError.host(let error): error.errno
  default: nil
  }
}

/// Whether every call that fails with this error fails the operation too. (Interrupted calls are
/// repeated; for `EINVAL`, which older kernels say to newer questions, there are fallbacks.)
func isFinal(_ errno: Errno) -> Bool { errno != .interrupted && errno != .invalidArgument }
