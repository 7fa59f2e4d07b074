import Foundation
import Testing

@Suite struct RealStressCommandTests {
  private func hasKVM() -> Bool { FileManager.default.isWritableFile(atPath: "/dev/kvm") }

  @Test(arguments: ["map", "memslot", "dirty"])
  func `Real guests play, or the reason why not is said`(_ kind: String) throws {
    let run = try physmem(
      "stress", kind, "--guest", "kvm", "-b", "4M", "-i", "2000", "--seed", "5", "--json")
    let object = try run.json()
    let kinds = try #require(object["kinds"] as? [[String: Any]])
    #expect(kinds.map { $0["kind"] as? String } == [kind])
    if run.status == 4 {
      print("A REAL GUEST STRESS TEST IS SKIPPED: \(run.errors)")
      #expect(run.errors.contains("skipped: ") && kinds[0]["skipped"] is String)
      return
    }
    #expect(run.status == 0, "\(object)")
    #expect(hasKVM())
    let operations = try #require(kinds[0]["operations"] as? [String: Int])
    #expect(operations["read", default: 0] > 100 && operations["write", default: 0] > 100)
    #expect((object["options"] as? [String: Any])?["guest"] as? String == "kvm")
  }

  @Test func `What no machine can have is skipped, or an error where it is required`() throws {
    let words = ["stress", "memslot", "--guest", "kvm", "-b", "200G", "--quiet"]
    let run = try physmem(words)
    #expect(run.status == 4)
    #expect(run.errors.contains("skipped: "))
    if hasKVM() { #expect(run.errors.contains("512 GiB") || run.errors.contains("no real guest")) }
    #expect(try physmem(words + ["--require"]).status == 69)
  }

  @Test func `Options that real guests cannot heed are named`() throws {
    let run = try physmem(
      "stress", "map", "--guest", "kvm", "-b", "4M", "-i", "500", "--era", "A", "--delay-notifier",
      "5")
    #expect(run.errors.contains("ignored with --guest kvm: --era"))
    #expect(run.errors.contains("ignored with --guest kvm: --delay-notifier"))
    #expect(run.status == 0 || run.status == 4)
  }
}
