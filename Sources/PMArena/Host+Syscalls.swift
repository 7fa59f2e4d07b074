import CPhysmemShim
import PMUnits
import SystemPackage

// The only caller of the shim's host primitives: here their results become typed errors.

extension Host {
  /// Throws the error that a shim function returned. The text is only built for a failure.
  private static func check(
    _ result: Int32, _ operation: @autoclosure () -> String
  ) throws(HostError) {
    guard result == 0 else {
      throw HostError(operation: operation(), errno: Errno(rawValue: -result))
    }
  }

  /// The C name of an error, as `ENOMEM`.
  static func errorName(_ errno: Errno) -> String? {
    pm_host_error_name(errno.rawValue).map { String(cString: $0) }
  }
}

// MARK: - Mappings

extension Host {
  /// What to map: private, unreserved, anonymous memory unless told otherwise.
  struct MapRequest {
    var byteCount: Int
    var fileDescriptor: Int32?
    var hugePageShift = 0
    var isShared = false
    var isReserved = false
    var isAccessible = true
    /// Where in the file the mapping begins.
    var fileOffset = 0
    /// Bytes to map beyond `byteCount`, of which errors do not speak.
    var slack = 0

    /// A range of addresses without memory, in which `byteCount` bytes can be aligned.
    static func addresses(_ byteCount: Int, alignedTo alignment: Int) -> MapRequest {
      MapRequest(byteCount: byteCount, isAccessible: false, slack: alignment)
    }

    fileprivate var size: ByteCount { ByteCount(UInt64(byteCount)) }

    fileprivate var shimRequest: pm_host_map_request {
      pm_host_map_request(
        length: byteCount + slack, fd: fileDescriptor ?? -1, huge_page_shift: Int32(hugePageShift),
        shared: isShared, reserved: isReserved, accessible: isAccessible,
        offset: UInt64(fileOffset))
    }
  }

  enum Advice {
    case hugePages
    case smallPages
    case drop
  }

  static func map(_ request: MapRequest) throws(HostError) -> UnsafeMutableRawPointer {
    var shimRequest = request.shimRequest
    var base: UnsafeMutableRawPointer?
    try check(pm_host_map(&shimRequest, nil, &base), "mmap of \(request.size)")
    guard let base else { fatalError("mmap of \(request.size) yielded address 0") }
    return base
  }

  /// Maps into a range that the caller owns. The memory becomes part of that range.
  static func map(
    _ request: MapRequest, at address: UnsafeMutableRawPointer
  ) throws(HostError) {
    var shimRequest = request.shimRequest
    var base: UnsafeMutableRawPointer?
    try check(pm_host_map(&shimRequest, address, &base), "mmap of \(request.size)")
  }

  static func unmap(_ base: UnsafeMutableRawPointer, byteCount: Int) throws(HostError) {
    try check(pm_host_unmap(base, byteCount), "munmap of \(ByteCount(UInt64(byteCount)))")
  }

  static func advise(
    _ base: UnsafeMutableRawPointer, byteCount: Int, _ advice: Advice
  ) throws(HostError) {
    let shimAdvice: pm_host_advice =
      switch advice {
      case .hugePages: .PM_HOST_ADVICE_HUGE_PAGES
      case .smallPages: .PM_HOST_ADVICE_SMALL_PAGES
      case .drop: .PM_HOST_ADVICE_DROP
      }
    try check(
      pm_host_advise(base, byteCount, shimAdvice), "madvise of \(ByteCount(UInt64(byteCount)))")
  }
}

extension Host {
  /// Makes the pages of a range present, on at most `threads` threads.
  static func prefault(
    _ base: UnsafeMutableRawPointer, byteCount: Int, pageSize: Int, threads: Int
  ) throws(HostError) {
    let count = UInt32(min(threads, Int(PM_HOST_PREFAULT_THREADS_MAX)))
    try check(
      pm_host_prefault(base, byteCount, pageSize, count),
      "prefault of \(ByteCount(UInt64(byteCount)))")
  }
}

// MARK: - Files

extension Host {
  static func makeMemoryFile(hugePageShift: Int, noexec: Bool) throws(HostError) -> Int32 {
    var file: Int32 = -1
    try check(
      pm_host_memfd_create("physmem", Int32(hugePageShift), noexec, &file),
      hugePageShift == 0
        ? "memfd_create" : "memfd_create with pages of \(ByteCount(1 << UInt64(hugePageShift)))")
    return file
  }

  static func truncate(_ file: Int32, to byteCount: Int) throws(HostError) {
    let size = ByteCount(UInt64(byteCount))
    try check(pm_host_truncate(file, size.rawValue), "ftruncate to \(size)")
  }

  static func sealSize(of file: Int32) throws(HostError) {
    try check(pm_host_seal_size(file), "sealing the memory file")
  }

  static func close(_ file: Int32) throws(HostError) {
    try check(pm_host_close(file), "close of descriptor \(file)")
  }

  /// A new descriptor of the same file, which the caller owns.
  static func duplicate(_ file: Int32) throws(HostError) -> Int32 {
    var duplicate: Int32 = -1
    try check(pm_host_duplicate(file, &duplicate), "dup of descriptor \(file)")
    return duplicate
  }

  /// The same, for an ``OwnedDescriptor``.
  static func duplicateCounted(_ file: Int32) throws(HostError) -> Int32 {
    var duplicate: Int32 = -1
    try check(pm_host_duplicate_own(file, &duplicate), "dup of descriptor \(file)")
    return duplicate
  }

