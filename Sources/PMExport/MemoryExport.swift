internal import PMArena
public import PMGuestMemory
public import PMUnits
public import SystemPackage

/// Why memory could not be handed from one process to another.
public enum ExportError: Error, Equatable, Sendable {
  /// The system refused: what was asked, and why.
  case system(String, Errno)
  /// What arrived is not an export.
  case malformed(String)
  /// The bytes of the region are private to this process.
  case privateMemory(GuestRange)
  /// There are more regions than one message carries.
  case tooManyRegions(count: Int, max: Int)
  /// The memory refused.
  case guestMemory(GuestMemoryError)

  static func wrapping<Result: ~Copyable>(
    _ body: () throws(HostError) -> Result
  ) throws(ExportError) -> Result {
    do { return try body() } catch { throw .system(error.operation, error.errno) }
  }
}

extension ExportError: CustomStringConvertible {
  /// One line that says what is wrong.
  public var description: String {
    switch self {
    case .system(let operation, let errno): "\(operation): \(errno)"
    case .malformed(let reason): "no export of guest memory: \(reason)"
    case .privateMemory(let range):
      "the bytes of \(range) are this process's own, which no other can map: use a shared "
        + "backing, as memfd"
    case .tooManyRegions(let count, let max):
      "the memory has \(count) regions, and one export carries \(max)"
    case .guestMemory(let error): "\(error)"
    }
  }
}

/// Guest memory handed to other processes over a Unix socket: whoever connects gets one message with the regions and
/// their descriptors, maps them, and sees the same bytes from then on.
///
/// The message, in the host's byte order: 8 bytes `PMEXPORT`, u32 version (1), u32 count, then for each region
/// u64 guest physical address, u64 length, u64 offset in the file, u32 kind (0 RAM, 1 ROM, 3 persistent memory),
/// u32 page size. Beside the first byte, by SCM_RIGHTS, one descriptor for each region in the same order. The
/// server closes the connection then.
public enum MemoryExport {
  /// The most regions of an export.
  public static let maxRegionCount = Socket.maxDescriptorCount
  private static let magic: [UInt8] = Array("PMEXPORT".utf8)
  private static let version: UInt32 = 1
  private static let headerByteCount = 16
  private static let regionByteCount = 32

  /// Sends the memory's regions (devices are left out) over a connected socket, which stays the caller's.
  package static func send(
    _ memory: GuestMemory, to socket: Int32, timeout: Int32 = 10_000
  ) throws(ExportError) {
    let snapshot = memory.snapshot()
    // The descriptors are borrowed from it.
    defer { withExtendedLifetime(snapshot) {} }
    let regions = snapshot.regions.filter { $0.kind != .mmio }
    guard regions.count <= maxRegionCount else {
      throw .tooManyRegions(count: regions.count, max: maxRegionCount)
    }
    var bytes = magic
    bytes.append(word: version)
    bytes.append(word: UInt32(regions.count))
    var descriptors: [Int32] = []
    for region in regions {
      guard let descriptor = region.fileDescriptor else { throw .privateMemory(region.range) }
      descriptors.append(descriptor)
      bytes.append(word: region.range.start.rawValue)
      bytes.append(word: region.range.byteCount)
      bytes.append(word: region.fileOffset)
      bytes.append(word: UInt32(region.kind.rawValue))
      bytes.append(word: UInt32(region.pageSize.rawValue))
    }
    let (message, numbers) = (bytes, descriptors)
    try ExportError.wrapping { () throws(HostError) in
      try Socket.send(message, descriptors: numbers, to: socket, timeout: timeout)
    }
  }

