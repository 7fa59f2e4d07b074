internal import Dispatch
internal import Foundation
internal import PMArena
internal import Synchronization

/// Times cases: subject and limit in turn, round by round.
public struct BenchmarkRunner {
  /// Rounds per case.
  public var rounds: Int
  /// How long a subject is repeated in a round, at least.
  public var roundSeconds: Double

  /// Nine rounds, as PERFORMANCE.md asks for.
  public init(rounds: Int = 9, roundSeconds: Double = 0.02) {
    self.rounds = rounds
    self.roundSeconds = roundSeconds
  }

  /// Runs a case.
  public func run(_ item: BenchmarkCase) -> BenchmarkResult {
    do {
      let subject = try item.prepare()
      var values: [Double] = []
      var limits: [Double] = []
      // One round that does not count warms caches, tables and branch predictors.
      for round in 0...rounds {
        let (value, limit) = try measure(subject)
        if round == 0 { continue }
        values.append(value)
        if let limit { limits.append(limit) }
      }
      return BenchmarkResult(item, samples: values, limitSamples: limits)
    } catch {
      return BenchmarkResult(item, reason: "\(error)")
    }
  }

  private func measure(_ subject: Subject) throws -> (Double, Double?) {
    switch subject {
    case .single(let workload, let limit):
      // The limit stands on both sides of the subject, so that a drift of the machine cancels.
      let before = nanoseconds(limit)
      let value = nanoseconds(workload)
      return (value, (before + nanoseconds(limit)) / 2)
    case .paired(let workloads, let limits):
      let before = together(limits)
      let value = together(workloads)
      return (value, (before + together(limits)) / 2)
    case .scaling(let one, let two):
      let alone = 1 / together([one])
      let both = Double(two.count) / together(two)
      return (both / alone, nil)
    case .figure(let find): return try find()
    }
  }

  /// The median time of an operation over repetitions.
  private func nanoseconds(_ workload: Workload) -> Double {
    var samples: [Double] = []
    var spent = 0.0
    while spent < roundSeconds || samples.count < 3 {
      workload.before()
      let seconds = Stopwatch.seconds(workload.run)
      workload.after()
      samples.append(seconds * 1e9 / Double(workload.operations))
      spent += seconds
    }
    return samples.median
  }

  /// The median time of an operation per thread, with one pinned thread per workload: all start a
  /// repetition together, and it lasts until the last is done.
  private func together(_ workloads: [Workload]) -> Double {
    let barrier = SpinBarrier(workloads.count)
    let repetitions = Atomic(0)
    let times = Mutex([Double](repeating: 0, count: workloads.count))
    let samples = Mutex([Double]())
    // This thread blocks meanwhile: polling would take processor time from the pinned ones.
    let finished = DispatchSemaphore(value: 0)
    let enough = roundSeconds
    let threads = workloads.map(UncheckedTransfer.init).enumerated().map { index, lent in
      Thread {
        try? Host.pinCurrentThread(toCPU: index)
        let workload = lent.value
        var spent = 0.0
        while true {
          workload.before()
          barrier.wait()
          let seconds = Stopwatch.seconds {
            workload.run()
            barrier.wait()
          }
          times.withLock { $0[index] = seconds }
          workload.after()
          barrier.wait()
          // All threads see the same times and so agree on when to stop.
          let slowest = times.withLock { $0.max() ?? 0 }
          if index == 0 {
            samples.withLock { $0.append(slowest * 1e9 / Double(workload.operations)) }
            repetitions.add(1, ordering: .relaxed)
          }
          spent += slowest
          barrier.wait()
          if spent >= enough, repetitions.load(ordering: .relaxed) >= 5 { break }
        }
        finished.signal()
      }
    }
    for thread in threads { thread.start() }
    for _ in workloads { finished.wait() }
    return samples.withLock { $0.median }
  }
}

extension Subject {
  /// One repetition of the subject without its limit, for benchmark tools that do their own timing. Two
  /// threads run together and the repetition lasts until the slower is done.
  public var repetition: Workload {
    switch self {
    case .single(let workload, _): return workload
    case .paired(let workloads, _), .scaling(_, let workloads):
      let lent = workloads.map(UncheckedTransfer.init)
      return Workload(
        operations: workloads.reduce(0) { $0 + $1.operations },
        before: { for workload in workloads { workload.before() } },
        after: { for workload in workloads { workload.after() } },
        run: {
          DispatchQueue.concurrentPerform(iterations: lent.count) { lent[$0].value.run() }
        })
    case .figure(let find):
      return Workload(operations: 1) { _ = try? find() }
    }
  }
}

/// Times a block.
enum Stopwatch {
  /// Seconds that `body` took.
  static func seconds(_ body: () throws -> Void) rethrows -> Double {
    try ContinuousClock().measure(body).inSeconds
  }
}

extension [Double] {
  /// The middle value; pre: not empty.
  var median: Double {
    let sorted = self.sorted()
    let middle = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
  }
}
