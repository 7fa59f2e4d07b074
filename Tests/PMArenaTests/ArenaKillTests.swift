import ArenaRecords
import Foundation
import PMArena
import PMUnits
import Testing

/// What is left of an arena's bytes when a process that shares them is killed while it writes.
@Suite struct ArenaKillTests {
  /// How another process comes by the memory.
  enum Way: CaseIterable {
    case inheritedDescriptor
    case procPath
  }

  static let byteCount = 8 << 20
  static let pageCount = byteCount / Record.byteCount
  /// The pages that the other process writes; those around them are ours.
  static let shared = 300..<1300

  private func startWriter(
    _ arena: borrowing Arena, _ way: Way, from record: UInt64, stop: UInt64? = nil
  ) throws -> PeerProcess {
    let file = try arena.requiredDescriptor()
    let path = way == .procPath ? "/proc/\(getpid())/fd/\(file)" : "-"
    let place = ArenaKillTests.shared
    var arguments = ["write", path, "\(ArenaKillTests.byteCount)"]
    arguments += ["\(place.lowerBound)", "\(place.count)", "\(record)"]
    if let stop { arguments.append("\(stop)") }
    return try PeerProcess(arguments, standardInput: way == .procPath ? nil : file)
  }

  private func page(_ arena: borrowing Arena, _ page: Int) -> UnsafeMutableRawPointer {
    arena.base + page * Record.byteCount
  }

  /// Fills every page with a record of its own and gives their numbers.
  private func fill(_ arena: borrowing Arena) -> [UInt64] {
    let records = (0..<ArenaKillTests.pageCount).map { UInt64($0) << 32 }
    for (page, record) in records.enumerated() { Record.write(record, to: self.page(arena, page)) }
    return records
  }

  /// Expects a record in each page, whole.
  private func expect(_ records: [UInt64], in base: UnsafeRawPointer, except torn: Int? = nil) {
    let damaged = records.indices.filter { page in
      page != torn
        && Record.matchingWords(records[page], in: base + page * Record.byteCount)
          < Record.wordCount
    }
    #expect(damaged.isEmpty, "pages")
  }

  /// Words of a page that are of neither record.
  private func strangeWords(_ page: UnsafeRawPointer, _ old: UInt64, _ new: UInt64) -> Int {
    var (before, after) = (SplitMix64(seed: old), SplitMix64(seed: new))
    return (0..<Record.wordCount).count { word in
      let allowed = [before.next(), after.next()]
      return !allowed.contains(page.load(fromByteOffset: word * 8, as: UInt64.self))
    }
  }

  @Test(arguments: [Backing.memfd, .shmem], Way.allCases)
  func `A writer that is killed takes nothing along of what it or others wrote`(
    _ backing: Backing, _ way: Way
  ) throws {
    let arena = try Arena(
      ArenaConfiguration(byteCount: ByteCount(UInt64(ArenaKillTests.byteCount)), backing: backing))
    var records = fill(arena)
    let path = "/proc/\(getpid())/fd/\(try arena.requiredDescriptor())"
    let watcher = try Watcher(path, byteCount: ArenaKillTests.byteCount)
    let place = RecordPlace(pages: ArenaKillTests.shared)
    var random = SplitMix64(seed: 5)
    var first: UInt64 = 1
    for _ in 0..<5 {
      let writer = try startWriter(arena, way, from: first)
      // Killed somewhere behind the record of this number: it never ends by itself.
      let enough = first + UInt64(random.below(2500))
      var last: UInt64 = 0
      while last < enough { last = try writer.answer() }
      last = try writer.killAndDrain() ?? last
      for record in first...last { records[place.page(of: record)] = record }
      let torn = place.page(of: last + 1)
      expect(records, in: arena.base, except: torn)
      #expect(strangeWords(page(arena, torn), records[torn], last + 1) == 0, "page \(torn)")
      try watcher.expectSame(0..<ArenaKillTests.pageCount, at: arena.base)
      // The record that it died of is made good, as an owner would.
      Record.write(last + 1, to: page(arena, torn))
      records[torn] = last + 1
      first = last + 2
    }
    expect(records, in: arena.base)
  }

  @Test(arguments: Way.allCases)
  func `Of a record that its writer dies of, the half that was written is there`(
    _ way: Way
  ) throws {
    let arena = try Arena(
      ArenaConfiguration(byteCount: ByteCount(UInt64(ArenaKillTests.byteCount))))
    var records = fill(arena)
    let path = "/proc/\(getpid())/fd/\(try arena.requiredDescriptor())"
    let watcher = try Watcher(path, byteCount: ArenaKillTests.byteCount)
    let place = RecordPlace(pages: ArenaKillTests.shared)
    let half: UInt64 = 1234
    let writer = try startWriter(arena, way, from: 1, stop: half)
    for record in 1..<half {
      #expect(try writer.answer() == record)
      records[place.page(of: record)] = record
    }
    // It has written one half and waits.
    #expect(try writer.answer() == half)
    #expect(try writer.killAndDrain() == nil)
    let torn = place.page(of: half)
    expect(records, in: arena.base, except: torn)
    #expect(Record.matchingWords(half, in: page(arena, torn)) == Record.wordCount / 2)
    #expect(strangeWords(page(arena, torn), records[torn], half) == 0)
    let old = UnsafeMutableRawPointer.allocate(byteCount: Record.byteCount, alignment: 8)
    defer { old.deallocate() }
    Record.write(records[torn], to: old)
    let second = Record.byteCount / 2
    #expect(memcmp(page(arena, torn) + second, old + second, second) == 0)
    try watcher.expectSame(0..<ArenaKillTests.pageCount, at: arena.base)
  }

  @Test(arguments: [Backing.memfd, .shmem])
  func `An owner that is killed leaves the memory to those who have it mapped`(
    _ backing: Backing
  ) throws {
    let byteCount = ArenaKillTests.byteCount
    let owner = try PeerProcess(["own", backing.rawValue, "\(byteCount)"])
    let path = "/proc/\(owner.identifier)/fd/\(try owner.answer())"
    let file = open(path, O_RDWR | O_CLOEXEC)
    try #require(file >= 0, "\(path): errno \(errno)")
    let mapped = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
    close(file)
    let base = try #require(mapped != MAP_FAILED ? mapped : nil)
    defer { munmap(base, byteCount) }
    let watcher = try Watcher(path, byteCount: byteCount)

    let place = RecordPlace(pages: 0..<ArenaKillTests.pageCount)
    var last: UInt64 = 0
    while last < 5000 { last = try owner.answer() }
    last = try owner.killAndDrain() ?? last
    #expect(open(path, O_RDWR) == -1 && errno == ENOENT)
    // Every page has been written twice or more: what stands in it is its latest record.
    let oldest = last + 1 - UInt64(place.pages.count)
    let damaged = ((oldest + 1)...last).filter { record in
      Record.matchingWords(record, in: base + place.page(of: record) * Record.byteCount)
        < Record.wordCount
    }
    #expect(damaged.isEmpty, "records")
    let torn = place.page(of: last + 1)
    #expect(strangeWords(base + torn * Record.byteCount, oldest, last + 1) == 0)
    try watcher.expectSame(place.pages, at: base)

    // The two that are left share it on.
    try watcher.write(77, page: 9)
    #expect(Record.matchingWords(77, in: base + 9 * Record.byteCount) == Record.wordCount)
    Record.write(78, to: base + 10 * Record.byteCount)
    try watcher.expectSame(0..<20, at: base)
  }
}
