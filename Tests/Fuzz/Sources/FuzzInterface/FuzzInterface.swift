import CPhysmemABI
import Glibc

// The input is a sequence of calls of physmem.h: any handles (open, closed, of another kind, made up), sizes and
// addresses, devices that call back into the interface. What must hold: no crash, nothing accessed that is not
// ours, a sentence to each error, and an open machine that still works.

/// One run: the entry that libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ size: Int) -> Int32 {
  var run = Run(UnsafeBufferPointer(start: data, count: size))
  run.play()
  return 0
}

/// What the devices of a run know. One thread runs at a time.
nonisolated(unsafe) private var current: OpaquePointer?
nonisolated(unsafe) private var depth = 0

private let readDevice:
  @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt32, UnsafeMutablePointer<UInt64>?) -> Int32 =
    { opaque, offset, width, value in
      value?.pointee = offset
      switch UInt(bitPattern: opaque) & 7 {
      case 1: return -EAGAIN
      case 2: return Int32.min
      case 3: return 1
      case 4 where depth < 3:
        // Back into the interface.
        depth += 1
        defer { depth -= 1 }
        return pm_load(current, offset &* 4096, width, value)
      case 5: return pm_close(current)
      default: return 0
      }
    }

private let writeDevice:
  @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt32, UInt64) -> Int32 =
    { opaque, offset, width, value in
      switch UInt(bitPattern: opaque) & 7 {
      case 1: return -EAGAIN
      case 2: return Int32.min
      case 4 where depth < 3:
        depth += 1
        defer { depth -= 1 }
        return pm_store(current, offset &* 4096, width, value)
      case 5: return pm_region_remove(current, value)
      default: return 0
      }
    }

