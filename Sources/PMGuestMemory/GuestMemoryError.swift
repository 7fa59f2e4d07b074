public import PMArena
public import PMUnits

/// Why guest memory could not be accessed or changed. Ranges are named on both sides: what was asked for, and
/// what stands against it.
public enum GuestMemoryError: Error, Equatable, Sendable {
  /// A part of the range, `gap`, lies in no region, or beyond what a guest can address.
  case unmapped(GuestRange, gap: GuestRange)
  /// A write touches memory that the guest may only read.
  case readOnly(GuestRange, region: GuestRange)
  /// The range touches a device where memory is needed: for a host address or an atomic access.
  case notMemory(GuestRange, region: GuestRange)
  /// The range does not end in the region in which it begins, where it must.
  case crossesRegion(GuestRange, region: GuestRange)
  /// The range does not begin and end at multiples of `unit`.
  case unaligned(GuestRange, unit: ByteCount)
  /// The new region has bytes of another.
  case overlap(GuestRange, existing: GuestRange)
  /// No region can be like this.
  case invalidRegion(GuestRange, reason: String)
  /// There are as many regions as there can be.
  case tooManyRegions(max: Int)
  /// No region begins at this address.
  case noRegion(at: GPA)
  /// The operation needs memory that no other program owns; this region's bytes are in somebody's file.
  case foreignFile(region: GuestRange)
  /// The device refused, with an error number of Linux.
  case refused(GuestRange, errno: Int32)
  /// No record of dirty pages is kept.
  case notTracking
  /// A record of dirty pages is kept already.
  case alreadyTracking
  /// A harvest of dirty pages is open.
  case harvestOpen
  /// The CPU is of a machine whose memory is not here.
  case otherMachine
  /// The arena, and behind it the host, refused.
  case arena(ArenaError)

  /// Does `body` and throws its error as one of guest memory.
  static func wrapping<Result: ~Copyable>(
    _ body: () throws(ArenaError) -> Result
  ) throws(GuestMemoryError) -> Result {
    do { return try body() } catch { throw .arena(error) }
  }
}

extension GuestMemoryError: CustomStringConvertible {
  /// One line that names both sides.
  public var description: String {
    switch self {
    case .unmapped(let range, let gap): "\(range): \(gap) lies in no region"
    case .readOnly(let range, let region): "\(range): \(region) can only be read"
    case .notMemory(let range, let region): "\(range): \(region) is a device"
    case .crossesRegion(let range, let region): "\(range) does not lie in the one region \(region)"
    case .unaligned(let range, let unit): "\(range) does not begin and end at multiples of \(unit)"
    case .overlap(let range, let existing): "\(range) overlaps the region \(existing)"
    case .invalidRegion(let range, let reason): "no region \(range): \(reason)"
    case .tooManyRegions(let max): "there are \(max) regions, and no more can be"
    case .noRegion(let address): "no region begins at \(address)"
    case .foreignFile(let region): "the bytes of \(region) are in a file of somebody else"
    case .refused(let range, let errno): "the device at \(range) refused with error \(errno)"
    case .notTracking: "no record of dirty pages is kept"
    case .alreadyTracking: "a record of dirty pages is kept already"
    case .harvestOpen: "a harvest of dirty pages is open: commit or abort it first"
    case .otherMachine: "the CPU is of another machine"
    case .arena(let error): "\(error)"
    }
  }
}
