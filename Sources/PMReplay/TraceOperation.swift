internal import PMUnits

/// One operation of a trace in 24 bytes and, for bulk calls with slots already set, a pattern.
struct TraceOperation {
  enum Kind: UInt8, CaseIterable {
    case allocPages, allocPagesNode, folioAlloc, allocBulk, allocExact, freeExact, freePages
    case getPage, putPage, tryGetPage, getPageUnlessZero, freeze, unfreeze, splitPage, drain

    var name: StaticString {
      switch self {
      case .allocPages: "alloc_pages"
      case .allocPagesNode: "alloc_pages_node"
      case .folioAlloc: "folio_alloc"
      case .allocBulk: "alloc_pages_bulk_array"
      case .allocExact: "alloc_pages_exact"
      case .freeExact: "free_pages_exact"
      case .freePages: "__free_pages"
      case .getPage: "get_page"
      case .putPage: "put_page"
      case .tryGetPage: "try_get_page"
      case .getPageUnlessZero: "get_page_unless_zero"
      case .freeze: "page_ref_freeze"
      case .unfreeze: "page_ref_unfreeze"
      case .splitPage: "split_page"
      case .drain: "drain_local_pages"
      }
    }

    /// The operation of this name; length and first letter tell them apart.
    init?(_ scanner: TraceScanner, _ name: Range<Int>) {
      let first = Unicode.Scalar(scanner.bytes[name.lowerBound])
      switch (name.count, first) {
      case (11, "a"): self = .allocPages
      case (12, "_"): self = .freePages
      case (8, "p"): self = .putPage
      case (8, "g"): self = .getPage
      case (20, _): self = .getPageUnlessZero
      case (12, "t"): self = .tryGetPage
      case (16, "a"): self = .allocPagesNode
      case (11, "f"): self = .folioAlloc
      case (22, _): self = .allocBulk
      case (17, "a"): self = .allocExact
      case (16, "f"): self = .freeExact
      case (15, _): self = .freeze
      case (17, "p"): self = .unfreeze
      case (10, _): self = .splitPage
      case (17, "d"): self = .drain
      default: return nil
      }
      guard scanner.equals(name, self.name) else { return nil }
    }
  }

  var kind: Kind
  var order: Int8 = 0
  /// Preferred node, or zone index + 1 of a drain with 0 for all.
  var place: Int16 = 0
  var pfn: UInt32 = 0
  var gfp: UInt32 = 0
  /// Index into the replay's patterns plus one, or 0.
  var pattern: UInt32 = 0
  /// Bytes, a count, or a number of slots.
  var count: Int = 0
}

/// What a trace says an operation gave.
enum TraceResult: Equatable {
  case void
  case flag(Bool)
  case page(UInt32?)
  /// The return value; a PFN, nil for an empty slot, `presetSlot` for one that was set before.
  case bulk(Int, [UInt32?])

  static let presetSlot = UInt32.max
}
