public import PMUnits

/// Something the modelled kernel would have reported, or silently suffered. A finding is a value: the
/// machine goes on as the kernel does.
public enum Finding: Hashable, Sendable {
  /// The kernel's "BUG: Bad page state": a page failed the test at a free, a drain, a refill or an
  /// allocation, and its block was leaked.
  case badPage(BadPage)
  /// A put or free took a count below zero: a double free, or a put without a reference.
  case refcountUnderflow(pfn: PFN, count: Int32)
  /// A get took a count past the largest positive value.
  case refcountOverflow(pfn: PFN, count: Int32)
  /// The kernel stops with `BUG()`: a list was found corrupted, as by freeing a page that is on a
  /// list already.
  case listCorruption(pfn: PFN, what: String)
  /// A warning that the kernel prints once.
  case warning(pfn: PFN?, what: String)
}

/// A failed page test.
public struct BadPage: Hashable, Sendable {
  /// Where the test stood.
  public enum Moment: String, Hashable, Sendable {
    /// At a free.
    case free
    /// When a per-CPU list is emptied to the buddy lists.
    case drain
    /// When a per-CPU list is filled from the buddy lists.
    case refill
    /// When a block goes from the buddy lists straight to the caller.
    case allocation
  }

  /// The page that failed.
  public var pfn: PFN
  /// The kernel's words, the last failing test: `nonzero mapcount`, `non-NULL mapping`,
  /// `nonzero _refcount`, `PAGE_FLAGS_CHECK_AT_FREE flag(s) set`, `PAGE_FLAGS_CHECK_AT_PREP flag(s)
  /// set` or `page still charged to cgroup`.
  public var reason: String
  /// The page's flags in the kernel's bits.
  public var flags: PageFlags
  /// The page's own count.
  public var refcount: Int32
  /// The map count as the kernel prints it: 0 for an unmapped page, -128 for a buddy page.
  public var mapcount: Int32
  /// Where the test stood.
  public var moment: Moment
}

extension Finding: CustomStringConvertible {
  /// One line in the kernel's words.
  public var description: String {
    switch self {
    case .badPage(let page):
      "Bad page state pfn:\(page.pfn) refcount:\(page.refcount) mapcount:\(page.mapcount) flags:\(page.flags) (\(page.moment.rawValue)): \(page.reason)"
    case .refcountUnderflow(let pfn, let count): "refcount underflow pfn:\(pfn) count:\(count)"
    case .refcountOverflow(let pfn, let count): "refcount overflow pfn:\(pfn) count:\(count)"
    case .listCorruption(let pfn, let what): "kernel BUG: \(what) pfn:\(pfn)"
    case .warning(let pfn, let what): pfn.map { "WARNING: \(what) pfn:\($0)" } ?? "WARNING: \(what)"
    }
  }
}

/// The findings of a machine, in the order in which they were made.
///
/// Any thread may read or clear it at any time.
public final class FindingLog: Sendable {
  /// The kept findings and what was made beyond them.
  struct Entries: Sendable {
    var kept: [Finding] = []
    var total: Int = 0
    var warned: Set<String> = []
    var isHalted = false
  }

  /// How many findings are kept; later ones are only counted.
  public static let capacity: Int = 100_000

  private let entries = Guarded(Entries())

  /// The kept findings, oldest first.
  public var findings: [Finding] { entries.withLock { $0.kept } }

  /// How many findings were made, those beyond ``capacity`` included.
  public var total: Int { entries.withLock { $0.total } }

  /// Whether a list was found corrupted: the modelled kernel stopped there.
  public var isHalted: Bool { entries.withLock { $0.isHalted } }

  /// Forgets all findings, and with them what was warned about once.
  public func removeAll() { entries.withLock { $0 = Entries() } }

  package func append(_ finding: Finding) {
    entries.withLock { entries in
      entries.total += 1
      if case .listCorruption = finding { entries.isHalted = true }
      if entries.kept.count < FindingLog.capacity { entries.kept.append(finding) }
    }
  }

  package func warnOnce(_ what: String, pfn: PFN? = nil) {
    let isFirst = entries.withLock { $0.warned.insert(what).inserted }
    if isFirst { append(.warning(pfn: pfn, what: what)) }
  }
}
