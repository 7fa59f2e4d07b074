internal import PMPageAllocator
internal import PMUnits

/// One page as a step left it.
struct StoryPage {
  /// Its frame.
  var pfn: PFN
  /// Its own count.
  var refcount: Int32
  /// `head` or `tail` of a compound page, else `none`.
  var mark: String
  /// Where it is; several places after a double free.
  var places: [Machine.Whereabouts]
  /// Who holds it, the allocator included; `nobody` for a leaked page.
  var owners: [String]
  /// The word at its physical address.
  var word: UInt64

  /// Whether it is on a list of the allocator.
  var isFree: Bool { places != [.used] }
  /// The owners in one word.
  var owner: String { owners.joined(separator: "+") }
  /// The word's bytes as text where they are text, else its value.
  var wordText: String {
    let bytes = withUnsafeBytes(of: word) { Array($0) }
    guard bytes.allSatisfy({ (0x20..<0x7f).contains($0) }) else { return wordHex }
    return String(decoding: bytes, as: UTF8.self)
  }
  /// The word's value.
  var wordHex: String {
    let digits = String(word, radix: 16)
    return "0x" + String(repeating: "0", count: 16 - digits.count) + digits
  }

  /// The page in one line that does not depend on where the block lies: PFNs are distances to
  /// `base`. This is what expectations are written in.
  func summary(base: PFN) -> String {
    let place = places.map { $0.text(relativeTo: base) }.joined(separator: "|")
    return "\(refcount) \(mark) \(place) \(owner) \(wordText)"
  }
}

extension Machine.Whereabouts {
  /// In a sentence.
  var sentence: String {
    switch self {
    case .hole: "in no zone"
    case .used: "in use"
    case .free(let head, let order): "buddy list, order-\(order) block at \(head)"
    case .perCPU(let cpu, let head, let order):
      "per-CPU list of CPU \(cpu), order-\(order) block at \(head)"
    }
  }

  /// In a table's cell.
  var short: String {
    switch self {
    case .hole: "hole"
    case .used: "in use"
    case .free(let head, let order): "buddy o\(order) @\(head)"
    case .perCPU(let cpu, let head, let order): "pcp\(cpu) o\(order) @\(head)"
    }
  }

  /// Without the block's position: `used`, `pcp0/o1+2`, `buddy/o3-4`.
  func text(relativeTo base: PFN) -> String {
    func distance(_ head: PFN) -> String { head < base ? "\(head - base)" : "+\(head - base)" }
    return switch self {
    case .hole: "hole"
    case .used: "used"
    case .free(let head, let order): "buddy/o\(order)\(distance(head))"
    case .perCPU(let cpu, let head, let order): "pcp\(cpu)/o\(order)\(distance(head))"
    }
  }
}

/// What somebody did, and how the pages of the block were afterwards.
struct StoryStep {
  /// Who did what.
  var action: String
  /// What came of it, in a few words.
  var note: String
  /// The pages of the block.
  var pages: [StoryPage]
}

/// One run of the events, with what it was expected to show.
struct Story {
  /// The stable name.
  var name: String
  /// Which form of `__free_pages` the machine had.
  var form: KernelModel.FreePages
  /// What happened.
  var steps: [StoryStep] = []
  /// What the modelled kernel reported.
  var findings: [String] = []
  /// Free pages before the first step.
  var freePagesBefore: Int64 = 0
  /// Free pages after the last step, when everybody has given back what is theirs; nil where the
  /// story ends with pages that have several owners.
  var freePagesAfter: Int64?
  /// Expectations that were not met.
  var failures: [String] = []

  /// Pages that no one will ever free.
  var leakedPages: Int64 { freePagesAfter.map { freePagesBefore - $0 } ?? 0 }
  /// The pages after the last step.
  var lastPages: [StoryPage] { steps.last?.pages ?? [] }
}

// MARK: - JSON

extension StoryPage: Encodable {
  enum CodingKeys: String, CodingKey {
    case pfn, refcount, mark, `where`, owner, word
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(pfn.rawValue, forKey: .pfn)
    try container.encode(refcount, forKey: .refcount)
    try container.encode(mark, forKey: .mark)
    try container.encode(places.map(\.sentence).joined(separator: " and "), forKey: .where)
    try container.encode(owner, forKey: .owner)
    try container.encode(wordHex, forKey: .word)
  }
}

extension StoryStep: Encodable {
  enum CodingKeys: String, CodingKey {
    case action = "step"
    case note, pages
  }
}

extension Story: Encodable {
  enum CodingKeys: String, CodingKey {
    case name, steps, findings
    case form = "free_pages"
    case freePagesBefore = "free_pages_before"
    case freePagesAfter = "free_pages_after"
    case failures = "failed_expectations"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(name, forKey: .name)
    try container.encode(form.rawValue, forKey: .form)
    try container.encode(steps, forKey: .steps)
    try container.encode(findings, forKey: .findings)
    try container.encode(freePagesBefore, forKey: .freePagesBefore)
    try container.encode(freePagesAfter, forKey: .freePagesAfter)
    try container.encode(failures, forKey: .failures)
  }
}
