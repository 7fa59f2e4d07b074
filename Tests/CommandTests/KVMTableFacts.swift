/// What section 3 of the specification says about a cell.
struct KVMFact: Equatable {
  var outcome: String
  /// Change of the counting refcount while the entry is made; nil without entry or `struct page`.
  var during: Int?
  var after = 0
  var faultMarks = "-"
  var zapMarks = "-"
  var level: Int?
  var isWritable: Bool?
  /// Era B's bit; nil without an entry.
  var bit59: Bool?

  static let efault = KVMFact(outcome: "EFAULT")
}

/// The rules that the truth table refers to, with what each comes to in each era.
enum KVMRule: String {
  /// GUP, folio refcount of 1 or more.
  case g = "G"
  /// Remapped, own counter of 1 or more.
  case counted = "R+"
  /// Remapped, own counter of 0.
  case uncounted = "R0"
  /// As R0, for a tail of a compound page: before 5.13 the reference was that of the head.
  case compoundTail = "R0c"
  /// Remapped, reserved.
  case reserved = "RN"
  /// Remapped, no `struct page`.
  case noPage = "RN-"
  /// Row 6 by GUP: the reference stays in era A.
  case leak = "6"
  /// Row 11r by GUP.
  case zero = "0"
  /// Row 11r remapped.
  case zeroRemapped = "0R"
  /// A 2M or 1G entry of a remapped area, which 6.1 cannot follow.
  case huge = "H"
  /// The same without a `struct page`.
  case hugeNoPage = "H-"
  case efault = "E"
  case mmio = "M"
  case emulated = "U"

  /// The fact.
  func fact(_ era: String, level: Int, isWritable: Bool) -> KVMFact {
    let isOld = era == "A0" || era == "A"
    func ok(
      _ during: Int?, after: Int = 0, _ faultMarks: String = "-", _ zapMarks: String = "-",
      bit59: Bool = false
    ) -> KVMFact {
      KVMFact(
        outcome: "OK", during: during, after: after, faultMarks: faultMarks,
        zapMarks: zapMarks, level: level, isWritable: isWritable, bit59: bit59)
    }
    // The entry's D bit is set with W, so that also a read dirties at the zap.
    let both = isWritable ? "AD" : "A"
    switch self {
    case .g:
      if isOld { return ok(1, "A", both) }
      if era == "B" { return ok(0, "A", level == 1 ? both : "-", bit59: level == 1) }
      return ok(1, both)
    case .counted:
      if isOld { return ok(1, "A", both) }
      return era == "B" ? ok(0, "A", both, bit59: true) : ok(0)
    case .uncounted:
      if era == "A0" { return ok(1, "A", both) }
      return era == "A" ? .efault : ok(0)
    case .compoundTail:
      if era == "A0" { return ok(1, "A", both) }
      return era == "A" ? .efault : ok(0)
    case .reserved: return ok(0)
    case .noPage: return ok(nil)
    case .leak:
      if isOld { return ok(1, after: 1) }
      return era == "B" ? ok(0, bit59: true) : ok(1)
    case .zero: return era == "B" ? ok(0, bit59: true) : ok(1)
    case .zeroRemapped:
      if isOld { return ok(1) }
      return ok(0, bit59: era == "B")
    case .huge: return era == "C" ? ok(0) : .efault
    case .hugeNoPage: return era == "C" ? ok(nil) : .efault
    case .efault: return .efault
    case .mmio: return KVMFact(outcome: "MMIO")
    case .emulated: return KVMFact(outcome: "emulated")
    }
  }
}

/// The truth table of section 3 as data: row, page, VMA, the rule for reads, the rule for writes; `-` where
/// the entry is read-only although the access went through it, a digit for another level than 1.
enum KVMTruth {
  struct Line {
    var row: String
    var page: String
    var vma: String
    var access: String
    var rule: KVMRule
    var level: Int
    var isWritable: Bool
  }

