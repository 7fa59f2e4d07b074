internal import Glibc
internal import PMPageAllocator
internal import PMRealGuest

/// Private memory of this process, whose pages the kernel gives.
final class RealPrivateMemory: RealMemory, @unchecked Sendable {
  // Sendable: one thread at a time uses it: the one that sets up, then the one that changes things, then,
  // after that has ended, the one that tidies up.

  private let shape: RealShape
  private let mistake: RealStress.Mistake?
  /// The guests' pages, then a chunk in which migrations are prepared, then chunks of poisoned memory.
  private let range: PrivateRange
  private var isReadable: [Bool]
  /// Places of poisoned chunks, the oldest first, and of those that are free.
  private var poisoned: [Int] = []
  private var free: [Int]
  private var findings: [String] = []

  let canZap = false

  init(_ shape: RealShape, _ plan: StressPlan, _ mistake: RealStress.Mistake?) throws {
    self.shape = shape
    self.mistake = mistake
    let pages: PrivateRange.Pages =
      switch plan.options.backing {
      case .anonymous, .shmem, .sharedHugeTLB: .small
      case .anonymousTHP: .transparentHuge
      case .anonymousHugeTLB, .anonymousHugeTLB2MiB: .huge2MiB
      case .anonymousHugeTLB1GiB: .huge1GiB
      }
    // Pages of the pool cannot be moved so that their old addresses stay mapped.
    let places = plan.options.backing.isHugePool ? 0 : max(shape.chunkCount / 8, 2)
    let extra = places == 0 ? 0 : places + 1
    range = try PrivateRange(
      byteCount: (shape.chunkCount + extra) * shape.chunkPages << 12, pages)
    isReadable = .init(repeating: false, count: shape.regionCount)
    free = (0..<places).map { shape.chunkCount + 1 + $0 }
    for region in 0..<shape.regionCount {
      guard try map(region: region) else {
        throw RealGuestError.invalid("the host has no memory for region \(region)")
      }
    }
  }

  var userspaceAddress: UInt64 { range.userspaceAddress }

  private func address(_ chunk: Int) -> UnsafeMutableRawPointer {
    range.base + chunk * shape.chunkPages << 12
  }

  func map(region: Int) throws -> Bool {
    do {
      try range.map(pages: shape.pages(ofRegion: region))
    } catch RealGuestError.host(_, ENOMEM) { return false }
    isReadable[region] = true
    return true
  }

  func takeAway(region: Int) throws {
    isReadable[region] = false
    guard mistake != .skipsUnmap else { return }
    for chunk in shape.chunks(ofRegion: region) {
      guard let place = try poisonPlace() else { break }
      try moveAway(chunk, to: place)
      poison(place)
    }
    try range.unmap(pages: shape.pages(ofRegion: region))
  }

  func discard(region: Int) throws { try range.discard(pages: shape.pages(ofRegion: region)) }

  func zap(region: Int) throws {
    throw RealGuestError.invalid("private memory does not outlive its entries")
  }

  func protect(region: Int, _ rights: MirroredRange.Protection) throws {
    try range.protect(pages: shape.pages(ofRegion: region), rights)
    isReadable[region] = rights != .none
  }

  func migrate(chunk: Int) throws -> Bool {
    guard let place = try poisonPlace() else { return false }
    let fresh = shape.chunkCount
    // The guests' addresses are closed until the new memory is there, in one step.
    try moveAway(chunk, to: place)
    try range.map(pages: shape.pages(ofChunk: fresh))
    address(fresh).copyMemory(from: address(place), byteCount: shape.chunkPages << 12)
    if mistake == .migratesWithoutSwitch {
      RealPoison.fill(address(fresh), byteCount: shape.chunkPages << 12, block: place)
    }
    try range.move(pages: shape.pages(ofChunk: fresh), to: chunk * shape.chunkPages)
    try range.unmap(pages: shape.pages(ofChunk: fresh))
    poison(place)
    return true
  }

  /// Moves a chunk's memory to a place where nobody but the host reaches it.
  private func moveAway(_ chunk: Int, to place: Int) throws {
    try range.protect(pages: shape.pages(ofChunk: chunk), .none)
    try range.move(pages: shape.pages(ofChunk: chunk), to: place * shape.chunkPages)
    try range.protect(pages: shape.pages(ofChunk: place), .readWrite)
  }

  func bytes(ofPage page: Int) -> UnsafeRawPointer? {
    isReadable[page / shape.regionPages] ? UnsafeRawPointer(range.base + page << 12) : nil
  }

  private func poison(_ place: Int) {
    RealPoison.fill(address(place), byteCount: shape.chunkPages << 12, block: place)
    poisoned.append(place)
  }

  /// A place for memory to be poisoned; the oldest is looked at and given back for it.
  private func poisonPlace() throws -> Int? {
    if free.isEmpty, !poisoned.isEmpty { try release(poisoned.removeFirst()) }
    return free.popLast()
  }

  private func release(_ place: Int) throws {
    let finding = RealPoison.finding(
      address(place), byteCount: shape.chunkPages << 12, block: place,
      "the memory at \(address(place))")
    if let finding { findings.append(finding) }
    try range.unmap(pages: shape.pages(ofChunk: place))
    free.append(place)
  }

  func takeFindings() -> [String] {
    defer { findings.removeAll() }
    return findings
  }

  func settle(_ plan: StressPlan, _ control: StressControl) throws {
    for place in poisoned { try release(place) }
    poisoned.removeAll()
    for text in takeFindings() {
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil, message: text))
    }
    try range.unmap(pages: 0..<range.pageCount)
  }
}

extension StressBacking {
  /// Whether private pages come from the host's pool.
  fileprivate var isHugePool: Bool {
    switch self {
    case .anonymousHugeTLB, .anonymousHugeTLB2MiB, .anonymousHugeTLB1GiB: true
    case .anonymous, .anonymousTHP, .shmem, .sharedHugeTLB: false
    }
  }
}
