import PMGuestMap
import PMPageAllocator
import Testing

@testable import PMConform

@Suite struct HostFactsTests {
  private func facts(_ line: String, _ name: String = "x.tsv") -> HostFacts {
    HostFacts(header: [line], name: name)
  }

  @Test(arguments: [
    (
      "Linux 6.1, guest CPU with 40 physical address bits and 5-level paging (user addresses up to 2^56)",
      "", "Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode"
    ),
    (
      "Linux 6.18 with the kvm_pvm vendor module (no TDP, no SMM)", "",
      "Linux 6.18, shadow paging, 52 physical bits, 4 levels, 64-bit user mode"
    ),
    (
      "Linux 6.1 (refcounting KVM), kvm-amd, nested paging + TDP MMU, real-mode guest", "",
      "Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode"
    ),
    (
      "Linux 6.1, kvm-amd npt=0, 64-bit guest", "",
      "Linux 6.1, shadow paging, 40 physical bits, 5 levels, 64-bit user mode"
    ),
    (
      "Linux 6.18 kvm_pvm, shadow paging, 64-bit CPL3 guest (goes through the MMU)", "",
      "Linux 6.18, shadow paging, 52 physical bits, 4 levels, 64-bit user mode"
    ),
    (
      "Linux 6.18 kvm_pvm, real-mode guest", "",
      "Linux 6.18, shadow paging, 52 physical bits, 4 levels, emulated"
    ),
    (
      "Linux 6.1, 46 physical bits, no 5-level paging", "",
      "Linux 6.1, nested paging, 46 physical bits, 4 levels, real mode"
    ),
    (
      "", "memslot-errno-6.1-4level",
      "Linux 6.1, nested paging, 40 physical bits, 4 levels, real mode"
    ),
    (
      "", "truth-6.1-shadow",
      "Linux 6.1, shadow paging, 40 physical bits, 5 levels, 64-bit user mode"
    ),
    (
      "", "kpage-6.1-long", "Linux 6.1, nested paging, 40 physical bits, 5 levels, 64-bit user mode"
    ),
    ("", "kpage-6.18-emulated", "Linux 6.18, shadow paging, 52 physical bits, 4 levels, emulated"),
    (
      "state of every page", "free-6.1",
      "Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode"
    ),
    ("", "unknown", "Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode"),
  ])
  func `Header and name tell the host`(_ line: String, _ name: String, _ expected: String) {
    #expect("\(facts(line, "/tmp/6.13-long-shadow/\(name).tsv"))" == expected)
  }

  @Test func `The kernel tells how KVM treats pages`() {
    #expect(facts("Linux 5.10").kvm == .a0)
    #expect(facts("Linux 6.1").kvm == .a)
    #expect(facts("Linux 6.12").kvm == .a)
    #expect(facts("Linux 6.13").kvm == .c)
    #expect(facts("Linux 6.18").kvm == .c)
  }

  @Test func `The host tells what a VM is offered`() {
    let new = facts("Linux 6.18, shadow paging").capabilities
    #expect(new == .linux618)
    let four = facts("Linux 6.1, 40 physical bits, no5lvl").capabilities
    #expect(four == .linux61(fiveLevel: false, physicalAddressBits: 40))
    // Without nested paging the processor's width does not matter.
    #expect(
      facts("Linux 6.1, 40 physical bits, npt=0").capabilities
        == .linux61(fiveLevel: true, physicalAddressBits: 52))
    #expect(!facts("Linux 6.8, nested paging").capabilities.refusesMoveWhileTracked)
    #expect(facts("Linux 6.12, nested paging").capabilities.supportsPreFault)
  }
}
