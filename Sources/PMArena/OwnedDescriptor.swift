import SystemPackage

/// The one owner of a file descriptor, which its end closes.
struct OwnedDescriptor: ~Copyable {
  let rawValue: Int32

  private init(_ rawValue: Int32) { self.rawValue = rawValue }

  /// A descriptor of the same file as one that stays its owner's.
  init(duplicating file: Int32) throws(HostError) { rawValue = try Host.duplicateCounted(file) }

  /// Makes a memory file of this size, which cannot change any more.
  static func memoryFile(
    of byteCount: Int, hugePageShift: Int
  ) throws(HostError) -> OwnedDescriptor {
    let file = OwnedDescriptor(try openMemoryFile(hugePageShift: hugePageShift))
    try Host.truncate(file.rawValue, to: byteCount)
    try Host.sealSize(of: file.rawValue)
    return file
  }

  private static func openMemoryFile(hugePageShift: Int) throws(HostError) -> Int32 {
    do {
      return try Host.makeMemoryFile(hugePageShift: hugePageShift, noexec: true)
    } catch {
      // A kernel before 6.3 knows only files that may be executed; a later one may refuse those.
      guard error.errno == .invalidArgument else { throw error }
      return try Host.makeMemoryFile(hugePageShift: hugePageShift, noexec: false)
    }
  }

  deinit {
    // The descriptor is gone whatever close says, unless somebody else has closed it: a bug, as the
    // number may be another file's by now.
    do { try Host.close(rawValue) } catch {
      guard error.errno != .badFileDescriptor else {
        fatalError("an owned descriptor was closed by somebody else: \(error)")
      }
    }
  }
}
