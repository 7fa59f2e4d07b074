import Foundation
import PMPageAllocator
import PMRealGuest
import Testing

@testable import PMStress

/// Whether this host has what the tests need; says loudly why not, once.
private let realGuestWorks: Bool = {
  guard let reason = RealVM.unavailability() else { return true }
  print("REAL GUEST STRESS TESTS ARE SKIPPED: \(reason)")
  return false
}()

extension StressRunTests {
  /// Short rounds with real guests, ended by their accesses. In the suite of all rounds, so that nobody
  /// else has memory files of machines meanwhile.
  @Suite(
    .aloneWithKVM,
    .enabled(if: realGuestWorks, "needs /dev/kvm and a KVM that runs a user-mode guest in its MMU"))
  struct RealGuests {
    private static let seed: UInt64 =
      ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
      ?? UInt64.random(in: 1...999_999_999)

    private func plan(
      _ kind: StressKind, _ change: (inout StressOptions) -> Void = { _ in }
    ) -> StressPlan {
      var options = StressOptions()
      options.kinds = [kind]
      options.guest = .kvm
      options.byteCount = 4 << 20
      options.iterations = 20_000
      options.seconds = 60
      options.seed = Self.seed
      change(&options)
      print("RealStressTests: \(kind), seed \(options.seed), \(options.backing)")
      return StressPlan(
        kind: kind, options: options, seed: options.seed, era: .c,
        seconds: options.seconds, deadline: .now.advanced(by: .seconds(options.seconds)),
        iterations: options.iterations)
    }

    private func isPlayed(_ outcome: StressOutcome, _ plan: StressPlan) -> Bool {
      guard let reason = outcome.skipped else { return true }
      print("A REAL GUEST STRESS TEST IS SKIPPED (\(plan.options.backing)): \(reason)")
      return false
    }

    @Test(arguments: StressKind.allCases.filter(\.hasGuests), StressBacking.allCases)
    func `A sound kernel stands it`(_ kind: StressKind, _ backing: StressBacking) {
      let plan = plan(kind) {
        $0.backing = backing
        // Two regions at least, whatever the size of a page.
        if backing == .anonymousHugeTLB1GiB { $0.byteCount = 2 << 30 }
      }
      let control = StressControl()
      let outcome = RealStress.run(plan, control: control)
      guard isPlayed(outcome, plan) else {
        // Only pages of the pool may be missing.
        #expect(backing != .anonymous && backing != .anonymousTHP && backing != .shmem)
        return
      }
      #expect(control.failures == [])
      print(outcome.operations)
      let done = ["read", "write", "exitMMIO", "exitFault", "ringFull"].reduce(0) {
        $0 + outcome.operations[$1, default: 0]
      }
      #expect(done >= 2 * 20_000, "every access ends in one of these ways")
      let exact = done - outcome.operations["unsettled", default: 0]
      #expect(exact > 0, "none of \(done) accesses could be judged exactly")
      switch kind {
      case .map:
        let changes = ["discard", "zap", "protect", "unmap", "map", "migrate", "log", "harvest"]
        #expect(changes.contains { outcome.operations[$0, default: 0] > 0 })
      case .memslot: #expect(outcome.operations["exitMMIO", default: 0] > 0)
      default: #expect(outcome.operations["copiedPage", default: 0] > 0)
      }
    }

    @Test(arguments: [0, 1, 2, 3] as [UInt64], [StressBacking.anonymous, .shmem])
    func `Every kind of dirty log names all that was written`(
      _ log: UInt64, _ backing: StressBacking
    ) {
      let plan = plan(.dirty) {
        $0.seed = Self.seed & ~3 | log
        $0.backing = backing
      }
      let control = StressControl()
      let outcome = RealStress.run(plan, control: control)
      #expect(control.failures == [])
      let harvests = ["bitmapHarvest", "manualHarvest", "ringHarvest"].reduce(0) {
        $0 + outcome.operations[$1, default: 0]
      }
      #expect(harvests > 0, "\(outcome.operations)")
    }

