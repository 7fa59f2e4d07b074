import Dispatch
import Foundation
import Testing

/// Lets tests of several modules, which run beside each other in one process, have KVM one after another:
/// some of them count what the process has of it.
///
/// A link to this file stands beside the tests of PMStress and of PMBench; what the modules share is the
/// lock of a file, the package's manifest.
struct AloneWithKVM: SuiteTrait, TestTrait, TestScoping {
  var isRecursive: Bool { true }

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
  ) async throws {
    // Suites and tests of many cases would wait for themselves.
    guard testCase != nil else { return try await function() }
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    let file = open(root.appendingPathComponent("Package.swift").path, O_RDONLY | O_CLOEXEC)
    defer { close(file) }
    // On a thread that may wait: those of the tests are few.
    let isLocked = await withCheckedContinuation { continuation in
      DispatchQueue.global().async { continuation.resume(returning: flock(file, LOCK_EX) == 0) }
    }
    try #require(isLocked, "no lock: error \(errno)")
    try await function()
  }
}

extension Trait where Self == AloneWithKVM {
  static var aloneWithKVM: AloneWithKVM { AloneWithKVM() }
}
