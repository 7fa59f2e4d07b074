internal import Dispatch
internal import Foundation
internal import PMUnits
internal import Synchronization

/// A thread's part of a round: its random numbers, its steps, its clock.
struct StressWorker {
  let thread: Int
  var random: SplitMix64
  /// Steps begun, from 0.
  private(set) var step = -1
  /// Operations by the number of their kind.
  var counts: [Int]
  private let control: StressControl
  private let kind: StressKind
  private let seed: UInt64
  private let deadline: ContinuousClock.Instant
  private let limit: Int
  private let mask: Int
  private var noted = 0

  /// `pause` says how many steps, a power of two, pass between looks at the clock.
  init(
    _ plan: StressPlan, _ control: StressControl, thread: Int, operationKinds: Int,
    pause: Int = 256, isLimited: Bool = true
  ) {
    self.thread = thread
    self.control = control
    kind = plan.kind
    seed = plan.seed
    deadline = plan.deadline
    limit = isLimited ? plan.iterations ?? .max : .max
    mask = pause - 1
    counts = Array(repeating: 0, count: operationKinds)
    // Threads of one round must not walk through each other's numbers.
    random = SplitMix64(seed: plan.seed &* 0x2545_f491_4f6c_dd1d &+ UInt64(thread) << 40)
  }

  /// Begins the next step; false where the thread has to end.
  @inline(__always)
  mutating func next() -> Bool {
    step += 1
    guard step < limit else { return end() }
    return step & mask != 0 || look()
  }

  @inline(never)
  private mutating func look() -> Bool {
    _ = end()
    return !control.shouldStop && ContinuousClock.now < deadline
  }

  private mutating func end() -> Bool {
    control.add(operations: step - noted)
    noted = step
    return false
  }

  /// Notes what must not be.
  @inline(never)
  func fail(_ message: String) {
    control.fail(
      StressFailure(kind: kind, seed: seed, thread: thread, step: step, message: message))
  }
}

/// Threads that start together and end before the caller goes on.
enum StressCrew {
  /// How long threads may take to come to rest after their round's end.
  static let patience: Double = 60

  /// Runs every body on a thread of its own. False where one of them has not ended a minute after the
  /// deadline: a lock that is never given back, a wait that nobody ends. The round's memory must not be
  /// touched then.
  static func run(
    _ plan: StressPlan, _ control: StressControl, _ bodies: [@Sendable () -> Void]
  ) -> Bool {
    let group = DispatchGroup()
    for body in bodies {
      group.enter()
      let thread = Thread {
        body()
        group.leave()
      }
      thread.stackSize = 1 << 21
      thread.start()
    }
    while true {
      let now = ContinuousClock.now
      let left = max(now.duration(to: plan.deadline).seconds, 0)
      let isDue = left == 0 || control.shouldStop
      if group.wait(timeout: .now() + (isDue ? patience : min(left, 0.1))) == .success {
        return true
      }
      guard isDue else { continue }
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil,
          message: "threads are stuck: one has not ended \(Int(patience)) s after the round's end"))
      return false
    }
  }
}

extension Duration {
  /// In seconds.
  var seconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }
}

/// A table of words that all threads of a round share.
struct SharedWords<Word: AtomicRepresentable & BitwiseCopyable & Sendable>: @unchecked Sendable {
  // Sendable: every word is atomic; the memory lives until `deallocate`, after all threads have ended.
  private let words: UnsafeMutablePointer<Atomic<Word>>
  let count: Int

  init(count: Int, repeating word: Word) {
    self.count = count
    words = .allocate(capacity: count)
    for index in 0..<count { (words + index).initialize(to: Atomic(word)) }
  }

  func deallocate() { words.deallocate() }

  /// The word's place.
  @inline(__always)
  func place(_ index: Int) -> UnsafeMutablePointer<Atomic<Word>> {
    precondition(index >= 0 && index < count)
    return words + index
  }
}
