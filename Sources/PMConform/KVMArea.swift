/// Where a page stands in the host process: the kind of its area, the rights, the state of its entry. The
/// first two are the columns of the table of kinds; the others are the permission variants.
public enum KVMArea: String, CaseIterable, Hashable, Sendable {
  /// An area that GUP may look into, with an ordinary entry.
  case gup
  /// VM_IO or VM_PFNMAP, with a special entry that allows writes.
  case remap
  /// VM_WRITE, but the entry is read-only: clean, or shared after a fork.
  case gupReadOnlyEntry = "gup-ro-entry"
  /// No VM_WRITE.
  case gupNoWrite = "gup-no-write"
  /// No right at all (PROT_NONE).
  case gupNone = "gup-none"
  /// VM_WRITE without VM_READ, entry present.
  case gupWriteOnly = "gup-write-only"
  /// VM_WRITE without VM_READ, entry absent.
  case gupWriteOnlyAbsent = "gup-write-only-absent"
  /// `memfd_secret`.
  case gupSecret = "gup-secret"
  /// Beyond the end of a truncated file.
  case gupSigbus = "gup-sigbus"
  /// Nothing is mapped there.
  case none = "no-vma"
  /// As ``gup``, but the slot is READONLY.
  case gupReadonlySlot = "gup-ro-slot"
  /// Remapped, entry read-only, area writable.
  case remapReadOnlyEntry = "remap-ro-entry"
  /// Remapped, entry read-only, area not writable.
  case remapNoWrite = "remap-no-write"
  /// Remapped, entry absent, and the area lacks the right that the access needs.
  case remapAbsentDenied = "remap-absent-denied"
  /// Remapped, entry absent; the driver's fault handler makes it.
  case remapAbsent = "remap-absent"
  /// Remapped, entry absent; the driver's fault handler answers SIGBUS.
  case remapSigbus = "remap-sigbus"
  /// Remapped by an entry of 2 MiB.
  case remap2M = "remap-2m"
  /// Remapped by an entry of 1 GiB.
  case remap1G = "remap-1g"
  /// As ``remap``, but the slot is READONLY.
  case remapReadonlySlot = "remap-ro-slot"
  /// VM_MIXEDMAP alone, ordinary entry (`vm_insert_page`).
  case mixed = "mixedmap"
  /// VM_MIXEDMAP alone, special entry that allows writes.
  case mixedSpecial = "mixedmap-special"
  /// VM_MIXEDMAP alone, special entry, read-only.
  case mixedSpecialReadOnly = "mixedmap-special-ro"
  /// VM_IO, but an ordinary entry that allows writes.
  case ioNormal = "io-normal"
  /// VM_IO, but an ordinary entry, read-only.
  case ioNormalReadOnly = "io-normal-ro"

  /// The two columns of the table of kinds.
  public static let columns: [KVMArea] = [.gup, .remap]

  /// The variants, in the order of the table.
  public static let variants: [KVMArea] = allCases.filter { !columns.contains($0) }

  /// The area in words.
  public var title: String {
    switch self {
    case .gup: "GUP VMA"
    case .remap: "REMAP VMA"
    case .gupReadOnlyEntry: "GUP VMA with VM_WRITE, entry read-only"
    case .gupNoWrite: "GUP VMA without VM_WRITE"
    case .gupNone: "GUP VMA without any right"
    case .gupWriteOnly: "GUP VMA with VM_WRITE only, entry present"
    case .gupWriteOnlyAbsent: "GUP VMA with VM_WRITE only, entry absent"
    case .gupSecret: "GUP VMA of memfd_secret"
    case .gupSigbus: "GUP VMA beyond the end of its file"
    case .none: "no VMA"
    case .gupReadonlySlot: "GUP VMA, slot READONLY"
    case .remapReadOnlyEntry: "REMAP VMA with VM_WRITE, entry read-only"
    case .remapNoWrite: "REMAP VMA without VM_WRITE, entry read-only"
    case .remapAbsentDenied: "REMAP VMA without the right, entry absent"
    case .remapAbsent: "REMAP VMA, entry absent, the handler makes it"
    case .remapSigbus: "REMAP VMA, entry absent, the handler says SIGBUS"
    case .remap2M: "REMAP VMA, host entry of 2M"
    case .remap1G: "REMAP VMA, host entry of 1G"
    case .remapReadonlySlot: "REMAP VMA, slot READONLY"
    case .mixed: "MIXEDMAP VMA, ordinary entry"
    case .mixedSpecial: "MIXEDMAP VMA, special entry"
    case .mixedSpecialReadOnly: "MIXEDMAP VMA, special entry, read-only"
    case .ioNormal: "VM_IO VMA, ordinary entry"
    case .ioNormalReadOnly: "VM_IO VMA, ordinary entry, read-only"
    }
  }

  /// The kinds of pages that the table shows for it: all of them for the two columns, those that make a
  /// difference for a variant.
  public var kinds: [KVMPageKind] {
    switch self {
    case .gup, .remap: KVMPageKind.allCases
    case .gupReadOnlyEntry: [.anonymous, .hugetlbHead]
    case .gupNoWrite, .gupNone, .gupWriteOnly, .gupWriteOnlyAbsent, .gupSecret, .gupSigbus, .none:
      [.anonymous]
    case .gupReadonlySlot: [.order0, .anonymous]
    case .remapReadOnlyEntry, .remapNoWrite, .remapAbsent, .remapReadonlySlot:
      [.order0, .plainHead, .plainTail, .reserved, .noStructPage]
    case .remapAbsentDenied, .remapSigbus: [.order0]
    case .remap2M: [.compoundHead, .plainTail]
    case .remap1G: [.noStructPage]
    case .mixed: [.order0]
    case .mixedSpecial: [.order0, .plainTail, .noStructPage, .zeroPage]
    case .mixedSpecialReadOnly: [.zeroPage]
    case .ioNormal, .ioNormalReadOnly: [.order0]
    }
  }

  /// Whether the slot is READONLY.
  var hasReadonlySlot: Bool { self == .gupReadonlySlot || self == .remapReadonlySlot }
}
