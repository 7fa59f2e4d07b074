/// The kinds of pages that KVM tells apart, as rows of its truth table.
///
/// The rows of device memory with pages (ZONE_DEVICE) are not among them: the machine has no such zone.
public enum KVMPageKind: String, CaseIterable, Hashable, Sendable {
  /// One page of a driver, count 1.
  case order0 = "order0"
  /// One page of a process's anonymous memory.
  case anonymous = "anon"
  /// One page that was freed while an entry still names it: count 0.
  case freedOrder0 = "freed-order0"
  /// The first page of a compound block.
  case compoundHead = "compound-head"
  /// Another page of a compound block.
  case compoundTail = "compound-tail"
  /// The first page of a higher-order block without `__GFP_COMP`.
  case plainHead = "noncompound-head"
  /// Another page of such a block: count 0, and no page that points to the first.
  case plainTail = "noncompound-tail"
  /// A page marked PG_reserved, count 1.
  case reserved = "reserved"
  /// A frame without a `struct page`: registers of a device.
  case noStructPage = "no-struct-page"
  /// The first page of a huge page of the pool.
  case hugetlbHead = "hugetlb-head"
  /// Another page of it.
  case hugetlbTail = "hugetlb-tail"
  /// The first page of a transparent huge page that one 2 MiB entry maps.
  case thpHead = "thp-head"
  /// Another page of it.
  case thpTail = "thp-tail"
  /// The first page of a transparent huge page that 4 KiB entries map.
  case thpSplitHead = "thp-pte-head"
  /// Another page of it.
  case thpSplitTail = "thp-pte-tail"
  /// The shared zero page.
  case zeroPage = "zero-page"

  /// The row's number in the table of kinds; the zero page has one for each access.
  public func row(_ access: KVMAccess) -> String {
    switch self {
    case .order0, .anonymous: "1"
    case .freedOrder0: "1z"
    case .compoundHead: "2"
    case .compoundTail: "3"
    case .plainHead: "4"
    case .plainTail: "5"
    case .reserved: "6"
    case .noStructPage: "7"
    case .hugetlbHead, .hugetlbTail: "8"
    case .thpHead, .thpTail: "9"
    case .thpSplitHead, .thpSplitTail: "9p"
    case .zeroPage: access == .read ? "11r" : "11w"
    }
  }

  /// The kind in words.
  public var title: String {
    switch self {
    case .order0: "order-0 page of a driver"
    case .anonymous: "order-0 anonymous page"
    case .freedOrder0: "order-0 page, freed"
    case .compoundHead: "compound head"
    case .compoundTail: "compound tail"
    case .plainHead: "non-compound head"
    case .plainTail: "non-compound tail"
    case .reserved: "PG_reserved"
    case .noStructPage: "no struct page"
    case .hugetlbHead: "hugetlb, first page"
    case .hugetlbTail: "hugetlb, another page"
    case .thpHead: "THP by a 2M entry, head"
    case .thpTail: "THP by a 2M entry, tail"
    case .thpSplitHead: "THP by 4K entries, head"
    case .thpSplitTail: "THP by 4K entries, tail"
    case .zeroPage: "shared zero page"
    }
  }

  /// Whether a process gets such pages by itself, without a driver.
  var isUserMemory: Bool {
    switch self {
    case .anonymous, .hugetlbHead, .hugetlbTail, .thpHead, .thpTail, .thpSplitHead,
      .thpSplitTail, .zeroPage:
      true
    default: false
    }
  }
}

/// What the guest does.
public enum KVMAccess: String, CaseIterable, Hashable, Sendable {
  /// Reads four bytes.
  case read
  /// Writes four bytes.
  case write
}
