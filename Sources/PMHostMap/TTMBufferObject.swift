public import PMPageAllocator
public import PMUnits

/// A buffer object whose pages come from a ``TTMPool`` and are mapped into processes one fault at a time.
///
/// Its areas are VM_IO and VM_PFNMAP, its entries special; nobody takes a reference. Who destroys it has
/// to unmap it first: ``evict(on:)`` does both in the right order, ``free(on:)`` only the second half, as
/// a buggy driver would. Mirrors `ttm_bo_vm_ops`, Linux 6.1.
public final class TTMBufferObject: HostDriver, @unchecked Sendable {
  // Sendable: `current` is touched under `lock` only; the rest is constant.

  /// Pages that one fault maps at most.
  public static let prefaultCount: Int = 16

  /// A name for people.
  public let name: String = "ttm"
  /// All mappings of the object.
  public let mappings = MappingList()
  /// The pool.
  public let pool: TTMPool
  /// The length in pages.
  public let pageCount: Int
  /// The caching type.
  public let caching: TTMPool.Caching
  private let lock = HostMutex()
  private var current: TTMPool.Buffer?

  /// An object without pages; the first fault, or ``populate(on:)``, gets them.
  public init(pool: TTMPool, pageCount: Int, caching: TTMPool.Caching = .cached) {
    self.pool = pool
    self.pageCount = pageCount
    self.caching = caching
  }

  /// The pages, or nil where the object has none at present.
  public var buffer: TTMPool.Buffer? { lock.withLock { current } }

  /// Gets the pages if there are none. Throws ENOMEM.
  @discardableResult
  public func populate(on cpu: inout CPU) throws(KernelErrno) -> TTMPool.Buffer {
    if let there = buffer { return there }
    let made = try pool.allocate(pageCount: pageCount, caching: caching, on: &cpu)
    let kept = lock.withLock { () -> TTMPool.Buffer? in
      if let current { return current }
      current = made
      return nil
    }
    guard let kept else { return made }
    pool.free(made, on: &cpu)
    return kept
  }

  /// Unmaps the object everywhere, notifiers included, then gives its pages back.
  public func evict(on cpu: inout CPU) {
    mappings.unmap(on: &cpu)
    free(on: &cpu)
  }

  /// Gives the pages back without unmapping them first: the bug that an owner must not have.
  public func free(on cpu: inout CPU) {
    let gone = lock.withLock { () -> TTMPool.Buffer? in
      defer { current = nil }
      return current
    }
    if let gone { pool.free(gone, on: &cpu) }
  }

  /// EINVAL for a private mapping.
  public func mmap(_ area: VMA, in process: HostProcess, on cpu: inout CPU) throws(KernelErrno) {
    guard !area.isCopyOnWrite else { throw .einval }
    process.insertFlags([.pfnmap, .io, .dontExpand, .dontDump], of: area)
  }

  /// Maps the page and up to 15 behind it; an error on the first is SIGBUS, errors behind it are passed
  /// over.
  public func fault(
    _ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU
  ) -> DriverAnswer {
    let buffer: TTMPool.Buffer
    do throws(KernelErrno) { buffer = try populate(on: &cpu) } catch { return .oom }
    guard fault.page < buffer.pages.count else { return .sigbus }
    for index in 0..<TTMBufferObject.prefaultCount {
      let page = Int(fault.page) + index
      let address = fault.address + UInt64(index) << 12
      guard page < buffer.pages.count, address < area.end else { break }
      do throws(KernelErrno) {
        try process.insertPFN(area, at: address, pfn: buffer.pages[page])
      } catch {
        if index == 0 { return .sigbus }
      }
    }
    return .installed
  }
}
