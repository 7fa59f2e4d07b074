internal import CPhysmemLimits
internal import Foundation
internal import Glibc
internal import PMPageAllocator
internal import PMUnits

/// Where a thread gets buffers of one size from and puts them back: an allocator under comparison.
///
/// A buffer is 4 KiB × 2^order, aligned to its size, and named by a word: a PFN or an address.
protocol BufferSource: ~Copyable {
  /// A buffer, or ``noBuffer``.
  mutating func get() -> UInt
  /// Gives a buffer back.
  mutating func put(_ buffer: UInt)
}

/// No PFN, and no address of a buffer.
let noBuffer = UInt.max

/// This allocator, by one of its CPUs.
struct FrameBuffers: BufferSource, ~Copyable {
  private var cpu: CPU
  private let order: Int

  init(_ machine: Machine, cpu index: Int, order: Int) throws {
    cpu = try machine.claimCPU(index)
    self.order = order
  }

  @inline(__always)
  mutating func get() -> UInt {
    guard let pfn = try? cpu.allocatePages(order: order, gfp: .kernel) else { return noBuffer }
    return UInt(pfn.rawValue)
  }

  @inline(__always)
  mutating func put(_ buffer: UInt) {
    cpu.freePages(PFN(UInt32(truncatingIfNeeded: buffer)), order: order)
  }
}

/// `aligned_alloc` and `free` of a heap.
struct HeapBuffers: BufferSource {
  private let heap: HeapLibrary
  private let byteCount: Int

  init(_ heap: HeapLibrary, order: Int) {
    self.heap = heap
    byteCount = 4096 << order
  }

  @inline(__always)
  mutating func get() -> UInt {
    guard let memory = heap.alignedAlloc(byteCount, byteCount) else { return noBuffer }
    return UInt(bitPattern: memory)
  }

  @inline(__always)
  mutating func put(_ buffer: UInt) { heap.free(UnsafeMutableRawPointer(bitPattern: buffer)) }
}

/// The kernel's address space, by `mmap` and `munmap`.
struct MappedBuffers: BufferSource {
  private let byteCount: Int

  init(order: Int) { byteCount = 4096 << order }

  @inline(__always)
  private func map(_ byteCount: Int) -> UInt {
    let memory = mmap(
      nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return UInt(bitPattern: memory)
  }

  mutating func get() -> UInt {
    let address = map(byteCount)
    let mask = UInt(byteCount - 1)
    // -1 is MAP_FAILED, and `noBuffer`.
    if address == noBuffer || address & mask == 0 { return address }
    // Not aligned by luck: twice the size has an aligned part, and the rest goes back.
    put(address)
    let start = map(2 * byteCount)
    if start == noBuffer { return noBuffer }
    let aligned = (start + mask) & ~mask
    let end = start + UInt(2 * byteCount)
    if aligned > start { unmap(start, Int(aligned - start)) }
    let rest = end - (aligned + UInt(byteCount))
    if rest > 0 { unmap(aligned + UInt(byteCount), Int(rest)) }
    return aligned
  }

  @inline(__always)
  mutating func put(_ buffer: UInt) { unmap(buffer, byteCount) }

  @inline(__always)
  private func unmap(_ address: UInt, _ byteCount: Int) {
    munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
  }
}

/// A heap in a shared library, beside the process's own: only these two functions are taken from it.
struct HeapLibrary: Sendable {
  typealias AlignedAlloc = @convention(c) @Sendable (Int, Int) -> UnsafeMutableRawPointer?
  typealias Free = @convention(c) @Sendable (UnsafeMutableRawPointer?) -> Void

  let alignedAlloc: AlignedAlloc
  let free: Free

  /// Opens the first library that is there. It stays open to the process's end: its threads' memory
  /// cannot be taken from under it.
  ///
  /// Throws what is missing and how to get it: `package` is Debian's name.
  static func open(_ names: [String], package: String) throws(BenchmarkUnavailable) -> HeapLibrary {
    var reason = ""
    for name in names {
      // Its calls of its own functions must reach these, not the process's heap.
      guard let library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) else {
        let text = dlerror().map { String(cString: $0) } ?? "\(name) cannot be loaded"
        // What the loader says of a library that is there tells more than that another is not.
        if reason.isEmpty || !text.contains("No such file") { reason = text }
        continue
      }
      // A library without a heap finds the C library's, which it needs itself.
      guard let allocation = dlsym(library, "aligned_alloc"), let free = dlsym(library, "free"),
        allocation != ofLibC("aligned_alloc"), free != ofLibC("free")
      else {
        throw BenchmarkUnavailable(
          description: "\(name) has no heap of its own: apt-get install \(package)")
      }
      return HeapLibrary(
        alignedAlloc: unsafeBitCast(allocation, to: AlignedAlloc.self),
        free: unsafeBitCast(free, to: Free.self))
    }
    throw BenchmarkUnavailable(description: "\(reason); \(remedy(reason, package))")
  }

  private static func ofLibC(_ name: String) -> UnsafeMutableRawPointer? {
    dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD).flatMap { dlsym($0, name) }
  }

  private static func remedy(_ reason: String, _ package: String) -> String {
    reason.contains("static TLS")
      ? "start with \(BenchmarkMeasurements.tunables)=\(BenchmarkMeasurements.threadLocalRoom)"
      : "apt-get install \(package)"
  }

  /// jemalloc, opened once.
  static let jemalloc = Result { () throws(BenchmarkUnavailable) in
    try open(["libjemalloc.so.2"], package: "libjemalloc2")
  }

  /// mimalloc, opened once.
  static let mimalloc = Result { () throws(BenchmarkUnavailable) in
    try open(
      ["libmimalloc.so.2", "libmimalloc.so.2.0", "libmimalloc.so.3"], package: "libmimalloc2.0")
  }
}

extension BenchmarkMeasurements {
  static let tunables = "GLIBC_TUNABLES"
  /// jemalloc wants 2.6 KiB of thread-local memory at fixed places, of which the loader keeps half a KiB
  /// for libraries that are opened later.
  static let threadLocalRoom = "glibc.rtld.optional_static_tls=8192"

  /// Starts the program anew, with the same arguments, where a peer of ``Group/allocators`` is installed
  /// but cannot be opened for want of thread-local memory: how much there is, is fixed when a program
  /// starts.
  ///
  /// Does not return then. Returns, having done nothing, where nothing is gained or the program cannot be
  /// started anew: the peer is skipped then. To be called before other threads are started and anything
  /// is printed.
  public static func restartWithRoomForPeers() {
    guard case .failure(let missing) = HeapLibrary.jemalloc,
      missing.description.contains("static TLS")
    else { return }
    let present = ProcessInfo.processInfo.environment[tunables]
    if let present, present.contains("optional_static_tls") { return }
    setenv(tunables, present.map { "\($0):\(threadLocalRoom)" } ?? threadLocalRoom, 1)
    var arguments: [UnsafeMutablePointer<CChar>?] = CommandLine.arguments.map { strdup($0) }
    arguments.append(nil)
    execv("/proc/self/exe", &arguments)
    for argument in arguments { Glibc.free(argument) }
  }
}
