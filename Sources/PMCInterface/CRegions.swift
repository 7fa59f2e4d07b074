// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

public import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import Physmem
internal import Synchronization

/// As physmem.h has it.
@c @implementation
public func pm_regions_generation(
  _ machine: OpaquePointer!, _ generation: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let generation else { throw .null("generation") }
    generation.pointee = object.memory.generation
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_regions(
  _ machine: OpaquePointer!, _ regions: UnsafeMutablePointer<pm_region>!,
  _ count: UnsafeMutablePointer<UInt32>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let count else { throw .null("count") }
    let capacity = count.pointee
    if capacity > 0 {
      guard let regions else { throw .null("regions") }
      try check(size: regions.pointee.size, of: pm_region.self)
    }
    let found = object.memory.regions
    count.pointee = UInt32(found.count)
    guard found.count <= Int(capacity) else {
      throw Refusal(ENOBUFS, "\(found.count) regions do not fit in an array of \(capacity)")
    }
    for (index, region) in found.enumerated() { regions[index] = pm_region(region) }
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_region_add(
  _ machine: OpaquePointer!, _ region: UnsafePointer<pm_region>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let region else { throw .null("region") }
    try check(size: region.pointee.size, of: pm_region.self)
    let new = try newRegion(region.pointee)
    do throws(GuestMemoryError) { try object.memory.add(new) } catch { throw Refusal(error) }
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_region_remove(_ machine: OpaquePointer!, _ gpa: UInt64) -> Int32 {
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    // Keeps the region until the lock is open again: a device's `release` may then do what it likes.
    let before = memory.snapshot()
    defer { withExtendedLifetime(before) {} }
    try memory.removeRegion(at: GPA(gpa))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_mmio_add(
  _ machine: OpaquePointer!, _ gpa: UInt64, _ len: UInt64, _ ops: UnsafePointer<pm_mmio_ops>!,
  _ opaque: UnsafeMutableRawPointer!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let ops else { throw .null("ops") }
    try check(size: ops.pointee.size, of: pm_mmio_ops.self)
    let device = CDevice(ops.pointee, opaque)
    do throws(GuestMemoryError) {
      try object.memory.add(.mmio(at: GPA(gpa), byteCount: ByteCount(len), handler: device))
    } catch { throw Refusal(error) }
    device.isAdded.store(true, ordering: .releasing)
    return 0
  }
}

// MARK: -

/// A device that functions of C are.
private final class CDevice: MMIOHandler, @unchecked Sendable {
  // Sendable: the functions and `opaque` are constant, and C promises that any thread may call them.
  private let ops: pm_mmio_ops
  private let opaque: UnsafeMutableRawPointer?
  /// Whether `release` is to be called.
  let isAdded = Atomic(false)

  init(_ ops: pm_mmio_ops, _ opaque: UnsafeMutableRawPointer?) {
    self.ops = ops
    self.opaque = opaque
  }

  deinit {
    if isAdded.load(ordering: .acquiring) { ops.release?(opaque) }
  }

  func read(offset: UInt64, byteCount: Int) throws(MMIORefusal) -> UInt64 {
    guard let read = ops.read else { throw MMIORefusal(errno: EACCES) }
    var value: UInt64 = 0
    try check(read(opaque, offset, UInt32(byteCount), &value))
    return value
  }

  func write(offset: UInt64, byteCount: Int, value: UInt64) throws(MMIORefusal) {
    guard let write = ops.write else { throw MMIORefusal(errno: EACCES) }
    try check(write(opaque, offset, UInt32(byteCount), value))
  }

  private func check(_ result: Int32) throws(MMIORefusal) {
    guard result != 0 else { return }
    // A number that is none of an error is one of the device.
    throw MMIORefusal(errno: (-4095...(-1)).contains(result) ? -result : EIO)
  }
}

extension pm_region {
  init(_ region: GuestRegion) {
    self.init()
    size = UInt32(MemoryLayout<pm_region>.size)
    kind = UInt32(region.kind.rawValue)
    gpa = region.range.start.rawValue
    len = region.range.byteCount
    fd = region.fileDescriptor ?? -1
    numa_node = region.hostNode.map { Int32($0) } ?? -1
    fd_offset = region.fileDescriptor == nil ? 0 : region.fileOffset
    page_size = region.pageSize.rawValue
    prot =
      switch region.kind {
      case .ram, .pmem:
        PM_PROT_READ.rawValue | PM_PROT_WRITE.rawValue | PM_PROT_EXEC.rawValue
      case .rom: PM_PROT_READ.rawValue | PM_PROT_EXEC.rawValue
      case .mmio: PM_PROT_READ.rawValue | PM_PROT_WRITE.rawValue
      }
    backing =
      switch region.backing {
      case .memfd, .shmem, nil: PM_BACKING_MEMFD.rawValue
      case .sharedHugeTLB: PM_BACKING_HUGETLB.rawValue
      case .anonymous, .anonymousHugeTLB2MiB, .anonymousHugeTLB1GiB: PM_BACKING_ANONYMOUS.rawValue
      case .anonymousTHP: PM_BACKING_ANONYMOUS_THP.rawValue
      }
    hva = region.hostAddress
  }
}

private func newRegion(_ region: pm_region) throws(Refusal) -> NewRegion {
  let kind: RegionKind
  switch region.kind {
  case PM_REGION_RAM.rawValue: kind = .ram
  case PM_REGION_ROM.rawValue: kind = .rom
  case PM_REGION_PMEM.rawValue: kind = .pmem
  case PM_REGION_MMIO.rawValue: throw Refusal(EINVAL, "a device is added by pm_mmio_add")
  default: throw Refusal(EINVAL, "kind \(region.kind) is unknown")
  }
  guard region.fd >= -1 else { throw Refusal(EINVAL, "fd \(region.fd): expected one, or -1") }
  guard region.numa_node >= -1 else {
    throw Refusal(EINVAL, "numa_node \(region.numa_node): expected a node, or -1")
  }
  let start = GPA(region.gpa)
  let byteCount = ByteCount(region.len)
  if region.fd >= 0 {
    guard region.numa_node == -1 else {
      throw Refusal(EINVAL, "numa_node \(region.numa_node): a file's memory is where the file is")
    }
    return .memory(
      kind, at: start, byteCount: byteCount, file: region.fd, fileOffset: region.fd_offset)
  }
  let backing = try backing(region.backing, pageSize: region.page_size)
  let node = region.numa_node < 0 ? nil : Int(region.numa_node)
  switch kind {
  case .ram: return .ram(at: start, byteCount: byteCount, backing: backing, hostNode: node)
  case .rom: return .rom(at: start, byteCount: byteCount, backing: backing, hostNode: node)
  default: throw Refusal(EINVAL, "persistent memory is in a file: fd is -1")
  }
}
