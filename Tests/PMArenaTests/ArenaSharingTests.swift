import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

@Suite struct ArenaSharingTests {
  @Test(arguments: [Backing.memfd, .shmem])
  func `A second process sees a write at the offset of its physical address, and writes back`(
    _ backing: Backing
  ) throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(64), backing: backing))
    let file = try arena.requiredDescriptor()
    let path = "/proc/\(getpid())/fd/\(file)"
    let frame = PFN(0x1234)
    let message = Array("the frame \(frame) of this machine".utf8)
    try message.withUnsafeBytes { bytes in try arena.write(bytes, at: frame.physicalAddress) }
    let page = try shell("dd if=\(path) bs=4096 skip=\(frame.rawValue) count=1 status=none")
    #expect(page.count == 4096)
    #expect(Array(page.prefix(message.count)) == message)

    _ = try shell(
      "head -c 4096 /dev/zero | tr '\\0' '\\253' | "
        + "dd of=\(path) bs=4096 seek=7 conv=notrunc iflag=fullblock status=none")
    #expect(try arena.loadWord(at: 7 << 12) == 0xabab_abab_abab_abab)
    #expect(try arena.loadWord(at: 8 << 12) == 0)
  }

  @Test func `A duplicate descriptor keeps the memory when the arena is gone`() throws {
    let duplicate: Int32
    do {
      let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
      try arena.storeWord(0xfeed, at: 4096)
      duplicate = try #require(try arena.duplicateFileDescriptor())
      #expect(duplicate != arena.fileDescriptor)
    }
    defer { close(duplicate) }
    var word: UInt64 = 0
    #expect(pread(duplicate, &word, 8, 4096) == 8)
    #expect(word == 0xfeed)
    let flags = fcntl(duplicate, F_GETFD)
    #expect(flags & FD_CLOEXEC != 0)
  }

  @Test func `The size of the file is sealed`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
    let file = try arena.requiredDescriptor()
    #expect(ftruncate(file, 1 << 20) == -1 && errno == EPERM)
    #expect(ftruncate(file, 4 << 20) == -1 && errno == EPERM)
    #expect(ftruncate(file, 2 << 20) == 0)
  }

  @Test func `A private arena has no descriptor`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: .anonymous))
    #expect(arena.fileDescriptor == nil)
    #expect(try arena.duplicateFileDescriptor() == nil)
  }

  @Test func `Discarding is seen by the holder of a duplicate`() throws {
    let arena = try Arena(ArenaConfiguration(byteCount: .mib(2)))
    try arena.storeWord(0xfeed, at: 4096)
    let duplicate = try #require(try arena.duplicateFileDescriptor())
    defer { close(duplicate) }
    try arena.discard(4096..<8192)
    var word: UInt64 = 1
    #expect(pread(duplicate, &word, 8, 4096) == 8)
    #expect(word == 0)
  }
}
