// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

internal import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import Physmem

// Each access first looks for memory of one region inside of one access of its own, without a lock, a
// reference counted or anything allocated; what that does not find is asked of the methods of GuestMemory.

/// As physmem.h has it.
@c @implementation
public func pm_read(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ data: UnsafeMutableRawPointer!, _ len: Int
) -> Int32 {
  let port = pm_readers_enter()
  if len > 0, let data, let place = place(machine, gpa, UInt64(len), writing: false) {
    pm_guest_copy(data, place.address, len)
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return copySlowly(machine, gpa, data, len) { (memory, count) throws(GuestMemoryError) in
    try memory.read(
      into: UnsafeMutableRawBufferPointer(start: data, count: count), at: GPA(gpa))
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_write(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ data: UnsafeRawPointer!, _ len: Int
) -> Int32 {
  let port = pm_readers_enter()
  if len > 0, let data, let place = place(machine, gpa, UInt64(len), writing: true) {
    pm_guest_copy(place.address, data, len)
    place.markDirty(byteCount: UInt64(len))
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return copySlowly(machine, gpa, data, len) { (memory, count) throws(GuestMemoryError) in
    try memory.write(UnsafeRawBufferPointer(start: data, count: count), at: GPA(gpa))
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_rom_write(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ data: UnsafeRawPointer!, _ len: Int
) -> Int32 {
  copySlowly(machine, gpa, data, len) { (memory, count) throws(GuestMemoryError) in
    try memory.writeROM(UnsafeRawBufferPointer(start: data, count: count), at: GPA(gpa))
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_fill(_ machine: OpaquePointer!, _ gpa: UInt64, _ byte: UInt8, _ len: UInt64) -> Int32
{
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.fill(try range(gpa, len), with: byte)
    return 0
  }
}

// MARK: words

/// As physmem.h has it.
@c @implementation
public func pm_load(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ width: UInt32,
  _ value: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  switch width {
  case 8: load(UInt64.self, machine, gpa, value)
  case 4: load(UInt32.self, machine, gpa, value)
  case 2: load(UInt16.self, machine, gpa, value)
  case 1: load(UInt8.self, machine, gpa, value)
  default: refuse(width: width)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_store(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ width: UInt32, _ value: UInt64
) -> Int32 {
  switch width {
  case 8: store(value, machine, gpa)
  case 4: store(UInt32(truncatingIfNeeded: value), machine, gpa)
  case 2: store(UInt16(truncatingIfNeeded: value), machine, gpa)
  case 1: store(UInt8(truncatingIfNeeded: value), machine, gpa)
  default: refuse(width: width)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_atomic_load(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ width: UInt32,
  _ value: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  switch width {
  case 8: atomicLoad(UInt64.self, machine, gpa, value)
  case 4: atomicLoad(UInt32.self, machine, gpa, value)
  case 2: atomicLoad(UInt16.self, machine, gpa, value)
  case 1: atomicLoad(UInt8.self, machine, gpa, value)
  default: refuse(width: width)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_atomic_store(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ width: UInt32, _ value: UInt64
) -> Int32 {
  switch width {
  case 8: atomicStore(value, machine, gpa)
  case 4: atomicStore(UInt32(truncatingIfNeeded: value), machine, gpa)
  case 2: atomicStore(UInt16(truncatingIfNeeded: value), machine, gpa)
  case 1: atomicStore(UInt8(truncatingIfNeeded: value), machine, gpa)
  default: refuse(width: width)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_atomic_cas(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ width: UInt32,
  _ expected: UnsafeMutablePointer<UInt64>!, _ desired: UInt64
) -> Int32 {
  switch width {
  case 8: exchange(UInt64.self, machine, gpa, expected, desired)
  case 4: exchange(UInt32.self, machine, gpa, expected, desired)
  case 2: exchange(UInt16.self, machine, gpa, expected, desired)
  case 1: exchange(UInt8.self, machine, gpa, expected, desired)
  default: refuse(width: width)
  }
}

// MARK: addresses

/// As physmem.h has it.
@c @implementation
public func pm_translate(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ len: UInt64, _ prot: UInt32,
  _ hva: UnsafeMutablePointer<UnsafeMutableRawPointer?>!
) -> Int32 {
  let isWrite = prot & PM_PROT_WRITE.rawValue != 0
  if let hva, len > 0, prot <= 7 {
    let port = pm_readers_enter()
    if let place = place(machine, gpa, len, writing: isWrite) {
      hva.pointee = place.address
      pm_readers_leave(port)
      return 0
    }
    pm_readers_leave(port)
  }
  return answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let hva else { throw .null("hva") }
    guard prot <= 7 else {
      throw Refusal(EINVAL, "prot 0x\(String(prot, radix: 16)): expected PM_PROT_*")
    }
    let range = GuestRange(start: GPA(gpa), byteCount: len)
    do throws(GuestMemoryError) {
      hva.pointee = try object.memory.snapshot().hostAddress(of: range, writing: isWrite)
    } catch { throw Refusal(error) }
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_translate_host(
  _ machine: OpaquePointer!, _ hva: UnsafeRawPointer!, _ gpa: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let gpa else { throw .null("gpa") }
    guard let hva, let found = object.memory.snapshot().guestAddress(of: hva) else {
      let address = String(UInt(bitPattern: hva), radix: 16)
      throw Refusal(EFAULT, "no region of the machine is at 0x\(address) in this process")
    }
    gpa.pointee = found.rawValue
    return 0
  }
}

// MARK: -

/// Where bytes of a machine are. pre: inside of an access.
@inline(__always)
private func place(
  _ machine: OpaquePointer?, _ gpa: UInt64, _ count: UInt64, writing: Bool
) -> GuestPlace? {
  guard let object = pm_handle_find_acquire(.PM_HANDLE_MACHINE, Handle.name(machine)) else {
    return nil
  }
  return Unmanaged<MachineObject>.fromOpaque(object)._withUnsafeGuaranteedRef {
    $0.memory.place(of: gpa, byteCount: count, writing: writing)
  }
}

/// A range that no arithmetic overflows on: what is beyond any guest is an error.
func range(_ gpa: UInt64, _ len: UInt64) throws(GuestMemoryError) -> GuestRange {
  let range = GuestRange(start: GPA(gpa), byteCount: len)
  guard len == 0 || range.isAddressable else { throw .unmapped(range, gap: range) }
  return range
}

@inline(never)
private func copySlowly(
  _ machine: OpaquePointer?, _ gpa: UInt64, _ data: UnsafeRawPointer?, _ len: Int,
  _ body: (GuestMemory, Int) throws(GuestMemoryError) -> Void
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard len != 0 else { return 0 }
    guard data != nil else { throw .null("data") }
    do throws(GuestMemoryError) {
      _ = try range(gpa, UInt64(UInt(bitPattern: len)))
      try body(object.memory, len)
    } catch { throw Refusal(error) }
    return 0
  }
}

@inline(never)
private func refuse(width: UInt32) -> Int32 {
  Refusal(EINVAL, "a width of \(width): expected 1, 2, 4 or 8").answer()
}

@inline(__always)
private func load<Word: GuestWord>(
  _ type: Word.Type, _ machine: OpaquePointer?, _ gpa: UInt64,
  _ value: UnsafeMutablePointer<UInt64>?
) -> Int32 {
  guard let value else { return Refusal.null("value").answer() }
  let port = pm_readers_enter()
  if let place = place(machine, gpa, UInt64(MemoryLayout<Word>.size), writing: false) {
    value.pointee = UInt64(truncatingIfNeeded: Word.guestLoad(place.address))
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    value.pointee = UInt64(truncatingIfNeeded: try memory.load(type, at: GPA(gpa)))
    return 0
  }
}

@inline(__always)
private func store<Word: GuestWord>(
  _ value: Word, _ machine: OpaquePointer?, _ gpa: UInt64
) -> Int32 {
  let port = pm_readers_enter()
  if let place = place(machine, gpa, UInt64(MemoryLayout<Word>.size), writing: true) {
    Word.guestStore(value, place.address)
    place.markDirty(byteCount: UInt64(MemoryLayout<Word>.size))
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.store(value, at: GPA(gpa))
    return 0
  }
}

@inline(__always)
private func atomicLoad<Word: GuestWord>(
  _ type: Word.Type, _ machine: OpaquePointer?, _ gpa: UInt64,
  _ value: UnsafeMutablePointer<UInt64>?
) -> Int32 {
  guard let value else { return Refusal.null("value").answer() }
  let port = pm_readers_enter()
  if GPA(gpa).isAligned(to: UInt64(MemoryLayout<Word>.size)),
    let place = place(machine, gpa, UInt64(MemoryLayout<Word>.size), writing: false)
  {
    value.pointee = UInt64(truncatingIfNeeded: Word.guestAtomicLoad(place.address))
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    value.pointee = UInt64(truncatingIfNeeded: try memory.atomicLoad(type, at: GPA(gpa)))
    return 0
  }
}

@inline(__always)
private func atomicStore<Word: GuestWord>(
  _ value: Word, _ machine: OpaquePointer?, _ gpa: UInt64
) -> Int32 {
  let port = pm_readers_enter()
  if GPA(gpa).isAligned(to: UInt64(MemoryLayout<Word>.size)),
    let place = place(machine, gpa, UInt64(MemoryLayout<Word>.size), writing: true)
  {
    Word.guestAtomicStore(value, place.address)
    place.markDirty(byteCount: UInt64(MemoryLayout<Word>.size))
    pm_readers_leave(port)
    return 0
  }
  pm_readers_leave(port)
  return Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.atomicStore(value, at: GPA(gpa))
    return 0
  }
}

@inline(__always)
private func exchange<Word: GuestWord>(
  _ type: Word.Type, _ machine: OpaquePointer?, _ gpa: UInt64,
  _ expected: UnsafeMutablePointer<UInt64>?, _ desired: UInt64
) -> Int32 {
  guard let expected else { return Refusal.null("expected").answer() }
  // Bits above the width are no part of the value that is compared.
  let wanted = Word(truncatingIfNeeded: expected.pointee)
  let new = Word(truncatingIfNeeded: desired)
  let port = pm_readers_enter()
  if GPA(gpa).isAligned(to: UInt64(MemoryLayout<Word>.size)),
    let place = place(machine, gpa, UInt64(MemoryLayout<Word>.size), writing: true)
  {
    var seen = wanted
    let isDone = Word.guestCompareExchange(place.address, &seen, new)
    if isDone {
      place.markDirty(byteCount: UInt64(MemoryLayout<Word>.size))
    } else {
      expected.pointee = UInt64(truncatingIfNeeded: seen)
    }
    pm_readers_leave(port)
    return isDone ? 1 : 0
  }
  pm_readers_leave(port)
  return Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    let (isDone, seen) = try memory.compareExchange(
      expected: wanted, desired: new, at: GPA(gpa))
    if !isDone { expected.pointee = UInt64(truncatingIfNeeded: seen) }
    return isDone ? 1 : 0
  }
}
