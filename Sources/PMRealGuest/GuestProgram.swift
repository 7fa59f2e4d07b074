/// The guest's own memory: its programs, the records they work on, and the tables of a 64-bit CPU.
///
/// It is one region from guest physical address 0. The page tables map every address to itself by
/// 2 MiB pages for privilege level 3; their accessed and dirty bits are set beforehand, so that the
/// CPU never writes to them.
enum GuestProgram {
  static let pageSize: UInt64 = 4096
  /// Page 0 stays empty.
  static let code: UInt64 = 0x1000
  static let descriptorTable: UInt64 = 0x2000
  static let taskSegment: UInt64 = 0x3000
  static let pageTableRoot: UInt64 = 0x4000
  private static let pageTableLevel3: UInt64 = 0x5000
  private static let firstRecords: UInt64 = 0x10000
  static let recordCapacity = 2048
  static let recordSize: UInt64 = 32

  /// Where the records of a vCPU begin; each has its own.
  static func records(vcpu: Int) -> UInt64 {
    firstRecords + UInt64(vcpu) * UInt64(recordCapacity) * recordSize
  }

  /// From here one page of entries for each GiB.
  private static func pageTableLevel2(vcpuCount: Int) -> UInt64 { records(vcpu: vcpuCount) }

  /// The size of the region for a guest of `vcpuCount` vCPUs that reaches `reachGiB` GiB.
  static func byteCount(reachGiB: Int, vcpuCount: Int) -> UInt64 {
    pageTableLevel2(vcpuCount: vcpuCount) + UInt64(reachGiB) * pageSize
  }

  static let dataSelector: UInt16 = 0x08 | 3
  static let codeSelector: UInt16 = 0x10 | 3
  static let taskSelector: UInt16 = 0x18
  static let descriptorTableLimit: UInt16 = 5 * 8 - 1

  /// The port by which a program says that it is done.
  static let donePort: UInt16 = 0xf8

  /// Fills the region, which must be `byteCount(reachGiB:vcpuCount:)` bytes of zeroes.
  static func write(to memory: UnsafeMutableRawPointer, reachGiB: Int, vcpuCount: Int) {
    writeTables(to: memory, reachGiB: reachGiB, vcpuCount: vcpuCount)
    for (address, bytes) in singlePrograms + scriptPrograms {
      precondition(address + UInt64(bytes.count) <= descriptorTable, "the code has one page")
      for (index, byte) in bytes.enumerated() {
        memory.storeBytes(of: byte, toByteOffset: Int(address) + index, as: UInt8.self)
      }
    }
  }

  private static func writeTables(
    to memory: UnsafeMutableRawPointer, reachGiB: Int, vcpuCount: Int
  ) {
    func store(_ word: UInt64, at address: UInt64) {
      memory.storeBytes(of: word, toByteOffset: Int(address), as: UInt64.self)
    }
    // Present, writable, user, accessed; for a page also dirty and large.
    let table: UInt64 = 0x27
    let page: UInt64 = 0xe7
    store(pageTableLevel3 | table, at: pageTableRoot)
    for gigabyte in 0..<UInt64(reachGiB) {
      let entries = pageTableLevel2(vcpuCount: vcpuCount) + gigabyte * pageSize
      store(entries | table, at: pageTableLevel3 + gigabyte * 8)
      for index in 0..<512 as Range<UInt64> {
        store((gigabyte << 30 + index << 21) | page, at: entries + index * 8)
      }
    }
    // Data, code (64-bit) and the task segment, as the CPU's segment registers are set anyway.
    store(0x00cf_f300_0000_ffff, at: descriptorTable + UInt64(dataSelector & ~7))
    store(0x00af_fb00_0000_ffff, at: descriptorTable + UInt64(codeSelector & ~7))
    store(
      0x0000_8b00_0000_0067 | taskSegment << 16, at: descriptorTable + UInt64(taskSelector))
  }
}

// MARK: - Machine code

extension GuestProgram {
  /// The number of a kind of access: 0 to 7.
  private static func index(_ size: RealAccessSize, isWrite: Bool) -> UInt64 {
    UInt64(size.rawValue.trailingZeroBitCount + (isWrite ? 4 : 0))
  }

