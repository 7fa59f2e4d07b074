public import PMUnits

/// The machines of QEMU whose RAM can be one memory file of ours: where they put it.
///
/// QEMU maps a file that backs `memory-backend` from its start: the part below the device window at address 0, the
/// rest from 4 GiB on. Seen in `info mtree -f` of QEMU 7.2. (RAM under the VGA window and the BIOS, from
/// 0xa0000 to 0xfffff, is in the file too, where the guest's firmware does not uncover it.)
public enum QEMUMachine: String, CaseIterable, Sendable {
  /// PCI Express, as in PCs from 2007 on.
  case q35
  /// PCI, as in PCs from 1996 on.
  case pc

  /// One run of RAM: where the guest sees it, and where in the file it begins.
  public struct Run: Hashable, Sendable {
    /// Where the guest sees it.
    public var range: GuestRange
    /// Where in the file it begins.
    public var fileOffset: UInt64

    /// A run from its parts.
    public init(range: GuestRange, fileOffset: UInt64) {
      self.range = range
      self.fileOffset = fileOffset
    }
  }

  /// The smallest memory that is split, and what remains below 4 GiB then.
  private var split: (from: ByteCount, low: ByteCount) {
    switch self {
    case .q35: (.mib(2816), .gib(2))
    case .pc: (.mib(3584), .gib(3))
    }
  }

  /// Where RAM of this size lies, in ascending order: one run or two.
  public func runs(memory: ByteCount) -> [Run] {
    guard memory >= split.from else {
      return [Run(range: GuestRange(start: GPA(0), byteCount: memory.rawValue), fileOffset: 0)]
    }
    let low = split.low.rawValue
    return [
      Run(range: GuestRange(start: GPA(0), byteCount: low), fileOffset: 0),
      Run(
        range: GuestRange(
          start: GPA(ByteCount.gib(4).rawValue), byteCount: memory.rawValue - low),
        fileOffset: low),
    ]
  }
}

/// The arguments that let QEMU run on memory of another process.
public struct QEMUArguments: Hashable, Sendable {
  /// Which machine.
  public var machine: QEMUMachine
  /// The size of the memory.
  public var memory: ByteCount
  /// The file that is the memory, as QEMU opens it: `/proc/PID/fd/N`. QEMU needs the same user, or ptrace access to
  /// the process.
  public var path: String
  /// Further properties of the memory back end, as `merge=off`.
  public var properties: [String]

  /// Arguments for a memory file that this or another process has open.
  public init(
    machine: QEMUMachine, memory: ByteCount, process: Int32, descriptor: Int32,
    properties: [String] = []
  ) {
    self.machine = machine
    self.memory = memory
    path = "/proc/\(process)/fd/\(descriptor)"
    self.properties = properties
  }

  /// The arguments, one by one.
  public var words: [String] {
    let object = [
      "memory-backend-file", "id=mem0", "size=\(QEMUArguments.size(memory))", "mem-path=\(path)",
      "share=on",
    ]
    return [
      "-machine", "\(machine.rawValue),memory-backend=mem0", "-m", QEMUArguments.size(memory),
      "-object", (object + properties).joined(separator: ","),
    ]
  }

  /// The same for a shell.
  public var line: String { words.joined(separator: " ") }

  /// As QEMU reads sizes: a number of the largest unit that divides it.
  private static func size(_ memory: ByteCount) -> String {
    for (unit, shift) in [("G", UInt64(30)), ("M", 20), ("K", 10)]
    where memory.rawValue & ((1 << shift) - 1) == 0 {
      return "\(memory.rawValue >> shift)\(unit)"
    }
    return "\(memory.rawValue)B"
  }
}
