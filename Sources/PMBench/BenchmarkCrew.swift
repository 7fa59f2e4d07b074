internal import Dispatch
internal import Foundation
internal import PMArena
internal import Synchronization

/// Threads that work at the same time, each kept on a CPU of its own as far as there are enough.
struct BenchmarkCrew: Sendable {
  /// The CPUs that this process may run on.
  let cpus: [Int]

  /// A crew for all CPUs that this process may run on.
  init() {
    // A batch system gives a job some of the machine's CPUs; pinning to others would fail.
    var allowed = (try? Host.allowedCPUs()) ?? []
    if allowed.isEmpty { allowed = (try? Host.onlineCPUs()) ?? [] }
    cpus = allowed.isEmpty ? [0] : allowed
  }

  /// The numbers of threads of a sweep: each up to 8, from there on doubling, and the last.
  static func threadCounts(upTo most: Int) -> [Int] {
    (1...max(most, 1)).filter { $0 <= 8 || $0 == most || $0 & ($0 - 1) == 0 }
  }

  /// Runs `body` on `count` pinned threads and returns when all have ended.
  func run(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    // This thread blocks meanwhile: polling would take processor time from the pinned ones.
    let finished = DispatchSemaphore(value: 0)
    for index in 0..<count {
      let cpu = cpus[index % cpus.count]
      Thread {
        try? Host.pinCurrentThread(toCPU: cpu)
        body(index)
        finished.signal()
      }.start()
    }
    for _ in 0..<count { finished.wait() }
  }

  /// Runs `body` on one pinned thread and returns what it gives.
  func alone<Result: Sendable>(
    _ body: @escaping @Sendable () throws -> Result
  ) throws -> Result {
    let result = Mutex<Swift.Result<Result, any Error>?>(nil)
    run(1) { _ in
      let found = Swift.Result { try body() }
      result.withLock { $0 = found }
    }
    guard let found = result.withLock({ $0 }) else { fatalError("a thread ended without a result") }
    return try found.get()
  }

  /// Lets each workload run over and over on its thread, all at once, and gives the operations per
  /// second of each. A thread ends with its first repetition behind `seconds`: repetitions should be
  /// short.
  func freely(_ workloads: [Workload], seconds: Double) -> [Double] {
    let barrier = SpinBarrier(workloads.count)
    let rates = Mutex([Double](repeating: 0, count: workloads.count))
    withLent(workloads) { workload, index in
      workload.before()
      barrier.wait()
      let start = ContinuousClock.now
      var operations = 0
      var elapsed = 0.0
      repeat {
        workload.run()
        operations += workload.operations
        elapsed = start.duration(to: .now).inSeconds
      } while elapsed < seconds
      let rate = Double(operations) / elapsed
      rates.withLock { $0[index] = rate }
      barrier.wait()
      workload.after()
    }
    return rates.withLock { $0 }
  }

  /// Lets the workloads run in step: all start a repetition together, it lasts until the last is done,
  /// and cleaning up is not timed. The operations per second of all, in the median of the repetitions,
  /// of which there are 3 at least.
  func inStep(_ workloads: [Workload], seconds: Double) -> Double {
    let barrier = SpinBarrier(workloads.count)
    let times = Mutex([Double](repeating: 0, count: workloads.count))
    let samples = Mutex([Double]())
    withLent(workloads) { workload, index in
      var spent = 0.0
      var repetitions = 0
      while spent < seconds || repetitions < 3 {
        workload.before()
        barrier.wait()
        let taken = Stopwatch.seconds {
          workload.run()
          barrier.wait()
        }
        times.withLock { $0[index] = taken }
        workload.after()
        barrier.wait()
        // All threads see the same times and so agree on when to stop.
        let slowest = times.withLock { $0.max() ?? 0 }
        if index == 0 { samples.withLock { $0.append(slowest) } }
        spent += slowest
        repetitions += 1
        barrier.wait()
      }
    }
    let operations = workloads.reduce(0) { $0 + $1.operations }
    return Double(operations) / samples.withLock { $0.median }
  }

  /// Runs a thread for each workload. What the workloads hold is given back when this returns: the
  /// threads' own memory may live a little longer.
  private func withLent(
    _ workloads: [Workload], _ body: @escaping @Sendable (Workload, Int) -> Void
  ) {
    let lent = LentWorkloads(workloads)
    run(workloads.count) { index in body(lent.workloads[index], index) }
    lent.workloads = []
  }
}

/// Workloads on their way to the threads that run them.
private final class LentWorkloads: @unchecked Sendable {
  // Sendable: each workload is used by exactly one thread, started after it was made; the list is
  // emptied after all of them have ended.
  var workloads: [Workload]
  init(_ workloads: [Workload]) { self.workloads = workloads }
}

/// A workload on its way to the one thread that runs it.
struct UncheckedTransfer: @unchecked Sendable {
  // Sendable: each workload is used by exactly one thread, started after it was made.
  let value: Workload
  init(_ value: Workload) { self.value = value }
}

/// Lets a fixed number of threads wait for each other without sleeping.
final class SpinBarrier: Sendable {
  private let size: Int
  private let arrived = Atomic(0)
  private let generation = Atomic(0)

  init(_ size: Int) { self.size = size }

  func wait() {
    let current = generation.load(ordering: .acquiring)
    if arrived.add(1, ordering: .acquiringAndReleasing).newValue == size {
      arrived.store(0, ordering: .relaxed)
      generation.store(current + 1, ordering: .releasing)
      return
    }
    while generation.load(ordering: .acquiring) == current {}
  }
}

/// What the machine's processors have done since it was started, in ticks of the kernel.
struct ProcessorTimes {
  var idle: UInt64 = 0
  var total: UInt64 = 0

  /// The times of now; zeroes where the kernel does not tell.
  static func now() -> ProcessorTimes {
    guard let text = try? String(contentsOfFile: "/proc/stat", encoding: .utf8) else {
      return ProcessorTimes()
    }
    return ProcessorTimes(text)
  }

  /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and the time
  /// of guests, which the first two contain.
  init(_ text: String) {
    let line = text.prefix { $0 != "\n" }
    let ticks = line.split(separator: " ").dropFirst().compactMap { UInt64($0) }.prefix(8)
    guard line.hasPrefix("cpu "), ticks.count >= 5 else { return }
    idle = ticks[3] + ticks[4]
    total = ticks.reduce(0, +)
  }

  init() {}

  /// The part that stood idle since `earlier`, percent; nil where no time went by.
  func idlePercent(since earlier: ProcessorTimes) -> Double? {
    guard total > earlier.total, idle >= earlier.idle else { return nil }
    return min(100, 100 * Double(idle - earlier.idle) / Double(total - earlier.total))
  }
}

extension Duration {
  /// In seconds.
  var inSeconds: Double {
    Double(components.seconds) + Double(components.attoseconds) * 1e-18
  }
}
