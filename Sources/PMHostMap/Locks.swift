internal import Glibc

/// A lock of POSIX threads. ThreadSanitizer knows these, and a thread may sleep on them.
package final class HostMutex: @unchecked Sendable {
  // Sendable: the word is a lock.
  private let word: UnsafeMutablePointer<pthread_mutex_t>

  package init() {
    word = .allocate(capacity: 1)
    word.initialize(to: pthread_mutex_t())
    pthread_mutex_init(word, nil)
  }

  deinit {
    pthread_mutex_destroy(word)
    word.deallocate()
  }

  package func lock() { pthread_mutex_lock(word) }

  package func unlock() { pthread_mutex_unlock(word) }

  fileprivate func wait(_ condition: UnsafeMutablePointer<pthread_cond_t>) {
    pthread_cond_wait(condition, word)
  }

  package func withLock<Result>(_ body: () -> Result) -> Result {
    lock()
    defer { unlock() }
    return body()
  }
}

/// A read-write lock of POSIX threads: many readers or one writer. Not recursive for writers.
package final class ReadWriteLock: @unchecked Sendable {
  // Sendable: the word is a lock.
  private let word: UnsafeMutablePointer<pthread_rwlock_t>

  package init() {
    word = .allocate(capacity: 1)
    word.initialize(to: pthread_rwlock_t())
    pthread_rwlock_init(word, nil)
  }

  deinit {
    pthread_rwlock_destroy(word)
    word.deallocate()
  }

  package func lockShared() { pthread_rwlock_rdlock(word) }

  package func lockExclusive() { pthread_rwlock_wrlock(word) }

  package func unlock() { pthread_rwlock_unlock(word) }
}

/// A place to wait at until another thread has changed something under a ``HostMutex``.
package final class HostCondition: @unchecked Sendable {
  // Sendable: the word is a condition variable.
  private let word: UnsafeMutablePointer<pthread_cond_t>

  package init() {
    word = .allocate(capacity: 1)
    word.initialize(to: pthread_cond_t())
    pthread_cond_init(word, nil)
  }

  deinit {
    pthread_cond_destroy(word)
    word.deallocate()
  }

  /// Lets go of the mutex, waits, and takes it again.
  package func wait(_ mutex: HostMutex) { mutex.wait(word) }

  /// Wakes all who wait.
  package func broadcast() { pthread_cond_broadcast(word) }
}
