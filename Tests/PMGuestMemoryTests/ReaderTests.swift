import CPhysmemShim
import Foundation
import PMUnits
import Physmem
import Synchronization
import Testing

@Suite struct ReaderTests {
  /// Regions come and go at slots of 1 MiB; each word of slot *n*'s memory is *n*, from before it can be read.
  @Test func `Readers find each region whole or not at all while regions come and go`() throws {
    let start = seededGenerator("ReaderTests").state
    let memory = GuestMemory()
    let slots = 12
    let isDone = Atomic<Bool>(false)
    let hits = Atomic<Int>(0)
    let misses = Atomic<Int>(0)
    // Sources whose words are there before the guest sees them.
    let sources = GuestMemory()
    for slot in 0..<slots {
      try sources.add(.ram(at: GPA(UInt64(slot) << 20), byteCount: .kib(64)))
      for address in stride(from: UInt64(slot) << 20, to: UInt64(slot) << 20 + 65536, by: 8) {
        try sources.store(UInt64(slot) + 1, at: GPA(address))
      }
    }
    let files = try sources.regions.map { try #require($0.fileDescriptor) }
    let offsets = sources.regions.map(\.fileOffset)
    onThreads(4) { index in
      var random = SplitMix64(seed: start &+ UInt64(index))
      if index == 0 {
        var present = Set<Int>()
        for _ in 0..<1500 {
          let slot = random.below(slots)
          let place = GPA(UInt64(slot) << 20)
          #expect(throws: Never.self) {
            if present.remove(slot) != nil {
              try memory.removeRegion(at: place)
            } else {
              try memory.add(
                .memory(
                  .ram, at: place, byteCount: .kib(64), file: files[slot],
                  fileOffset: offsets[slot]))
              present.insert(slot)
            }
          }
        }
        for slot in present { _ = try? memory.removeRegion(at: GPA(UInt64(slot) << 20)) }
        isDone.store(true, ordering: .sequentiallyConsistent)
        return
      }
      while !isDone.load(ordering: .relaxed) {
        let slot = random.below(slots)
        let place = GPA(UInt64(slot) << 20 + UInt64(random.below(8192 - 8)) * 8)
        do {
          let expected = UInt64(slot) + 1
          switch random.below(3) {
          case 0: #expect(try memory.load(UInt64.self, at: place) == expected)
          case 1:
            let bytes = try memory.bytes(at: place, count: 64)
            #expect(bytes[0] == UInt8(expected) && bytes[56] == UInt8(expected))
          default:
            let snapshot = memory.snapshot()
            let range = GuestRange(start: place, byteCount: 8)
            let host = try snapshot.hostAddress(of: range, writing: false)
            #expect(host.load(as: UInt64.self) == expected)
            withExtendedLifetime(snapshot) {}
          }
          hits.add(1, ordering: .relaxed)
        } catch {
          guard case GuestMemoryError.unmapped = error else {
            Issue.record("\(error), PHYSMEM_SEED=\(runSeed)")
            return
          }
          misses.add(1, ordering: .relaxed)
        }
      }
    }
    #expect(hits.load(ordering: .relaxed) > 0 && misses.load(ordering: .relaxed) > 0)
    #expect(memory.regions.isEmpty)
    withExtendedLifetime(sources) {}
  }

  @Test func `Writes wait for a merge or a fork, and none is lost`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .kib(64), backing: .anonymous))
    let left = Atomic<Int>(3)
    let forks = Atomic<Int>(0)
    onThreads(4) { index in
      if index < 3 {
        for count in 1...20_000 {
          let place = GPA(UInt64(index) << 12)
          #expect(throws: Never.self) {
            if count % 2 == 0 {
              _ = try memory.fetchAdd(UInt64(1), at: place)
            } else {
              let value = try memory.load(UInt64.self, at: place)
              try memory.store(value + 1, at: place)
            }
          }
        }
        left.subtract(1, ordering: .sequentiallyConsistent)
        return
      }
      repeat {
        #expect(throws: Never.self) {
          _ = try memory.mergePages()
          let child = try memory.fork()
          for page in 0..<UInt64(3) {
            #expect(try child.load(UInt64.self, at: GPA(page << 12)) <= 20_000)
          }
        }
        forks.add(1, ordering: .relaxed)
      } while left.load(ordering: .sequentiallyConsistent) > 0
    }
    for page in 0..<UInt64(3) {
      #expect(try memory.load(UInt64.self, at: GPA(page << 12)) == 20_000)
    }
    #expect(forks.load(ordering: .relaxed) > 0)
  }

  @Test func `A fork of one shared arena is of one moment although a guest goes on writing`() throws
  {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(1)))
    let snapshot = memory.snapshot()
    let host = try snapshot.hostAddress(
      of: GuestRange(start: GPA(0), byteCount: 1 << 20), writing: true)
    let address = UInt(bitPattern: host)
    let isDone = Atomic<Bool>(false)
    onThreads(2) { index in
      if index == 0 {
        // The guest: a word in the first page is written before the same in the last one.
        var value: UInt64 = 0
        while !isDone.load(ordering: .relaxed) || value < 1000 {
          value += 1
          guard let base = UnsafeMutableRawPointer(bitPattern: address) else { return }
          UInt64.guestAtomicStore(value, base)
          UInt64.guestAtomicStore(value, base + (255 << 12))
        }
        return
      }
      #expect(throws: Never.self) {
        let child = try memory.fork()
        let first = try child.load(UInt64.self, at: GPA(0))
        let last = try child.load(UInt64.self, at: GPA(255 << 12))
        #expect(first == last || first == last + 1)
        // It stands still.
        #expect(try child.load(UInt64.self, at: GPA(0)) == first)
      }
      isDone.store(true, ordering: .sequentiallyConsistent)
    }
  }

  @Test func `Threads that are gone are waited for by nobody`() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .kib(4)))
    for _ in 0..<20 {
      onThreads(8) { _ in
        #expect(throws: Never.self) { try memory.store(UInt8(1), at: GPA(0)) }
      }
    }
    // Other tests' threads may have a port, but not the 160 of this one.
    #expect(pm_readers_count() < 160)
    try memory.removeRegion(at: GPA(0))
  }
}
