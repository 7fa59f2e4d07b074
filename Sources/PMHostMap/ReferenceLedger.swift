public import PMUnits

/// Every reference with its taker, from its get to its put.
///
/// A kernel has nothing of the kind: a count says how many, not who. The ledger is switched on when a
/// host is made and costs a lock per get and put; without it nothing is paid. It keeps books by compound
/// head, since that is where the count is.
public final class ReferenceLedger: @unchecked Sendable {
  // Sendable: `books` and `strays` are touched under `lock` only.
  private let lock = HostMutex()
  private var books: [PFN: [Holder: Int]] = [:]
  private var strays: [Stray] = []

  /// A put that no get of the same holder stands against.
  public struct Stray: Hashable, Sendable {
    /// The compound head.
    public var pfn: PFN
    /// Who put.
    public var holder: Holder
  }

  /// An empty ledger.
  public init() {}

  /// Notes `count` references to the compound page headed by `pfn`.
  public func get(_ pfn: PFN, _ holder: Holder, count: Int = 1) {
    lock.lock()
    defer { lock.unlock() }
    books[pfn, default: [:]][holder, default: 0] += count
  }

  /// Strikes `count` references out; those that were never noted are kept as strays.
  public func put(_ pfn: PFN, _ holder: Holder, count: Int = 1) {
    lock.lock()
    defer { lock.unlock() }
    let held = books[pfn]?[holder] ?? 0
    if held > count {
      books[pfn]?[holder] = held - count
    } else {
      books[pfn]?[holder] = nil
      if books[pfn]?.isEmpty == true { books[pfn] = nil }
    }
    if held < count { strays.append(Stray(pfn: pfn, holder: holder)) }
  }

  /// Who holds the compound page headed by `pfn`, with how many references, in a fixed order.
  public func holders(of pfn: PFN) -> [(holder: Holder, count: Int)] {
    lock.lock()
    defer { lock.unlock() }
    return (books[pfn] ?? [:]).map { (holder: $0.key, count: $0.value) }
      .sorted { $0.holder.description < $1.holder.description }
  }

  /// The sum of all noted references to the compound page headed by `pfn`.
  public func count(of pfn: PFN) -> Int { holders(of: pfn).reduce(0) { $0 + $1.count } }

  /// All pages with noted references, ascending.
  public var pages: [PFN] {
    lock.lock()
    defer { lock.unlock() }
    return books.keys.sorted()
  }

  /// Puts without a get, in order.
  public var unmatchedPuts: [Stray] {
    lock.lock()
    defer { lock.unlock() }
    return strays
  }
}
