internal import PMArena
internal import PMPageAllocator
internal import PMRealGuest
internal import PMUnits

/// Stress with real guests: vCPUs of this host's KVM on memory of this process, which changes under them.
///
/// What the kernel itself does is under test here, and our way of driving it: the same published state of
/// regions as with software guests, which the guest reads itself before and after each access.
enum RealStress {
  /// An error of the stress itself, on purpose: to show that it is found.
  enum Mistake: CaseIterable {
    /// Memory that is taken away stays where it is.
    case skipsUnmap
    /// A migrated block is poisoned, and its addresses still show it.
    case migratesWithoutSwitch
    /// A slot that is said to be deleted stays.
    case keepsSlot
    /// Even pages that the log names are not copied.
    case forgetsHarvestedPages
  }

  /// Plays a round. Where the machine lacks what it takes, the outcome says so.
  static func run(
    _ plan: StressPlan, control: StressControl, mistake: Mistake? = nil
  ) -> StressOutcome {
    if let reason = RealVM.unavailability() { return StressOutcome(skipped: reason) }
    do {
      if let reason = try lack(plan) { return StressOutcome(skipped: reason) }
      switch plan.kind {
      case .map: return try RealMapStress.run(plan, control, mistake)
      case .memslot: return try RealMemslotStress.run(plan, control, mistake)
      case .dirty: return try RealDirtyStress.run(plan, control, mistake)
      case .refcount, .alloc: return StressOutcome(skipped: "\(plan.kind) has no guests")
      }
    } catch let error as MachineError {
      return StressOutcome(skipped: "\(error)")
    } catch {
      control.fail(
        StressFailure(
          kind: plan.kind, seed: plan.seed, thread: nil, step: nil,
          message: "the round could not be set up: \(error)"))
      return StressOutcome()
    }
  }

  /// What the host lacks for a round, in words, or nil.
  private static func lack(_ plan: StressPlan) throws -> String? {
    let shape = RealShape(plan)
    guard shape.reachGiB <= 512 else {
      return
        "the guest reaches 512 GiB, \(shape.places) windows take \(shape.reachGiB): use fewer bytes"
    }
    // Whether the host's pool has the pages is found out by taking them.
    let backing = plan.options.backing.arenaBacking
    guard backing.isHuge, !backing.isShared else { return nil }
    do throws(ArenaError) {
      _ = try Arena(ArenaConfiguration(byteCount: ByteCount(shape.byteCount), backing: backing))
    } catch { return "\(error)" }
    return nil
  }
}

extension StressBacking {
  /// Whether the memory is a file.
  var isShared: Bool { arenaBacking.isShared }
}

/// How memory, regions and windows of a round with real guests lie.
struct RealShape {
  /// Windows of guest addresses in which a region can be shown.
  let places: Int
  let pageCount: Int
  let regionPages: Int
  /// Pages that are taken, moved and given back together, a power of two.
  let chunkPages: Int
  /// Words that each vCPU has in a page.
  let wordsPerPage: Int
  let vcpus: Int

  /// The region table's place in the guest.
  static let tableStart: UInt64 = 0x2000_0000
  /// The first guest address of window 1.
  static let windowStart: UInt64 = 1 << 30

  init(_ plan: StressPlan) {
    let backing = plan.options.backing
    places = plan.kind == .memslot ? RealMemslotStress.places : 1
    let limit = plan.kind == .memslot ? RealMemslotStress.slotCount : 4096
    let least =
      switch backing {
      case .anonymous, .shmem: 16
      case .anonymousTHP, .anonymousHugeTLB, .anonymousHugeTLB2MiB, .sharedHugeTLB: 512
      case .anonymousHugeTLB1GiB: 1 << 18
      }
    let asked = Int((plan.options.byteCount + 4095) >> 12)
    regionPages = (max(asked / limit, least) + least - 1) / least * least
    pageCount = max((asked + regionPages - 1) / regionPages, 2) * regionPages
    // The largest power of two in a region, up to the largest block of the machine.
    chunkPages = 1 << min(regionPages.trailingZeroBitCount, 10)
    vcpus = plan.options.vcpus
    wordsPerPage = min(4, 512 / vcpus)
  }

  var byteCount: UInt64 { UInt64(pageCount) << 12 }
  var regionCount: Int { pageCount / regionPages }
  var chunkCount: Int { pageCount / chunkPages }
  var chunkOrder: Int { chunkPages.trailingZeroBitCount }
  private var windowGiB: Int { Int((byteCount + (1 << 30) - 1) >> 30) + 1 }
  var reachGiB: Int { 1 + places * windowGiB }

  /// The guest address of a page in a window, from window 1.
  func guestAddress(_ page: Int, place: Int) -> UInt64 {
    Self.windowStart + UInt64((place - 1) * windowGiB) << 30 + UInt64(page) << 12
  }

  func pages(ofRegion region: Int) -> Range<Int> {
    region * regionPages..<(region + 1) * regionPages
  }

  func pages(ofChunk chunk: Int) -> Range<Int> { chunk * chunkPages..<(chunk + 1) * chunkPages }

  func chunks(ofRegion region: Int) -> Range<Int> {
    region * regionPages / chunkPages..<(region + 1) * regionPages / chunkPages
  }

  /// Where in its page a vCPU's word lies, in bytes: at both ends, so that torn pages show.
  func offset(_ slot: Int, vcpu: Int) -> Int {
    let index = slot * vcpus + vcpu
    return 8 * (index & 1 == 0 ? index / 2 : 511 - index / 2)
  }

  /// What a vCPU writes: its own number, the page's, and a number that no other write has.
  static func value(page: Int, vcpu: Int, serial: Int) -> UInt64 {
    tag(page: page, vcpu: vcpu) | UInt64(UInt32(truncatingIfNeeded: serial))
  }

  /// The upper half of every value that a vCPU writes to a page.
  static func tag(page: Int, vcpu: Int) -> UInt64 {
    UInt64(page & 0xff_ffff) << 40 | UInt64(vcpu & 0xff) << 32
  }
}
