import CPhysmemShim
import Foundation
import PMArena
import PMUnits
import SystemPackage
import Testing

@Suite struct HostTests {
  @Test func `Every node has a distance of 10 to itself, and every CPU has a node`() throws {
    let nodes = try Host.nodes()
    #expect(!nodes.isEmpty)
    #expect(nodes.map(\.id) == nodes.map(\.id).sorted())
    for node in nodes {
      #expect(node.distances[node.id] == 10)
      #expect(node.distances.count == nodes.count)
      #expect(node.freeByteCount <= node.byteCount)
    }
    #expect(nodes.contains { $0.isUsable && $0.byteCount > .mib(64) })
    let cpus = try Host.onlineCPUs()
    #expect(nodes.flatMap(\.cpus).sorted() == cpus)
    #expect(!cpus.isEmpty)
    let allowed = try Host.allowedCPUs()
    #expect(!allowed.isEmpty && Set(allowed).isSubset(of: cpus))
    #expect(try Host.node(ofCPU: 1 << 20) == nil)
    #expect(try Host.node(ofCPU: -1) == nil)
  }

  @Test func `The pools of huge pages agree with the kernel's files`() throws {
    for pool in try Host.hugePagePools() {
      #expect(pool.available <= pool.free)
      #expect(pool.free <= pool.total)
      #expect(FileManager.default.fileExists(atPath: pool.sizeFile))
    }
  }

  @Test func `Modes and limits are those of the kernel's files`() throws {
    let modes = try Host.transparentHugePages()
    if let anonymous = modes.anonymous {
      #expect(["always", "madvise", "never"].contains(anonymous))
    }
    let overcommit = try Host.overcommitPolicy()
    #expect(overcommit.mode != nil)
    #expect(overcommit.ratio > 0)
    let limit = try Host.memoryLockLimit()
    let limits = try kernelText("/proc/self/limits")
    let line = try #require(limits.split(separator: "\n").first { $0.hasPrefix("Max locked") })
    #expect(line.contains(limit.map { "\($0.rawValue)" } ?? "unlimited"))
    #expect(try #require(try Host.availableMemory()) > .mib(1))
  }

  @Test func `A thread is pinned to a CPU and runs there`() throws {
    // On a thread of its own: the pool's threads go on to other tests.
    let cpu = try #require(try Host.onlineCPUs().last)
    let done = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      do {
        try Host.pinCurrentThread(toCPU: cpu)
        let status = try kernelText("/proc/thread-self/status")
        #expect(status.contains("Cpus_allowed_list:\t\(cpu)\n"))
        #expect(try Host.allowedCPUs() == [cpu])
        for missing in [-1, 1023, 5000] {
          #expect(throws: HostError.self) { try Host.pinCurrentThread(toCPU: missing) }
        }
      } catch { Issue.record(error) }
      done.signal()
    }
    done.wait()
  }

  @Test func `Texts name the operation, the reason and the number's name`() {
    let error = HostError(operation: "mmap of 64GiB", errno: .noMemory)
    #expect("\(error)" == "mmap of 64GiB: Cannot allocate memory (ENOMEM)")
    #expect("\(ArenaError.host(error))" == "\(error)")
    #expect(
      "\(ArenaError.outOfRange(offset: 4096, byteCount: 8192, arenaByteCount: 8192))"
        == "8KiB at offset 0x1000 do not lie in an arena of 8KiB")
    #expect(
      "\(ArenaError.unaligned(offset: 100, byteCount: 8, unit: ByteCount(8)))"
        == "8B at offset 0x64 do not begin and end at multiples of 8B")
    #expect(
      "\(ArenaError.noSuchNode(1, available: []))" == "no host node 1 with memory; there are: none")
    #expect("\(HostError(operation: "x", errno: Errno(rawValue: 4000)))".hasSuffix("(errno 4000)"))
  }

  @Test func `The names of the backings are those that users write`() {
    #expect(
      Backing.allCases.map(\.rawValue) == [
        "memfd", "anonymous", "anonymous_thp", "anonymous_hugetlb_2mb", "anonymous_hugetlb_1gb",
        "shmem", "shared_hugetlb",
      ])
    #expect(
      Backing.allCases.map(\.pageSize)
        == [.kib(4), .kib(4), .kib(4), .mib(2), .gib(1), .kib(4), .mib(2)])
    #expect(Backing.allCases.filter(\.isHuge).allSatisfy { $0.rawValue.contains("hugetlb") })
  }
}