  /// Receives an export from a connected socket, and maps it.
  package static func receive(
    from socket: Int32, timeout: Int32 = 10_000
  ) throws(ExportError) -> GuestMemory {
    let (header, descriptors) = try ExportError.wrapping { () throws(HostError) in
      try Socket.receive(
        headerByteCount, maxDescriptors: maxRegionCount, from: socket, timeout: timeout)
    }
    // Each region of memory duplicates its own.
    defer { for descriptor in descriptors { _ = Socket.own(descriptor) } }
    guard header.count == headerByteCount, Array(header[..<8]) == magic else {
      throw .malformed("it does not begin with PMEXPORT")
    }
    let version = header.word(UInt32.self, at: 8)
    guard version == MemoryExport.version else {
      throw .malformed("version \(version): expected \(MemoryExport.version)")
    }
    let count = header.word(UInt32.self, at: 12)
    guard Int(count) == descriptors.count else {
      throw .malformed("\(count) regions with \(descriptors.count) descriptors")
    }
    let byteCount = Int(count) * regionByteCount
    let body = try ExportError.wrapping { () throws(HostError) in
      try Socket.receive(byteCount, from: socket, timeout: timeout).bytes
    }
    guard body.count == byteCount else {
      throw .malformed("it ends after \(body.count) of \(byteCount) bytes of regions")
    }
    let memory = GuestMemory()
    for (index, descriptor) in descriptors.enumerated() {
      let region = try region(body, at: index * regionByteCount, descriptor)
      do { try memory.add(region) } catch { throw .guestMemory(error) }
    }
    return memory
  }

  private static func region(
    _ body: [UInt8], at place: Int, _ descriptor: Int32
  ) throws(ExportError) -> NewRegion {
    let number = body.word(UInt32.self, at: place + 24)
    guard let raw = UInt8(exactly: number), let kind = RegionKind(rawValue: raw), kind != .mmio
    else { throw .malformed("a region of kind \(number)") }
    return .memory(
      kind, at: GPA(body.word(UInt64.self, at: place)),
      byteCount: ByteCount(body.word(UInt64.self, at: place + 8)), file: descriptor,
      fileOffset: body.word(UInt64.self, at: place + 16))
  }

  /// The memory that the server at a socket's path exports: mapped, not copied. Throws ``ExportError``.
  public static func open(_ path: String) throws(ExportError) -> GuestMemory {
    let socket = try ExportError.wrapping { () throws(HostError) in try Socket.connect(to: path) }
    return try receive(from: socket.rawValue)
  }
}

/// Hands guest memory to whoever connects to a socket, see ``MemoryExport``.
///
/// The socket's name lets only this user connect. One thread serves at a time.
public struct MemoryExportServer: ~Copyable, Sendable {
  private let listener: OwnedFile
  private let memory: GuestMemory
  /// The socket's name.
  public let path: String

  /// Listens at `path`; the name is removed with this value.
  ///
  /// The path must not exist, except for a socket that nobody listens at: what a server leaves behind that was
  /// killed. That one is replaced.
  public init(_ memory: GuestMemory, at path: String) throws(ExportError) {
    listener = try ExportError.wrapping { () throws(HostError) in
      do throws(HostError) { return try Socket.listen(at: path) } catch {
        guard error.errno == .addressInUse else { throw error }
        try Socket.removeAbandoned(path)
        return try Socket.listen(at: path)
      }
    }
    self.memory = memory
    self.path = path
  }

  deinit { try? Socket.unlink(path) }

  /// Waits for one client (for `timeout` milliseconds; -1: any time) and hands the memory over. What a client does
  /// wrong is thrown, and the next one can be served.
  public borrowing func serveOne(timeout: Int32 = -1) throws(ExportError) {
    let client = try Socket.wrapAccept(listener, timeout: timeout)
    // A client that does not read gets one second: the message fits a socket's buffer.
    try MemoryExport.send(memory, to: client.rawValue, timeout: 1000)
  }
}

extension Socket {
  fileprivate static func wrapAccept(
    _ listener: borrowing OwnedFile, timeout: Int32
  ) throws(ExportError) -> OwnedFile {
    do { return try accept(listener, timeout: timeout) } catch {
      throw .system(error.operation, error.errno)
    }
  }
}

// Words of messages: in the host's byte order.
extension [UInt8] {
  package mutating func append(word: some FixedWidthInteger) {
    Swift.withUnsafeBytes(of: word) { append(contentsOf: $0) }
  }

  /// The word at an offset. pre: it lies inside.
  package func word<Word: FixedWidthInteger & BitwiseCopyable>(
    _ type: Word.Type, at offset: Int
  ) -> Word {
    withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Word.self) }
  }
}