  /// The one instruction of each kind: between RAX and the memory at RBX.
  private static func instruction(_ size: RealAccessSize, isWrite: Bool) -> [UInt8] {
    switch (size, isWrite) {
    case (.one, false): [0x0f, 0xb6, 0x03]  // movzx eax, byte [rbx]
    case (.two, false): [0x0f, 0xb7, 0x03]  // movzx eax, word [rbx]
    case (.four, false): [0x8b, 0x03]  // mov eax, [rbx]
    case (.eight, false): [0x48, 0x8b, 0x03]  // mov rax, [rbx]
    case (.one, true): [0x88, 0x03]  // mov [rbx], al
    case (.two, true): [0x66, 0x89, 0x03]  // mov [rbx], ax
    case (.four, true): [0x89, 0x03]  // mov [rbx], eax
    case (.eight, true): [0x48, 0x89, 0x03]  // mov [rbx], rax
    }
  }

  private static let sayDone: [UInt8] = [0xe6, UInt8(donePort)]  // out 0xf8, al

  private static var kinds: [(size: RealAccessSize, isWrite: Bool)] {
    RealAccessSize.allCases.flatMap { [($0, false), ($0, true)] }
  }

  /// The program of a single access: the value in RAX, the address in RBX.
  static func single(_ size: RealAccessSize, isWrite: Bool) -> UInt64 {
    code + 16 * index(size, isWrite: isWrite)
  }

  private static var singlePrograms: [(address: UInt64, bytes: [UInt8])] {
    kinds.map { kind in
      (
        single(kind.size, isWrite: kind.isWrite),
        instruction(kind.size, isWrite: kind.isWrite) + sayDone
      )
    }
  }

  /// The program of a script: RSI is the first record, RDI the end of the records. Each step leaves
  /// the record in work in RSI.
  ///
  /// A record is the address, the value, and the address of the handler of its kind: 8 bytes each,
  /// and 8 unused.
  static let script: UInt64 = code + 0x200
  /// Where a script goes on with the next record.
  private static let scriptNext: UInt64 = code + 0x240
  /// Stores what was read and goes on.
  private static let scriptStore: UInt64 = scriptNext - 4

  /// The handler of a kind of access in a script.
  static func handler(_ size: RealAccessSize, isWrite: Bool) -> UInt64 {
    code + 0x100 + 16 * index(size, isWrite: isWrite)
  }

  /// Whether a script that stands at `rip` has done the access of its record, so that it must not be
  /// done again: a write behind its instruction, or a read whose value was stored.
  static func hasDoneAccess(scriptAt rip: UInt64) -> Bool {
    rip == scriptNext
      || kinds.contains {
        $0.isWrite && rip == handler($0.size, isWrite: true) + length($0.size, isWrite: true)
      }
  }

  /// The bytes of the instruction of a kind: behind it a single access is done.
  static func length(_ size: RealAccessSize, isWrite: Bool) -> UInt64 {
    UInt64(instruction(size, isWrite: isWrite).count)
  }

  /// A jump to `target` from code at `address`.
  private static func jump(from address: UInt64, to target: UInt64) -> [UInt8] {
    let distance = UInt32(truncatingIfNeeded: target &- (address + 5))
    return [0xe9] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> (8 * $0)) }
  }

  private static var scriptPrograms: [(address: UInt64, bytes: [UInt8])] {
    let loop: [UInt8] = [
      0x48, 0x39, 0xfe,  // cmp rsi, rdi
      0x73, 0x0a,  // jae to what follows the jmp
      0x48, 0x8b, 0x1e,  // mov rbx, [rsi]
      0x48, 0x8b, 0x46, 0x08,  // mov rax, [rsi + 8]
      0xff, 0x66, 0x10,  // jmp [rsi + 16]
    ]
    let store: [UInt8] = [0x48, 0x89, 0x46, 0x08]  // mov [rsi + 8], rax
    let advance: [UInt8] = [0x48, 0x83, 0xc6, UInt8(recordSize)]  // add rsi, 32
    let next = advance + jump(from: scriptNext + UInt64(advance.count), to: script)
    let handlers = kinds.map { kind in
      let start = handler(kind.size, isWrite: kind.isWrite)
      let bytes = instruction(kind.size, isWrite: kind.isWrite)
      let target = kind.isWrite ? scriptNext : scriptStore
      return (start, bytes + jump(from: start + UInt64(bytes.count), to: target))
    }
    return handlers + [(script, loop + sayDone), (scriptStore, store), (scriptNext, next)]
  }
}
