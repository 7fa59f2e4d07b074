import PMUnits
import Testing

@testable import PMGuestMap

@Suite struct MemslotChangeTests {
  private static let host = VMCapabilities.linux61(fiveLevel: false, physicalAddressBits: 40)

  private func region(
    _ slot: UInt32 = 1, flags: UInt32 = 0, gpa: UInt64 = 0x100000, size: UInt64 = 0x4000,
    hva: UInt64 = 0x7e00_0000_0000
  ) -> MemoryRegion {
    MemoryRegion(
      slot: slot, flags: flags, guestPhysicalAddress: gpa, memorySize: size, userspaceAddress: hva)
  }

  private func result(_ model: inout MemslotModel, _ region: MemoryRegion) -> KernelErrno? {
    do throws(KernelErrno) { try model.setUserMemoryRegion(region) } catch { return error }
    return nil
  }

  private func name(_ change: MemslotChange) -> String {
    switch change {
    case .create: "create"
    case .delete: "delete"
    case .move: "move"
    case .flagsOnly: "flags"
    case .unchanged: "unchanged"
    }
  }

  @Test func `A call is what it changes`() throws {
    var model = MemslotModel(capabilities: MemslotChangeTests.host)
    #expect(name(try model.setUserMemoryRegion(region())) == "create")
    #expect(name(try model.setUserMemoryRegion(region())) == "unchanged")
    #expect(name(try model.setUserMemoryRegion(region(flags: 1))) == "flags")
    #expect(name(try model.setUserMemoryRegion(region(flags: 1, gpa: 0x101000))) == "move")
    #expect(name(try model.setUserMemoryRegion(region(gpa: 0x100000))) == "move")
    #expect(name(try model.setUserMemoryRegion(region(gpa: 0x900000, size: 0))) == "delete")
    #expect(model.slots[0].isEmpty)
    #expect(model.slots[0].generation == 2 * 5)
  }

  @Test func `A moved slot that is tracked is refused from 6_13 on, after the overlap`() throws {
    var model = MemslotModel(capabilities: .linux618)
    try model.setUserMemoryRegion(region())
    try model.setUserMemoryRegion(region(2, gpa: 0x200000))
    func moved(to gpa: UInt64, _ host: VMCapabilities) -> KernelErrno? {
      switch model.slots.classify(region(gpa: gpa), capabilities: host, isTracked: true) {
      case .success: nil
      case .failure(let error): error
      }
    }
    #expect(moved(to: 0x300000, .linux618) == .einval)
    #expect(moved(to: 0x201000, .linux618) == .eexist)
    #expect(moved(to: 0x300000, MemslotChangeTests.host) == nil)
  }

