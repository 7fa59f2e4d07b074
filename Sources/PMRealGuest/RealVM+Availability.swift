extension RealVM {
  /// Why no real guest can be had here, or nil if one can: it was tried, once in this process.
  ///
  /// The reason is a sentence to show. What is tried: a guest reads and writes a page through the
  /// MMU, and an inaccessible page is refused as the MMU does it. (A KVM that runs this guest in its
  /// instruction emulator hands that out as device memory instead, and so has other rules.)
  public static func unavailability() -> String? { tried }

  private static let tried: String? = tryGuest()

  private static func tryGuest() -> String? {
    #if arch(x86_64)
      do {
        return try tryAccesses()
      } catch {
        return "no real guest here: \(error)"
      }
    #else
      return "no real guest here: it is a program for x86-64"
    #endif
  }

  private static func tryAccesses() throws(RealGuestError) -> String? {
    let pageSize = Int(GuestProgram.pageSize)
    let memory = KVMMapping(owning: try KVM.map(byteCount: 2 * pageSize, isAccessible: true))
    memory.base.storeBytes(of: 0x1122_3344, as: UInt32.self)
    try KVM.protect(memory.base + pageSize, byteCount: pageSize, .none)
    let machine = try RealVM(Configuration(reachGiB: 2))
    let start: UInt64 = 1 << 30
    let errno = machine.setMemoryRegion(
      slot: 1, flags: 0, guestPhysicalAddress: start, memorySize: 2 * GuestProgram.pageSize,
      userspaceAddress: UInt64(UInt(bitPattern: memory.base)))
    guard errno == 0 else { throw .host(operation: "a memory region", errno: errno) }

    let read = try machine.perform(.read(start))
    guard read == .done(value: 0x1122_3344) else {
      return "no real guest here: its first read ended as \(read)"
    }
    let written = try machine.perform(.write(0x5566_7788, to: start))
    guard written == .done(value: 0x5566_7788),
      memory.base.load(as: UInt32.self) == 0x5566_7788
    else { return "no real guest here: its first write ended as \(written)" }
    let refused = try machine.perform(.read(start + GuestProgram.pageSize))
    guard case .failed(KVM.badAddress, _) = refused else {
      return "this KVM emulates our guest: an inaccessible page was \(refused)"
    }
    return nil
  }
}
