import CPhysmemShim

// MARK: - Mappings

extension KVM {
  private static func request(
    _ byteCount: Int, isAccessible: Bool, hugePageShift: Int32 = 0
  ) -> pm_host_map_request {
    pm_host_map_request(
      length: byteCount, fd: -1, huge_page_shift: hugePageShift, shared: false, reserved: false,
      accessible: isAccessible, offset: 0)
  }

  /// Maps private memory, or, not accessible, takes addresses only.
  static func map(
    byteCount: Int, isAccessible: Bool
  ) throws(RealGuestError) -> UnsafeMutableRawBufferPointer {
    var request = request(byteCount, isAccessible: isAccessible)
    var base: UnsafeMutableRawPointer?
    try check(pm_host_map(&request, nil, &base), "mmap of \(byteCount) bytes")
    return UnsafeMutableRawBufferPointer(start: base, count: byteCount)
  }

  /// Turns a part of a mapping into mere addresses.
  static func reserve(
    at address: UnsafeMutableRawPointer, byteCount: Int
  ) throws(RealGuestError) {
    var request = request(byteCount, isAccessible: false)
    var base: UnsafeMutableRawPointer?
    try check(pm_host_map(&request, address, &base), "mmap of \(byteCount) bytes")
  }

  /// Puts new private memory in place of a part of a mapping; with a shift, pages of the pool.
  static func mapPrivate(
    at address: UnsafeMutableRawPointer, byteCount: Int, hugePageShift: Int32
  ) throws(RealGuestError) {
    // Pages of the pool are reserved: without, a touch that finds none would kill the process.
    var request = request(byteCount, isAccessible: true, hugePageShift: hugePageShift)
    request.reserved = hugePageShift > 0
    var base: UnsafeMutableRawPointer?
    try check(pm_host_map(&request, address, &base), "mmap of \(byteCount) bytes")
  }

  /// Advises whether a part of private memory may be made of transparent huge pages.
  static func advise(
    _ address: UnsafeMutableRawPointer, byteCount: Int, transparentHugePages isWanted: Bool
  ) throws(RealGuestError) {
    let advice: pm_host_advice =
      isWanted ? .PM_HOST_ADVICE_HUGE_PAGES : .PM_HOST_ADVICE_SMALL_PAGES
    try check(pm_host_advise(address, byteCount, advice), "madvise of \(byteCount) bytes")
  }

  /// Takes the entries of a part out of the page table: private pages are gone, a file's stay.
  static func drop(
    _ address: UnsafeMutableRawPointer, byteCount: Int
  ) throws(RealGuestError) {
    try check(
      pm_host_advise(address, byteCount, .PM_HOST_ADVICE_DROP),
      "MADV_DONTNEED of \(byteCount) bytes")
  }

  static func movePages(
    from: UnsafeMutableRawPointer, byteCount: Int, to: UnsafeMutableRawPointer
  ) throws(RealGuestError) {
    try check(pm_kvm_move_pages(from, byteCount, to), "mremap of \(byteCount) bytes")
  }

  static func mapFile(
    _ file: Int32, offset: UInt64, at address: UnsafeMutableRawPointer, byteCount: Int,
    isWritable: Bool
  ) throws(RealGuestError) {
    try check(
      pm_kvm_map_file_at(address, byteCount, file, offset, isWritable),
      "mmap of \(byteCount) bytes of the arena")
  }

  static func protect(
    _ address: UnsafeMutableRawPointer, byteCount: Int, _ protection: MirroredRange.Protection
  ) throws(RealGuestError) {
    let bits: pm_kvm_protection =
      switch protection {
      case .none: .PM_KVM_PROTECTION_NONE
      case .read: .PM_KVM_PROTECTION_READ
      case .readWrite: .PM_KVM_PROTECTION_READ_WRITE
      }
    try check(pm_kvm_protect(address, byteCount, bits), "mprotect of \(byteCount) bytes")
  }

  static func unmap(_ memory: UnsafeMutableRawBufferPointer) throws(RealGuestError) {
    guard let base = memory.baseAddress else { return }
    try check(pm_host_unmap(base, memory.count), "munmap of \(memory.count) bytes")
  }
}
