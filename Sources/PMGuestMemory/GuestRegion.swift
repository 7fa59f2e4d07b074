public import PMArena
public import PMUnits

/// What a region of guest memory is.
public enum RegionKind: UInt8, CaseIterable, Hashable, Sendable {
  /// Memory.
  case ram = 0
  /// Memory that the guest can only read; the host writes it by ``GuestMemory/writeROM(_:at:)``.
  case rom = 1
  /// A device: every access is a call of a handler.
  case mmio = 2
  /// Memory whose bytes stay in a file.
  case pmem = 3

  /// Whether the guest may write it.
  public var isWritable: Bool { self != .rom }
}

/// A region of guest memory as it is. Addresses and descriptors in it are valid while it is in a
/// ``RegionSnapshot`` that somebody holds.
public struct GuestRegion: Sendable {
  /// Where the guest sees it.
  public let range: GuestRange
  /// What it is.
  public let kind: RegionKind
  /// What the host has made it of; nil for devices.
  public let backing: Backing?
  /// What can be given back to the host piece by piece: 4 KiB, or the size of its huge pages.
  public let pageSize: ByteCount
  /// The host's node that its pages are bound to, or nil.
  public let hostNode: Int?
  /// The file that another process can map, or nil where the bytes are this process's own. Borrowed.
  public let fileDescriptor: Int32?
  /// Where in the file the region begins.
  public let fileOffset: UInt64
  let base: UInt

  /// Where this process has it, or nil for devices. Agrees with the guest's address modulo 2 MiB.
  public var hostAddress: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: base) }
}

/// A region to be added by ``GuestMemory/add(_:)``.
public struct NewRegion: Sendable {
  enum Contents: Sendable {
    case zeroes(Backing, hostNode: Int?)
    case file(Int32, offset: UInt64)
    case device(any MMIOHandler)
  }

  /// Where the guest is to see it.
  public let range: GuestRange
  /// What it is to be.
  public let kind: RegionKind
  let contents: Contents

  /// New zeroed memory, on a node of the host if one is named.
  public static func ram(
    at start: GPA, byteCount: ByteCount, backing: Backing = .memfd, hostNode: Int? = nil
  ) -> NewRegion {
    NewRegion(
      range: GuestRange(start: start, byteCount: byteCount.rawValue), kind: .ram,
      contents: .zeroes(backing, hostNode: hostNode))
  }

  /// Memory that the guest can only read, zeroed; ``GuestMemory/writeROM(_:at:)`` fills it.
  public static func rom(
    at start: GPA, byteCount: ByteCount, backing: Backing = .memfd, hostNode: Int? = nil
  ) -> NewRegion {
    NewRegion(
      range: GuestRange(start: start, byteCount: byteCount.rawValue), kind: .rom,
      contents: .zeroes(backing, hostNode: hostNode))
  }

  /// A part of a file, from `fileOffset` on: what the guest writes is in the file. The descriptor is
  /// duplicated and stays the caller's.
  public static func pmem(
    at start: GPA, byteCount: ByteCount, file: Int32, fileOffset: UInt64 = 0
  ) -> NewRegion {
    NewRegion(
      range: GuestRange(start: start, byteCount: byteCount.rawValue), kind: .pmem,
      contents: .file(file, offset: fileOffset))
  }

  /// Memory (of kind ``RegionKind/ram`` or ``RegionKind/rom``) in a part of a file, as ``pmem(at:byteCount:file:fileOffset:)``.
  public static func memory(
    _ kind: RegionKind, at start: GPA, byteCount: ByteCount, file: Int32, fileOffset: UInt64 = 0
  ) -> NewRegion {
    precondition(kind != .mmio, "a device has no file")
    return NewRegion(
      range: GuestRange(start: start, byteCount: byteCount.rawValue), kind: kind,
      contents: .file(file, offset: fileOffset))
  }

  /// A device; start and size are multiples of 8.
  public static func mmio(
    at start: GPA, byteCount: ByteCount, handler: any MMIOHandler
  ) -> NewRegion {
    NewRegion(
      range: GuestRange(start: start, byteCount: byteCount.rawValue), kind: .mmio,
      contents: .device(handler))
  }
}
