import Testing

@testable import PMStress

@Suite struct StressControlTests {
  @Test func `A failure stops the round and is kept`() {
    let control = StressControl()
    #expect(!control.shouldStop)
    let failure = StressFailure(
      kind: .alloc, seed: 7, thread: 1, step: 12, message: "frame 1000 was handed out twice")
    control.fail(failure)
    #expect(control.shouldStop)
    #expect(!control.wasInterrupted)
    #expect(control.failures == [failure])
  }

  @Test func `An interrupt stops without a failure`() {
    let control = StressControl()
    control.interrupt()
    #expect(control.shouldStop && control.wasInterrupted && control.failures.isEmpty)
  }

  @Test func `Outcomes add up`() {
    var sum = StressOutcome()
    var round = StressOutcome()
    round.operations = ["get": 3, "put": 2]
    sum.merge(round)
    round.operations = ["get": 1]
    sum.merge(round)
    #expect(sum.operations == ["get": 4, "put": 2])
  }
}
