import Glibc
import PMArena
import PMRealGuest
import PMUnits
import Testing

extension RealGuestTests {
  /// The real notifier follows what is done to a mirrored range.
  @Suite struct Mirrors {
    /// A machine whose slot 1 is a mirrored range of 1024 pages; arena page n holds n + 1.
    private final class MirrorStage {
      let arena: Arena
      let machine: RealVM
      let range: MirroredRange

      init() throws {
        arena = try makeArena(pages: 2048)
        for page in 0..<2048 {
          arena.base.storeBytes(of: UInt32(page + 1), toByteOffset: page * 4096, as: UInt32.self)
        }
        range = try MirroredRange(byteCount: 1024 * 4096, of: arena)
        machine = try RealVM()
        let errno = machine.setMemoryRegion(
          slot: 1, flags: 0, guestPhysicalAddress: slotStart, memorySize: 1024 * 4096,
          userspaceAddress: range.userspaceAddress)
        try #require(errno == 0)
      }

      func map(_ page: Int, _ arenaPage: UInt64, count: Int = 1, isWritable: Bool = true) throws {
        try range.map(
          page: page, physicalAddress: arenaPage * 4096, byteCount: count * 4096,
          isWritable: isWritable)
      }

      func read(_ page: UInt64) throws -> RealAccessOutcome {
        try machine.perform(.read(slotStart + page * 4096))
      }

      func write(_ value: UInt64, _ page: UInt64) throws -> RealAccessOutcome {
        try machine.perform(.write(value, to: slotStart + page * 4096))
      }
    }

    @Test("Pages appear, vanish and change, and the guest sees it at once")
    func remap() throws {
      let stage = try MirrorStage()
      #expect(stage.range.userspaceAddress % (2 << 20) == 0)
      #expect(isFailure(try stage.read(5), EFAULT))
      try stage.map(5, 100)
      #expect(try stage.read(5) == .done(value: 101))
      #expect(try stage.write(0xabcd, 5) == .done(value: 0xabcd))
      #expect(stage.arena.base.load(fromByteOffset: 100 * 4096, as: UInt32.self) == 0xabcd)
      try stage.range.unmap(pages: 5..<6)
      #expect(isFailure(try stage.read(5), EFAULT))
      #expect(isFailure(try stage.write(1, 5), EFAULT))
      try stage.map(5, 2000)
      #expect(try stage.read(5) == .done(value: 2001))
      // In place of a page that the guest has, without unmapping it first.
      try stage.map(5, 1999)
      #expect(try stage.read(5) == .done(value: 2000))
      #expect(isFailure(try stage.read(4), EFAULT))
      #expect(isFailure(try stage.read(6), EFAULT))
    }

    @Test("Protection is the host's: none fails, read-only refuses writes")
    func protection() throws {
      let stage = try MirrorStage()
      try stage.map(0, 10, count: 8)
      #expect(try stage.write(1, 3) == .done(value: 1))
      try stage.range.protect(pages: 2..<5, .none)
      #expect(isFailure(try stage.read(3), EFAULT))
      #expect(try stage.read(1) == .done(value: 12))
      try stage.range.protect(pages: 2..<5, .read)
      #expect(try stage.read(3) == .done(value: 1))
      #expect(isFailure(try stage.write(2, 3), EFAULT))
      #expect(try stage.read(3) == .done(value: 1))
      try stage.range.protect(pages: 2..<5, .readWrite)
      #expect(try stage.write(3, 3) == .done(value: 3))
      try stage.map(20, 30, isWritable: false)
      #expect(try stage.read(20) == .done(value: 31))
      #expect(isFailure(try stage.write(2, 20), EFAULT))
    }

    @Test("Two places can show one page")
    func aliases() throws {
      let stage = try MirrorStage()
      try stage.map(1, 7)
      try stage.map(600, 7)
      #expect(try stage.write(0x5555, 1) == .done(value: 0x5555))
      #expect(try stage.read(600) == .done(value: 0x5555))
    }

    @Test("What lies outside of the range or the arena is refused")
    func refusals() throws {
      let stage = try MirrorStage()
      let pages: [(Int, UInt64, Int)] = [
        (-1, 0, 4096), (1024, 0, 4096), (1023, 0, 8192), (0, 2048 * 4096, 4096),
        (0, 2047 * 4096, 8192), (0, 1, 4096), (0, 0, 0), (0, 0, 4095), (0, 0, -4096),
        (0, .max - 4095, 4096), (.max, 0, 4096),
      ]
      for (page, start, count) in pages {
        #expect(throws: RealGuestError.self, "\(page), \(start), \(count)") {
          try stage.range.map(
            page: page, physicalAddress: start, byteCount: count, isWritable: true)
        }
      }
      #expect(throws: RealGuestError.self) { try stage.range.unmap(pages: 1020..<1025) }
      #expect(throws: RealGuestError.self) { try stage.range.protect(pages: -1..<1, .none) }
      try stage.range.unmap(pages: 5000..<5000)
      #expect(throws: RealGuestError.self) { _ = try MirroredRange(byteCount: 0, of: stage.arena) }
      #expect(throws: RealGuestError.self) { _ = try MirroredRange(byteCount: 1, of: stage.arena) }
      let anonymous = try Arena(
        ArenaConfiguration(byteCount: .mib(1), backing: .anonymous))
      #expect(throws: RealGuestError.self) { _ = try MirroredRange(byteCount: 4096, of: anonymous) }
    }
  }
}
