import CPhysmemShim
import Foundation
import Physmem
import Testing

@testable import PMExport

@Suite("Every system call of a hand-over can fail")
struct ForcedErrorTests {
  /// A server and its client, both in this thread.
  private func handOver(_ memory: GuestMemory, at path: String) throws {
    let server = try MemoryExportServer(memory, at: path)
    let client = try Socket.connect(to: path)
    try server.serveOne(timeout: 1000)
    let copy = try MemoryExport.receive(from: client.rawValue)
    #expect(copy.regions.map(\.range) == memory.regions.map(\.range))
  }

  // ENOMEM: every other error of munmap means a bug of ours, and ends the process.
  @Test("It is an error that names the call, and nothing is left behind")
  func handOver() throws {
    let memory = GuestMemory()
    try memory.add(.ram(at: GPA(0), byteCount: .mib(2)))
    try memory.add(.ram(at: GPA(1 << 32), byteCount: .mib(2)))
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent("pm-\(UUID().uuidString.prefix(8)).sock").path
    let live = pm_host_thread_live_fds()
    var failures = 0
    for nth in UInt32(1)... {
      pm_host_fault_arm(.PM_HOST_CALL_ANY, nth, ENOMEM)
      let result = Result { try handOver(memory, at: path) }
      pm_host_fault_disarm()
      guard pm_host_fault_fired() else { break }
      if case .failure(let thrown) = result {
        #expect(thrown is ExportError || thrown is HostError, "\(thrown)")
        failures += 1
      }
      #expect(pm_host_thread_live_fds() == live, "call \(nth)")
      // Only where removing it was what failed.
      try? FileManager.default.removeItem(atPath: path)
    }
    // listen, connect, accept, send, receive, map: each can fail.
    #expect(failures >= 10)
  }

  @Test("Events")
  func events() throws {
    for nth in UInt32(1)...3 {
      pm_host_fault_arm(.PM_HOST_CALL_EVENT, nth, EIO)
      #expect(throws: HostError.self) {
        let event = try Event()
        try event.signal()
        try event.wait(timeout: 1000)
      }
      pm_host_fault_disarm()
    }
  }
}
