import PMPageAllocator
import PMUnits
import Testing

@testable import PMGuestMap

/// Random runs of everything at once: the books balance, nothing is reached after its free, no entry is
/// stale, and at the end every page is back.
@Suite struct GuestPropertyTests {
  @Test(arguments: KernelModel.KVM.allCases)
  func `Whatever happens, the contract holds and every page comes back`(
    _ era: KernelModel.KVM
  ) throws {
    let steps = Stage2Random.steps(release: 40_000, debug: 4000)
    Stage2Random.announce("GuestPropertyTests", steps: steps)
    var seeds = Stage2Random(
      seed: Stage2Random.seed &+ UInt64(KernelModel.KVM.allCases.firstIndex(of: era) ?? 0))
    var left = steps
    var performed: [String: Int] = [:]
    while left > 0 {
      let seed = seeds.next()
      let run = try GuestPropertyRun(era, seed: seed)
      let length = min(left, 500)
      for step in 1...length {
        try run.step()
        if step % 25 == 0 { run.check("era \(era.rawValue), run \(seed), step \(step)") }
      }
      run.finish("era \(era.rawValue), run \(seed), the end")
      performed.merge(run.performed) { $0 + $1 }
      left -= length
    }
    print("era \(era.rawValue): \(performed.sorted { $0.key < $1.key })")
  }
}