  static let lines: [Line] = text.split(separator: "\n").flatMap { line -> [Line] in
    let words = line.split(separator: " ").map(String.init)
    return ["read", "write"].enumerated().compactMap { index, access in
      var rule = Substring(words[3 + index])
      guard rule != "/" else { return nil }
      let isReadOnly = rule.hasSuffix("!")
      if isReadOnly { rule.removeLast() }
      var level = 1
      if let digit = words.last.flatMap({ Int($0) }), words.count > 5 { level = digit }
      guard let rule = KVMRule(rawValue: String(rule)) else { return nil }
      return Line(
        row: words[0], page: words[1], vma: words[2], access: access, rule: rule,
        level: level, isWritable: !isReadOnly)
    }
  }

  private static let text = """
    1 order0 gup G G
    1 order0 remap R+ R+
    1 anon gup G G
    1 anon remap R+ R+
    1z freed-order0 gup E E
    1z freed-order0 remap R0 R0
    2 compound-head gup G G
    2 compound-head remap R+ R+
    3 compound-tail gup G G
    3 compound-tail remap R0c R0c
    4 noncompound-head gup G G
    4 noncompound-head remap R+ R+
    5 noncompound-tail gup E E
    5 noncompound-tail remap R0 R0
    6 reserved gup 6 6
    6 reserved remap RN RN
    7 no-struct-page gup E E
    7 no-struct-page remap RN- RN-
    8 hugetlb-head gup G G 2
    8 hugetlb-head remap R+ R+
    8 hugetlb-tail gup G G 2
    8 hugetlb-tail remap R0c R0c
    9 thp-head gup G G 2
    9 thp-head remap R+ R+
    9 thp-tail gup G G 2
    9 thp-tail remap R0c R0c
    9p thp-pte-head gup G G
    9p thp-pte-head remap R+ R+
    9p thp-pte-tail gup G G
    9p thp-pte-tail remap R0c R0c
    11r zero-page gup 0! /
    11w zero-page gup / G
    11r zero-page remap 0R! /
    11w zero-page remap / U
    1 anon gup-ro-entry G! G
    8 hugetlb-head gup-ro-entry G! G 2
    1 anon gup-no-write G! E
    1 anon gup-none E E
    1 anon gup-write-only G G
    1 anon gup-write-only-absent E G
    1 anon gup-secret E E
    1 anon gup-sigbus E E
    1 anon no-vma E E
    1 order0 gup-ro-slot G! M
    1 anon gup-ro-slot G! M
    1 order0 remap-ro-entry R+! U
    4 noncompound-head remap-ro-entry R+! U
    5 noncompound-tail remap-ro-entry R0! U
    6 reserved remap-ro-entry RN! U
    7 no-struct-page remap-ro-entry RN-! U
    1 order0 remap-no-write R+! M
    4 noncompound-head remap-no-write R+! M
    5 noncompound-tail remap-no-write R0! M
    6 reserved remap-no-write RN! M
    7 no-struct-page remap-no-write RN-! M
    1 order0 remap-absent-denied E E
    1 order0 remap-absent R+ R+
    4 noncompound-head remap-absent R+ R+
    5 noncompound-tail remap-absent R0 R0
    6 reserved remap-absent RN RN
    7 no-struct-page remap-absent RN- RN-
    1 order0 remap-sigbus E E
    2 compound-head remap-2m H H 2
    5 noncompound-tail remap-2m H H 2
    7 no-struct-page remap-1g H- H- 3
    1 order0 remap-ro-slot R+! M
    4 noncompound-head remap-ro-slot R+! M
    5 noncompound-tail remap-ro-slot R0! M
    6 reserved remap-ro-slot RN! M
    7 no-struct-page remap-ro-slot RN-! M
    1 order0 mixedmap G G
    1 order0 mixedmap-special E E
    5 noncompound-tail mixedmap-special E E
    7 no-struct-page mixedmap-special E E
    11r zero-page mixedmap-special 0! /
    11w zero-page mixedmap-special / 0
    11r zero-page mixedmap-special-ro 0! /
    11w zero-page mixedmap-special-ro / G
    1 order0 io-normal G G
    1 order0 io-normal-ro R+! U
    """
}
