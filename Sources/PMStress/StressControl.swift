internal import PMUnits
internal import Synchronization

/// Something that must not be: what, where, and how to see it again.
public struct StressFailure: Hashable, Codable, Sendable {
  /// Under which kind of stress.
  public var kind: StressKind
  /// The round's seed.
  public var seed: UInt64
  /// The thread that saw it, or nil where the threads were at rest.
  public var thread: Int?
  /// The thread's step, from 0, or nil.
  public var step: Int?
  /// What was expected and what was seen.
  public var message: String

  /// A failure from its parts.
  public init(kind: StressKind, seed: UInt64, thread: Int?, step: Int?, message: String) {
    self.kind = kind
    self.seed = seed
    self.thread = thread
    self.step = step
    self.message = message
  }
}

/// What all threads of a run share: whether to go on, what was found, how much was done.
public final class StressControl: Sendable {
  private let isStopped = Atomic(false)
  private let isInterrupted = Atomic(false)
  private let hasFailed = Atomic(false)
  private let done = Atomic(0)
  private let found = Guarded<[StressFailure]>([])
  private static let failureLimit = 100

  /// A run that goes on.
  public init() {}

  /// Whether threads have to come to an end: stopped, or something was found. Relaxed; cheap enough to
  /// be asked at every step.
  public var shouldStop: Bool {
    isStopped.load(ordering: .relaxed) || hasFailed.load(ordering: .relaxed)
  }

  /// Ends the run from outside, as SIGINT does. May be called from any thread.
  public func interrupt() {
    isInterrupted.store(true, ordering: .relaxed)
    isStopped.store(true, ordering: .relaxed)
  }

  /// Whether ``interrupt()`` was called.
  public var wasInterrupted: Bool { isInterrupted.load(ordering: .relaxed) }

  /// Notes a failure; the round ends. The first hundred are kept.
  public func fail(_ failure: StressFailure) {
    found.withLock { found in
      if found.count < StressControl.failureLimit { found.append(failure) }
    }
    hasFailed.store(true, ordering: .relaxed)
  }

  /// What was found so far.
  public var failures: [StressFailure] { found.withLock { $0 } }

  /// Adds to the operations done, for the progress line. Call it now and then, not at every step.
  public func add(operations count: Int) { done.add(count, ordering: .relaxed) }

  /// Operations noted so far.
  public var operations: Int { done.load(ordering: .relaxed) }
}
