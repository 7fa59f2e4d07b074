import PMArena
import PMGuestMap
import PMHostMap
import PMPageAllocator
import PMUnits

// The input is a list of operations of 8 bytes on one process and its VM: guest accesses at arbitrary
// addresses, host mappings that come and go, dirty logs. What must hold: no crash, no stale translation,
// and at the end every reference is back.

/// One run: the entry that libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ size: Int) -> Int32 {
  guard size > 8 else { return 0 }
  do {
    let run = try GuestRun(UnsafeBufferPointer(start: data, count: size))
    run.play()
  } catch {
    fatalError("the machine itself failed: \(error)")
  }
  return 0
}

final class GuestRun {
  static let pages: UInt64 = 1024
  static let slotGPA: UInt64 = 0x4000_0000

  let input: UnsafeBufferPointer<UInt8>
  let machine: Machine
  var cpu: CPU
  let kernel: HostKernel
  let ledger = ReferenceLedger()
  let process: HostProcess
  let base: UInt64
  let vm: VirtualMachine
  let vcpu: VCPU

  init(_ input: UnsafeBufferPointer<UInt8>) throws {
    self.input = input
    let machine = try Machine(MachineDescription(memory: .mib(32)))
    var cpu = try machine.claimCPU(0)
    kernel = try HostKernel(
      machine: machine, hugePageCount: 2, ledger: ledger, on: &cpu)
    process = HostProcess(kernel: kernel)
    base = try process.map(.init(byteCount: GuestRun.pages << 12), on: &cpu)
    let eras = KernelModel.KVM.allCases
    vm = try VirtualMachine(
      process: process,
      configuration: .init(
        capabilities: .linux618, mmu: input[0] & 4 == 0 ? .tdp : .shadow,
        era: eras[Int(input[0]) % eras.count]))
    vcpu = try VCPU(vm)
    self.machine = machine
    self.cpu = cpu
    try vm.setUserMemoryRegion(
      MemoryRegion(
        slot: 1, flags: UInt32(input[1] & 3), guestPhysicalAddress: GuestRun.slotGPA,
        memorySize: GuestRun.pages << 12, userspaceAddress: base), on: &self.cpu)
  }

  func play() {
    var place = 8
    while place + 8 <= input.count {
      let word = (0..<8).reduce(UInt64(0)) { $0 | UInt64(input[place + $1]) << UInt64(8 * $1) }
      place += 8
      do throws(KernelErrno) {
        try perform(word)
      } catch {
        // An error number is an answer.
      }
    }
    precondition(vm.staleTranslations().isEmpty, "\(vm.staleTranslations())")
    vm.close(on: &cpu)
    process.exit(on: &cpu)
    kernel.drainLRUBatches(on: &cpu)
    precondition(ledger.unmatchedPuts.isEmpty, "\(ledger.unmatchedPuts)")
    let violations = machine.invariantViolations()
    precondition(violations.isEmpty, "\(violations)")
  }

  private func perform(_ word: UInt64) throws(KernelErrno) {
    let first = (word >> 8) % GuestRun.pages
    let count = min(GuestRun.pages - first, (word >> 24) % 600 + 1)
    let range = (base + first << 12)..<(base + (first + count) << 12)
    let byteCount = Int(word >> 40) % 8 + 1
    let gpa = GuestRun.slotGPA &+ (word >> 8) & 0x5f_ffff
    switch word % 12 {
    case 0, 1: _ = vcpu.read(gpa, byteCount: byteCount, on: &cpu)
    case 2, 3: vcpu.write(gpa, byteCount: byteCount, value: word, on: &cpu)
    case 4: try process.discard(range, on: &cpu)
    case 5: try process.protect(range, rights: VMAFlags(rawValue: UInt32(word >> 48) & 7), on: &cpu)
    case 6: try process.unmap(range, on: &cpu)
    case 7:
      let isHuge = word >> 50 & 1 != 0
      try process.map(
        .init(
          byteCount: count << 12, address: range.lowerBound, isShared: word >> 51 & 1 != 0,
          extra: isHuge ? .hugePage : []), on: &cpu)
    case 8: try process.adviseHugePages(range, word >> 50 & 1 != 0, on: &cpu)
    case 9:
      try vm.setUserMemoryRegion(
        MemoryRegion(
          slot: 1, flags: UInt32(word >> 48) & 3, guestPhysicalAddress: GuestRun.slotGPA,
          memorySize: GuestRun.pages << 12, userspaceAddress: base), on: &cpu)
    case 10:
      var log = [UInt64](repeating: 0, count: Int(GuestRun.pages / 64))
      var failure: KernelErrno?
      log.withUnsafeMutableBufferPointer { buffer in
        do throws(KernelErrno) {
          try vm.getDirtyLog(slot: 1, into: buffer, on: &cpu)
        } catch {
          failure = error
        }
      }
      if let failure { throw failure }
    default: _ = vcpu.read(word, byteCount: byteCount, on: &cpu)
    }
  }
}
