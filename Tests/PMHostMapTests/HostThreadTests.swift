import Foundation
import PMFrames
import PMPageAllocator
import PMUnits
import Testing

@testable import PMHostMap

/// Two CPUs that fault on the same pages at the same time.
@Suite struct HostThreadTests {
  /// What went wrong, from any thread.
  private final class Failures: @unchecked Sendable {
    // Sendable: `lock` is held around every access.
    private let lock = NSLock()
    private var texts: [String] = []
    func add(_ text: String) { lock.withLock { texts.append(text) } }
    var all: [String] { lock.withLock { texts } }
  }

  /// Runs a body on two CPUs at once.
  private func onBoth(
    _ machine: Machine, _ failures: Failures,
    _ body: @escaping @Sendable (Int, inout CPU) throws -> Void
  ) {
    let group = DispatchGroup()
    for index in 0..<2 {
      group.enter()
      Thread.detachNewThread {
        do {
          var cpu = try machine.claimCPU(index)
          try body(index, &cpu)
        } catch {
          failures.add("\(error)")
        }
        group.leave()
      }
    }
    group.wait()
  }

  @Test func `Faults of two CPUs on the same pages leave no reference and no page behind`() throws {
    let machine = try Machine(MachineDescription(memory: .mib(64), cpus: 2))
    let ledger = ReferenceLedger()
    let failures = Failures()
    let (kernel, before) = try {
      var cpu = try machine.claimCPU(0)
      let kernel = try HostKernel(
        machine: machine, behaviour: HostBehaviour(transparentHugePages: .always),
        hugePageCount: 6, ledger: ledger, on: &cpu)
      return (kernel, machine.freePageCount)
    }()
    for round in 0..<8 {
      let process = HostProcess(kernel: kernel)
      let child: HostProcess
      let files = [HostFile.Kind.tmpfs, .disk, .tmpfs, .hugetlb].map {
        HostFile(kernel: kernel, kind: $0, byteCount: 0x20_0000)
      }
      var bases: [UInt64] = []
      let (quick, large): (UInt64, UInt64)
      do {
        var cpu = try machine.claimCPU(0)
        for (index, file) in files.enumerated() {
          bases.append(
            try process.map(
              HostProcess.MapRequest(
                byteCount: 0x20_0000, isShared: index != 2, backing: .file(file)), on: &cpu))
        }
        bases.append(
          try process.map(HostProcess.MapRequest(byteCount: 0x20_0000), on: &cpu))
        bases.append(
          try process.map(
            HostProcess.MapRequest(byteCount: 0x20_0000, extra: .hugetlb), on: &cpu))
        bases.append(
          try process.map(
            HostProcess.MapRequest(byteCount: 0x20_0000, extra: .noHugePage), on: &cpu))
        quick = try process.map(
          HostProcess.MapRequest(byteCount: 0x20_0000, extra: .noHugePage), on: &cpu)
        large = try process.map(HostProcess.MapRequest(byteCount: 0x20_0000), on: &cpu)
        if round % 2 == 1 {
          for base in bases { try process.write32(base, 1, on: &cpu) }
        }
        child = process.fork(on: &cpu)
      }
      let addresses = bases
      onBoth(machine, failures) { index, cpu in
        for page in 0..<32 {
          for base in addresses {
            let address = base + UInt64(page) << 12 + UInt64(index) * 8
            try process.write32(address, UInt32(page), on: &cpu)
            let value = try process.read32(address, on: &cpu)
            if value != UInt32(page) { failures.add("\(page) reads \(value)") }
            let noise = process.id & 1 == 0 ? quick : large
            try process.write32(noise, 3, on: &cpu)
            if page % 4 == index { try process.discard(noise..<noise + 0x20_0000, on: &cpu) }
            let holder = Holder.pin("thread \(index)")
            if let found = process.getUserPageFast(address, [.pin, .write], holder, on: &cpu) {
              process.release(found, .pin, holder, on: &cpu)
            }
          }
        }
      }
      var cpu = try machine.claimCPU(0)
      child.exit(on: &cpu)
      process.exit(on: &cpu)
      for file in files { file.discard(on: &cpu) }
      kernel.drainLRUBatches(on: &cpu)
      var other = try machine.claimCPU(1)
      kernel.drainLRUBatches(on: &other)
    }
    #expect(failures.all == [])
    let own = ledger.pages.filter { kernel.isHugeZeroPage($0) }
    #expect(ledger.pages == ([kernel.zeroPage] + own).sorted())
    for page in ledger.pages where page != kernel.zeroPage {
      #expect(ledger.count(of: page) == 1, "\(ledger.holders(of: page))")
    }
    #expect(ledger.unmatchedPuts == [])
    #expect(kernel.freeHugePageCount == 6)
    #expect(machine.freePageCount == before - Int64(own.count * 512))
    #expect(machine.findings.findings == [] && machine.invariantViolations() == [])
  }
}
