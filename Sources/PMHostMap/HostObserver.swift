public import PMPageAllocator
public import PMUnits

/// Watches what a host and its virtual machines do to pages: the counterpart of kprobes on the kernel's
/// functions.
///
/// Nothing is called unless an observer is set, and calls come on the thread that does the work. An
/// observer with `wantsSteps` gets a sentence for each step, which costs a string each.
public protocol HostObserver: AnyObject {
  /// Whether ``step(_:)`` wants to be called.
  var wantsSteps: Bool { get }
  /// `folio_mark_accessed` of the compound page headed by `head`.
  func markedAccessed(_ head: PFN)
  /// `kvm_set_pfn_accessed`, whether or not the page takes the mark.
  func setPFNAccessed(_ pfn: PFN)
  /// `kvm_set_pfn_dirty`, whether or not the page takes the mark.
  func setPFNDirty(_ pfn: PFN)
  /// Entry of `kvm_release_pfn_clean`, before it does anything. No lock of the VM is held: the
  /// observer may act on the CPU, as another CPU could at that moment.
  func releasing(_ pfn: PFN, on cpu: inout CPU)
  /// A guest fault has found its page and is about to take `mmu_lock`; nothing but readers' locks is
  /// held. What the observer does to the process here, another CPU could do at that moment.
  func beforeLock(_ gfn: GFN, on cpu: inout CPU)
  /// One step of a path, for people.
  func step(_ text: String)
}

extension HostObserver {
  /// False: no sentences are made.
  public var wantsSteps: Bool { false }
  /// Does nothing.
  public func markedAccessed(_ head: PFN) {}
  /// Does nothing.
  public func setPFNAccessed(_ pfn: PFN) {}
  /// Does nothing.
  public func setPFNDirty(_ pfn: PFN) {}
  /// Does nothing.
  public func releasing(_ pfn: PFN, on cpu: inout CPU) {}
  /// Does nothing.
  public func beforeLock(_ gfn: GFN, on cpu: inout CPU) {}
  /// Does nothing.
  public func step(_ text: String) {}
}
