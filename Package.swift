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
      name: "Physmem", targets: ["PMUnits", "PMArena", "PMFrames", "PMPageAllocator"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
  ],
  targets: [
    // System calls, atomics with the memory order in the name, layouts.
    .target(
      name: "CPhysmemShim", path: "CShim", exclude: ["zlib"], publicHeadersPath: "include",
      cSettings: strictC, linkerSettings: [.linkedLibrary("numa")]),
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
    .testTarget(
      name: "PMArenaTests",
      dependencies: [
        "CPhysmemShim", "PMUnits", "PMArena",
        .product(name: "SystemPackage", package: "swift-system"),
      ], swiftSettings: strict),
  ]
)
