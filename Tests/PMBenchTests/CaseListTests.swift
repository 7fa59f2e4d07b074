import Testing

@testable import PMBench

@Suite struct CaseListTests {
  @Test func `Names are unique and groups select by them`() {
    let names = BenchmarkCase.all().map(\.name)
    #expect(Set(names).count == names.count)
    let refcounts = BenchmarkCase.all(["refcount"]).map(\.name)
    #expect(!refcounts.isEmpty && refcounts.allSatisfy { $0.hasPrefix("refcount.") })
  }

  @Test func `The median is the middle value`() {
    #expect([3.0, 1, 2].median == 2)
    #expect([4.0, 1, 2, 3].median == 2.5)
  }
}
