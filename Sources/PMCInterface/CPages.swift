// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

public import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import Physmem

/// As physmem.h has it.
@c @implementation
public func pm_cpu_claim(
  _ machine: OpaquePointer!, _ index: UInt32, _ cpu: UnsafeMutablePointer<OpaquePointer?>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let cpu else { throw .null("cpu") }
    let claimed: CPU
    do throws(MachineError) { claimed = try object.machine.claimCPU(Int(index)) } catch {
      throw Refusal(error)
    }
    cpu.pointee = try Exclusive<CPU>.name(.PM_HANDLE_CPU, claimed, owner: object)
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_cpu_release(_ cpu: OpaquePointer!) -> Int32 {
  Exclusive<CPU>.end(.PM_HANDLE_CPU, cpu) { _ = consume $0 }
}

/// As physmem.h has it.
@c @implementation
public func pm_alloc_pages(
  _ cpu: OpaquePointer!, _ order: UInt32, _ gfp: UInt32, _ node: Int32,
  _ pfn: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  Exclusive<CPU>.use(.PM_HANDLE_CPU, cpu) { (_, cpu) throws(Refusal) in
    guard let pfn else { throw .null("pfn") }
    do throws(AllocationError) {
      let flags = GFP(rawValue: gfp)
      let found =
        node == -1
        ? try cpu.allocatePages(order: Int(order), gfp: flags)
        : try cpu.allocatePages(order: Int(order), gfp: flags, node: Int(node))
      pfn.pointee = UInt64(found.rawValue)
      return 0
    } catch {
      throw allocationRefusal(error, order: order, node: node, nodes: cpu.machine.nodeCount)
    }
  }
}

private func allocationRefusal(
  _ error: AllocationError, order: UInt32, node: Int32, nodes: Int
) -> Refusal {
  let isThere = node == -1 || (0..<nodes).contains(Int(node))
  let errno: Int32 =
    switch error {
    case .outOfMemory, .wouldReclaim: ENOMEM
    case .invalidOrder, .invalidMigratetype, .invalidSize: EINVAL
    case .noZone: isThere ? ENOMEM : ENODEV
    }
  return Refusal(errno, "2^\(order) pages on node \(node) of \(nodes): \(error)")
}

/// As physmem.h has it.
@c @implementation
public func pm_free_pages(_ cpu: OpaquePointer!, _ pfn: UInt64, _ order: UInt32) -> Int32 {
  Exclusive<CPU>.use(.PM_HANDLE_CPU, cpu) { (_, cpu) throws(Refusal) in
    cpu.freePages(try block(pfn, order: order, of: cpu.machine), order: Int(order))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_put_page(_ cpu: OpaquePointer!, _ pfn: UInt64) -> Int32 {
  Exclusive<CPU>.use(.PM_HANDLE_CPU, cpu) { (_, cpu) throws(Refusal) in
    cpu.putPage(try block(pfn, order: 0, of: cpu.machine))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_get_page(_ machine: OpaquePointer!, _ pfn: UInt64) -> Int32 {
  answer { () throws(Refusal) in
    let machine = try Handle.machine(machine).machine
    machine.frames.getPage(try block(pfn, order: 0, of: machine))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_try_get_page(_ machine: OpaquePointer!, _ pfn: UInt64) -> Int32 {
  answer { () throws(Refusal) in
    let machine = try Handle.machine(machine).machine
    let head = machine.frames.compoundHead(of: try block(pfn, order: 0, of: machine))
    return machine.frames.getPageUnlessZero(head) ? 1 : 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_page_refcount(
  _ machine: OpaquePointer!, _ pfn: UInt64, _ count: UnsafeMutablePointer<Int32>!
) -> Int32 {
  answer { () throws(Refusal) in
    let machine = try Handle.machine(machine).machine
    guard let count else { throw .null("count") }
    count.pointee = machine.frames.refcount(try block(pfn, order: 0, of: machine))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_ref_table(
  _ machine: OpaquePointer!, _ table: UnsafeMutablePointer<pm_ref_table_info>!
) -> Int32 {
  Handle.answer(machine, table) { (object, table) throws(Refusal) in
    let frames = object.machine.frames
    table.pointee.stride = UInt32(frames.refcountLayout.stride)
    table.pointee.base = UnsafeRawPointer(frames.counts.base)
    table.pointee.first_pfn = 0
    table.pointee.count = UInt64(frames.frameCount)
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_report_free_pages(
  _ cpu: OpaquePointer!, _ minOrder: UInt32, _ maxBytes: UInt64,
  _ reported: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  Exclusive<CPU>.use(.PM_HANDLE_CPU, cpu) { (object, cpu) throws(Refusal) in
    guard let reported else { throw .null("reported") }
    guard minOrder <= UInt32(Order.max) else {
      throw Refusal(EINVAL, "min_order \(minOrder): expected 0 to \(Order.max)")
    }
    do throws(GuestMemoryError) {
      reported.pointee = try object.owner.memory.reportFreePages(
        minOrder: Int(minOrder), maxByteCount: maxBytes, on: &cpu)
    } catch { throw Refusal(error) }
    return 0
  }
}

/// The first frame of a block of the machine; what the allocator would stop the process for is refused.
@inline(__always)
private func block(_ pfn: UInt64, order: UInt32, of machine: Machine) throws(Refusal) -> PFN {
  guard pfn < UInt64(machine.frames.frameCount), order <= UInt32(Order.max),
    pfn & (1 << UInt64(order) - 1) == 0
  else { throw blockRefusal(pfn, order: order, of: machine) }
  let first = PFN(UInt32(truncatingIfNeeded: pfn))
  let last = pfn + (1 << UInt64(order)) - 1
  guard let zone = machine.zone(of: first), last < UInt64(machine.frames.frameCount),
    order == 0 || machine.zone(of: PFN(UInt32(truncatingIfNeeded: last))) == zone
  else { throw blockRefusal(pfn, order: order, of: machine) }
  return first
}

@inline(never)
private func blockRefusal(_ pfn: UInt64, order: UInt32, of machine: Machine) -> Refusal {
  Refusal(
    EINVAL,
    "pfn 0x\(String(pfn, radix: 16)) is not the first of 2^\(order) frames of one zone: the "
      + "machine has frames 0 to 0x\(String(machine.frames.frameCount - 1, radix: 16)), orders "
      + "are 0 to \(Order.max)")
}
