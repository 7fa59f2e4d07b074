import Foundation
import PMFrames
import PMPageAllocator
import Testing

@testable import PMStress

/// Short runs of everything: what is found in them would be found by anybody. Also to be run with the
/// thread sanitizer.
@Suite(.serialized) struct StressRunTests {
  private static let seed: UInt64 =
    ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
    ?? UInt64.random(in: 1...999_999_999)

  private func run(
    _ kind: StressKind, _ change: (inout StressOptions) -> Void = { _ in }
  ) -> StressReport {
    var options = StressOptions()
    options.kinds = [kind]
    options.byteCount = 8 << 20
    options.seconds = 1
    options.seed = Self.seed
    change(&options)
    print("StressRunTests: \(kind), seed \(options.seed)")
    let report = StressRunner(options).run()
    print(report)
    return report
  }

  @Test(arguments: StressKind.allCases)
  func `A sound engine stands it`(_ kind: StressKind) {
    let report = run(kind)
    #expect(report.failures == [])
    #expect(report.operations > 100, "nothing was done")
    #expect(report.kinds[0].rounds >= 1)
  }

  @Test(arguments: StressKind.allCases, [KernelModel.KVM.a0, .a, .c])
  func `Injected faults lose nothing in sound eras`(_ kind: StressKind, _ era: KernelModel.KVM) {
    let report = run(kind) {
      $0.faults = .usual
      $0.faults.killVCPUEvery = 500
      $0.era = era
      // Steps and not time: on a busy machine as much is done.
      $0.iterations = kind == .refcount || kind == .alloc ? 20_000 : 4000
      $0.seconds = StressOptions.noLimit
    }
    #expect(report.failures == [])
    if kind != .refcount, kind != .alloc {
      #expect(report.kinds[0].operations["killed", default: 0] > 0, "no vCPU was killed")
    }
  }

  @Test(arguments: [
    StressBacking.anonymousTHP, .anonymousHugeTLB, .shmem, .sharedHugeTLB,
  ])
  func `Every backing stands it`(_ backing: StressBacking) {
    for kind in [StressKind.map, .memslot, .dirty] {
      let report = run(kind) {
        $0.backing = backing
        $0.seconds = 0.3
      }
      #expect(report.failures == [])
      #expect(report.kinds[0].skipped == nil)
    }
  }

  @Test(arguments: [StressKind.refcount, .alloc, .map])
  func `Counts on lines of their own stand it`(_ kind: StressKind) {
    let report = run(kind) {
      $0.refcountLayout = .strided
      $0.iterations = 2000
      $0.seconds = StressOptions.noLimit
    }
    #expect(report.failures == [])
    #expect(report.operations > 100, "nothing was done")
  }

  @Test func `A round ends after its iterations`() {
    let report = run(.alloc) {
      $0.iterations = 20_000
      $0.threads = 3
      $0.seconds = StressOptions.noLimit
    }
    #expect(report.failures == [])
    #expect(report.kinds[0].rounds == 1)
    // Every step is one operation, or one that found nothing to do.
    #expect(report.operations <= 3 * 20_000 * 64)
    #expect(report.operations > 3 * 5000)
  }

  @Test func `An interrupted run tells what was done`() {
    var options = StressOptions()
    options.kinds = [.refcount]
    options.seconds = 60
    options.seed = Self.seed
    let control = StressControl()
    let watcher = Thread {
      while control.operations == 0 { sched_yield() }
      control.interrupt()
    }
    watcher.start()
    let report = StressRunner(options, control: control).run()
    #expect(report.isInterrupted)
    #expect(report.operations > 0)
    #expect(report.failures == [])
  }

  @Test func `Memory that the emulated host does not have is said, not simulated`() {
    let report = run(.map) { $0.backing = .anonymousHugeTLB1GiB }
    #expect(report.isSkipped)
    #expect(report.kinds[0].skipped?.contains("2 MiB") == true)
  }

  @Test func `A failure names the command that repeats its round`() {
    var options = StressOptions()
    options.faults = .usual
    options.era = .a0
    options.backing = .shmem
    options.refcountLayout = .strided
    let failure = StressFailure(kind: .dirty, seed: 42, thread: nil, step: nil, message: "")
    #expect(
      options.command(for: failure)
        == "physmem stress dirty --seed 42 -v 2 -t 2 -b 67108864 -s shmem --seconds 10.0 "
        + "--era A0 --refcount-layout strided --fail-page-alloc 97,50,0,-1 --delay-notifier 50 --kill-vcpu 20000"
    )
  }

  @Test func `Options out of range are refused`() {
    let wrong: [(String, (inout StressOptions) -> Void)] = [
      ("kind", { $0.kinds = [] }), ("vCPUs", { $0.vcpus = 0 }), ("threads", { $0.threads = 300 }),
      ("bytes", { $0.byteCount = 4096 }), ("iterations", { $0.iterations = 0 }),
      ("seconds", { $0.seconds = .nan }),
      (
        "interval",
        { $0.faults.failPageAlloc = .init(interval: 0, probability: 1, space: 0, times: 1) }
      ),
      (
        "probability",
        { $0.faults.failPageAlloc = .init(interval: 1, probability: 101, space: 0, times: 1) }
      ),
    ]
    #expect(StressOptions().problem == nil)
    for (word, change) in wrong {
      var options = StressOptions()
      change(&options)
      #expect(options.problem?.contains(word) == true, "\(word): \(options.problem ?? "taken")")
    }
  }
}