  @Test func `Private memory has its own checks, in the kernel's order`() throws {
    var model = MemslotModel(capabilities: .linux618)
    try model.setUserMemoryRegion(region())
    func result(_ region: MemoryRegion, offset: UInt64 = 0) -> KernelErrno? {
      do throws(KernelErrno) {
        try model.setUserMemoryRegion2(
          MemoryRegion2(region, guestMemfd: -1, guestMemfdOffset: offset))
      } catch { return error }
      return nil
    }
    // All of these were measured on Linux 6.18.
    #expect(result(region(3, flags: 4, gpa: 0x400000)) == .ebadf)
    #expect(result(region(3, flags: 5, gpa: 0x400000)) == .einval)
    #expect(result(region(3, flags: 6, gpa: 0x400000)) == .einval)
    #expect(result(region(3, flags: 8, gpa: 0x400000)) == .einval)
    #expect(result(region(3, flags: 4, gpa: 0x400000), offset: 1) == .einval)
    #expect(result(region(3, flags: 4, gpa: 0x400000), offset: ~0xfff) == .einval)
    #expect(result(region(3, flags: 4)) == .eexist)
    #expect(result(region(3, flags: 4, gpa: 1 << 52)) == .ebadf)
    #expect(result(region(flags: 4)) == .einval)
    #expect(result(region(flags: 4, size: 0)) == nil)
    #expect(result(region(flags: 4, size: 0)) == .einval)
    #expect(self.result(&model, region(3, flags: 4, gpa: 0x400000)) == .einval)
    var old = MemslotModel(capabilities: MemslotChangeTests.host)
    #expect(throws: KernelErrno.enotty) {
      try old.setUserMemoryRegion2(MemoryRegion2(region(0x7fff, flags: 8)))
    }
  }

  // MARK: against the rules written out

  /// The rules of Linux 6.1 over a plain list of slots.
  private struct Rules {
    var host: VMCapabilities
    var slots: [UInt32: MemoryRegion] = [:]

    mutating func set(_ region: MemoryRegion) -> KernelErrno? {
      if region.slot & 0xffff >= 32764 || region.flags & ~3 != 0 { return .einval }
      if region.memorySize % 4096 != 0 || region.guestPhysicalAddress % 4096 != 0 {
        return .einval
      }
      if region.userspaceAddress % 4096 != 0 || region.userspaceAddress > host.userAddressLimit
        || region.memorySize > host.userAddressLimit - region.userspaceAddress
      {
        return .einval
      }
      if region.slot >> 16 >= host.addressSpaceCount { return .einval }
      if region.memorySize > UInt64.max - region.guestPhysicalAddress { return .einval }
      if region.memorySize >> 12 >= 1 << 31 { return .einval }
      let old = slots[region.slot]
      if region.memorySize == 0 {
        slots[region.slot] = nil
        return old == nil ? .einval : nil
      }
      if let old {
        if old.userspaceAddress != region.userspaceAddress || old.memorySize != region.memorySize
          || (old.flags ^ region.flags) & 2 != 0
        {
          return .einval
        }
      }
      if old?.guestPhysicalAddress != region.guestPhysicalAddress {
        let end = region.guestPhysicalAddress + region.memorySize
        let overlaps = slots.values.contains {
          $0.slot != region.slot && $0.slot >> 16 == region.slot >> 16
            && $0.guestPhysicalAddress < end
            && region.guestPhysicalAddress < $0.guestPhysicalAddress + $0.memorySize
        }
        if overlaps { return .eexist }
        if (end - 1) >> UInt64(host.guestPhysicalAddressBits) != 0 { return .einval }
      }
      slots[region.slot] = region
      return nil
    }
  }

  private func randomRegion(_ random: inout MemslotRandom) -> MemoryRegion {
    var region = region(
      UInt32(random.below(6)), flags: UInt32(random.below(4)),
      gpa: UInt64(random.below(12)) << 13, size: UInt64(random.below(5)) << 13,
      hva: 0x7e00_0000_0000 + UInt64(random.below(2)) << 12)
    switch random.below(30) {
    case 0: region.slot = [0x7ffb, 0x7ffc, 0x7fff, 0xffff][random.below(4)]
    case 1: region.slot |= [0x2_0000, 0xffff_0000][random.below(2)]
    case 2: region.flags |= 1 << UInt32(random.below(32))
    case 3: region.memorySize |= UInt64(random.below(4096))
    case 4: region.guestPhysicalAddress |= UInt64(random.below(4096))
    case 5: region.userspaceAddress |= UInt64(random.below(4096))
    case 6: region.userspaceAddress = [0, 1 << 47, 1 << 56, .max << 12][random.below(4)]
    case 7: region.userspaceAddress = (1 << 47) - UInt64(random.below(6)) << 12
    case 8: region.guestPhysicalAddress = .max << 12 &- UInt64(random.below(6)) << 12
    case 9, 10: region.guestPhysicalAddress = 1 << 40 &- UInt64(random.below(6)) << 12
    case 11: region.memorySize = 1 << UInt64(36 + random.below(28))
    case 12...15: region.slot |= 0x1_0000
    default: break
    }
    return region
  }

  @Test(arguments: [0, 2]) func `Calls in any order give what the rules say`(_ spaces: Int) throws {
    var random = MemslotRandom("MemslotChangeTests")
    var host = MemslotChangeTests.host
    host.multiAddressSpace = spaces
    for _ in 0..<60 {
      var model = MemslotModel(capabilities: host)
      var rules = Rules(host: host)
      for _ in 0..<200 {
        let region = randomRegion(&random)
        let (expected, got) = (rules.set(region), result(&model, region))
        #expect(got == expected, "\(region)")
        if got != expected { return }
      }
      let kept = model.slots.spaces.flatMap { $0.slots.map(\.slotNumber) }
      #expect(Set(kept) == Set(rules.slots.keys))
    }
  }

  // MARK: dirty logs

  private func logged(_ pages: UInt64) throws -> MemslotModel {
    var model = MemslotModel(capabilities: MemslotChangeTests.host)
    try model.setUserMemoryRegion(region())
    try model.setUserMemoryRegion(region(2, flags: 1, gpa: 0x200000, size: pages << 12))
    return model
  }

  private func clear(
    _ model: MemslotModel, _ first: UInt64, _ count: UInt32, slot: UInt32 = 2,
    bits: [UInt64]? = [.max, .max, .max, .max]
  ) -> KernelErrno? {
    do throws(KernelErrno) {
      let range = DirtyLogRange(slot: slot, firstPage: first, pageCount: count)
      if let bits {
        try bits.withUnsafeBufferPointer { buffer throws(KernelErrno) in
          try model.clearDirtyLog(range, bits: buffer)
        }
      } else {
        try model.clearDirtyLog(range, bits: nil)
      }
    } catch { return error }
    return nil
  }

  @Test func `What is cleared is checked in the kernel's order`() throws {
    let model = try logged(200)
    // All of these were measured on Linux 6.18.
    #expect(clear(model, 0, 64, slot: 9) == .enoent)
    #expect(clear(model, 1, 64, slot: 9) == .einval)
    #expect(clear(model, 0, 63, slot: 9) == .enoent)
    #expect(clear(model, 0, 64, slot: 1) == .enoent)
    #expect(clear(model, 1, 64, slot: 1) == .einval)
    #expect(clear(model, 1, 64, bits: nil) == .einval)
    #expect(clear(model, 0, 63, bits: nil) == .einval)
    #expect(clear(model, 0, 0, bits: nil) == nil)
    #expect(clear(model, 0, 64, bits: nil) == .efault)
    #expect(clear(model, 192, 8, bits: nil) == .efault)
    #expect(clear(model, 192, 8) == nil)
    #expect(clear(model, 192, 64) == .einval)
    #expect(clear(model, 256, 0) == .einval)
    #expect(clear(model, 0, 200) == nil)
    #expect(clear(model, 0, 256) == .einval)
    #expect(clear(model, ~63, 64) == .einval)
    #expect(clear(model, 0, 64, slot: 0x7ffc) == .einval)
    #expect(clear(model, 0, 64, slot: 0x1_0002) == .enoent)
    #expect(clear(model, 0, 64, slot: 0x2_0002) == .einval)
  }

  @Test func `Clearing takes the named pages out, and a get takes out all but in manual mode`()
    throws
  {
    var model = try logged(200)
    let bitmap = try #require(model.slots[0].slot(id: 2)?.dirtyBitmap)
    bitmap.mark(60..<200)
    #expect(clear(model, 64, 136, bits: [1 << 3, 0, 1 << 7 | 1 << 63]) == nil)
    #expect(!bitmap.contains(67) && !bitmap.contains(199) && bitmap.contains(66))
    #expect(bitmap.dirtyCount == 138)
    func get(_ buffer: UnsafeMutableBufferPointer<UInt64>?) -> KernelErrno? {
      do throws(KernelErrno) { try model.getDirtyLog(slot: 2, into: buffer) } catch {
        return error
      }
      return nil
    }
    var words = [UInt64](repeating: 0, count: 4)
    try model.enable(.manualDirtyLogProtect2, argument: 1)
    #expect(words.withUnsafeMutableBufferPointer { get($0) } == nil)
    #expect(words.reduce(0) { $0 + $1.nonzeroBitCount } == 138)
    #expect(get(nil) == .efault)
    #expect(bitmap.dirtyCount == 138)
    try model.enable(.manualDirtyLogProtect2, argument: 0)
    // The marks are lost where they cannot be copied.
    #expect(get(nil) == .efault)
    #expect(bitmap.dirtyCount == 0)
    #expect(words.withUnsafeMutableBufferPointer { get($0) } == nil)
    #expect(words == [0, 0, 0, 0])
  }

  @Test func `Manual protection has two bits, the second with the first only`() throws {
    var model = MemslotModel(capabilities: MemslotChangeTests.host)
    for argument in [0, 1, 3] as [UInt64] {
      try model.enable(.manualDirtyLogProtect2, argument: argument)
      #expect(model.settings.manualProtect.rawValue == argument)
      #expect(throws: KernelErrno.einval) {
        try model.enable(.manualDirtyLogProtect2, flags: 1, argument: argument)
      }
    }
    for argument in [2, 4, 5, 6, 7, 1 << 32, 1 << 63] as [UInt64] {
      #expect(throws: KernelErrno.einval) {
        try model.enable(.manualDirtyLogProtect2, argument: argument)
      }
    }
    #expect(model.settings.isInitiallySet)
    try model.setUserMemoryRegion(region(flags: 1))
    #expect(model.slots[0].slot(id: 1)?.dirtyBitmap?.dirtyCount == 4)
  }

  @Test func `Capabilities are what the hosts were seen to say`() {
    let old = MemslotChangeTests.host
    let new = VMCapabilities.linux618
    #expect(old.checkExtension("KVM_CAP_NR_MEMSLOTS") == 32764)
    #expect(old.checkExtension("KVM_CAP_MULTI_ADDRESS_SPACE") == 2)
    #expect(new.checkExtension("KVM_CAP_MULTI_ADDRESS_SPACE") == 0)
    #expect(new.addressSpaceCount == 1)
    #expect(old.checkExtension("KVM_CAP_DIRTY_LOG_RING") == 1 << 20)
    #expect(old.checkExtension("KVM_CAP_USER_MEMORY2") == 0)
    #expect(new.checkExtension("KVM_CAP_USER_MEMORY2") == 1)
    #expect(new.checkExtension("KVM_CAP_GUEST_MEMFD") == 1)
    #expect(new.checkExtension("KVM_CAP_PRE_FAULT_MEMORY") == 0)
    #expect(new.checkExtension("KVM_CAP_NO_SUCH_THING") == 0)
    #expect(old.lastGFN == GFN((1 << 28) - 1))
    #expect(new.lastGFN == GFN((1 << 40) - 1))
    #expect(VMCapabilities.userAddressLimit(fiveLevel: true) == 0xff_ffff_ffff_f000)
  }
}
