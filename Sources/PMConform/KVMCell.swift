public import PMPageAllocator
public import PMUnits

/// What one guest access to one page came to, as an experiment found it.
public struct KVMCell: Sendable {
  /// How an access ends.
  public enum Outcome: String, Hashable, Sendable {
    /// An entry was made, and the access went through it.
    case ok = "OK"
    /// KVM_RUN returned EFAULT.
    case efault = "EFAULT"
    /// KVM_EXIT_MMIO.
    case mmio = "MMIO"
    /// The instruction was emulated through the user address; no entry.
    case emulated = "emulated"
    /// Something else that ended KVM_RUN.
    case interrupted = "EINTR"
  }

  /// Marks of a page.
  public struct Marks: Hashable, Sendable {
    /// It was marked accessed.
    public var accessed = false
    /// It was marked dirty.
    public var dirty = false

    /// Letters: `AD`, `A`, `D` or `-`.
    public var letters: String {
      accessed ? (dirty ? "AD" : "A") : dirty ? "D" : "-"
    }
  }

  /// The stage-2 entry that the access left.
  public struct Entry: Hashable, Sendable {
    /// 1, 2 or 3.
    public var level: Int
    /// W.
    public var isWritable: Bool
    /// The host's own mapping allows writes.
    public var isHostWritable: Bool
    /// Bit 59, era B only.
    public var isRefcounted: Bool

    /// As `4K W`.
    public var text: String {
      let size = level == 1 ? "4K" : level == 2 ? "2M" : "1G"
      return "\(size) \(isWritable ? "W" : "R")"
    }
  }

  /// One step of the path with the counts that it left.
  public struct Step: Hashable, Sendable {
    /// What happened.
    public var text: String
    /// The frame that the process maps at the page then; nil where none.
    public var pfn: PFN?
    /// The frame's own count; nil where it has no `struct page`.
    public var ownCount: Int32?
    /// The count of its compound head.
    public var headCount: Int32?
    /// Who holds the page, by the ledger.
    public var holders: [String]
  }

  /// The page's kind.
  public let kind: KVMPageKind
  /// Where it stands.
  public let area: KVMArea
  /// What the guest does.
  public let access: KVMAccess
  /// Which KVM.
  public let era: KernelModel.KVM
  /// Why no real driver gets so far, where the experiment had to force it.
  public internal(set) var forced: String?
  /// How it ended.
  public internal(set) var outcome: Outcome = .interrupted
  /// What the counting refcount had more than before while the entry was made; nil without an entry or
  /// without a `struct page`.
  public internal(set) var during: Int?
  /// What it had more than before after the fault.
  public internal(set) var after: Int = 0
  /// KVM's own marks at the end of the fault.
  public internal(set) var faultMarks = Marks()
  /// KVM's own marks when the entry was dropped.
  public internal(set) var zapMarks = Marks()
  /// The entry, where one was made.
  public internal(set) var entry: Entry?
  /// Whether KVM's own put gave the page to the allocator.
  public internal(set) var isFreedByFault = false
  /// Whether the process has another frame there now than before.
  public internal(set) var changesPage = false
  /// Where the frame was found: fast GUP, slow GUP, or the remapped area's entry.
  public internal(set) var path = "-"
  /// Whether the guest reached a frame that nobody owns.
  public internal(set) var reachesFreeFrame = false
  /// What the modelled kernel reported.
  public internal(set) var findings: [String] = []
  /// The path, step by step.
  public internal(set) var steps: [Step] = []

  init(_ kind: KVMPageKind, _ area: KVMArea, _ access: KVMAccess, _ era: KernelModel.KVM) {
    self.kind = kind
    self.area = area
    self.access = access
    self.era = era
  }

  /// The row's number in the table of kinds.
  public var row: String { kind.row(access) }

  /// The counting refcount's way, as `+1->0`; `-` without an entry or a `struct page`.
  public var count: String {
    func signed(_ value: Int) -> String { value > 0 ? "+\(value)" : "\(value)" }
    guard let during else { return after == 0 ? "-" : "-->\(signed(after))" }
    return "\(signed(during))->\(signed(after))"
  }

  /// What else there is to say, in a few words.
  public var notes: [String] {
    var notes: [String] = []
    if let forced { notes.append("not reachable (\(forced)), forced") }
    if isFreedByFault { notes.append("freed by KVM's put") }
    if reachesFreeFrame { notes.append("the guest reaches a free frame") }
    if changesPage { notes.append("the host copies the page") }
    if after > 0 { notes.append("leaks \(after)") }
    return notes
  }
}
