/// Which kernel's behaviour a machine has, where kernels differ.
public struct KernelModel: Hashable, Sendable {
  /// The three historical forms of `__free_pages`.
  public enum FreePages: String, CaseIterable, Hashable, Sendable {
    /// Before e320d3012d25 (v5.10-rc1): a count that does not reach zero frees nothing, and the
    /// tails of a non-compound block leak when somebody else puts the head.
    case beforeTailFix = "before-e320d3012d25"
    /// From e320d3012d25 up to 462a8e08e0e6: the tails are freed, but the head mark is read after
    /// the decrement, when the block may already be free (CVE-2023-52739).
    case headReadAfterPut = "e320d3012d25..462a8e08e0e6"
    /// From 462a8e08e0e6 (v6.2, 6.1 stable) on: the head mark is read first.
    case headReadBeforePut = "from-462a8e08e0e6"
  }

  /// The four ways in which KVM has treated the pages it maps into a guest.
  public enum KVM: String, CaseIterable, Codable, Hashable, Sendable {
    /// Before the fixes of CVE-2021-22543 (up to 5.12): a page of a remapped area is referenced
    /// without a look at its count.
    case a0 = "A0"
    /// 5.13 to 6.12: a reference for the time of the fault, refused where the count is 0.
    case a = "A"
    /// The v7 series of July 2023 as posted (never merged): pages without a count are mapped.
    case b = "B"
    /// From 6.13 on: remapped areas are mapped without a look at the page.
    case c = "C"
  }

  /// How `__free_pages` treats a block that somebody else still references.
  public var freePages: FreePages
  /// How KVM gets, marks and releases the pages it maps.
  public var kvm: KVM

  /// A model from its parts; the default is Linux 6.1 stable, the kernel of the traces.
  public init(freePages: FreePages = .headReadBeforePut, kvm: KVM = .a) {
    self.freePages = freePages
    self.kvm = kvm
  }

  /// Linux 6.1 stable.
  public static let linux61: KernelModel = KernelModel()
}
