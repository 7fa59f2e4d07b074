/// What `physmem bench` measures beside the cases with bars: sweeps, distributions, costs.
///
/// One value of each figure, as measured; nothing here is compared with a bar.
public struct BenchmarkMeasurements: Hashable, Codable, Sendable {
  /// What is measured together.
  public enum Group: String, CaseIterable, Codable, Sendable {
    /// Threads × pages shared × layout of the counts.
    case contention
    /// How the time of single operations is spread.
    case latency
    /// Throughput of the allocator with 1 … n threads.
    case scaling
    /// Order-0 and order-9 buffers from this allocator and from the peers that are installed.
    case allocators
    /// First touch, random access and release per backing.
    case backings
    /// The real KVM of this machine.
    case kvm
  }

  /// One point of the contention sweep: every thread does get and put pairs over the shared pages.
  public struct Contention: Hashable, Codable, Sendable {
    /// Threads at work.
    public var threads: Int
    /// Pages that all of them share.
    public var pages: Int
    /// `packed` or `strided`.
    public var layout: String
    /// A get and put pair, per thread.
    public var nanoseconds: Double
    /// The same pairs in plain C on the same layout, in the same run.
    public var limitNanoseconds: Double
    /// Pairs of all threads, a second.
    public var pairsPerSecond: Double
  }

  /// A histogram's bin.
  public struct Bin: Hashable, Codable, Sendable {
    /// The largest time in the bin, ns.
    public var upTo: UInt64
    /// Operations in it.
    public var count: Int
  }

  /// How the time of single operations is spread, the clock's own cost included.
  public struct Latency: Hashable, Codable, Sendable {
    /// The operation: `refcount.pair`, `alloc.pair.o0`, `stage2.map`, …; `clock` is an empty one.
    public var name: String
    /// Operations timed.
    public var count: Int
    /// Nanoseconds.
    public var mean: Double
    /// Nanoseconds at most, of so many percent of the operations.
    public var p50, p90, p99, p999, p9999, max: UInt64
    /// The distribution, smallest first, empty bins left out.
    public var bins: [Bin]
  }

  /// Throughput of a case with so many threads.
  public struct Scaling: Hashable, Codable, Sendable {
    /// `alloc.pair.o0`, `alloc.bulk.o0`, `refcount.own`, `refcount.shared`, …
    public var name: String
    /// Threads at work.
    public var threads: Int
    /// Operations of all threads, a second.
    public var operationsPerSecond: Double
    /// The part of the machine that stood idle meanwhile, percent.
    public var idlePercent: Double
  }

  /// A benchmark of page buffers in the manner of LLFree's `bench`.
  public struct Allocator: Hashable, Codable, Sendable {
    /// `physmem`, `jemalloc`, `mimalloc`, `mmap`.
    public var allocator: String
    /// `bulk`, `repeat` or `rand`.
    public var benchmark: String
    /// Threads at work.
    public var threads: Int
    /// log2 of the buffer's size in pages.
    public var order: Int
    /// Which repetition, from 0.
    public var iteration: Int
    /// Memory under the allocator, bytes.
    public var memory: UInt64
    /// Nanoseconds of getting and of putting one buffer: the fastest thread, the mean, the slowest. In
    /// `repeat` and `rand` both alternate: `get` is a pair then, and `put` is 0.
    public var getMin, getAverage, getMax, putMin, putAverage, putMax: UInt64
    /// Nanoseconds that making the allocator ready took.
    public var initialization: UInt64
    /// Nanoseconds of the whole repetition.
    public var total: UInt64
    /// Buffers taken by each thread.
    public var allocations: Int
  }

  /// What memory of a backing costs.
  public struct Backing: Hashable, Codable, Sendable {
    /// A name of the `-s` option of `physmem stress`.
    public var backing: String
    /// Bytes measured.
    public var byteCount: UInt64
    /// First touch, per 4 KiB.
    public var faultNanoseconds: Double
    /// Bytes that one fault brings.
    public var pageByteCount: UInt64
    /// A read at a random place of memory that is there: what the TLB and the caches cost.
    public var randomReadNanoseconds: Double
    /// Giving back (MADV_DONTNEED or a hole), per 4 KiB.
    public var releaseNanoseconds: Double
  }

  /// What the real KVM of this machine takes for something.
  public struct KVMCost: Hashable, Codable, Sendable {
    /// `kvm.slot.add`, `kvm.slot.delete`, `kvm.fault`, `kvm.dirty.clean`, `kvm.dirty.full`.
    public var name: String
    /// `us` or `ns`.
    public var unit: String
    /// The median.
    public var value: Double
    /// The model's own time for the same, same unit, or nil where it is not measured.
    public var model: Double?
    /// Memory that the operation is about, bytes.
    public var byteCount: UInt64
  }

  /// Something that this machine cannot measure.
  public struct Skip: Hashable, Codable, Sendable {
    /// What would have been measured.
    public var name: String
    /// What is missing and how to get it.
    public var reason: String
  }

  /// The contention sweep.
  public var contention: [Contention] = []
  /// Distributions.
  public var latency: [Latency] = []
  /// Throughputs.
  public var scaling: [Scaling] = []
  /// Buffers against peers.
  public var allocators: [Allocator] = []
  /// Backings.
  public var backings: [Backing] = []
  /// Real KVM.
  public var kvm: [KVMCost] = []
  /// What could not be measured.
  public var skipped: [Skip] = []

  /// Nothing measured yet.
  public init() {}
}
