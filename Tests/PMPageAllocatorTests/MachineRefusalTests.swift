import PMArena
import PMUnits
import Testing

@testable import PMPageAllocator

/// Descriptions and command lines that are refused, with the words in which they are.
@Suite struct MachineRefusalTests {
  /// What is refused, and how.
  private func refusal(
    nodes: [ByteCount] = [.mib(64)], cpus: Int = 1,
    _ change: (inout MachineDescription) -> Void = { _ in }
  ) -> String? {
    var description = MachineDescription(
      nodes: nodes.map { MachineDescription.Node(memory: $0) }, cpus: cpus)
    change(&description)
    do throws(MachineError) {
      _ = try Machine(description)
      return nil
    } catch {
      return "\(error)"
    }
  }

  @Test func `Sizes that cannot be are refused`() {
    #expect(refusal() == nil)
    #expect(refusal(nodes: []) == "0 nodes: expected 1 to 1024")
    #expect(refusal(nodes: [ByteCount(0)]) == "the machine has no memory")
    #expect(refusal(nodes: [.mib(3)]) == "a machine needs at least 4 MiB")
    #expect(
      refusal(nodes: [.mib(64), ByteCount(4097)])
        == "node 1 has 4097B: expected a multiple of 4 KiB")
    #expect(
      refusal(nodes: [.mib(64), ByteCount(8 << 40 + 4096)])
        == "node 1 has \(ByteCount(8 << 40 + 4096)): a machine reaches 8 TiB")
    #expect(
      refusal(nodes: [.tib(4), .tib(4), .mib(4)])
        == "memory ends at \(ByteCount(8 << 40 + 4 << 20)): the address space of a machine is 8 TiB"
    )
    #expect(
      refusal(nodes: [.tib(8)]) { $0.lowMemoryEnd = .gib(3) }
        == "memory ends at \(ByteCount(8 << 40 + 1 << 30)): the address space of a machine is 8 TiB"
    )
  }

  @Test func `CPUs and nodes that do not fit together are refused`() {
    #expect(refusal(cpus: 0) == "0 CPUs: expected 1 to 8192")
    #expect(
      refusal(nodes: [.mib(64), .mib(64)]) { $0.cpuNodes = [0, 2] }
        == "CPU 1 is on node 2: nodes are 0 to 1")
    #expect(refusal { $0.cpuNodes = [-1] } == "CPU 0 is on node -1: nodes are 0 to 0")
    #expect(
      refusal(nodes: [.mib(64), .mib(64)]) { $0.distances = [[10, 20]] }
        == "distances: expected a row of 10...255 per node and node")
    #expect(
      refusal(nodes: [.mib(64), .mib(64)]) { $0.distances = [[10, 9], [9, 10]] }
        == "distances: expected a row of 10...255 per node and node")
    for end in [ByteCount.mib(12), .mib(18), .gib(5)] {
      #expect(
        refusal { $0.lowMemoryEnd = end }
          == "low memory ends at \(end): expected 16 MiB to 4 GiB by 4 MiB")
    }
  }

  @Test func `A host node that does not exist is refused by name`() {
    let text = refusal { $0.nodes[0].hostNode = 999 }
    #expect(text?.contains("999") == true, "\(text ?? "accepted")")
  }

  @Test func `A state that contradicts itself is refused with the zone`() throws {
    let state = try Machine(MachineDescription(memory: .mib(24))).state(withMaps: true)
    func refusal(_ change: (inout MachineState) -> Void) -> String? {
      var changed = state
      change(&changed)
      do throws(MachineError) {
        _ = try Machine(state: changed)
        return nil
      } catch {
        return "\(error)"
      }
    }
    #expect(refusal { _ in } == nil)
    #expect(refusal { $0.zones[0].map = nil } == "zone 0.0 has no map")
    #expect(
      refusal { $0.zones[1].free -= 1 }
        == "zone 0.1: free counter \(state.zones[1].free - 1), but \(state.zones[1].free) pages on the lists"
    )
    #expect(
      refusal { $0.zones[1].freeLists[51].append($0.zones[1].freeLists[51][0]) }?.contains(
        "on two lists")
        == true)
    #expect(
      refusal { $0.zones[1].freeLists[51].removeLast() }?.contains("is of class B but on no list")
        == true)
    #expect(
      refusal { $0.zones[1].pagesets[0].count = 1 }
        == "zone 0.1: per-CPU count 1, but 0 pages on the lists")
    #expect(refusal { $0.zones[0].pagesets = [] } == "zone 0.0: expected a pageset per CPU")
    #expect(refusal { $0.zones[0].pageblocks[0] = 7 } == "zone 0.0: a pageblock type is not 0 to 4")
  }

  @Test func `Kernel parameters are read as on a command line`() throws {
    let parameters = try KernelParameters(
      commandLine: """
        vm.min_free_kbytes=4096 watermark_scale_factor=200 watermark_boost_factor=0 \
        percpu_pagelist_high_fraction=8 lowmem_reserve_ratio=256,256,32,0 movablecore=512M \
        init_on_alloc=1 transparent_hugepage=never
        """)
    #expect(parameters.minFreeKiB == 4096)
    #expect(parameters.watermarkScaleFactor == 200)
    #expect(parameters.watermarkBoostFactor == 0)
    #expect(parameters.perCPUPagelistHighFraction == 8)
    #expect(parameters.lowmemReserveRatio == [256, 256, 32, 0])
    #expect(parameters.movableCore == .mib(512))
    #expect(parameters.initOnAlloc)
    #expect(parameters.transparentHugePages == false)
    #expect(try KernelParameters(commandLine: "") == KernelParameters())
  }

  @Test(arguments: [
    ("quiet", "kernel parameter 'quiet': expected NAME=VALUE"),
    ("mem=4G", "unknown kernel parameter 'mem'"),
    ("watermark_scale_factor=0", "watermark_scale_factor=0: expected 1 to 3000"),
    ("watermark_scale_factor=3001", "watermark_scale_factor=3001: expected 1 to 3000"),
    (
      "percpu_pagelist_high_fraction=7", "percpu_pagelist_high_fraction=7: expected 0 or at least 8"
    ),
    (
      "lowmem_reserve_ratio=1,2", "lowmem_reserve_ratio=1,2: expected four numbers, as 256,256,32,0"
    ),
    ("movablecore=much", "movablecore=much: expected a size, as 512M"),
    ("init_on_alloc=2", "init_on_alloc=2: expected 0 to 1"),
    ("transparent_hugepage=yes", "transparent_hugepage=yes: expected always, madvise or never"),
    ("min_free_kbytes=-1", "min_free_kbytes=-1: expected 0 to \(UInt64(1) << 40)"),
  ])
  func `A bad kernel parameter is refused in words`(_ commandLine: String, _ text: String) {
    do throws(MachineError) {
      _ = try KernelParameters(commandLine: commandLine)
      Issue.record("accepted")
    } catch {
      #expect("\(error)" == text)
    }
  }
}
