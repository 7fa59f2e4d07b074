internal import Glibc

/// A value behind a lock of POSIX threads. `Mutex` of the Synchronization library would do the same, but
/// ThreadSanitizer does not see its order and reports races that are none.
package final class Guarded<Value>: @unchecked Sendable {
  // Sendable: `lock` is held around every access to `value`.
  private let lock: UnsafeMutablePointer<pthread_mutex_t>
  private var value: Value

  package init(_ value: Value) {
    self.value = value
    lock = .allocate(capacity: 1)
    lock.initialize(to: pthread_mutex_t())
    pthread_mutex_init(lock, nil)
  }

  deinit {
    pthread_mutex_destroy(lock)
    lock.deallocate()
  }

  /// Lends the value to one thread at a time.
  package func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout Value) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    return try body(&value)
  }
}
