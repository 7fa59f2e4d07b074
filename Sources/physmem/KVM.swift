internal import ArgumentParser

/// `physmem kvm`.
struct KVM: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "kvm", abstract: "What KVM does to the host pages that it maps into a guest.",
    discussion: """
      In four eras: A0 up to Linux 5.12, before the fixes of CVE-2021-22543; A from 5.13 to 6.12; B the \
      v7 series of July 2023 as posted, never merged; C from 6.13 on.
      """,
    subcommands: [KVMTableCommand.self, KVMStoryCommand.self, KVMLockstep.self])
}
