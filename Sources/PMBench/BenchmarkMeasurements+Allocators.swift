internal import PMPageAllocator
internal import PMUnits
internal import Synchronization

extension BenchmarkMeasurements {
  /// Buffers of order 0 and 9 from this allocator and from its peers, in the manner of LLFree's `bench`:
  /// `bulk` gets all and puts all in order, `repeat` gets and puts one again and again, `rand` holds all
  /// and replaces one at random again and again. In the last two a time of `get` is that of the pair, and
  /// `put` is 0.
  ///
  /// The buffers of `bulk` and those that `rand` holds are half of the memory (a look: 1/32). No buffer is ever touched
  /// by the benchmark, whoever it is from: what is timed is the allocator, not the first touch (see
  /// ``Backing``). So `mmap` gives addresses only, and mimalloc touches what it keeps a list in.
  /// `initialization` is what making the allocator and each thread's first buffer took; libraries are
  /// loaded before.
  mutating func measureAllocators(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) {
    for peer in BufferPeer.allCases {
      do {
        for kind in BufferBench.Kind.allCases {
          for order in [0, 9] {
            for threads in [1, 2] where threads <= min(options.maximumThreads, crew.cpus.count) {
              progress("allocators: \(peer.rawValue), \(kind.rawValue), order \(order)")
              let bench = BufferBench(
                peer: peer, kind: kind, order: order, threads: threads,
                operations: options.quick ? 1 << 12 : 1 << 14,
                iterations: options.quick ? 2 : 5, memory: options.memory.rawValue,
                buffered: options.workedByteCount / 2)
              allocators += try bench.run(crew)
            }
          }
        }
      } catch {
        skip("allocators.\(peer.rawValue)", "\(error)")
      }
    }
  }
}

/// Whose buffers.
enum BufferPeer: String, CaseIterable {
  case physmem, jemalloc, mimalloc, mmap
}

/// One benchmark of buffers.
struct BufferBench: Sendable {
  /// What is done with buffers.
  enum Kind: String, CaseIterable {
    case bulk
    case `repeat`
    case rand
  }

  var peer: BufferPeer
  var kind: Kind
  var order: Int
  var threads: Int
  /// Pairs of `repeat` and replacements of `rand`, per thread and iteration.
  var operations: Int
  var iterations: Int
  /// Memory under the allocator, bytes.
  var memory: UInt64
  /// What all buffers that are held at once have, bytes.
  var buffered: UInt64

  /// Buffers that each thread holds at once.
  var count: Int { Int(buffered / UInt64(4096 << order)) / threads }

  /// Runs all repetitions. Throws where the peer is not there or has no memory.
  func run(_ crew: BenchmarkCrew) throws -> [BenchmarkMeasurements.Allocator] {
    let order = order
    switch peer {
    case .physmem:
      var machine: Machine?
      let seconds = try Stopwatch.seconds {
        machine = try Machine(MachineDescription(memory: ByteCount(memory), cpus: threads))
      }
      guard let machine else { fatalError("neither a machine nor an error") }
      return try run(crew, made: seconds) { try FrameBuffers(machine, cpu: $0, order: order) }
    case .jemalloc:
      let heap = try HeapLibrary.jemalloc.get()
      return try run(crew, made: 0) { _ in HeapBuffers(heap, order: order) }
    case .mimalloc:
      let heap = try HeapLibrary.mimalloc.get()
      return try run(crew, made: 0) { _ in HeapBuffers(heap, order: order) }
    case .mmap:
      return try run(crew, made: 0) { _ in MappedBuffers(order: order) }
    }
  }

  private func run<Source: BufferSource & ~Copyable & SendableMetatype>(
    _ crew: BenchmarkCrew, made: Double,
    _ source: @escaping @Sendable (Int) throws -> Source
  ) throws -> [BenchmarkMeasurements.Allocator] {
    let board = BufferBoard(threads: threads, iterations: iterations)
    let bench = self
    crew.run(threads) { thread in
      do {
        let start = ContinuousClock.now
        var source = try source(thread)
        let first = source.get()
        if first == noBuffer { throw BenchmarkUnavailable.noBuffers(bench) }
        source.put(first)
        board.ready(thread, start.duration(to: .now).inSeconds)
        bench.work(&source, board, thread)
      } catch {
        board.fail("\(error)")
        board.barrier.wait()
      }
    }
    if let failure = board.failure { throw BenchmarkUnavailable(description: failure) }
    return (0..<iterations).map { row(board, $0, made: made) }
  }

