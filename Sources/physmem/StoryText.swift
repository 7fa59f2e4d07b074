internal import PMPageAllocator
internal import PMUnits

/// The mail thread's story on a terminal, at most 100 columns wide.
struct StoryText {
  /// What to tell.
  let thread: MailThreadStory

  private static let columns = [5, 3, 4, 13, 10, 8]
  private static let titles = [" pfn", "cnt", "mark", "state", "owner", "memory"]
  private static let side = 48

  /// The whole text.
  var lines: [String] {
    introduction + steps + [""] + history + [""] + answer
  }

  // MARK: the two columns

  private var introduction: [String] {
    [
      "Who holds this page, who frees it, and what does the guest see then?",
      "",
      "An order-2 block of a machine with \(StoryStage.memory) of real memory; __free_pages as since v6.2.",
      "cnt: the page's own count.  memory: the first 8 bytes of the page.  > changed by this step.",
      "pcp0 o1 @X: free, on CPU 0's list, in the order-1 block at X.",
      "",
      beside("WITHOUT __GFP_COMP, as amdgpu's TTM pool does", "WITH __GFP_COMP"),
      beside(StoryText.row(StoryText.titles), StoryText.row(StoryText.titles)),
    ]
  }

  private var steps: [String] {
    let (left, right) = (thread.nonCompound.steps, thread.compound.steps)
    return zip(left, right).enumerated().flatMap { index, step in
      [
        "", "\(index + 1)  \(step.0.action)",
        beside("-> " + step.0.note, "-> " + step.1.note),
      ]
        + zip(rows(left, index), rows(right, index)).map(beside)
    }
  }

  private func rows(_ steps: [StoryStep], _ index: Int) -> [String] {
    steps[index].pages.enumerated().map { position, page in
      let before = index > 0 ? steps[index - 1].pages[position] : page
      let isChanged = before.summary(base: page.pfn) != page.summary(base: page.pfn)
      return StoryText.row([
        (isChanged ? ">" : " ") + "\(page.pfn)", "\(page.refcount)",
        page.mark == "none" ? "-" : page.mark, page.places.map(\.short).joined(separator: "+"),
        page.owner, page.wordText,
      ])
    }
  }

  private func beside(_ left: String, _ right: String) -> String {
    var text = Substring(Table.padded(left, StoryText.side) + " | " + right)
    while text.last == " " { text.removeLast() }
    return String(text)
  }

  private static func row(_ cells: [String]) -> String { Table.row(cells, widths: columns) }

  // MARK: the older forms

  private var history: [String] {
    let leaked = thread.leak.lastPages.filter { $0.owner == "nobody" }
    let twice = thread.race.steps.dropLast().last?.pages.filter { $0.places.count > 1 } ?? []
    let shared = thread.race.lastPages.filter { $0.owners.count > 1 && !$0.isFree }
    return [
      "The same steps under the older forms of __free_pages:",
      "  before v5.10, without __GFP_COMP: \(frames(leaked)) stay in use, owner nobody: "
        + "\(thread.leak.leakedPages) pages leaked",
      "  v5.10 to v6.1, with it, KVM's put between decrement and head test (CVE-2023-52739):",
      "    \(frames(twice)) are on two lists, and \(frames(shared)) handed out to A and to B; "
        + "after a drain:",
    ] + thread.race.findings.prefix(1).map { "    \($0)" }
  }

  private func frames(_ pages: [StoryPage]) -> String {
    Table.ranges(pages.map { Int($0.pfn.rawValue) }, radix: 16)
  }

  // MARK: the answer

  private var answer: [String] {
    [
      beside("WITHOUT __GFP_COMP", "WITH __GFP_COMP"),
      beside(held(thread.nonCompound), held(thread.compound)),
      beside(freed(thread.nonCompound), freed(thread.compound)),
      beside(seen(thread.nonCompound), seen(thread.compound)),
      "So the head is safe either way: it is freed by the last put, alone or with its tails. Tails without",
      "__GFP_COMP have no count that KVM could hold: it may map them only where a notifier unmaps them",
      "from the guest before the driver frees.",
    ]
  }

  private func held(_ story: Story) -> String {
    let pages = story.steps[2].pages.filter { $0.owners.contains("KVM") }
    return "Who holds?  KVM's reference: \(pages.count) of 4 pages"
  }

  private func freed(_ story: Story) -> String {
    let byDriver = story.steps[2].pages.filter(\.isFree).count
    let counts = zip(story.steps[3].pages, story.steps[4].pages)
    let byKVM = counts.filter { !$0.isFree && $1.isFree }.count
    return "Who frees?  __free_pages \(byDriver), KVM's put \(byKVM)"
  }

  private func seen(_ story: Story) -> String {
    "Guest sees: " + story.steps[3].pages.map(\.wordText).joined(separator: " ")
  }
}
