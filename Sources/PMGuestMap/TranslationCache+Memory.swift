public import CPhysmemShim

// Guest loads and stores: a whole access each. Nil (false) means that nothing was loaded (stored),
// because the cache does not know the page for this kind of access or the bytes cross the end of
// the page; the caller walks the tables or cuts the access in two.
//
// Each is a single volatile access, whole where the address is aligned, and relaxed.

extension TranslationCache {
  /// Loads one byte of guest memory.
  @inlinable @inline(__always)
  public func loadUInt8(at address: UInt64) -> UInt8? {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 1, forWrite: false) else { return nil }
    return pm_guest_load_u8(bytes)
  }

  /// Loads two bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func loadUInt16(at address: UInt64) -> UInt16? {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 2, forWrite: false) else { return nil }
    return pm_guest_load_u16(bytes)
  }

  /// Loads four bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func loadUInt32(at address: UInt64) -> UInt32? {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 4, forWrite: false) else { return nil }
    return pm_guest_load_u32(bytes)
  }

  /// Loads eight bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func loadUInt64(at address: UInt64) -> UInt64? {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 8, forWrite: false) else { return nil }
    return pm_guest_load_u64(bytes)
  }

  /// Stores one byte of guest memory.
  @inlinable @inline(__always)
  public func store(_ value: UInt8, at address: UInt64) -> Bool {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 1, forWrite: true) else { return false }
    pm_guest_store_u8(bytes, value)
    return true
  }

  /// Stores two bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func store(_ value: UInt16, at address: UInt64) -> Bool {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 2, forWrite: true) else { return false }
    pm_guest_store_u16(bytes, value)
    return true
  }

  /// Stores four bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func store(_ value: UInt32, at address: UInt64) -> Bool {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 4, forWrite: true) else { return false }
    pm_guest_store_u32(bytes, value)
    return true
  }

  /// Stores eight bytes of guest memory, in the host's order.
  @inlinable @inline(__always)
  public func store(_ value: UInt64, at address: UInt64) -> Bool {
    enter()
    defer { leave() }
    guard let bytes = translate(address: address, count: 8, forWrite: true) else { return false }
    pm_guest_store_u64(bytes, value)
    return true
  }
}
