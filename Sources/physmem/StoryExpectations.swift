// What each step must show, in the form of `StoryPage.summary(base:)`: count, mark, place, owner,
// word. The facts are those of the kernel, found by measuring a real one.

extension MailThreadStory.Variant {
  /// The story's stable name.
  var name: String {
    switch self {
    case .nonCompound: "non-compound"
    case .compound: "compound"
    case .leak: "leak"
    }
  }

  /// The four pages after a step, counted from 1.
  func expected(_ step: Int) -> [String] {
    switch self {
    case .nonCompound: nonCompound(step)
    case .compound: compound(step)
    case .leak: leak(step)
    }
  }

  private func nonCompound(_ step: Int) -> [String] {
    switch step {
    case 1: tails("driver", after: "1 none used driver driver-0")
    case 2: tails("driver", after: "2 none used driver+KVM driver-0")
    case 3:
      [
        "1 none used KVM driver-0", "0 none pcp0/o0+1 allocator driver-1",
        "0 none pcp0/o1+2 allocator driver-2", "0 none pcp0/o1+2 allocator driver-3",
      ]
    case 4: others(after: "1 none used KVM driver-0")
    default: others(after: "0 none pcp0/o0+0 allocator driver-0")
    }
  }

  private func compound(_ step: Int) -> [String] {
    switch step {
    case 1: pages { "\($0 == 0 ? "1 head" : "0 tail") used driver driver-\($0)" }
    case 2: pages { "\($0 == 0 ? "2 head" : "0 tail") used driver+KVM driver-\($0)" }
    case 3, 4: pages { "\($0 == 0 ? "1 head" : "0 tail") used KVM driver-\($0)" }
    default: pages { "0 none pcp0/o2+0 allocator driver-\($0)" }
    }
  }

  private func leak(_ step: Int) -> [String] {
    switch step {
    case 1, 2: nonCompound(step)
    case 3, 4: tails("nobody", after: "1 none used KVM driver-0")
    default: tails("nobody", after: "0 none pcp0/o0+0 allocator driver-0")
    }
  }

  private func pages(_ page: (Int) -> String) -> [String] { (0..<4).map(page) }

  /// Tails in use as the driver left them.
  private func tails(_ owner: String, after head: String) -> [String] {
    [head] + (1..<4).map { "0 none used \(owner) driver-\($0)" }
  }

  /// Tails that others have and wrote to.
  private func others(after head: String) -> [String] {
    [
      head, "1 none used ownerB ownerB-0", "1 none used ownerA ownerA-0",
      "0 none used ownerA ownerA-1",
    ]
  }
}

extension MailThreadStory {
  /// The pages of the race; its first two steps are those of the compound story.
  static func expectedRace(_ step: Int) -> [String] {
    step == 3
      ? [
        "0 none pcp1/o2+0 allocator driver-0",
        "0 none pcp0/o0+1|pcp1/o2+0 allocator driver-1",
        "0 none pcp0/o1+2|pcp1/o2+0 allocator driver-2",
        "0 none pcp0/o1+2|pcp1/o2+0 allocator driver-3",
      ]
      : [
        "1 none used ownerA ownerA-0", "0 none pcp0/o0+1 ownerA+allocator ownerA-1",
        "1 none used ownerA+ownerB ownerB-0", "0 none used ownerA+ownerB ownerB-1",
      ]
  }
}
