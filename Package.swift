// swift-tools-version: 6.2
import PackageDescription

// Every target is compiled with the same settings: Swift 6 mode, and a warning is an error.
let strict: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]
let strictC: [CSetting] = [
  .define("_GNU_SOURCE"),
  .treatAllWarnings(as: .error),
  .enableWarning("all"),
  .enableWarning("extra"),
]

// Targets stand in the order of the data flow; each may import only what stands above it
// (Tests/TidyTests holds the imports to that).
let package = Package(
  name: "physmem",
  products: [
    .library(
      name: "Physmem",
      targets: [
        "Physmem", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
        "PMGuestMemory", "PMExport", "PMVhostUser", "PMRealGuest", "PMReplay",
      ]),
    // The object code of libphysmem.a and libphysmem.so.0, which .install/library links.
    .library(name: "PMCInterface", type: .static, targets: ["PMCInterface", "CPhysmemABI"]),
    .library(name: "PhysmemConform", targets: ["PMConform"]),
    .library(name: "PhysmemStress", targets: ["PMStress"]),
    .library(name: "PhysmemBench", targets: ["PMBench"]),
    .executable(name: "physmem", targets: ["physmem"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
  ],
  targets: [
    // System calls, atomics with the memory order in the name, layouts.
    .target(
      name: "CPhysmemShim", path: "CShim", exclude: ["zlib", "limits", "abi", "numa"],
      publicHeadersPath: "include",
      cSettings: strictC, linkerSettings: [.linkedLibrary("numa")]),
    // gzip reading, from the system's zlib.
    .systemLibrary(
      name: "CZlib", path: "CShim/zlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
    // Values: PFN, order, migratetype, zone kind, GFP flags, sizes.
    .target(name: "PMUnits", swiftSettings: strict),
    // Host memory: who owns the bytes.
    .target(
      name: "PMArena",
      dependencies: [
        "CPhysmemShim", "PMUnits", .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    // Per-frame tables: counts, links, state.
    .target(
      name: "PMFrames", dependencies: ["CPhysmemShim", "PMUnits", "PMArena"],
      swiftSettings: strict),
    // Zones, per-CPU lists, the allocator, the machine.
    .target(
      name: "PMPageAllocator",
      dependencies: ["CPhysmemShim", "PMUnits", "PMArena", "PMFrames"], swiftSettings: strict),
    // Frames seen from host processes: VMAs, page tables, faults, GUP, notifiers, drivers.
    .target(
      name: "PMHostMap",
      dependencies: ["CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator"],
      swiftSettings: strict),
    // Frames seen from a guest, as KVM maps them: memslots, stage-2 tables, dirty logs, guests.
    .target(
      name: "PMGuestMap",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap",
      ], swiftSettings: strict),
    // The memory of a guest for who embeds it: regions, accesses, dirty pages, memory given back.
    .target(
      name: "PMGuestMemory",
      dependencies: ["CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator"],
      swiftSettings: strict),
    // Guest memory for other processes: descriptors over a socket, QEMU's arguments.
    .target(
      name: "PMExport",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena", "PMGuestMemory",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    // Devices in processes of their own on guest memory.
    .target(
      name: "PMVhostUser",
      dependencies: [
        "PMUnits", "PMArena", "PMGuestMemory", "PMExport",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    // All of these by one import.
    .target(
      name: "Physmem",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
        "PMGuestMemory",
      ], swiftSettings: strict),
    // A real guest of the real KVM on the machine's arena.
    .target(
      name: "PMRealGuest",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap",
        "PMGuestMap",
      ], swiftSettings: strict),
    // Traces of a real kernel: reading, performing, comparing.
    .target(
      name: "PMReplay",
      dependencies: ["CZlib", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator"],
      swiftSettings: strict),
    // Tables of a real KVM's behaviour: reading, performing each row, comparing.
    .target(
      name: "PMConform",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
      ], swiftSettings: strict),
    // Real threads on real memory, with invariants that are checked.
    .target(
      name: "PMStress",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
        "PMRealGuest",
      ], swiftSettings: strict),
    // The same work in plain C, for benchmarks.
    .target(
      name: "CPhysmemLimits", path: "CShim/limits", publicHeadersPath: "include",
      cSettings: strictC),
    // The benchmark cases, each beside its physical limit.
    .target(
      name: "PMBench",
      dependencies: [
        "CPhysmemLimits", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap",
        "PMGuestMap", "PMGuestMemory", "PMRealGuest", "PMReplay",
        .product(name: "Histogram", package: "hdrhistogram-swift"),
      ], swiftSettings: strict),
    // The public C header: hand-written, frozen layouts. Its functions are written in Swift.
    .target(
      name: "CPhysmemABI", path: "CShim/abi", publicHeadersPath: "include", cSettings: strictC),
    // The functions of physmem.h.
    .target(
      name: "PMCInterface",
      dependencies: [
        "CPhysmemABI", "CPhysmemShim", "Physmem", "PMExport", "PMVhostUser",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    // The command.
    .executableTarget(
      name: "physmem",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
        "PMGuestMemory", "PMExport", "PMRealGuest", "PMReplay", "PMConform", "PMStress", "PMBench",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    // A hot operation so many times, for a counter of instructions: `.ci/instructions`.
    .executableTarget(
      name: "hotloops", dependencies: ["Physmem"], path: "Benchmarks/Hotloops",
      swiftSettings: strict),
    .testTarget(name: "PMUnitsTests", dependencies: ["PMUnits"], swiftSettings: strict),
    .testTarget(
      name: "PMFramesTests",
      dependencies: ["PMUnits", "PMArena", "PMFrames", "PMPageAllocator"], swiftSettings: strict),
    .testTarget(name: "TidyTests", swiftSettings: strict),
    // A program of its own that shares an arena with the tests and is killed by them.
    .target(
      name: "ArenaRecords", dependencies: ["PMUnits"], path: "Tests/ArenaRecords",
      swiftSettings: strict),
    .executableTarget(
      name: "ArenaPeer", dependencies: ["ArenaRecords", "PMUnits", "PMArena"],
      path: "Tests/ArenaPeer", swiftSettings: strict),
    .testTarget(
      name: "PMArenaTests",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena", "ArenaPeer", "ArenaRecords",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .testTarget(
      name: "PMPageAllocatorTests",
      dependencies: ["CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator"],
      swiftSettings: strict),
    .testTarget(
      name: "PMHostMapTests",
      dependencies: ["PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap"],
      swiftSettings: strict),
    .testTarget(
      name: "PMGuestMapTests",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
      ], swiftSettings: strict),
    .testTarget(
      name: "PMGuestMemoryTests",
      dependencies: ["CPhysmemShim", "PMUnits", "Physmem"], swiftSettings: strict),
    .testTarget(
      name: "PMExportTests",
      dependencies: [
        "CPhysmemShim", "Physmem", "PMExport",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    .testTarget(
      name: "PMVhostUserTests",
      dependencies: [
        "Physmem", "PMExport", "PMVhostUser",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
    // An example that the tests run: a disk of another process on a machine's memory.
    .executableTarget(
      name: "VhostUserDisk", dependencies: ["Physmem", "PMVhostUser"],
      path: "Tests/Examples/vhost-user", exclude: ["run"], swiftSettings: strict),
    .testTarget(
      name: "PMCInterfaceTests", dependencies: ["CPhysmemABI", "CPhysmemShim", "PMCInterface"],
      swiftSettings: strict),
    .testTarget(
      name: "PMRealGuestTests",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap",
        "PMGuestMap", "PMRealGuest",
      ], swiftSettings: strict),
    .testTarget(
      name: "PMConformTests",
      dependencies: ["PMUnits", "PMPageAllocator", "PMHostMap", "PMGuestMap", "PMConform"],
      resources: [.copy("Fixtures")], swiftSettings: strict),
    .testTarget(
      name: "PMStressTests",
      dependencies: [
        "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
        "PMRealGuest", "PMStress",
      ], swiftSettings: strict),
    .testTarget(
      name: "PMBenchTests",
      dependencies: ["PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMBench"],
      swiftSettings: strict),
    .testTarget(
      name: "PMReplayTests",
      dependencies: ["CZlib", "PMUnits", "PMFrames", "PMPageAllocator", "PMReplay"],
      resources: [.copy("Fixtures")], swiftSettings: strict),
    .testTarget(
      name: "CommandTests", dependencies: [.target(name: "physmem")], swiftSettings: strict),
  ]
)

// For the sanitizers' builds: without what neither runs on threads nor touches raw memory by itself, and
// without the packages that only that needs. A third of the time of such a build.
if Context.environment["PHYSMEM_SANITIZED_PART"] != nil {
  let targets: Set = [
    "physmem", "hotloops", "PMReplay", "PMConform", "PMBench", "CPhysmemLimits", "CZlib",
    "PMReplayTests", "PMConformTests", "PMBenchTests", "PMRealGuestTests", "CommandTests",
    "TidyTests",
  ]
  package.targets.removeAll { targets.contains($0.name) }
  package.products.removeAll { $0.name != "PMCInterface" }
  package.dependencies.removeAll { dependency in
    guard case .sourceControl(_, let location, _) = dependency.kind else { return false }
    return !location.hasSuffix("swift-system")
  }
}
