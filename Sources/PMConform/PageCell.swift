internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

// How tables print a page.
extension HostKernel {
  /// The letters of a page's flags, in the order of the tables.
  func flagLetters(_ pfn: PFN) -> String {
    let flags = machine.flags(of: pfn)
    let named: [(String, Bool)] = [
      ("H", flags.contains(.head)), ("T", machine.frames.isCompoundTail(pfn)),
      ("R", flags.contains(.reserved)), ("D", flags.contains(.dirty)),
      ("r", flags.contains(.referenced)), ("A", flags.contains(.active)),
      ("w", flags.contains(.workingset)), ("L", flags.contains(.lru)),
      ("S", flags.contains(.slab)), ("l", flags.contains(.locked)),
      ("u", flags.contains(.uptodate)), ("b", flags.contains(.swapbacked)),
      ("p", flags.contains(.private)), ("U", flags.contains(.unevictable)),
    ]
    let letters = named.filter(\.1).map(\.0).joined()
    return letters.isEmpty ? "-" : letters
  }

  /// A cell of a stage: own count, head's count, map count, flags of the page and of its head.
  func stageCell(_ pfn: PFN) -> String {
    guard hasPage(pfn) else { return "nostruct" }
    let head = machine.frames.compoundHead(of: pfn)
    let cell =
      "\(machine.frames.refcount(pfn)),\(machine.frames.refcount(head)),"
      + "\(machine.mapcount(of: pfn)),\(flagLetters(pfn)),\(flagLetters(head))"
    return machine.frames.buddyOrder(pfn) == nil ? cell : cell + ",BUDDY"
  }
}

/// Counts the calls that the tables count, for one page.
final class PageWatch: HostObserver {
  let pfn: PFN
  let head: PFN
  private let frames: FrameTable
  private(set) var releases = 0
  private(set) var accessed = 0
  private(set) var dirtied = 0
  private(set) var marked = 0
  /// Own count and head's count at the entry of the first release.
  private(set) var first: (own: Int32, head: Int32)?
  /// Run at the entry of the first release, before it does anything.
  var atFirstRelease: ((inout CPU) -> Void)?
  /// Own count and head's count after that.
  private(set) var afterwards: (own: Int32, head: Int32)?

  init(_ pfn: PFN, in kernel: HostKernel) {
    self.pfn = pfn
    frames = kernel.machine.frames
    head = kernel.hasPage(pfn) ? frames.compoundHead(of: pfn) : pfn
  }

  private var counts: (own: Int32, head: Int32)? {
    guard Int(pfn.rawValue) < frames.frameCount else { return nil }
    return (frames.refcount(pfn), frames.refcount(frames.compoundHead(of: pfn)))
  }

  func markedAccessed(_ head: PFN) { if head == self.head { marked += 1 } }

  func setPFNAccessed(_ pfn: PFN) { if pfn == self.pfn { accessed += 1 } }

  func setPFNDirty(_ pfn: PFN) { if pfn == self.pfn { dirtied += 1 } }

  func releasing(_ pfn: PFN, on cpu: inout CPU) {
    guard pfn == self.pfn else { return }
    releases += 1
    guard releases == 1 else { return }
    first = counts
    if let atFirstRelease {
      atFirstRelease(&cpu)
      afterwards = counts
    }
  }

  /// Forgets what was counted, as the measuring module does when it begins to watch.
  func clear() {
    releases = 0
    accessed = 0
    dirtied = 0
    marked = 0
    first = nil
    afterwards = nil
  }
}
