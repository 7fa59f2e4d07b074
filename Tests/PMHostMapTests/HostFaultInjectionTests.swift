import PMFrames
import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

/// Host faults for which there is no page: ENOMEM, and nothing is lost.
@Suite struct HostFaultInjectionTests {
  private static let always = AllocationFaults(
    interval: 1, probability: 100, space: 0, times: -1)

  /// Everything is given back: no reference, no page.
  private func expectNothingLeft(_ host: HostFixture, _ before: Int64) {
    host.cpu.failPageAlloc = nil
    host.process.exit(on: &host.cpu)
    host.drain()
    host.cpu.drainLocalPages()
    host.other.drainLocalPages()
    #expect(host.machine.freePageCount == before)
    #expect(host.ledger.pages == [host.kernel.zeroPage])
    #expect(host.ledger.unmatchedPuts == [])
    #expect(host.notifier.isBalanced)
    #expect(host.machine.findings.findings == [])
    #expect(host.machine.invariantViolations() == [])
  }

  private func fixture(_ behaviour: HostBehaviour = .linux61) throws -> (HostFixture, Int64) {
    let host = try HostFixture(behaviour, memory: .mib(32))
    host.cpu.drainLocalPages()
    return (host, host.machine.freePageCount)
  }

  @Test func `A write to untouched memory gets ENOMEM, and succeeds later`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 4)
    host.cpu.failPageAlloc = Self.always
    #expect(throws: KernelErrno.enomem) { try host.write(hva) }
    #expect(host.process.entry(at: hva) == nil)
    // A read needs no page of its own.
    #expect(try host.read(hva) == 0)
    #expect(throws: KernelErrno.enomem) { try host.write(hva) }
    #expect(try host.frame(hva) == host.kernel.zeroPage)
    let holder = Holder.pin("test")
    #expect(
      host.process.getUserPage(hva, [.get, .write], holder, on: &host.cpu) == .failed(.enomem))
    #expect(host.cpu.injectedFailureCount == 3)
    host.cpu.failPageAlloc = nil
    try host.write(hva, 9)
    #expect(try host.read(hva) == 9)
    expectNothingLeft(host, before)
  }

  @Test func `A copy on write without a page leaves both processes with what they had`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 1)
    try host.write(hva, 5)
    let child = host.process.fork(on: &host.cpu)
    let page = try host.frame(hva)
    host.cpu.failPageAlloc = Self.always
    #expect(throws: KernelErrno.enomem) { try host.write(hva, 6) }
    #expect(throws: KernelErrno.enomem) { try child.write32(hva, 7, on: &host.cpu) }
    #expect(try host.read(hva) == 5)
    #expect(try child.read32(hva, on: &host.cpu) == 5)
    #expect(try host.frame(hva) == page && child.frame(at: hva) == page)
    #expect(host.machine.mapcount(of: page) == 2)
    host.cpu.failPageAlloc = nil
    try child.write32(hva, 7, on: &host.cpu)
    #expect(try host.read(hva) == 5)
    child.exit(on: &host.cpu)
    expectNothingLeft(host, before)
  }

  @Test func `A huge fault without a huge page falls back to small ones`() throws {
    let (host, before) = try fixture(HostBehaviour(transparentHugePages: .always))
    let hva = try host.map(pages: 512)
    var faults = Self.always
    faults.minimumOrder = 9
    host.cpu.failPageAlloc = faults
    #expect(try host.read(hva) == 0)
    #expect(host.level(hva) == 1)
    try host.write(hva + 4096, 3)
    #expect(host.level(hva + 4096) == 1 && host.cpu.injectedFailureCount >= 1)
    #expect(try host.read(hva + 4096) == 3)
    expectNothingLeft(host, before)
  }

  @Test(arguments: [HostFile.Kind.tmpfs, .disk], [true, false])
  func `Files without a page get ENOMEM`(_ kind: HostFile.Kind, _ isShared: Bool) throws {
    let (host, before) = try fixture()
    let file = host.file(kind, pages: 8)
    let hva = try host.map(file, pages: 8, isShared: isShared)
    host.cpu.failPageAlloc = Self.always
    #expect(throws: KernelErrno.enomem) { try host.read(hva) }
    #expect(throws: KernelErrno.enomem) { try host.write(hva) }
    #expect(file.cachedPageCount == 0)
    // The page of the file, but none for the copy of it.
    host.cpu.failPageAlloc = AllocationFaults(interval: 2, probability: 100, space: 0, times: 1)
    if isShared {
      try host.write(hva, 4)
    } else {
      #expect(throws: KernelErrno.enomem) { try host.write(hva, 4) }
      #expect(try host.read(hva) == 0)
      host.cpu.failPageAlloc = nil
      try host.write(hva, 4)
    }
    #expect(try host.read(hva) == 4)
    host.cpu.failPageAlloc = nil
    host.process.exit(on: &host.cpu)
    file.discard(on: &host.cpu)
    expectNothingLeft(host, before)
  }

  @Test func `A private copy of a driver's page without a page gives the driver's back`() throws {
    let (host, before) = try fixture()
    let page = try host.allocate()
    let (_, hva) = try host.driver([page], .faultPage, isShared: false)
    host.cpu.failPageAlloc = Self.always
    #expect(throws: KernelErrno.enomem) { try host.write(hva) }
    #expect(host.count(page) == 1)
    #expect(host.ledger.holders(of: page).isEmpty)
    host.cpu.failPageAlloc = nil
    try host.write(hva, 8)
    #expect(try host.read(hva) == 8)
    #expect(host.count(page) == 1)
    host.process.exit(on: &host.cpu)
    host.cpu.putPage(page)
    expectNothingLeft(host, before)
  }

  @Test func `A buffer object without memory answers ENOMEM with all blocks given back`() throws {
    let (host, before) = try fixture()
    let pool = TTMPool(machine: host.machine)
    let object = TTMBufferObject(pool: pool, pageCount: 37)
    let hva = try host.map(pages: 37, isShared: true, backing: .driver(object))
    // The budget covers the blocks of 32 and 4 pages, and the last page fails.
    host.cpu.failPageAlloc = AllocationFaults(interval: 1, probability: 100, space: 37, times: -1)
    #expect(throws: KernelErrno.enomem) { try host.read(hva) }
    #expect(host.cpu.injectedFailureCount > 0)
    #expect(object.buffer == nil && pool.pooledPageCount == 0)
    host.cpu.failPageAlloc = nil
    try host.write(hva, 2)
    object.evict(on: &host.cpu)
    expectNothingLeft(host, before)
  }

  @Test func `Random accesses under faults lose no content and no page`() throws {
    let (host, before) = try fixture()
    let hva = try host.map(pages: 64)
    let file = host.file(.tmpfs, pages: 64)
    let fileAddress = try host.map(file, pages: 64, isShared: false)
    host.cpu.failPageAllocSeed = 3
    host.cpu.failPageAlloc = AllocationFaults(interval: 1, probability: 40, space: 0, times: -1)
    var expected = [UInt32](repeating: 0, count: 128)
    var refused = 0
    var children: [HostProcess] = []
    for step in 0..<4000 {
      let slot = (step &* 7919) % 128
      let address = (slot < 64 ? hva : fileAddress) + UInt64(slot % 64) << 12
      do throws(KernelErrno) {
        if step % 3 == 0 {
          let value = try host.process.read32(address, on: &host.cpu)
          if value != expected[slot] { Issue.record("slot \(slot) reads \(value)") }
        } else {
          try host.process.write32(address, UInt32(step), on: &host.cpu)
          expected[slot] = UInt32(step)
        }
      } catch {
        #expect(error == .enomem)
        refused += 1
      }
      if step % 500 == 250 { children.append(host.process.fork(on: &host.cpu)) }
      if children.count > 3 { children.removeFirst().exit(on: &host.cpu) }
    }
    #expect(refused > 100 && host.cpu.injectedFailureCount >= refused)
    for child in children { child.exit(on: &host.cpu) }
    host.cpu.failPageAlloc = nil
    host.process.exit(on: &host.cpu)
    file.discard(on: &host.cpu)
    expectNothingLeft(host, before)
  }
}
