internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A block of pages as the measuring module allocates it, by its name in the tables.
struct PageBlock {
  /// What is allocated.
  enum Kind: Equatable {
    case compound(order: Int)
    case plain(order: Int)
    case split(order: Int)
    case vmalloc(order: Int)
    case zeroPage
    case device
  }

  let kind: Kind
  let isReserved: Bool
  let pages: [PFN]

  /// The order in `…oN`; nil where the text does not end so.
  private static func order(_ text: Substring) -> Int? {
    guard text.first == "o", let order = Int(text.dropFirst()), (0...10).contains(order) else {
      return nil
    }
    return order
  }

  /// What a name asks for, as `reserved_comp_o2`; nil for an unknown one.
  static func parse(_ name: String) -> (kind: Kind, isReserved: Bool)? {
    var text = Substring(name)
    var isReserved = false
    if text.hasPrefix("reserved_") {
      isReserved = true
      text = text.dropFirst("reserved_".count)
    }
    if text == "order0" || text == "o0" { return (.plain(order: 0), isReserved) }
    if text == "zeropage" || text == "zero_page" { return (.zeroPage, isReserved) }
    if text == "mmio_nostruct" { return (.device, isReserved) }
    for (prefix, make) in [
      ("comp_", { Kind.compound(order: $0) }), ("noncomp_", { Kind.plain(order: $0) }),
      ("split_", { Kind.split(order: $0) }), ("vmalloc_", { Kind.vmalloc(order: $0) }),
    ] as [(String, (Int) -> Kind)] where text.hasPrefix(prefix) {
      return order(text.dropFirst(prefix.count)).map { (make($0), isReserved) }
    }
    return nil
  }

  /// Allocates a block, zeroed.
  init?(_ name: String, kernel: HostKernel, on cpu: inout CPU) {
    guard let (kind, isReserved) = PageBlock.parse(name) else { return nil }
    self.kind = kind
    self.isReserved = isReserved
    let gfp: GFP = [.user, .zero]
    func block(_ order: Int, _ gfp: GFP) -> [PFN]? {
      guard let first = try? cpu.allocatePages(order: order, gfp: gfp) else { return nil }
      return (0..<(1 << order)).map { first + $0 }
    }
    let made: [PFN]?
    switch kind {
    case .compound(let order): made = block(order, gfp.union(.comp))
    case .plain(let order): made = block(order, gfp)
    case .split(let order):
      made = block(order, gfp)
      if let first = made?.first { cpu.splitPage(first, order: order) }
    case .vmalloc(let order):
      // Unrelated pages: every second one of a longer run.
      guard let all = try? (0..<(2 << order)).map({ _ in try cpu.allocatePages(gfp: gfp) }) else {
        return nil
      }
      made = stride(from: 0, to: all.count, by: 2).map { all[$0] }
    case .zeroPage: made = [kernel.zeroPage]
    case .device: made = [PFN(0xfed00)]
    }
    guard let made else { return nil }
    pages = made
    if isReserved { RemapDriver.reserve(made, in: kernel.machine) }
  }

  /// The order of the block as `__free_pages` takes it: of a split one, only the first page goes.
  var freeOrder: Int {
    switch kind {
    case .compound(let order), .plain(let order): order
    case .split, .vmalloc, .zeroPage, .device: 0
    }
  }
}
