public import PMPageAllocator
public import PMUnits

/// Flags of a virtual memory area.
public struct VMAFlags: OptionSet, Hashable, Sendable {
  /// The bits; their places are this type's own.
  public var rawValue: UInt32
  /// Flags from their bits.
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// `VM_READ`.
  public static let read: VMAFlags = VMAFlags(rawValue: 1 << 0)
  /// `VM_WRITE`.
  public static let write: VMAFlags = VMAFlags(rawValue: 1 << 1)
  /// `VM_EXEC`.
  public static let execute: VMAFlags = VMAFlags(rawValue: 1 << 2)
  /// `VM_SHARED`.
  public static let shared: VMAFlags = VMAFlags(rawValue: 1 << 3)
  /// `VM_MAYWRITE`: mprotect may make it writable.
  public static let mayWrite: VMAFlags = VMAFlags(rawValue: 1 << 4)
  /// `VM_IO`.
  public static let io: VMAFlags = VMAFlags(rawValue: 1 << 5)
  /// `VM_PFNMAP`.
  public static let pfnmap: VMAFlags = VMAFlags(rawValue: 1 << 6)
  /// `VM_MIXEDMAP`.
  public static let mixedmap: VMAFlags = VMAFlags(rawValue: 1 << 7)
  /// `VM_HUGETLB`.
  public static let hugetlb: VMAFlags = VMAFlags(rawValue: 1 << 8)
  /// `VM_LOCKED`.
  public static let locked: VMAFlags = VMAFlags(rawValue: 1 << 9)
  /// `VM_DONTEXPAND`.
  public static let dontExpand: VMAFlags = VMAFlags(rawValue: 1 << 10)
  /// `VM_DONTDUMP`.
  public static let dontDump: VMAFlags = VMAFlags(rawValue: 1 << 11)
  /// `VM_HUGEPAGE`: MADV_HUGEPAGE.
  public static let hugePage: VMAFlags = VMAFlags(rawValue: 1 << 12)
  /// `VM_NOHUGEPAGE`: MADV_NOHUGEPAGE.
  public static let noHugePage: VMAFlags = VMAFlags(rawValue: 1 << 13)
  /// Memory of `memfd_secret`: user pages are never handed out.
  public static let secret: VMAFlags = VMAFlags(rawValue: 1 << 14)

  /// The three rights.
  public static let rights: VMAFlags = [.read, .write, .execute]
}

/// What stands behind a mapping.
public enum Backing: Sendable {
  /// Anonymous memory of the process.
  case anonymous
  /// A file, or shared anonymous memory.
  case file(HostFile)
  /// A driver that makes its own entries.
  case driver(any HostDriver)
}

/// A virtual memory area: a range of a process's addresses with one backing and one set of flags.
///
/// Changed under the process's mmap lock for writing, read under it for reading.
public final class VMA: @unchecked Sendable {
  // Sendable: see above; the lock is the process's.

  /// First address, a multiple of the page size.
  public internal(set) var start: UInt64
  /// First address behind.
  public internal(set) var end: UInt64
  /// Flags.
  public internal(set) var flags: VMAFlags
  /// What stands behind it.
  public let backing: Backing
  /// The page of the backing at `start`.
  public internal(set) var pageOffset: UInt64
  /// Answers faults on absent entries in place of the kernel, as userfaultfd's MISSING mode does.
  public internal(set) var missingHandler: MissingHandler?

  init(
    start: UInt64, end: UInt64, flags: VMAFlags, backing: Backing, pageOffset: UInt64,
    missingHandler: MissingHandler? = nil
  ) {
    self.start = start
    self.end = end
    self.flags = flags
    self.backing = backing
    self.pageOffset = pageOffset
    self.missingHandler = missingHandler
  }

  /// The addresses.
  public var range: Range<UInt64> { start..<end }

  /// Whether it is mapped MAP_PRIVATE and may become writable: its pages are copied on write.
  public var isCopyOnWrite: Bool { !flags.contains(.shared) && flags.contains(.mayWrite) }