  static func preallocate(_ file: Int32, offset: Int, byteCount: Int) throws(HostError) {
    try check(
      pm_host_preallocate(file, UInt64(offset), UInt64(byteCount)),
      "fallocate of \(ByteCount(UInt64(byteCount))) at 0x\(String(offset, radix: 16))")
  }

  static func punchHole(_ file: Int32, offset: Int, byteCount: Int) throws(HostError) {
    try check(
      pm_host_punch_hole(file, UInt64(offset), UInt64(byteCount)),
      "punching \(ByteCount(UInt64(byteCount))) at 0x\(String(offset, radix: 16))")
  }

  /// A file's size and the bytes that it has pages for.
  static func fileSize(_ file: Int32) throws(HostError) -> (byteCount: UInt64, allocated: UInt64) {
    var byteCount: UInt64 = 0
    var allocated: UInt64 = 0
    try check(pm_host_file_size(file, &byteCount, &allocated), "asking for a file's size")
    return (byteCount, allocated)
  }

  /// A bit for each 4 KiB page of a range, in words of 64: set where the page is present or swapped out, or,
  /// with `own`, only where it is no file's.
  static func pages(
    _ base: UnsafeMutableRawPointer, byteCount: Int, own: Bool
  ) throws(HostError) -> [UInt64] {
    var words = [UInt64](repeating: 0, count: (byteCount / 4096 + 63) / 64)
    try check(pm_host_pages(base, byteCount, own, &words), "reading /proc/self/pagemap")
    return words
  }

  /// A whole small file; throws `EFBIG` if it has more than `maxByteCount` bytes.
  static func readFile(_ path: String, maxByteCount: Int) throws(HostError) -> ArraySlice<UInt8> {
    // One byte more, to see that there is none.
    var bytes = [UInt8](repeating: 0, count: maxByteCount + 1)
    var count = 0
    try check(pm_host_read_file(path, &bytes, bytes.count, &count), "reading \(path)")
    return bytes[..<count]
  }
}

// MARK: - NUMA

extension Host {
  struct NodeMemory {
    var total: ByteCount
    var free: ByteCount
    var isUsable: Bool
  }

  static func highestNode() throws(HostError) -> Int {
    var node: Int32 = 0
    try check(pm_host_numa_highest_node(&node), "asking for NUMA nodes")
    return Int(node)
  }

  /// A node's memory, or nil if there is no such node.
  static func nodeMemory(_ node: Int) throws(HostError) -> NodeMemory? {
    var found = pm_host_node()
    let result = pm_host_numa_node(Int32(node), &found)
    if -result == Errno.noSuchFileOrDirectory.rawValue { return nil }
    try check(result, "asking for the memory of node \(node)")
    return NodeMemory(
      total: ByteCount(found.total), free: ByteCount(found.free), isUsable: found.usable)
  }

  /// The distance between two nodes, or nil if the host tells none.
  static func distance(from: Int, to: Int) throws(HostError) -> Int? {
    var distance: Int32 = 0
    let result = pm_host_numa_distance(Int32(from), Int32(to), &distance)
    if -result == Errno.noSuchFileOrDirectory.rawValue { return nil }
    try check(result, "asking for the distance from node \(from) to \(to)")
    return Int(distance)
  }

  /// The node of a CPU, or nil if there is no such CPU.
  public static func node(ofCPU cpu: Int) throws(HostError) -> Int? {
    guard let cpu = Int32(exactly: cpu) else { return nil }
    var node: Int32 = 0
    let result = pm_host_numa_node_of_cpu(cpu, &node)
    if -result == Errno.noSuchFileOrDirectory.rawValue { return nil }
    try check(result, "asking for the node of CPU \(cpu)")
    return Int(node)
  }

  static func bind(
    _ base: UnsafeMutableRawPointer, byteCount: Int, node: Int
  ) throws(HostError) {
    try check(
      pm_host_bind(base, byteCount, Int32(node)),
      "mbind of \(ByteCount(UInt64(byteCount))) to node \(node)")
  }

  static func interleave(
    _ base: UnsafeMutableRawPointer, byteCount: Int, nodes: [Int]
  ) throws(HostError) {
    let shimNodes = nodes.map(Int32.init)
    try check(
      pm_host_interleave(base, byteCount, shimNodes, shimNodes.count),
      "mbind of \(ByteCount(UInt64(byteCount))) to nodes \(nodes)")
  }

  /// The node of the page at an address, or nil if no page is mapped there.
  static func node(ofPageAt address: UnsafeMutableRawPointer) throws(HostError) -> Int? {
    var node: Int32 = -1
    try check(pm_host_node_of_page(address, &node), "asking for the node of a page")
    return node < 0 ? nil : Int(node)
  }
}

// MARK: - Process

extension Host {
  /// Keeps the calling thread on one CPU from now on. Throws `EINVAL` for a CPU that is not there.
  public static func pinCurrentThread(toCPU cpu: Int) throws(HostError) {
    try check(
      pm_host_pin_thread(Int32(exactly: cpu) ?? -1), "pinning the thread to CPU \(cpu)")
  }

  /// Gives back to the kernel what the C library keeps of freed memory for later, so that what is resident
  /// is in use. Any thread; does nothing with a C library other than glibc.
  package static func trimHeap() { pm_host_trim_heap() }

  /// How much memory this process may lock, or nil for any amount.
  public static func memoryLockLimit() throws(HostError) -> ByteCount? {
    var limit: UInt64 = 0
    try check(pm_host_memlock_limit(&limit), "asking for the limit of locked memory")
    return limit == .max ? nil : ByteCount(limit)
  }
}
