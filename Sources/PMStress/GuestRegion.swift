/// What is published of a region of guest memory, in one word that guests read without a lock.
///
/// Whoever changes the region publishes it as busy first and with its new state afterwards. A guest that
/// reads the same word before and after an access, and not a busy one, knows exactly what the access had
/// to give.
struct GuestRegion: Hashable {
  /// What the process and the slot allow.
  enum Rights: UInt64 {
    /// The process has nothing there: EFAULT.
    case none
    /// The process may read: writes give EFAULT.
    case read
    /// Everything goes.
    case write
    /// The slot is read-only: writes exit to user space.
    case readonlySlot
  }

  /// The word as it is published: busy, rights, place, generation, version.
  var rawValue: UInt64

  init(rawValue: UInt64) { self.rawValue = rawValue }

  init(rights: Rights, place: Int) {
    rawValue = rights.rawValue << 1 | UInt64(place) << 4
  }

  /// Whether a change is under way.
  var isBusy: Bool { rawValue & 1 != 0 }

  var rights: Rights {
    get { Rights(rawValue: rawValue >> 1 & 3) ?? .none }
    set { rawValue = rawValue & ~0x6 | newValue.rawValue << 1 }
  }

  /// The window of guest addresses that shows the region, from 1; 0: no slot does.
  var place: Int {
    get { Int(rawValue >> 4 & 0xf) }
    set { rawValue = rawValue & ~0xf0 | UInt64(newValue) << 4 }
  }

  /// How often the region's contents were thrown away.
  var generation: UInt32 {
    get { UInt32(truncatingIfNeeded: rawValue >> 8 & 0xff_ffff) }
    set { rawValue = rawValue & ~0xffff_ff00 | UInt64(newValue & 0xff_ffff) << 8 }
  }

  /// The same under a new version, busy: what stands while the region changes.
  var changing: GuestRegion {
    GuestRegion(rawValue: (rawValue | 1) &+ 1 << 32)
  }

  /// The same, settled.
  var settled: GuestRegion { GuestRegion(rawValue: rawValue & ~1) }

  /// Whether an access in a window has to exit to user space.
  func expectsMMIO(at window: Int, isWrite: Bool) -> Bool {
    place != window || (isWrite && rights == .readonlySlot)
  }

  /// Whether an access in a window has to succeed.
  func allows(at window: Int, isWrite: Bool) -> Bool {
    guard place == window else { return false }
    switch rights {
    case .write: return true
    case .read, .readonlySlot: return !isWrite
    case .none: return false
    }
  }
}
