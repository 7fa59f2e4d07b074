import PMUnits
import Testing

@testable import PMStress

@Suite struct GuestRegionTests {
  @Test func `Every change has a version of its own`() {
    var state = GuestRegion(rights: .write, place: 1)
    var seen: Set<UInt64> = [state.rawValue]
    for _ in 0..<1000 {
      state = state.changing
      #expect(state.isBusy)
      state = state.settled
      #expect(!state.isBusy && seen.insert(state.rawValue).inserted)
      #expect(state.rights == .write && state.place == 1 && state.generation == 0)
    }
  }

  @Test func `Fields do not touch each other`() {
    var random = SplitMix64(seed: 3)
    var state = GuestRegion(rights: .none, place: 0)
    for _ in 0..<1000 {
      let rights = GuestRegion.Rights(rawValue: random.next() & 3) ?? .none
      let place = random.below(16)
      let generation = UInt32(truncatingIfNeeded: random.next() & 0xff_ffff)
      state.rights = rights
      state.place = place
      state.generation = generation
      state = state.changing
      #expect(state.rights == rights && state.place == place && state.generation == generation)
      state = state.settled
    }
  }

  @Test func `Random numbers below a bound reach all of them evenly`() {
    var random = SplitMix64(seed: 11)
    var counts = [Int](repeating: 0, count: 7)
    for _ in 0..<70_000 { counts[random.below(7)] += 1 }
    #expect(counts.allSatisfy { (9500...10_500).contains($0) }, "\(counts)")
  }

  @Test func `A word of an older generation reads as nothing`() {
    var word = GuestShadow.Word()
    word.value = 7
    word.generation = 2
    #expect(word.allows(7, generation: 2) && !word.allows(0, generation: 2))
    #expect(word.allows(0, generation: 3) && !word.allows(7, generation: 3))
    #expect(word.allows(7, generation: nil) && word.allows(0, generation: nil))
    #expect(!word.allows(8, generation: nil))
  }
}
