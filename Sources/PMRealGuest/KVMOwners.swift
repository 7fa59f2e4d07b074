import Glibc

/// The one owner of a file descriptor, which its end closes.
struct KVMDescriptor: ~Copyable {
  let rawValue: Int32

  init(owning rawValue: Int32) { self.rawValue = rawValue }

  deinit {
    // The descriptor is gone whatever close says, unless somebody else has closed it: a bug, as the
    // number may be another file's by now.
    do { try KVM.close(rawValue) } catch {
      if case .host(_, EBADF) = error {
        fatalError("an owned descriptor was closed by somebody else: \(error)")
      }
    }
  }
}

/// The one owner of a mapping, which its end unmaps.
struct KVMMapping: ~Copyable, @unchecked Sendable {
  // @unchecked because of the pointers: they never change, and the mapping lives as long as this
  // value. Who may touch the memory, and when, is the rule of what is laid into it.
  let base: UnsafeMutableRawPointer
  let byteCount: Int

  init(owning memory: UnsafeMutableRawBufferPointer) {
    guard let base = memory.baseAddress else { fatalError("a mapping at address 0") }
    self.base = base
    byteCount = memory.count
  }

  deinit {
    do {
      try KVM.unmap(UnsafeMutableRawBufferPointer(start: base, count: byteCount))
    } catch {
      // At its limit of mappings a process cannot even unmap; the addresses are lost then. All else
      // is a bug here.
      guard case .host(_, ENOMEM) = error else {
        fatalError("an owned mapping could not be unmapped: \(error)")
      }
    }
  }
}
