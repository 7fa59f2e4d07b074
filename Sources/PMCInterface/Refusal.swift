internal import CPhysmemShim
internal import Glibc
internal import Physmem
internal import SystemPackage

/// Why a function of the C interface refuses: the number that it returns, negated, and the sentence to it.
struct Refusal: Error {
  let errno: Int32
  let text: String

  init(_ errno: Int32, _ text: String) {
    self.errno = errno
    self.text = text
  }

  /// A refusal of the host, with what was asked of it.
  init(host errno: Int32, _ what: String) {
    var line = [CChar](repeating: 0, count: 128)
    let count = line.count
    let known = strerror_r(errno, &line, count) == 0
    let reason = line.withUnsafeBufferPointer { known ? String(cString: $0.baseAddress!) : "" }
    self.init(errno, "\(what): \(reason.isEmpty ? "error \(errno)" : reason)")
  }

  init(_ error: GuestMemoryError) {
    let errno: Int32 =
      switch error {
      case .unmapped, .crossesRegion: EFAULT
      case .readOnly, .notMemory: EACCES
      case .unaligned, .invalidRegion, .otherMachine: EINVAL
      case .overlap: EEXIST
      case .tooManyRegions: ENOSPC
      case .noRegion: ENOENT
      case .foreignFile: EOPNOTSUPP
      case .refused(_, let errno): errno
      case .notTracking: ENODATA
      case .alreadyTracking: EALREADY
      case .harvestOpen: EBUSY
      case .arena(let error): Refusal.errno(of: error)
      }
    self.init(errno, "\(error)")
  }

  init(_ error: MachineError) {
    let errno: Int32 =
      switch error {
      case .arena(let error): Refusal.errno(of: error)
      case .tables(let error): error.errno.rawValue
      case .invalidDescription, .invalidState: EINVAL
      case .cpuInUse: EBUSY
      case .noSuchCPU: ENODEV
      }
    self.init(errno, "\(error)")
  }

  private static func errno(of error: ArenaError) -> Int32 {
    switch error {
    case .host(let error): error.errno.rawValue
    case .hugePagesShort: ENOMEM
    case .invalidSize, .outOfRange, .unaligned: EINVAL
    case .noSuchNode: ENODEV
    }
  }

  /// A pointer that must not be NULL.
  static func null(_ name: String) -> Refusal { Refusal(EINVAL, "\(name) is NULL") }

  /// Keeps the sentence for the calling thread, and returns the number as C gets it.
  func answer() -> Int32 {
    var text = text
    text.withUTF8 { utf8 in
      utf8.withMemoryRebound(to: CChar.self) {
        pm_error_keep($0.baseAddress ?? pm_error_text(), $0.count)
      }
    }
    return -errno
  }
}

/// Does what a function of C does; its refusal becomes the negated number.
func answer(_ body: () throws(Refusal) -> Int32) -> Int32 {
  do { return try body() } catch { return error.answer() }
}

/// Throws unless `size`, which the caller has compiled in, is that of the struct.
///
/// A size of a later ABI is refused too: what is in it would be ignored.
func check<Struct>(size: UInt32, of type: Struct.Type) throws(Refusal) {
  guard Int(size) == MemoryLayout<Struct>.size else {
    throw Refusal(
      EINVAL,
      "\(type).size is \(size): this library knows \(MemoryLayout<Struct>.size), see PM_*_INIT")
  }
}

/// Copies a line, cut to the capacity and ended by 0; returns the length of all of it.
func copy(
  _ line: String, to text: UnsafeMutablePointer<CChar>?, capacity: Int
) throws(Refusal) -> Int32 {
  // A size_t above this is none of an object.
  guard capacity >= 0 else { throw Refusal(EINVAL, "a capacity of \(UInt(bitPattern: capacity))") }
  var line = line
  let count = line.utf8.count
  if capacity > 0 {
    guard let text else { throw .null("text") }
    line.withUTF8 { utf8 in
      let kept = min(utf8.count, capacity - 1)
      for index in 0..<kept { text[index] = CChar(bitPattern: utf8[index]) }
      text[kept] = 0
    }
  }
  return Int32(clamping: count)
}
