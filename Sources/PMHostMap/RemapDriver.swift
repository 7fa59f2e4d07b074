internal import PMFrames
public import PMPageAllocator
public import PMUnits

/// A driver that maps frames it owns into processes, in one of the ways that drivers have.
///
/// It owns the frames and frees nothing by itself: who allocated them decides when. Reserved pages are
/// frames like others here, marked by ``reserve(_:in:)``.
public final class RemapDriver: HostDriver, @unchecked Sendable {
  // Sendable: constant after init, except `refusals`, which is under `insertionLock`.

  /// How the driver makes its entries.
  public enum Style: String, CaseIterable, Hashable, Sendable {
    /// All at once in mmap by `remap_pfn_range`: VM_IO and VM_PFNMAP, special entries.
    case remap = "pfnmap"
    /// One at a time in the fault handler by `vmf_insert_pfn`: VM_PFNMAP, special entries.
    case insertPFN = "fault_insert_pfn"
    /// One at a time in the fault handler by `vmf_insert_mixed`: VM_MIXEDMAP, special entries.
    case insertMixed = "mixed_special"
    /// All at once in mmap by `vm_insert_page`: VM_MIXEDMAP, ordinary entries with references; pages
    /// that are refused stay without an entry and answer SIGBUS.
    case insertPage = "insert_page"
    /// The fault handler returns the page with a reference; the kernel makes an ordinary entry.
    case faultPage = "fault_page"
  }

  /// A name for people.
  public let name: String
  /// All mappings of the driver's memory.
  public let mappings = MappingList()
  /// The frames, by page of the device file.
  public let pages: [PFN]
  /// How entries are made.
  public let style: Style
  private let insertionLock = HostMutex()
  private var refusals: [KernelErrno?]

  /// A driver for these frames.
  public init(pages: [PFN], style: Style, name: String = "driver") {
    self.pages = pages
    self.style = style
    self.name = name
    refusals = Array(repeating: nil, count: pages.count)
  }

  /// What `vm_insert_page` answered for each page at the last mmap; nil for success.
  public var insertionErrors: [KernelErrno?] { insertionLock.withLock { refusals } }

  /// Marks frames PG_reserved, as drivers did with memory for DMA.
  public static func reserve(_ pages: [PFN], in machine: Machine) {
    for page in pages { machine.insertFlags(.reserved, of: page) }
  }

  /// Takes the mark away, as a driver does before it frees them.
  public static func unreserve(_ pages: [PFN], in machine: Machine) {
    for page in pages { machine.removeFlags(.reserved, of: page) }
  }

  /// Makes the entries of the styles that make them at once. EINVAL for a frame without a page in the
  /// style of `vm_insert_page`.
  public func mmap(
    _ area: VMA, in process: HostProcess, on cpu: inout CPU
  ) throws(KernelErrno) {
    let count = min(Int((area.end - area.start) >> 12), pages.count - Int(area.pageOffset))
    guard count >= 0 else { throw .einval }
    switch style {
    case .insertPFN: area.flags.insert(.pfnmap)
    case .insertMixed: area.flags.insert(.mixedmap)
    case .faultPage: return
    case .remap:
      area.flags.formUnion([.io, .pfnmap, .dontExpand, .dontDump])
      try remap(pages.dropFirst(Int(area.pageOffset)).prefix(count), area, in: process)
    case .insertPage:
      area.flags.insert(.mixedmap)
      for index in 0..<count {
        let page = pages[index + Int(area.pageOffset)]
        guard process.kernel.hasPage(page) else { throw .einval }
        var refusal: KernelErrno?
        do throws(KernelErrno) {
          try process.insertPage(area, at: area.start + UInt64(index) << 12, page: page, on: &cpu)
        } catch {
          refusal = error
        }
        insertionLock.withLock { refusals[index] = refusal }
      }
    }
  }

  /// Maps each run of adjacent frames by one call, as a private area wants it.
  private func remap(
    _ pages: ArraySlice<PFN>, _ area: VMA, in process: HostProcess
  ) throws(KernelErrno) {
    var address = area.start
    var rest = pages
    while let first = rest.first {
      let run = rest.enumerated().prefix {
        $0.element.rawValue == first.rawValue + UInt32($0.offset)
      }
      try process.remapPFNRange(area, at: address, pfn: first, pageCount: run.count)
      address += UInt64(run.count) << 12
      rest = rest.dropFirst(run.count)
    }
  }

  /// Makes the one entry, or SIGBUS.
  public func fault(
    _ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU
  ) -> DriverAnswer {
    guard fault.page < pages.count else { return .sigbus }
    let pfn = pages[Int(fault.page)]
    do throws(KernelErrno) {
      switch style {
      case .remap, .insertPage: return .sigbus
      case .insertPFN: try process.insertPFN(area, at: fault.address, pfn: pfn)
      case .insertMixed: try process.insertMixed(area, at: fault.address, pfn: pfn)
      case .faultPage:
        guard process.kernel.frames.pageCount(pfn) > 0 else { return .sigbus }
        cpu.getPage(pfn)
        return .page(pfn)
      }
      return .installed
    } catch {
      return .sigbus
    }
  }
}
