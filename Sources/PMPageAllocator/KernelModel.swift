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

  /// How `__free_pages` treats a block that somebody else still references.
  public var freePages: FreePages

  /// A model from its parts; the default is Linux 6.1 stable, the kernel of the traces.
  public init(freePages: FreePages = .headReadBeforePut) { self.freePages = freePages }

  /// Linux 6.1 stable.
  public static let linux61: KernelModel = KernelModel()
}
