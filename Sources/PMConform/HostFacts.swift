public import PMGuestMap
public import PMPageAllocator

/// Major and minor number of a kernel.
public struct KernelVersion: Hashable, Comparable, Sendable, CustomStringConvertible {
  /// The number before the point.
  public var major: Int
  /// The number after it.
  public var minor: Int

  /// A version from its numbers.
  public init(_ major: Int, _ minor: Int) {
    self.major = major
    self.minor = minor
  }

  /// Whether the left version is the older one.
  public static func < (lhs: KernelVersion, rhs: KernelVersion) -> Bool {
    (lhs.major, lhs.minor) < (rhs.major, rhs.minor)
  }

  /// As `6.18`.
  public var description: String { "\(major).\(minor)" }
}

/// On which host, and with which guest, a table was measured.
///
/// Read from the header line that names the kernel and from the file's name. A word that names a
/// variant (shadow paging, 4 levels, the other guest) counts wherever it stands; without one a host
/// is the measured one of its version.
public struct HostFacts: Hashable, Sendable {
  /// The kernel.
  public var kernel: KernelVersion
  /// Stage-2 tables are nested page tables; otherwise shadow page tables.
  public var hasNestedPaging: Bool
  /// The host kernel runs with page tables of five levels, otherwise four.
  public var hasFiveLevels: Bool
  /// Bits of a physical address of the processor.
  public var physicalAddressBits: Int
  /// The guest runs in 64-bit user mode, otherwise in real mode.
  public var isLongMode: Bool
  /// The guest is run by KVM's instruction emulator and not through the MMU.
  public var isEmulated: Bool

  /// The facts of a table.
  ///
  /// - Parameters:
  ///   - header: its header lines, without the sign before them.
  ///   - name: its file name; folders before it are not looked at.
  public init(header: [String], name: String) {
    let name = name.split(separator: "/").last.map { $0.lowercased() } ?? ""
    let named = header.first { HostFacts.version(in: $0, after: "linux ") != nil }
    let line = (named ?? "").lowercased()
    let all = header.map { $0.lowercased() }
    func says(_ words: String...) -> Bool { words.contains { line.contains($0) } }
    kernel =
      HostFacts.version(in: line, after: "linux ") ?? HostFacts.version(in: name, after: "-")
      ?? HostFacts.version(in: name, after: "") ?? KernelVersion(6, 1)
    let isNew = kernel >= KernelVersion(6, 13)
    // The later host that was measured has neither nested paging nor five levels.
    let isShadow =
      says("shadow paging", "shadow mmu", "no tdp", "no npt") || name.contains("shadow")
      || all.contains { $0.contains("npt=0") }
    hasNestedPaging =
      !isShadow && (says("nested paging", "tdp mmu", "npt") || !isNew)
    let isFour =
      says("4-level", "no5lvl", "no 5-level", "without 5-level", "2^47")
      || name.contains("4level") || all.contains { $0.contains("no5lvl") }
    hasFiveLevels =
      !isFour && (says("5-level", "2^56") || name.contains("5level") || !isNew)
    physicalAddressBits = HostFacts.number(in: line, before: " physical") ?? (isNew ? 52 : 40)
    let isReal = says("real-mode", "real mode")
    isLongMode =
      name.contains("long") || says("64-bit", "cpl3", "cpl 3")
      || !isReal && (isNew || !hasNestedPaging)
    isEmulated = name.contains("emulated") || says("by the instruction emulator") || isNew && isReal
    if isEmulated, isReal { isLongMode = false }
  }

  /// The first `number.number` after an occurrence of a word.
  private static func version(in text: String, after word: String) -> KernelVersion? {
    let text = Array(text.lowercased().utf8)
    let word = Array(word.utf8)
    func digits(from start: Int) -> (value: Int, end: Int)? {
      var (value, end) = (0, start)
      while end < text.count, end < start + 4, case 48...57 = text[end] {
        value = value * 10 + Int(text[end] - 48)
        end += 1
      }
      return end > start ? (value, end) : nil
    }
    for start in 0..<max(0, text.count - word.count)
    where text[start..<(start + word.count)].elementsEqual(word) {
      guard let major = digits(from: start + word.count), major.end < text.count,
        text[major.end] == UInt8(ascii: "."), let minor = digits(from: major.end + 1)
      else { continue }
      return KernelVersion(major.value, minor.value)
    }
    return nil
  }

  /// The number right before the first occurrence of a word, 36 to 52.
  private static func number(in text: String, before word: String) -> Int? {
    let (text, word) = (Array(text.utf8), Array(word.utf8))
    for end in 2..<max(2, text.count - word.count + 1)
    where text[end..<(end + word.count)].elementsEqual(word) {
      guard case 48...57 = text[end - 1], case 48...57 = text[end - 2] else { continue }
      let value = Int(text[end - 2] - 48) * 10 + Int(text[end - 1] - 48)
      if (36...52).contains(value) { return value }
    }
    return nil
  }

  /// How that kernel's KVM treats the pages it maps.
  public var kvm: KernelModel.KVM {
    if kernel < KernelVersion(5, 13) { return .a0 }
    return kernel < KernelVersion(6, 13) ? .a : .c
  }

  /// What a VM on that host offers.
  public var capabilities: VMCapabilities {
    // Without nested paging KVM takes every address that page tables can hold.
    let bits = hasNestedPaging ? physicalAddressBits : 52
    guard kernel >= KernelVersion(6, 8) else {
      return .linux61(fiveLevel: hasFiveLevels, physicalAddressBits: bits)
    }
    var host = VMCapabilities.linux618
    host.userAddressLimit = VMCapabilities.userAddressLimit(fiveLevel: hasFiveLevels)
    host.guestPhysicalAddressBits = bits
    host.supportsPreFault = hasNestedPaging && kernel >= KernelVersion(6, 11)
    host.refusesMoveWhileTracked = kernel >= KernelVersion(6, 13)
    return host
  }
}

extension HostFacts: CustomStringConvertible {
  /// As `Linux 6.1, nested paging, 40 physical bits, 5 levels, real mode`.
  public var description: String {
    let guest = isEmulated ? "emulated" : isLongMode ? "64-bit user mode" : "real mode"
    return "Linux \(kernel), \(hasNestedPaging ? "nested" : "shadow") paging, "
      + "\(physicalAddressBits) physical bits, \(hasFiveLevels ? 5 : 4) levels, \(guest)"
  }
}