  /// Whether its entries are the driver's business: VM_IO or VM_PFNMAP.
  public var isRemapped: Bool { !flags.isDisjoint(with: [.io, .pfnmap]) }

  /// The page of the backing behind an address.
  public func page(of address: UInt64) -> UInt64 { pageOffset + (address - start) >> 12 }

  /// Whether `next`, which begins where this ends, could be the rest of the same area. Areas of drivers
  /// stay as they were mapped.
  func continues(with next: VMA) -> Bool {
    guard flags == next.flags, missingHandler == nil, next.missingHandler == nil else {
      return false
    }
    switch (backing, next.backing) {
    case (.anonymous, .anonymous): return true
    case (.file(let file), .file(let other)):
      return file === other && page(of: end) == next.pageOffset
    default: return false
    }
  }

  /// Whether a fresh entry is writable without a fault: shared, writable, and nobody wants to know of
  /// the first write. Mirrors `vm_page_prot` with `vma_wants_writenotify`.
  var freshEntriesAreWritable: Bool {
    guard flags.contains([.shared, .write]) else { return false }
    if case .file(let file) = backing, !flags.contains(.pfnmap) { return !file.notifiesWrites }
    return true
  }
}

/// The answer to a fault on an absent entry that a monitor handles.
public enum MissingAnswer: Sendable {
  /// The monitor supplies a page with these bytes, repeated (UFFDIO_COPY).
  case page(pattern: UInt8)
  /// A signal arrives first; the page comes later.
  case signal
}

/// Stands for a userfaultfd monitor: asked with the page's address whenever a fault has to wait for it.
public typealias MissingHandler = @Sendable (UInt64) -> MissingAnswer

/// What a fault handler answers. Mirrors `vm_fault_t`.
public enum FaultResult: Hashable, Sendable {
  /// The entry is there; or the handler made one itself (VM_FAULT_NOPAGE).
  case done
  /// VM_FAULT_SIGBUS.
  case sigbus
  /// VM_FAULT_SIGSEGV.
  case sigsegv
  /// VM_FAULT_OOM.
  case oom
  /// VM_FAULT_HWPOISON.
  case hwpoison
  /// The handler had to let go of the mmap lock and the caller starts again (VM_FAULT_RETRY).
  case retry
  /// A signal ended the wait.
  case interrupted
}

/// A driver's fault on one address.
public struct DriverFault: Sendable {
  /// The page's address.
  public var address: UInt64
  /// The page of the backing.
  public var page: UInt64
  /// Whether it is a write.
  public var isWrite: Bool
}

/// What a driver's fault handler gives back.
public enum DriverAnswer: Sendable {
  /// The handler made the entry itself, or wants the access to be tried again.
  case installed
  /// A page with a reference for the entry; the kernel makes the entry. Mirrors `vmf->page`.
  case page(PFN)
  /// SIGBUS.
  case sigbus
  /// Out of memory.
  case oom
}

/// A driver whose memory is mapped into processes.
public protocol HostDriver: AnyObject, Sendable {
  /// A name for people.
  var name: String { get }
  /// All mappings of the driver's memory.
  var mappings: MappingList { get }
  /// Sets the area's flags and makes entries if the driver wants them at once. The process's mmap
  /// lock is held for writing.
  func mmap(_ area: VMA, in process: HostProcess, on cpu: inout CPU) throws(KernelErrno)
  /// Answers a fault on an absent entry. The mmap lock is held for reading.
  func fault(_ fault: DriverFault, in area: VMA, of process: HostProcess, on cpu: inout CPU)
    -> DriverAnswer
  /// Whether the handler may sleep, so that a lookup that may not sleep is refused.
  var mayBlock: Bool { get }
}

extension HostDriver {
  /// Handlers do not sleep unless a driver says so.
  public var mayBlock: Bool { false }
}
