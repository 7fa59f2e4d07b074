internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// A mapping of user memory of 2 MiB, by its name in the tables: `anon`, `thp(untouched)`, ….
struct UserMapping {
  /// What was done to the memory before the VM.
  enum Touch: String {
    case all = ""
    case untouched
    case readTouched = "readtouched"
  }

  static let byteCount: UInt64 = 0x20_0000

  let kind: String
  let touch: Touch
  let process: HostProcess
  let address: UInt64
  let rights: VMAFlags
  let file: HostFile?

  var range: Range<UInt64> { address..<(address + UserMapping.byteCount) }

  /// A name's parts; `anon_zeropage` is anonymous memory.
  static func parse(_ name: String) -> (kind: String, touch: Touch)? {
    let parts = name.split(separator: "(", maxSplits: 1)
    guard let kind = parts.first else { return nil }
    let touch = parts.count > 1 ? String(parts[1].dropLast()) : ""
    return Touch(rawValue: touch).map { (String(kind), $0) }
  }

  /// Maps and touches. `pattern` is what a full touch fills the memory with; `writeWhole` says that a file
  /// is written by one call and synced. Nil for an unknown kind.
  init?(
    _ kind: String, _ touch: Touch, watched page: UInt64, host: MeasuredHost,
    process: HostProcess, pattern: UInt8 = 0x11, syncs: Bool = false
  ) throws {
    let kernel = host.kernel
    let isNew = host.facts.kernel >= KernelVersion(6, 13)
    let fileKind: HostFile.Kind = isNew ? .disk : .tmpfs
    var request = HostProcess.MapRequest(byteCount: UserMapping.byteCount)
    var file: HostFile?
    var readOnlyLater = false
    switch kind {
    case "anon", "anon_zeropage": request.extra = .noHugePage
    case "anon_ro_prot":
      request.extra = .noHugePage
      readOnlyLater = true
    case "thp": request.extra = .hugePage
    case "hugetlb": request.extra = .hugetlb
    case "hugetlb_shared":
      file = HostFile(kernel: kernel, kind: .hugetlb, byteCount: UserMapping.byteCount)
      request.isShared = true
    case "shmem_shared":
      file = HostFile(kernel: kernel, kind: .tmpfs, byteCount: UserMapping.byteCount)
      request.isShared = true
    case "file_private", "file_private_ro", "file_shared":
      let made = HostFile(kernel: kernel, kind: fileKind, byteCount: 0)
      try made.write(pages: 0..<512, pattern: 0x22, on: &host.cpu)
      if syncs { made.sync() }
      file = made
      request.isShared = kind == "file_shared"
      if kind == "file_private_ro" { request.rights = .read }
    default: return nil
    }
    if let file { request.backing = .file(file) }
    let address = try process.map(request, on: &host.cpu)
    let range = address..<(address + UserMapping.byteCount)
    switch touch {
    case .all:
      if request.rights.contains(.write) { try process.fill(range, pattern, on: &host.cpu) }
    case .untouched: break
    case .readTouched: _ = try process.read32(address + page << 12, on: &host.cpu)
    }
    if readOnlyLater { try process.protect(range, rights: .read, on: &host.cpu) }
    self.kind = kind
    self.touch = touch
    self.process = process
    self.address = address
    self.file = file
    rights = readOnlyLater ? .read : request.rights
  }

  /// munmap and close: a file on the file system stays, shared memory and hugetlb files vanish.
  func end(on cpu: inout CPU) throws {
    try process.unmap(range, on: &cpu)
    if let file, kind == "hugetlb_shared" || kind == "shmem_shared" { file.discard(on: &cpu) }
  }
}
