internal import CPhysmemLimits
internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

extension BenchmarkMeasurements {
  /// Threads × pages × layout: get and put pairs over shared pages, ours and plain C in turn.
  ///
  /// The layouts are those of `RefcountLayout`. Each thread visits the pages in an order of its own,
  /// every page once per round of all of them.
  mutating func measureContention(
    _ options: Options, _ crew: BenchmarkCrew, _ progress: (String) -> Void
  ) throws {
    let rounds = options.quick ? 3 : 9
    let spell = options.seconds / Double(2 * rounds)
    for layout in RefcountLayout.allCases {
      let field = try SharedCounts(layout)
      for pages in [1, 8, 64, SharedCounts.mostPages] {
        for threads in options.threadCounts(crew) {
          progress("contention: \(threads) threads, \(pages) pages, \(layout.rawValue)")
          field.prepare(pages: pages)
          let subjects = (0..<threads).map { field.subject(pages: pages, thread: $0) }
          let limits = (0..<threads).map { field.limit(pages: pages, thread: $0) }
          var rates: [Double] = []
          var limitRates: [Double] = []
          // One round that does not count brings the lines in.
          for round in 0...rounds {
            let limit = crew.freely(limits, seconds: spell).reduce(0, +)
            let rate = crew.freely(subjects, seconds: spell).reduce(0, +)
            if round == 0 { continue }
            rates.append(rate)
            limitRates.append(limit)
          }
          contention.append(
            Contention(
              threads: threads, pages: pages, layout: layout.rawValue,
              nanoseconds: 1e9 * Double(threads) / rates.median,
              limitNanoseconds: 1e9 * Double(threads) / limitRates.median,
              pairsPerSecond: rates.median))
        }
      }
    }
  }
}

/// Counts that threads share: those of a machine, and as many plain words beside them.
final class SharedCounts {
  static let mostPages = 4096
  /// The first page; its count begins a line.
  static let first = PFN(0x2000)

  private let machine: Machine
  let frames: FrameTable
  private let words: UnsafeMutablePointer<Int32>
  /// Words from one page's count to the next page's.
  private let stride: Int

  init(_ layout: RefcountLayout) throws {
    var description = MachineDescription(memory: .mib(512))
    description.refcountLayout = layout
    machine = try Machine(description)
    frames = machine.frames
    stride = layout == .packed ? 1 : 16
    let count = SharedCounts.mostPages * stride
    words = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 4096)
      .bindMemory(to: Int32.self, capacity: count)
    words.initialize(repeating: 1, count: count)
  }

  deinit { words.deallocate() }

  /// The page after this one in the thread's order, which visits `mask` + 1 pages, a power of two, once
  /// each before it begins anew.
  @inline(__always)
  static func next(_ index: UInt32, thread: UInt32, mask: UInt32) -> UInt32 {
    (index &* 5 &+ (2 &* thread &+ 1)) & mask
  }

  /// Gives each page its count of 1.
  func prepare(pages: Int) {
    for index in 0..<pages { frames.setRefcount(SharedCounts.first + index, 1) }
  }

  /// A get and a put of every page, in the thread's order. pre: `pages` is a power of two.
  func subject(pages: Int, thread: Int) -> Workload {
    let frames = frames
    let mask = UInt32(pages - 1)
    let thread = UInt32(truncatingIfNeeded: thread)
    let first = SharedCounts.first.rawValue
    let operations = SharedCounts.mostPages
    return Workload(operations: operations) {
      var index = thread & mask
      var dead = 0
      for _ in 0..<operations {
        let pfn = PFN(first &+ index)
        frames.increment(pfn)
        if frames.putAndTest(pfn) { dead += 1 }
        index = SharedCounts.next(index, thread: thread, mask: mask)
      }
      BenchmarkCase.keep(dead)
    }
  }

  /// The same in plain C on the plain words.
  func limit(pages: Int, thread: Int) -> Workload {
    let (words, stride) = (words, stride)
    let operations = SharedCounts.mostPages
    return Workload(operations: operations) {
      pm_limit_shared_pairs(
        words, stride, UInt32(pages - 1), UInt32(truncatingIfNeeded: thread), operations)
    }
  }
}
