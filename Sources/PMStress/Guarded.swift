internal import PMHostMap

/// A value behind a lock of POSIX threads. `Mutex` of the Synchronization library would do the same, but
/// ThreadSanitizer does not see its order and would report what is none.
final class Guarded<Value>: @unchecked Sendable {
  // Sendable: `lock` is held around every access to `value`.
  private let lock = HostMutex()
  private var value: Value

  init(_ value: Value) { self.value = value }

  /// Lends the value to one thread at a time.
  func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
    lock.lock()
    defer { lock.unlock() }
    return body(&value)
  }
}
