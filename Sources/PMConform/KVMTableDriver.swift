internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A driver that makes entries of any kind for adjacent frames, for the experiments.
final class KVMTableDriver: HostDriver {
  /// How the entries are made.
  enum Making {
    /// Special entries at once, by `remap_pfn_range`.
    case remapped
    /// VM_PFNMAP; special entries by the fault handler.
    case atFault
    /// VM_PFNMAP; the fault handler answers SIGBUS.
    case sigbus
    /// VM_PFNMAP; one special entry of this level for all frames.
    case huge(level: Int)
    /// Ordinary entries at once, by `vm_insert_page`, with further flags of the area.
    case pages(VMAFlags)
    /// VM_MIXEDMAP; special entries at once.
    case mixed
  }

  let name = "driver"
  let mappings = MappingList()
  let pages: [PFN]
  let making: Making
  private let refused = Guarded<[PFN: KernelErrno]>([:])

  init(_ pages: [PFN], _ making: Making) {
    self.pages = pages
    self.making = making
  }

  /// What `vm_insert_page` refused a page with; the entry was made all the same.
  func refusal(of pfn: PFN) -> KernelErrno? { refused.withLock { $0[pfn] } }

  func mmap(_ area: VMA, in process: HostProcess, on cpu: inout CPU) throws(KernelErrno) {
    switch making {
    case .remapped:
      try process.remapPFNRange(area, at: area.start, pfn: pages[0], pageCount: pages.count)
    case .atFault, .sigbus: process.insertFlags(.pfnmap, of: area)
    case .huge(let level):
      process.insertFlags(.pfnmap, of: area)
      try process.insertHugePFN(area, at: area.start, pfn: pages[0], level: level)
    case .mixed:
      process.insertFlags(.mixedmap, of: area)
      for (index, pfn) in pages.enumerated() {
        try process.insertMixed(area, at: area.start + UInt64(index) << 12, pfn: pfn)
      }
    case .pages(let flags):
      process.insertFlags(flags, of: area)
      for (index, pfn) in pages.enumerated() {
        try insert(pfn, at: area.start + UInt64(index) << 12, area, process, on: &cpu)
      }
    }
  }

  /// `vm_insert_page`; where it refuses a page for its count of 0, the count is lent for the call.
  private func insert(
    _ pfn: PFN, at address: UInt64, _ area: VMA, _ process: HostProcess, on cpu: inout CPU
  ) throws(KernelErrno) {
    do throws(KernelErrno) {
      try process.insertPage(area, at: address, page: pfn, on: &cpu)
    } catch {
      let frames = process.kernel.frames
      guard process.kernel.hasPage(pfn), frames.refcount(pfn) == 0 else { throw error }
      refused.withLock { $0[pfn] = error }
      frames.setRefcount(pfn, 1)
      try process.insertPage(area, at: address, page: pfn, on: &cpu)
      frames.setRefcount(pfn, 0)
    }
  }

  func fault(
    _ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU
  ) -> DriverAnswer {
    guard case .atFault = making, fault.page < pages.count else { return .sigbus }
    do throws(KernelErrno) {
      try process.insertPFN(area, at: fault.address, pfn: pages[Int(fault.page)])
      return .installed
    } catch {
      return .sigbus
    }
  }
}
