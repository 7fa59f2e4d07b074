// The names are those of physmem.h, which also says what the functions do.
// swift-format-ignore-file: AlwaysUseLowerCamelCase

public import CPhysmemABI
internal import CPhysmemShim
internal import Glibc
internal import Physmem

/// As physmem.h has it.
@c @implementation
public func pm_dirty_enable(_ machine: OpaquePointer!) -> Int32 {
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.startTrackingDirtyPages()
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_disable(_ machine: OpaquePointer!) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    do throws(GuestMemoryError) { try object.memory.stopTrackingDirtyPages() } catch {
      if error == .notTracking { throw Refusal(EALREADY, "\(error)") }
      throw Refusal(error)
    }
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_mark(_ machine: OpaquePointer!, _ gpa: UInt64, _ len: UInt64) -> Int32 {
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.markDirty(try range(gpa, len))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_begin(
  _ machine: OpaquePointer!, _ harvest: UnsafeMutablePointer<OpaquePointer?>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    guard let harvest else { throw .null("harvest") }
    harvest.pointee = try beginHarvest(object)
    return 0
  }
}

private func beginHarvest(_ object: MachineObject) throws(Refusal) -> OpaquePointer? {
  let harvest: DirtyHarvest
  do throws(GuestMemoryError) { harvest = try object.memory.beginHarvest() } catch {
    throw Refusal(error)
  }
  let runs = harvest.runs
  return try Exclusive<DirtyHarvest>.name(
    .PM_HANDLE_HARVEST, harvest, owner: object, runs: runs)
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_count(
  _ harvest: OpaquePointer!, _ pages: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  Exclusive<DirtyHarvest>.use(.PM_HANDLE_HARVEST, harvest) { (_, harvest) throws(Refusal) in
    guard let pages else { throw .null("pages") }
    pages.pointee = UInt64(harvest.pageCount)
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_next(
  _ harvest: OpaquePointer!, _ gpa: UnsafeMutablePointer<UInt64>!,
  _ len: UnsafeMutablePointer<UInt64>!
) -> Int32 {
  Exclusive<DirtyHarvest>.use(.PM_HANDLE_HARVEST, harvest) { (object, _) throws(Refusal) in
    guard let gpa else { throw .null("gpa") }
    guard let len else { throw .null("len") }
    // The first run that ends above the address.
    var low = 0
    var high = object.runs.count
    while low < high {
      let middle = (low + high) / 2
      if object.runs[middle].end > gpa.pointee { high = middle } else { low = middle + 1 }
    }
    guard low < object.runs.count else { return 0 }
    let run = object.runs[low]
    let start = max(run.start.rawValue, gpa.pointee)
    gpa.pointee = start
    len.pointee = run.end - start
    return 1
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_commit(_ harvest: OpaquePointer!) -> Int32 {
  Exclusive<DirtyHarvest>.end(.PM_HANDLE_HARVEST, harvest) { $0.commit() }
}

/// As physmem.h has it.
@c @implementation
public func pm_dirty_abort(_ harvest: OpaquePointer!) -> Int32 {
  Exclusive<DirtyHarvest>.end(.PM_HANDLE_HARVEST, harvest) { $0.abort() }
}

// MARK: giving memory back

/// As physmem.h has it.
@c @implementation
public func pm_balloon_inflate(_ machine: OpaquePointer!, _ gpa: UInt64, _ len: UInt64) -> Int32 {
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.inflateBalloon(try range(gpa, len))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_balloon_deflate(_ machine: OpaquePointer!, _ gpa: UInt64, _ len: UInt64) -> Int32 {
  Handle.withMemory(machine) { memory throws(GuestMemoryError) in
    try memory.deflateBalloon(try range(gpa, len))
    return 0
  }
}

/// As physmem.h has it.
@c @implementation
public func pm_merge(
  _ machine: OpaquePointer!, _ result: UnsafeMutablePointer<pm_merge_result>!
) -> Int32 {
  answer { () throws(Refusal) in
    let object = try Handle.machine(machine)
    if let result { try check(size: result.pointee.size, of: pm_merge_result.self) }
    let merge: MergeResult
    do throws(GuestMemoryError) { merge = try object.memory.mergePages() } catch {
      throw Refusal(error)
    }
    if let result {
      result.pointee.reserved = 0
      result.pointee.scanned = UInt64(merge.scannedPages)
      result.pointee.zero = UInt64(merge.zeroPages)
      result.pointee.merged = UInt64(merge.mergedPages)
      result.pointee.freed = merge.freedByteCount
    }
    return 0
  }
}
