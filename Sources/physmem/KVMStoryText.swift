internal import PMGuestMap
internal import PMPageAllocator
internal import PMUnits

/// The story on a terminal, at most 100 columns wide as far as numbers allow.
struct KVMStoryText {
  let stories: [KVMStory]
  /// Whether to say who holds each page.
  let withLedger: Bool

  private static let widths = [22, 22, 22, 22]

  var lines: [String] {
    introduction + stories.flatMap(lines)
  }

  private var introduction: [String] {
    [
      "A driver's order-2 block without __GFP_COMP, mapped into a guest: who may free which page?",
      "Below each step that changed a frame, for each of the four: its own count (and how it changed on",
      "the way), where it is, and the first 8 bytes of its memory. pcp0: free, on the list of CPU 0.",
    ]
  }

  private func lines(_ story: KVMStory) -> [String] {
    ["", "ERA \(story.era.rawValue): \(KVMEra.title(story.era))"]
      + story.chapters.flatMap { lines($0) }
  }

  private func lines(_ chapter: KVMStoryChapter) -> [String] {
    var lines = ["", chapter.title]
    if let first = chapter.steps.first {
      lines.append("   " + row(first.frames.map { "frame \($0.pfn)" }))
    }
    var before: [String] = []
    for (index, step) in chapter.steps.enumerated() {
      lines.append("\(index + 1)  \(step.action)")
      lines.append("   -> \(step.note)")
      let cells = step.frames.map {
        "\($0.countText) \($0.placeText) \(KVMStoryStage.text($0.word))"
      }
      // Frames that a step left alone are not shown again.
      if cells != before { lines.append("   " + row(cells)) }
      before = step.frames.map {
        "\($0.counts.last ?? 0) \($0.placeText) \(KVMStoryStage.text($0.word))"
      }
      if withLedger { lines += ledger(step) }
      if let verdict = step.verdict { lines += properties(verdict) }
    }
    lines += properties(chapter.verdict)
    if withLedger {
      lines.append("   ledger, unmatched at the end: " + unmatched(chapter))
    }
    return lines
  }

  private func row(_ cells: [String]) -> String {
    var line = Substring(Table.row(cells, widths: KVMStoryText.widths))
    while line.last == " " { line.removeLast() }
    return String(line)
  }

  // MARK: the properties

  private func properties(_ verdict: GuestVerdict) -> [String] {
    func line(_ name: String, _ found: [String]) -> [String] {
      var once: [String] = []
      for text in found {
        // The line's name says already what it is about.
        let said = ["access after free: ", "stale translation: "].first(where: text.hasPrefix)
        let text = String(text.dropFirst(said?.count ?? 0))
        if !once.contains(text) { once.append(text) }
      }
      guard let first = once.first else { return ["   \(Table.padded(name, 26)) yes"] }
      return ["   \(Table.padded(name, 26)) NO: \(first)"]
        + once.dropFirst().map { "   \(Table.padded("", 26))     \($0)" }
    }
    return line("1 counts intact", verdict.countViolations)
      + line("2 no access after free", verdict.accessesAfterFree.map(\.description))
      + line("3 no stale translation", verdict.staleTranslations.map(\.description))
  }

  // MARK: the ledger

  private func ledger(_ step: KVMStoryStep) -> [String] {
    func text(_ held: (KVMStoryFrame) -> [String]) -> String {
      let named = step.frames.filter { !held($0).isEmpty }.map {
        "\($0.pfn) by \(held($0).joined(separator: " and "))"
      }
      let rest = step.frames.filter { held($0).isEmpty }.map { Int($0.pfn.rawValue) }
      let nobody = rest.isEmpty ? [] : ["\(Table.ranges(rest, radix: 16)) by nobody"]
      return (named + nobody).joined(separator: "; ")
    }
    var lines: [String] = []
    if step.frames.contains(where: { !$0.heldDuring.isEmpty }) {
      lines.append("   held while the entry is made: " + text(\.heldDuring))
    }
    return lines + ["   held: " + text(\.held)]
  }

  private func unmatched(_ chapter: KVMStoryChapter) -> String {
    let all = chapter.unmatchedPuts + chapter.unmatchedCounts
    return all.isEmpty ? "none" : all.joined(separator: "; ")
  }
}
