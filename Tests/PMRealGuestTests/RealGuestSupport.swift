import CPhysmemShim
import Foundation
import PMArena
import PMRealGuest
import PMUnits
import Testing

/// Whether this host has what the tests need; says loudly why not, once.
let realGuestWorks: Bool = {
  guard let reason = RealVM.unavailability() else { return true }
  print("REAL GUEST TESTS ARE SKIPPED: \(reason)")
  return false
}()

/// All tests of real guests, one after another: some count what the process has open.
@Suite(
  "Real guest", .serialized, .aloneWithKVM,
  .enabled(if: realGuestWorks, "needs /dev/kvm and a KVM that runs a user-mode guest in its MMU"))
enum RealGuestTests {}

let pageBytes: UInt64 = 4096
/// Where the tested slots begin.
let slotStart: UInt64 = 0x4000_0000

/// KVM's flags of a memory region.
let logDirtyPages: UInt32 = 1
let readOnly: UInt32 = 2

/// A dirty ring of 1024 entries, more than any CPU wants for itself.
let ringBytes = 16384

/// An arena and a machine whose slot 1 shows the arena's first pages.
final class Stage {
  let arena: Arena
  let machine: RealVM

  init(
    pages: UInt64 = 64, slotPages: UInt64? = nil, flags: UInt32 = 0,
    _ configuration: RealVM.Configuration = RealVM.Configuration()
  ) throws {
    arena = try makeArena(pages: pages)
    machine = try RealVM(configuration)
    let errno = machine.setMemoryRegion(
      slot: 1, flags: flags, guestPhysicalAddress: slotStart,
      memorySize: (slotPages ?? pages) * pageBytes, userspaceAddress: address(arena.base))
    try #require(errno == 0)
  }

  func word(_ offset: UInt64) -> UInt32 {
    arena.base.loadUnaligned(fromByteOffset: Int(offset), as: UInt32.self)
  }

  func store(_ word: UInt32, at offset: UInt64) {
    arena.base.storeBytes(of: word, toByteOffset: Int(offset), as: UInt32.self)
  }

  func perform(_ access: RealAccess) throws -> RealAccessOutcome { try machine.perform(access) }
}

func makeArena(pages: UInt64) throws -> Arena {
  try Arena(ArenaConfiguration(byteCount: ByteCount(pages * pageBytes)))
}

func address(_ pointer: UnsafeMutableRawPointer) -> UInt64 { UInt64(UInt(bitPattern: pointer)) }

/// An exit of device memory at an address.
func mmio(_ address: UInt64, _ byteCount: Int = 4, isWrite: Bool) -> RealAccessOutcome {
  .mmio(guestPhysicalAddress: address, byteCount: byteCount, isWrite: isWrite)
}

/// Whether a run failed with this error.
func isFailure(_ outcome: RealAccessOutcome, _ errno: Int32) -> Bool {
  if case .failed(errno, _) = outcome { true } else { false }
}

/// What this process has of KVM: other tests have none meanwhile, so it can be counted.
struct KVMCounts: Equatable {
  var descriptors = 0
  var mappings = 0
  var threadDescriptors = pm_host_thread_live_fds()
  var threadMappings = pm_host_thread_live_mappings()

  init() throws {
    let folder = "/proc/self/fd"
    for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
      let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(name)")
      if let target, target.contains("kvm") { descriptors += 1 }
    }
    // By a handle: the kernel gives such a file in pieces, after which other ways stop.
    let maps = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/maps")).readToEnd()
    mappings =
      String(decoding: maps ?? Data(), as: UTF8.self).split(separator: "\n")
      .filter { $0.contains("kvm") }.count
  }
}

/// A small generator whose whole state is its seed, so that a run can be replayed.
struct SplitMix64: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}

/// `PHYSMEM_SEED`, or another one each time.
let randomSeed: UInt64 =
  ProcessInfo.processInfo.environment["PHYSMEM_SEED"].flatMap { UInt64($0) }
  ?? UInt64.random(in: 1...999_999_999)
