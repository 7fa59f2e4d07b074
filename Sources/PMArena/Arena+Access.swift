import PMUnits
import Synchronization

// Bytes go in and out by copy, because others may write them at any time; a reference into the
// arena would promise what nobody keeps.

extension Arena {
  /// Copies `bytes` into the arena, beginning at `offset`.
  @inlinable
  public func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(ArenaError) {
    try check(offset: offset, byteCount: UInt64(bytes.count))
    guard let source = bytes.baseAddress else { return }
    (base + Int(offset)).copyMemory(from: source, byteCount: bytes.count)
  }

  /// Fills `buffer` with the arena's bytes, beginning at `offset`.
  @inlinable
  public func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(ArenaError) {
    try check(offset: offset, byteCount: UInt64(buffer.count))
    guard let destination = buffer.baseAddress else { return }
    destination.copyMemory(from: base + Int(offset), byteCount: buffer.count)
  }

  /// Reads the word at `offset`, a multiple of 8, in the host's byte order.
  ///
  /// One relaxed atomic load: never torn, but not ordered with any other access.
  @inlinable
  public func loadWord(at offset: UInt64) throws(ArenaError) -> UInt64 {
    try word(at: offset).pointee.load(ordering: .relaxed)
  }

  /// Writes the word at `offset`, a multiple of 8, in the host's byte order.
  ///
  /// One relaxed atomic store: never torn, but not ordered with any other access.
  @inlinable
  public func storeWord(_ value: UInt64, at offset: UInt64) throws(ArenaError) {
    try word(at: offset).pointee.store(value, ordering: .relaxed)
  }

  @inlinable
  func word(at offset: UInt64) throws(ArenaError) -> UnsafeMutablePointer<Atomic<UInt64>> {
    try check(offset: offset, byteCount: 8)
    guard offset & 7 == 0 else {
      throw .unaligned(offset: offset, byteCount: 8, unit: ByteCount(8))
    }
    // SAFETY: aligned and inside by the checks above; the memory is never accessed as another type,
    // only copied as raw bytes; an Atomic<UInt64> has the layout of its value.
    return (base + Int(offset)).assumingMemoryBound(to: Atomic<UInt64>.self)
  }
}
