import PMUnits
import SystemPackage

/// A NUMA node of the host.
public struct HostNode: Equatable, Sendable {
  /// The host's number of the node.
  public let id: Int
  /// Memory on the node; 0 for a node without any.
  public let byteCount: ByteCount
  /// Memory on the node that nobody uses.
  public let freeByteCount: ByteCount
  /// Whether this process may take memory from the node.
  public let isUsable: Bool
  /// Distances to all nodes by their numbers, as the firmware tells them: 10 is the node itself.
  public let distances: [Int: Int]
  /// The node's CPUs that are online.
  public let cpus: [Int]
}

extension Host {
  /// The host's NUMA nodes in ascending order. Throws `ENOSYS` where the kernel knows none.
  public static func nodes() throws(HostError) -> [HostNode] {
    var memories: [(node: Int, memory: NodeMemory)] = []
    for node in 0...(try highestNode()) {
      if let memory = try nodeMemory(node) { memories.append((node, memory)) }
    }
    var cpus: [Int: [Int]] = [:]
    for cpu in try onlineCPUs() {
      if let node = try node(ofCPU: cpu) { cpus[node, default: []].append(cpu) }
    }
    var nodes: [HostNode] = []
    for (node, memory) in memories {
      var distances: [Int: Int] = [:]
      for (other, _) in memories { distances[other] = try distance(from: node, to: other) }
      nodes.append(
        HostNode(
          id: node, byteCount: memory.total, freeByteCount: memory.free,
          isUsable: memory.isUsable, distances: distances, cpus: cpus[node] ?? []))
    }
    return nodes
  }

  /// The numbers of the CPUs that are online, in ascending order.
  public static func onlineCPUs() throws(HostError) -> [Int] {
    cpus(in: try text(of: "/sys/devices/system/cpu/online") ?? "")
  }

  /// The numbers of the CPUs that the calling thread may run on, in ascending order: those that a batch
  /// system or `taskset` left it. Nothing where the kernel does not tell.
  public static func allowedCPUs() throws(HostError) -> [Int] {
    let key = "Cpus_allowed_list:"
    for line in (try text(of: "/proc/thread-self/status") ?? "").split(separator: "\n")
    where line.hasPrefix(key) { return cpus(in: line.dropFirst(key.count)) }
    return []
  }

  /// The numbers in a list as the kernel writes it: `0-3,8`.
  private static func cpus(in list: some StringProtocol) -> [Int] {
    var cpus: [Int] = []
    for part in list.split(whereSeparator: { $0 == "," || $0.isWhitespace }) {
      let ends = part.split(separator: "-").compactMap { Int($0) }
      guard let first = ends.first, let last = ends.last, first <= last else { continue }
      cpus += first...last
    }
    return cpus
  }

  /// The nodes that this process can take memory from, in ascending order.
  static func memoryNodes() throws(HostError) -> [Int] {
    var nodes: [Int] = []
    for node in 0...(try highestNode()) {
      guard let memory = try nodeMemory(node), memory.isUsable else { continue }
      if memory.total.rawValue > 0 { nodes.append(node) }
    }
    return nodes
  }
}
