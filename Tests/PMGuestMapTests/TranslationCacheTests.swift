import Foundation
import PMGuestMap
import PMUnits
import Testing

/// Page-aligned memory of a test.
private final class Pages: @unchecked Sendable {
  // Sendable: each test says who may touch which page.
  let base: UnsafeMutableRawPointer
  init(_ count: Int) {
    base = .allocate(byteCount: count * 4096, alignment: 4096)
    base.initializeMemory(as: UInt8.self, repeating: 0, count: count * 4096)
  }
  deinit { base.deallocate() }
  subscript(_ page: Int) -> UnsafeMutableRawPointer { base + page * 4096 }
}

/// A cache as a constant of a class, as a vCPU has it.
private final class Guest {
  let cache: TranslationCache
  init(_ gate: FlushGate) {
    cache = TranslationCache(gate: gate)
    cache.bind()
  }
  func find(_ gfn: UInt64, forWrite: Bool = false) -> UnsafeMutableRawPointer? {
    cache.enter()
    defer { cache.leave() }
    return cache.translate(GFN(gfn), forWrite: forWrite)
  }
  func fill(_ gfn: UInt64, _ page: UnsafeMutableRawPointer, isWritable: Bool) {
    cache.enter()
    cache.fill(GFN(gfn), page: page, isWritable: isWritable)
    cache.leave()
  }
  func load8(_ address: UInt64) -> UInt8? { cache.loadUInt8(at: address) }
  func load16(_ address: UInt64) -> UInt16? { cache.loadUInt16(at: address) }
  func load32(_ address: UInt64) -> UInt32? { cache.loadUInt32(at: address) }
  func load64(_ address: UInt64) -> UInt64? { cache.loadUInt64(at: address) }
  func store8(_ address: UInt64, _ value: UInt8) -> Bool { cache.store(value, at: address) }
  func store16(_ address: UInt64, _ value: UInt16) -> Bool { cache.store(value, at: address) }
  func store32(_ address: UInt64, _ value: UInt32) -> Bool { cache.store(value, at: address) }
  func store64(_ address: UInt64, _ value: UInt64) -> Bool { cache.store(value, at: address) }
}

@Suite("Translation cache and flush gate", .serialized)
struct TranslationCacheTests {
  @Test("A filled translation hits until the next flush, for writes only if it was filled so")
  func hits() {
    let pages = Pages(2)
    let gate = FlushGate()
    let guest = Guest(gate)
    #expect(guest.find(0) == nil)
    guest.fill(0, pages[0], isWritable: true)
    guest.fill(1 << 40, pages[1], isWritable: false)
    #expect(guest.find(0, forWrite: true) == pages[0])
    #expect(guest.find(1 << 40) == pages[1])
    #expect(guest.find(1 << 40, forWrite: true) == nil)
    #expect(guest.find(1) == nil)
    gate.requestFlush()
    #expect(gate.requestCount == 1)
    #expect(guest.find(0) == nil && guest.find(1 << 40) == nil)
  }

  @Test("Old translations do not come back when the epochs wrap")
  func epochs() {
    let pages = Pages(1)
    let guest = Guest(FlushGate())
    for _ in 0..<9000 {
      #expect(guest.find(12) == nil)
      guest.fill(12, pages[0], isWritable: false)
      #expect(guest.find(12) == pages[0])
      guest.cache.flush()
    }
  }

  @Test("Loads and stores of all sizes reach the bytes, unaligned too, and miss at the page's end")
  func memory() {
    let pages = Pages(1)
    let guest = Guest(FlushGate())
    let start: UInt64 = 0x7000
    #expect(guest.load64(start) == nil && !guest.store8(start, 1))
    guest.fill(7, pages[0], isWritable: true)
    #expect(guest.store64(start + 0x101, 0x1122_3344_5566_7788))
    #expect(guest.load64(start + 0x101) == 0x1122_3344_5566_7788)
    #expect(guest.load32(start + 0x103) == 0x3344_5566)
    #expect(guest.load16(start + 0x107) == 0x1122)
    #expect(guest.load8(start + 0x108) == 0x11)
    #expect(guest.store32(start + 0x101, 0xaabb_ccdd) && guest.store16(start + 0x105, 0xeeff))
    #expect(guest.store8(start + 0x108, 0))
    #expect(guest.load64(start + 0x101) == 0x0022_eeff_aabb_ccdd)
    #expect(guest.load64(start + 4088) == 0 && guest.load64(start + 4089) == nil)
    #expect(guest.load16(start + 4095) == nil && guest.load8(start + 4095) == 0)
    #expect(!guest.store32(start + 4093, 1))
    let isEntered = guest.cache.isEntered
    #expect(!isEntered)
  }