    @Test(arguments: StressKind.allCases.filter(\.hasGuests))
    func `Threads may be killed in their work, and others go on`(_ kind: StressKind) {
      let plan = plan(kind) {
        $0.faults = .usual
        $0.faults.killVCPUEvery = 300
        $0.backing = .shmem
        $0.vcpus = 3
      }
      let control = StressControl()
      let outcome = RealStress.run(plan, control: control)
      #expect(control.failures == [])
      #expect(outcome.operations["killed", default: 0] > 0, "\(outcome.operations)")
    }

    /// Mistakes, where they can be made, and what the report must say.
    static let mistakes: [(RealStress.Mistake, StressKind)] = [
      (.skipsUnmap, .map), (.migratesWithoutSwitch, .map), (.migratesWithoutSwitch, .dirty),
      (.keepsSlot, .memslot), (.forgetsHarvestedPages, .dirty),
    ]

    @Test(arguments: mistakes, [StressBacking.anonymous, .shmem])
    func `Mistakes on purpose are found`(
      _ mistake: (RealStress.Mistake, StressKind), _ backing: StressBacking
    ) throws {
      let plan = plan(mistake.1) {
        $0.backing = backing
        // The first that is found ends the round; what a log loses is found at the end alone.
        if mistake.0 != .forgetsHarvestedPages { $0.iterations = 1_000_000 }
      }
      let control = StressControl()
      _ = RealStress.run(plan, control: control, mistake: mistake.0)
      let failure = try #require(control.failures.first, "\(mistake.0) was not found")
      print("  found: \(failure.message)")
      #expect(failure.kind == mistake.1 && failure.seed == plan.seed)
      #expect(!failure.message.contains("could not be set up"))
      if mistake.0 == .forgetsHarvestedPages {
        #expect(failure.message.contains("lost by the log"))
      }
    }

    /// What this process has open and mapped, of the kinds that a round uses.
    private struct Holdings: Equatable {
      var descriptors = 0
      var mappings = 0
      var allMappings = 0

      init() throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd") {
          let target = try? FileManager.default.destinationOfSymbolicLink(
            atPath: "/proc/self/fd/\(name)")
          if let target, target.contains("kvm") || target.contains("memfd") { descriptors += 1 }
        }
        let maps = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/maps"))
          .readToEnd()
        let lines = String(decoding: maps ?? Data(), as: UTF8.self).split(separator: "\n")
        mappings = lines.filter { $0.contains("kvm") || $0.contains("memfd") }.count
        allMappings = lines.count
      }
    }

    @Test func `Rounds leave no descriptor and no mapping`() throws {
      func playAll() {
        for kind in [StressKind.map, .memslot, .dirty] {
          for backing in [StressBacking.anonymous, .shmem] {
            let control = StressControl()
            _ = RealStress.run(
              plan(kind) {
                $0.backing = backing
                $0.iterations = 2000
              }, control: control)
            #expect(control.failures == [])
          }
        }
      }
      playAll()
      let before = try Holdings()
      for _ in 0..<3 { playAll() }
      let after = try Holdings()
      #expect(after.descriptors == before.descriptors && after.mappings == before.mappings)
      // Stacks of threads and pieces of the heap come and go; the regions of one round are more.
      #expect(after.allMappings < before.allMappings + 48, "\(before) then \(after)")
    }

    @Test func `What real guests cannot heed is said`() {
      var options = StressOptions()
      options.faults = .usual
      options.era = .a
      #expect(options.ignored == [])
      options.guest = .kvm
      #expect(options.ignored.count == 3)
      options.backing = .shmem
      #expect(options.ignored.count == 2)
      options.kinds = [.alloc]
      #expect(options.ignored == [])
    }

    @Test func `A guest that would reach too far is refused`() {
      let plan = plan(.memslot) { $0.byteCount = 200 << 30 }
      let control = StressControl()
      let outcome = RealStress.run(plan, control: control)
      #expect(outcome.skipped?.contains("512 GiB") == true)
      #expect(control.failures == [])
    }
  }
}
