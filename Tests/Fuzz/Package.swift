// swift-tools-version: 6.2
import PackageDescription

// libFuzzer targets, a package of its own: they have no `main`, so that they link only where the
// fuzzer is linked in.
//
//     make fuzz
let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6), .treatAllWarnings(as: .error),
  .unsafeFlags(["-parse-as-library"]),
]
let package = Package(
  name: "physmem-fuzz",
  dependencies: [.package(name: "physmem", path: "../..")],
  targets: ["FuzzMemslots", "FuzzGuest", "FuzzTables", "FuzzInterface"].map { name in
    .executableTarget(
      name: name,
      dependencies: [
        .product(name: "Physmem", package: "physmem"),
        .product(name: "PhysmemConform", package: "physmem"),
        .product(name: "PMCInterface", package: "physmem"),
      ],
      swiftSettings: settings)
  }
)
