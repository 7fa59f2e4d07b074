import PMArena
import PMGuestMap
import PMHostMap
import PMPageAllocator
import PMUnits

// The input is a list of records of 32 bytes, each the argument of KVM_SET_USER_MEMORY_REGION, with one
// guest access after each. What must hold: no crash, and slots that stay sorted and disjoint.

/// Reads little-endian words off the input.
struct Words {
  let bytes: UnsafeBufferPointer<UInt8>
  var place = 0

  mutating func next() -> UInt64? {
    guard place + 8 <= bytes.count else { return nil }
    defer { place += 8 }
    return (0..<8).reduce(0) { $0 | UInt64(bytes[place + $1]) << UInt64(8 * $1) }
  }
}

/// One run: the entry that libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ size: Int) -> Int32 {
  guard size > 0 else { return 0 }
  do {
    try run(UnsafeBufferPointer(start: data, count: size))
  } catch {
    fatalError("the machine itself failed: \(error)")
  }
  return 0
}

func run(_ input: UnsafeBufferPointer<UInt8>) throws {
  var words = Words(bytes: UnsafeBufferPointer(rebasing: input.dropFirst()))
  let machine = try Machine(MachineDescription(memory: .mib(16)))
  var cpu = try machine.claimCPU(0)
  let kernel = try HostKernel(machine: machine, on: &cpu)
  let process = HostProcess(kernel: kernel)
  let base = try process.map(.init(byteCount: 1 << 20), on: &cpu)
  let eras = KernelModel.KVM.allCases
  let vm = try VirtualMachine(
    process: process,
    configuration: .init(
      capabilities: input[0] & 0x40 == 0
        ? .linux61(fiveLevel: true, physicalAddressBits: 40) : .linux618,
      mmu: input[0] & 0x80 == 0 ? .tdp : .shadow, era: eras[Int(input[0]) % eras.count]))
  let vcpu = try VCPU(vm)
  while let first = words.next(), let gpa = words.next(), let length = words.next(),
    var address = words.next()
  {
    // Half of the records get an address inside the mapping, or nothing would ever be reached.
    if address & 1 == 0 { address = base &+ (address & 0xf_f000) }
    let region = MemoryRegion(
      slot: UInt32(truncatingIfNeeded: first), flags: UInt32(truncatingIfNeeded: first >> 32),
      guestPhysicalAddress: gpa, memorySize: length & 1 == 0 ? length & 0xff_f000 : length,
      userspaceAddress: address)
    do throws(KernelErrno) {
      try vm.setUserMemoryRegion(region, on: &cpu)
    } catch {
      // An error number is an answer.
    }
    let byteCount = Int(first >> 60) % 8 + 1
    _ = vcpu.read(gpa &+ (address & 0xffff), byteCount: byteCount, on: &cpu)
    vcpu.write(gpa &+ (length & 0xffff), byteCount: byteCount, value: address, on: &cpu)
  }
  check(vm)
  vm.close(on: &cpu)
  process.exit(on: &cpu)
  let violations = machine.invariantViolations()
  precondition(violations.isEmpty, "\(violations)")
}

func check(_ vm: VirtualMachine) {
  for space in vm.memslots.spaces {
    for (lower, upper) in zip(space.slots, space.slots.dropFirst()) {
      precondition(lower.endGFN <= upper.baseGFN, "slots \(lower.id) and \(upper.id) overlap")
    }
  }
  precondition(vm.staleTranslations().isEmpty, "\(vm.staleTranslations())")
}
