public import CPhysmemShim

/// A number that guest memory is accessed by: one access of the processor where it is aligned.
///
/// The functions are the accesses themselves, for ``GuestMemory``; addresses are of this process.
public protocol GuestWord: FixedWidthInteger & UnsignedInteger & BitwiseCopyable & Sendable {
  /// Loads a word that guests may change meanwhile. Relaxed.
  static func guestLoad(_ address: UnsafeRawPointer) -> Self
  /// Stores a word that guests may read meanwhile. Relaxed.
  static func guestStore(_ value: Self, _ address: UnsafeMutableRawPointer)
  /// Loads atomically. Acquire.
  static func guestAtomicLoad(_ address: UnsafeRawPointer) -> Self
  /// Stores atomically. Release.
  static func guestAtomicStore(_ value: Self, _ address: UnsafeMutableRawPointer)
  /// Stores `desired` where `expected` is; else puts what is there into `expected`. Sequentially consistent.
  static func guestCompareExchange(
    _ address: UnsafeMutableRawPointer, _ expected: inout Self, _ desired: Self
  ) -> Bool
  /// Adds, wrapping, and returns what was there. Sequentially consistent.
  static func guestAdd(_ address: UnsafeMutableRawPointer, _ value: Self) -> Self
}

extension UInt8: GuestWord {
  /// Loads a word that guests may change meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestLoad(_ address: UnsafeRawPointer) -> UInt8 { pm_guest_load_u8(address) }

  /// Stores a word that guests may read meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestStore(_ value: UInt8, _ address: UnsafeMutableRawPointer) {
    pm_guest_store_u8(address, value)
  }

  /// Loads atomically. Acquire.
  @inlinable @inline(__always)
  public static func guestAtomicLoad(_ address: UnsafeRawPointer) -> UInt8 {
    pm_guest_atomic_load_acquire_u8(address)
  }

  /// Stores atomically. Release.
  @inlinable @inline(__always)
  public static func guestAtomicStore(_ value: UInt8, _ address: UnsafeMutableRawPointer) {
    pm_guest_atomic_store_release_u8(address, value)
  }

  /// Stores `desired` where `expected` is; else puts what is there into `expected`.
  @inlinable @inline(__always)
  public static func guestCompareExchange(
    _ address: UnsafeMutableRawPointer, _ expected: inout UInt8, _ desired: UInt8
  ) -> Bool {
    pm_guest_atomic_cas_seq_cst_u8(address, &expected, desired)
  }

  /// Adds, wrapping, and returns what was there.
  @inlinable @inline(__always)
  public static func guestAdd(_ address: UnsafeMutableRawPointer, _ value: UInt8) -> UInt8 {
    pm_guest_atomic_add_seq_cst_u8(address, value)
  }
}

extension UInt16: GuestWord {
  /// Loads a word that guests may change meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestLoad(_ address: UnsafeRawPointer) -> UInt16 { pm_guest_load_u16(address) }

  /// Stores a word that guests may read meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestStore(_ value: UInt16, _ address: UnsafeMutableRawPointer) {
    pm_guest_store_u16(address, value)
  }

  /// Loads atomically. Acquire.
  @inlinable @inline(__always)
  public static func guestAtomicLoad(_ address: UnsafeRawPointer) -> UInt16 {
    pm_guest_atomic_load_acquire_u16(address)
  }

  /// Stores atomically. Release.
  @inlinable @inline(__always)
  public static func guestAtomicStore(_ value: UInt16, _ address: UnsafeMutableRawPointer) {
    pm_guest_atomic_store_release_u16(address, value)
  }

  /// Stores `desired` where `expected` is; else puts what is there into `expected`.
  @inlinable @inline(__always)
  public static func guestCompareExchange(
    _ address: UnsafeMutableRawPointer, _ expected: inout UInt16, _ desired: UInt16
  ) -> Bool {
    pm_guest_atomic_cas_seq_cst_u16(address, &expected, desired)
  }

  /// Adds, wrapping, and returns what was there.
  @inlinable @inline(__always)
  public static func guestAdd(_ address: UnsafeMutableRawPointer, _ value: UInt16) -> UInt16 {
    pm_guest_atomic_add_seq_cst_u16(address, value)
  }
}

extension UInt32: GuestWord {
  /// Loads a word that guests may change meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestLoad(_ address: UnsafeRawPointer) -> UInt32 { pm_guest_load_u32(address) }

  /// Stores a word that guests may read meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestStore(_ value: UInt32, _ address: UnsafeMutableRawPointer) {
    pm_guest_store_u32(address, value)
  }

  /// Loads atomically. Acquire.
  @inlinable @inline(__always)
  public static func guestAtomicLoad(_ address: UnsafeRawPointer) -> UInt32 {
    pm_guest_atomic_load_acquire_u32(address)
  }

  /// Stores atomically. Release.
  @inlinable @inline(__always)
  public static func guestAtomicStore(_ value: UInt32, _ address: UnsafeMutableRawPointer) {
    pm_guest_atomic_store_release_u32(address, value)
  }

  /// Stores `desired` where `expected` is; else puts what is there into `expected`.
  @inlinable @inline(__always)
  public static func guestCompareExchange(
    _ address: UnsafeMutableRawPointer, _ expected: inout UInt32, _ desired: UInt32
  ) -> Bool {
    pm_guest_atomic_cas_seq_cst_u32(address, &expected, desired)
  }

  /// Adds, wrapping, and returns what was there.
  @inlinable @inline(__always)
  public static func guestAdd(_ address: UnsafeMutableRawPointer, _ value: UInt32) -> UInt32 {
    pm_guest_atomic_add_seq_cst_u32(address, value)
  }
}

extension UInt64: GuestWord {
  /// Loads a word that guests may change meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestLoad(_ address: UnsafeRawPointer) -> UInt64 { pm_guest_load_u64(address) }

  /// Stores a word that guests may read meanwhile. Relaxed.
  @inlinable @inline(__always)
  public static func guestStore(_ value: UInt64, _ address: UnsafeMutableRawPointer) {
    pm_guest_store_u64(address, value)
  }

  /// Loads atomically. Acquire.
  @inlinable @inline(__always)
  public static func guestAtomicLoad(_ address: UnsafeRawPointer) -> UInt64 {
    pm_guest_atomic_load_acquire_u64(address)
  }

  /// Stores atomically. Release.
  @inlinable @inline(__always)
  public static func guestAtomicStore(_ value: UInt64, _ address: UnsafeMutableRawPointer) {
    pm_guest_atomic_store_release_u64(address, value)
  }

  /// Stores `desired` where `expected` is; else puts what is there into `expected`.
  @inlinable @inline(__always)
  public static func guestCompareExchange(
    _ address: UnsafeMutableRawPointer, _ expected: inout UInt64, _ desired: UInt64
  ) -> Bool {
    pm_guest_atomic_cas_seq_cst_u64(address, &expected, desired)
  }

  /// Adds, wrapping, and returns what was there.
  @inlinable @inline(__always)
  public static func guestAdd(_ address: UnsafeMutableRawPointer, _ value: UInt64) -> UInt64 {
    pm_guest_atomic_add_seq_cst_u64(address, value)
  }
}
