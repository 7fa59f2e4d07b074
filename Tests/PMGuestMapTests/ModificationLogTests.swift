import PMHostMap
import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// Logging by the processor's dirty bits instead of by write protection.
@Suite struct ModificationLogTests {
  private static let pages: UInt64 = 1024
  private static let gpa: UInt64 = 0x4000_0000

  private func dirty(_ vm: VirtualMachine, _ cpu: inout CPU) throws -> [Int] {
    var words = [UInt64](repeating: 0, count: Int(Self.pages / 64))
    try words.withUnsafeMutableBufferPointer { buffer in
      try vm.getDirtyLog(slot: 1, into: buffer, on: &cpu)
    }
    return (0..<Int(Self.pages)).filter { words[$0 / 64] >> UInt64($0 % 64) & 1 != 0 }
  }

  @Test(arguments: [KernelModel.KVM.a, .c], [false, true])
  func `With and without a modification log the same writes are found`(
    _ era: KernelModel.KVM, _ hasLog: Bool
  ) throws {
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    var cpu = try machine.claimCPU(0)
    let kernel = try HostKernel(machine: machine, on: &cpu)
    let process = HostProcess(kernel: kernel)
    let base = try process.map(
      .init(byteCount: Self.pages << 12, extra: .hugePage), on: &cpu)
    try process.fill(base..<(base + Self.pages << 12), 1, on: &cpu)
    var capabilities = VMCapabilities.linux618
    capabilities.hasPageModificationLog = hasLog
    let vm = try VirtualMachine(
      process: process, configuration: .init(capabilities: capabilities, era: era))
    func set(_ flags: UInt32) throws {
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: 1, flags: flags, guestPhysicalAddress: Self.gpa, memorySize: Self.pages << 12,
          userspaceAddress: base), on: &cpu)
    }
    try set(0)
    let vcpu = try VCPU(vm)
    func write(_ page: Int) {
      vcpu.write(Self.gpa + UInt64(page) << 12, byteCount: 8, value: 7, on: &cpu)
    }
    // Huge leaves first: logging must find writes below their size.
    for page in [0, 5, 700] { write(page) }
    try set(1)
    #expect(try dirty(vm, &cpu) == [])
    for page in [3, 511, 512, 513, 3] { write(page) }
    #expect(try dirty(vm, &cpu) == [3, 511, 512, 513])
    #expect(try dirty(vm, &cpu) == [])
    write(512)
    _ = vcpu.read(Self.gpa + 9 << 12, byteCount: 8, on: &cpu)
    #expect(try dirty(vm, &cpu) == [512])
    // The leaf keeps W where the processor logs, and loses it where faults do.
    let leaf = vm.translation(GFN(guestPhysicalAddress: Self.gpa) + 512)
    #expect(leaf?.spte.isWritable == hasLog)
  }
}