private struct Run {
  private var input: UnsafeBufferPointer<UInt8>.SubSequence
  private var machines: [OpaquePointer?] = []
  private var cpus: [OpaquePointer?] = []
  private var harvests: [OpaquePointer?] = []
  private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 65536, alignment: 64)

  init(_ input: UnsafeBufferPointer<UInt8>) { self.input = input[...] }

  mutating func play() {
    // One that is there in any case, and stays.
    var machine: OpaquePointer?
    precondition(pm_open(16 << 20, &machine) == 0, String(cString: pm_last_error()))
    machines.append(machine)
    buffer.initializeMemory(as: UInt8.self, repeating: 0x5a)
    while !input.isEmpty {
      let result = perform()
      precondition(result >= -4095, "\(result) is no error number")
      if result < 0 { precondition(pm_last_error()[0] != 0, "an error without a sentence") }
    }
    for machine in machines { _ = pm_close(machine) }
    for cpu in cpus { precondition(pm_cpu_release(cpu) == -EBADF) }
    for harvest in harvests { precondition(pm_dirty_abort(harvest) == -EBADF) }
    buffer.deallocate()
  }

  // MARK: values

  private mutating func byte() -> UInt8 { input.popFirst() ?? 0 }

  private mutating func word() -> UInt64 {
    (0..<8).reduce(0) { value, _ in value << 8 | UInt64(byte()) }
  }

  /// Mostly near what is there.
  private mutating func address() -> UInt64 {
    let kind = byte()
    let near = UInt64(byte()) << 12 &+ UInt64(byte() & 15) &- 8
    switch kind % 8 {
    case 0: return word()
    case 1: return (16 << 20) &+ near &- (128 << 12)
    case 2: return UInt64(1 << 52) &- near
    case 3: return 0 &- near
    case 4: return 0x4000_0000 &+ near
    case 5: return UInt64(byte()) << 12
    default: return near
    }
  }

  /// At most what the buffer has, or more than can be.
  private mutating func count() -> UInt64 {
    switch byte() % 8 {
    case 0: return word() | 1 << 53
    case 1: return 65536
    case 2: return UInt64(byte()) << 8
    default: return UInt64(byte())
    }
  }

  /// Sizes of regions and ranges: few, so that they meet.
  private mutating func length() -> UInt64 {
    let choices: [UInt64] = [
      0, 1, 8, 4096, 8192, 65536, 2 << 20, 64 << 20, 1 << 52, 1 << 63, .max, .max - 4095,
    ]
    let choice = Int(byte())
    return choice < 200 ? choices[choice % choices.count] : UInt64(byte()) << 12
  }

  private mutating func pick(_ handles: [OpaquePointer?]) -> OpaquePointer? {
    let choice = byte()
    switch choice {
    case 0: return nil
    case 1: return OpaquePointer(bitPattern: UInt(word()))
    case 2: return machines.randomly(byte())
    case 3: return cpus.randomly(byte())
    case 4: return harvests.randomly(byte())
    default: return handles.randomly(choice)
    }
  }

  private mutating func machine() -> OpaquePointer? { pick(machines) }

  // MARK: calls

  private mutating func perform() -> Int32 {
    let call = byte()
    switch call % 4 {
    case 0: return performOnMachines(call >> 2)
    case 1: return performAccess(call >> 2)
    case 2: return performOnPages(call >> 2)
    default: return performOnDirt(call >> 2)
    }
  }

  private mutating func performOnMachines(_ call: UInt8) -> Int32 {
    switch call % 13 {
    case 0:
      guard machines.count < 4 else { return 0 }
      var options = pm_options()
      options.size = byte() < 250 ? UInt32(MemoryLayout<pm_options>.size) : UInt32(byte())
      options.memory = [4 << 20, 16 << 20, (4 << 20) + 4096, 0, .max][Int(byte() % 5)]
      options.backing = byte() < 200 ? UInt32(byte() % 5) : UInt32(truncatingIfNeeded: word())
      options.huge_page_size = byte() < 200 ? 0 : length()
      options.numa_node = byte() < 200 ? -1 : Int32(truncatingIfNeeded: word())
      options.cpus = byte() < 200 ? UInt32(byte() % 4) + 1 : UInt32(truncatingIfNeeded: word())
      options.flags = UInt32(byte() & 6)
      options.kvm_model = UInt32(byte() % 6)
      options.free_pages_model = UInt32(byte() % 5)
      options.refcount_layout = UInt32(byte() % 3)
      var made: OpaquePointer?
      let isNull = byte() == 0
      let result = pointer(&options, isNull) { pm_open_options($0, &made) }
      if result == 0 { machines.append(made) }
      return result
    case 12:
      guard machines.count < 4 else { return 0 }
      var made: OpaquePointer?
      let result = pm_fork(machine(), &made)
      if result == 0 { machines.append(made) }
      return result
    case 1:
      // The first is to be there at the end, for the check that all still works.
      return byte() < 64 ? pm_close(machine()) : 0
    case 2:
      var info = pm_machine_info()
      info.size = byte() < 250 ? UInt32(MemoryLayout<pm_machine_info>.size) : UInt32(byte())
      let (machine, isNull) = (machine(), byte() == 0)
      return pointer(&info, isNull) { pm_machine_get_info(machine, $0) }
    case 3:
      return min(0, pm_finding(machine(), UInt64(byte()), text(), Int(truncatingIfNeeded: count())))
    case 4:
      var regions = [pm_region](repeating: pm_region(), count: 8)
      regions[0].size = byte() < 250 ? UInt32(MemoryLayout<pm_region>.size) : UInt32(byte())
      var found = UInt32(byte() % 9)
      let (machine, isNull) = (machine(), byte() == 0)
      return pointer(&found, isNull) { pm_regions(machine, &regions, $0) }
    case 5, 6:
      var region = pm_region()
      region.size = byte() < 250 ? UInt32(MemoryLayout<pm_region>.size) : UInt32(byte())
      region.kind = UInt32(byte() % 5)
      region.gpa = address() & (byte() < 200 ? ~4095 : .max)
      region.len = length()
      region.fd = byte() < 200 ? -1 : Int32(truncatingIfNeeded: word())
      // A descriptor that is open belongs to the fuzzer.
      if region.fd >= 0 { region.fd |= 0x1000_0000 }
      region.numa_node = byte() < 200 ? -1 : Int32(truncatingIfNeeded: word())
      region.page_size = byte() < 200 ? 4096 : length()
      region.backing = UInt32(byte() % 5)
      return pm_region_add(machine(), &region)
    case 7: return pm_region_remove(machine(), address() & ~4095)
    case 8, 9:
      var ops = pm_mmio_ops()
      ops.size = byte() < 250 ? UInt32(MemoryLayout<pm_mmio_ops>.size) : UInt32(byte())
      if byte() & 7 != 0 { ops.read = readDevice }
      if byte() & 7 != 0 { ops.write = writeDevice }
      return pm_mmio_add(
        machine(), address() & ~7, length(), &ops, UnsafeMutableRawPointer(bitPattern: UInt(byte()))
      )
    case 10: return min(0, pm_qemu_args(machine(), text(), Int(truncatingIfNeeded: count())))
    default:
      // No descriptor of the fuzzer's, and never a virtual machine.
      let file = Int32(truncatingIfNeeded: word()) | 0x1000_0000
      let slot = UInt32(truncatingIfNeeded: word())
      switch byte() % 4 {
      case 0: return pm_map_kvm(machine(), file, slot, UInt32(byte() % 3))
      case 1: return pm_unmap_kvm(machine(), file, slot)
      case 2: return pm_collect_kvm(machine(), file, slot)
      default: return pm_vhost_user_add(machine(), file, UInt32(byte() % 5))
      }
    }
  }

  private mutating func text() -> UnsafeMutablePointer<CChar>? {
    byte() == 0 ? nil : buffer.baseAddress?.assumingMemoryBound(to: CChar.self)
  }

  private mutating func performAccess(_ call: UInt8) -> Int32 {
    let machine = machine()
    let address = address()
    let count = Int(bitPattern: UInt(count()))
    let data = byte() == 0 ? nil : buffer.baseAddress
    current = machine
    var value = word()
    let width = UInt32([1, 2, 4, 8, 3, 0][Int(byte() % 6)])
    var host: UnsafeMutableRawPointer?
    switch call % 14 {
    case 0: return pm_read(machine, address, data, count)
    case 1: return pm_write(machine, address, data, count)
    case 2: return pm_rom_write(machine, address, data, count)
    case 3:
      return pm_fill(
        machine, address, UInt8(truncatingIfNeeded: value), UInt64(UInt(bitPattern: count)))
    case 4, 5: return pointer(&value, data == nil) { pm_load(machine, address, width, $0) }
    case 6: return pm_store(machine, address, width, value)
    case 7: return pm_atomic_load(machine, address, width, &value)
    case 8: return pm_atomic_store(machine, address, width, value)
    case 9:
      let desired = word()
      return pointer(&value, data == nil) { pm_atomic_cas(machine, address, width, $0, desired) }
    case 10:
      let length = length()
      let prot = UInt32(byte() % 10)
      let result = pm_translate(machine, address, length, prot, &host)
      if result == 0, let host {
        // What is handed out is there.
        _ = host.load(as: UInt8.self)
        _ = (host + Int(length) - 1).load(as: UInt8.self)
      }
      return result
    case 11: return pm_translate_host(machine, UnsafeRawPointer(bitPattern: UInt(value)), &value)
    case 12: return pm_regions_generation(machine, &value)
    default:
      return pm_translate(machine, address, 1, 1, &host) == 0
        ? pm_translate_host(machine, host, &value) : 0
    }
  }

  private mutating func performOnPages(_ call: UInt8) -> Int32 {
    let pfn = byte() < 200 ? UInt64(byte()) << 4 | UInt64(byte() & 15) : word()
    let order = byte() < 220 ? UInt32(byte() % 11) : UInt32(truncatingIfNeeded: word())
    var found: UInt64 = 0
    var number: Int32 = 0
    switch call % 11 {
    case 0:
      var cpu: OpaquePointer?
      let result = pm_cpu_claim(machine(), UInt32(byte() % 5), &cpu)
      if result == 0 { cpus.append(cpu) }
      return result
    case 1: return byte() < 64 ? pm_cpu_release(pick(cpus)) : 0
    case 2, 3:
      let gfp = byte() < 128 ? 0xcc0 : UInt32(truncatingIfNeeded: word())
      let node = byte() < 200 ? -1 : Int32(truncatingIfNeeded: word())
      return pm_alloc_pages(pick(cpus), order, gfp, node, &found)
    case 4, 5:
      return pm_free_pages(pick(cpus), pfn & (byte() < 200 ? ~0 << UInt64(order & 15) : ~0), order)
    case 6: return pm_put_page(pick(cpus), pfn)
    case 7: return pm_get_page(machine(), pfn)
    case 8: return pm_try_get_page(machine(), pfn)
    case 9: return pm_page_refcount(machine(), pfn, &number)
    default:
      var table = pm_ref_table_info()
      table.size = UInt32(byte() < 250 ? MemoryLayout<pm_ref_table_info>.size : 0)
      if byte() & 1 == 0 { return pm_ref_table(machine(), &table) }
      return pm_report_free_pages(pick(cpus), order, length(), &found)
    }
  }

  private mutating func performOnDirt(_ call: UInt8) -> Int32 {
    var first = address()
    var second: UInt64 = 0
    switch call % 11 {
    case 0: return pm_dirty_enable(machine())
    case 1: return pm_dirty_disable(machine())
    case 2: return pm_dirty_mark(machine(), first, length())
    case 3:
      var harvest: OpaquePointer?
      let result = pm_dirty_begin(machine(), &harvest)
      if result == 0 { harvests.append(harvest) }
      return result
    case 4: return pm_dirty_count(pick(harvests), &second)
    case 5, 6:
      let (harvest, isNull) = (pick(harvests), byte() == 0)
      let result = pointer(&second, isNull) { pm_dirty_next(harvest, &first, $0) }
      if result == 1 { precondition(second > 0 && first &+ second > first) }
      return result
    case 7: return pm_dirty_commit(pick(harvests))
    case 8: return pm_dirty_abort(pick(harvests))
    case 9:
      return byte() & 1 == 0
        ? pm_balloon_inflate(machine(), first & ~4095, length())
        : pm_balloon_deflate(machine(), first, length())
    default:
      var result = pm_merge_result()
      result.size = UInt32(byte() < 250 ? MemoryLayout<pm_merge_result>.size : 0)
      guard byte() < 32 else { return 0 }
      let (machine, isNull) = (machine(), byte() & 1 == 0)
      return pointer(&result, isNull) { pm_merge(machine, $0) }
    }
  }
}

/// Lends the address of a value, or NULL.
private func pointer<Value>(
  _ value: inout Value, _ isNull: Bool, _ body: (UnsafeMutablePointer<Value>?) -> Int32
) -> Int32 {
  isNull ? body(nil) : withUnsafeMutablePointer(to: &value) { body($0) }
}

extension [OpaquePointer?] {
  fileprivate func randomly(_ choice: UInt8) -> OpaquePointer? {
    isEmpty ? nil : self[Int(choice) % count]
  }
}