  @Test(
    "A request on the vCPU's own thread returns, and the vCPU drops its translations afterwards")
  func ownThread() {
    let pages = Pages(1)
    let gate = FlushGate()
    let guest = Guest(gate)
    guest.cache.enter()
    guest.cache.fill(GFN(1), page: pages[0], isWritable: false)
    gate.requestFlush()
    guest.cache.leave()
    #expect(guest.load64(0x1000) == nil)
  }

  @Test("Vcpus come and go, and their ports are used again")
  func lifetimes() {
    let pages = Pages(1)
    let gate = FlushGate()
    for _ in 0..<100 {
      let guest = Guest(gate)
      #expect(guest.find(1) == nil)
      guest.fill(1, pages[0], isWritable: false)
      let second = Guest(gate)
      #expect(second.load8(0x1000) == nil && guest.load8(0x1000) == 0)
      guest.cache.unbind()
    }
  }

  @Test("A request waits for an access of another thread, and not for those that begin after it")
  func waiting() {
    let gate = FlushGate()
    let inside = DispatchSemaphore(value: 0)
    let asked = DispatchSemaphore(value: 0)
    let hasLeft = Flag()
    let sawLeft = Flag()
    together([
      {
        let guest = Guest(gate)
        guest.cache.enter()
        inside.signal()
        asked.wait()
        // Long enough for a request that does not wait to be back.
        for _ in 0..<100 { sched_yield() }
        hasLeft.raise()
        guest.cache.leave()
        // The next access sees the request at once.
        #expect(guest.find(0) == nil)
      },
      {
        inside.wait()
        asked.signal()
        gate.requestFlush()
        if hasLeft.value { sawLeft.raise() }
      },
    ])
    #expect(sawLeft.value)
  }

  @Test(
    "After a request no vCPU reads the page that was taken away, with membarrier and with fences",
    arguments: [true, false])
  func shootDown(hasMembarrier: Bool) throws {
    let gate = hasMembarrier ? FlushGate() : FlushGate(usesMembarrier: false)
    let table = try Stage2Table()
    let pages = Pages(2)
    // Page 0 and 1 hold a good value while mapped, and a bad one from the flush on.
    let good: UInt64 = 0x600d
    let bad: UInt64 = 0xbad
    let done = Flag()
    let wrong = Counter(0)
    let hasRead = Flag()
    let rounds = Stage2Random.steps(release: 20_000, debug: 1000)
    together([
      {
        let cache = TranslationCache(gate: gate)
        cache.bind()
        var wasRead = false
        while !done.value {
          // Many at a time: a system call in between would order what the gate has to order.
          for _ in 0..<4000 {
            if let value = cache.loadUInt64(at: 0x5008) {
              if value == bad { wrong.value += 1 }
              wasRead = true
              continue
            }
            cache.enter()
            if case .granted(let leaf, _) = table.accessWalk(GFN(5), write: false) {
              cache.fill(GFN(5), page: pages[Int(leaf.pfn.rawValue)], isWritable: false)
            }
            cache.leave()
          }
          if wasRead { hasRead.raise() }
          sched_yield()
        }
      },
      {
        var round = 0
        while round < rounds || !hasRead.value {
          round += 1
          let page = round & 1
          let word = (pages[page] + 8).assumingMemoryBound(to: UInt64.self)
          word.pointee = good
          let leaf = SPTE.makeLeaf(pfn: PFN(UInt32(page)), level: 1, .readOnly)
          _ = table.install(GFN(5), level: 1, leaf)
          // Some rounds let the vCPU read, others race with its walk.
          for _ in 0..<(round % 8) { sched_yield() }
          _ = table.unmap(GFN(5))
          gate.requestFlush()
          word.pointee = bad
        }
        done.raise()
      },
    ])
    #expect(wrong.value == 0)
  }
}