  /// What each thread does. All threads see a failure at the same barrier and end.
  private func work<Source: BufferSource & ~Copyable>(
    _ source: inout Source, _ board: BufferBoard, _ thread: Int
  ) {
    var buffers = [UInt](repeating: noBuffer, count: count)
    var random = SplitMix64(seed: UInt64(thread) + 1)
    board.barrier.wait()
    guard board.failure == nil else { return }
    for iteration in 0..<iterations {
      var isGood = true
      switch kind {
      case .bulk:
        let get = board.timed(thread) { isGood = take(&source, &buffers) }
        let put = board.timed(thread) { giveBack(&source, &buffers) }
        board.note(thread, iteration, get: get, put: put, total: get.all + put.all)
      case .repeat:
        let pair = board.timed(thread) {
          for _ in 0..<operations {
            let buffer = source.get()
            if buffer == noBuffer { isGood = false } else { source.put(buffer) }
          }
        }
        board.note(thread, iteration, get: pair, put: nil, total: pair.all)
      case .rand:
        isGood = take(&source, &buffers)
        let replaced = board.timed(thread) {
          for _ in 0..<operations {
            let index = Int((random.next() >> 32) * UInt64(count) >> 32)
            if buffers[index] != noBuffer { source.put(buffers[index]) }
            buffers[index] = source.get()
          }
        }
        isGood = isGood && !buffers.contains(noBuffer)
        giveBack(&source, &buffers)
        board.note(thread, iteration, get: replaced, put: nil, total: replaced.all)
      }
      if !isGood { board.fail(BenchmarkUnavailable.noBuffers(self).description) }
      board.barrier.wait()
      if board.failure != nil { return }
    }
  }

  private func take<Source: BufferSource & ~Copyable>(
    _ source: inout Source, _ buffers: inout [UInt]
  ) -> Bool {
    var isGood = true
    for index in buffers.indices {
      let buffer = source.get()
      buffers[index] = buffer
      if buffer == noBuffer { isGood = false }
    }
    return isGood
  }

  private func giveBack<Source: BufferSource & ~Copyable>(
    _ source: inout Source, _ buffers: inout [UInt]
  ) {
    for index in buffers.indices where buffers[index] != noBuffer {
      source.put(buffers[index])
      buffers[index] = noBuffer
    }
  }

  private func row(
    _ board: BufferBoard, _ iteration: Int, made: Double
  ) -> BenchmarkMeasurements.Allocator {
    let rounds = board.rounds(iteration)
    let taken = kind == .bulk ? count : operations
    func perBuffer(_ seconds: Double) -> UInt64 {
      UInt64((seconds * 1e9 / Double(taken)).rounded())
    }
    func bounds(_ seconds: [Double]) -> (least: UInt64, mean: UInt64, most: UInt64) {
      (
        perBuffer(seconds.min() ?? 0),
        perBuffer(seconds.reduce(0, +) / Double(seconds.count)),
        perBuffer(seconds.max() ?? 0)
      )
    }
    let get = bounds(rounds.map(\.get))
    let put = bounds(rounds.map(\.put))
    return BenchmarkMeasurements.Allocator(
      allocator: peer.rawValue, benchmark: kind.rawValue, threads: threads, order: order,
      iteration: iteration, memory: memory, getMin: get.least, getAverage: get.mean,
      getMax: get.most, putMin: put.least, putAverage: put.mean, putMax: put.most,
      initialization: UInt64(((made + board.slowestStart) * 1e9).rounded()),
      total: UInt64(((rounds.map(\.total).max() ?? 0) * 1e9).rounded()), allocations: taken)
  }
}

extension BenchmarkUnavailable {
  static func noBuffers(_ bench: BufferBench) -> BenchmarkUnavailable {
    BenchmarkUnavailable(
      description:
        "\(bench.peer.rawValue) has no memory for \(bench.threads) × \(bench.count) buffers of order "
        + "\(bench.order): give the benchmark less memory or the machine more")
  }
}

/// Where the threads of one benchmark write what they find.
private final class BufferBoard: Sendable {
  /// Seconds of one thread's repetition.
  struct Round {
    var get = 0.0
    var put = 0.0
    var total = 0.0
  }

  let barrier: SpinBarrier
  private let results: Mutex<[[Round]]>
  private let starts: Mutex<[Double]>
  private let reason = Mutex<String?>(nil)

  init(threads: Int, iterations: Int) {
    barrier = SpinBarrier(threads)
    let rounds = [Round](repeating: Round(), count: threads)
    results = Mutex([[Round]](repeating: rounds, count: iterations))
    starts = Mutex([Double](repeating: 0, count: threads))
  }

  var failure: String? { reason.withLock { $0 } }
  var slowestStart: Double { starts.withLock { $0.max() ?? 0 } }

  func fail(_ text: String) { reason.withLock { if $0 == nil { $0 = text } } }
  func ready(_ thread: Int, _ seconds: Double) { starts.withLock { $0[thread] = seconds } }
  func rounds(_ iteration: Int) -> [Round] { results.withLock { $0[iteration] } }

  /// Does something at the same time as the other threads: the seconds that this one took, and those until
  /// the last was done.
  func timed(_ thread: Int, _ body: () -> Void) -> (own: Double, all: Double) {
    barrier.wait()
    let start = ContinuousClock.now
    body()
    let own = start.duration(to: .now).inSeconds
    barrier.wait()
    return (own, start.duration(to: .now).inSeconds)
  }

  func note(
    _ thread: Int, _ iteration: Int, get: (own: Double, all: Double),
    put: (own: Double, all: Double)?, total: Double
  ) {
    let round = Round(get: get.own, put: put?.own ?? 0, total: total)
    results.withLock { $0[iteration][thread] = round }
  }
}
