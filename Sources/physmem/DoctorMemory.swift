internal import Glibc
internal import PMArena
internal import PMUnits

// What the host says about memory.

extension HostCheck {
  /// Everything there is to say, in the order of telling.
  static func all() -> [HostCheck] {
    [kernel(), pageSize(), cpus(), memory()] + nodes() + hugePages() + [
      memfdHugeTLB(), anonymousTHP(), sharedTHP(), overcommit(), memlock(), userfaultfd(), kvm(),
    ]
  }

  /// The check, or what the host refused while it was made.
  private static func guarded(_ name: String, _ check: () throws -> HostCheck) -> HostCheck {
    do { return try check() } catch {
      return HostCheck(name: name, status: .missing, value: "\(error)")
    }
  }

  static func kernel() -> HostCheck {
    let release = HostFile.text("/proc/sys/kernel/osrelease") ?? "unknown"
    return HostCheck(name: "kernel", status: .ok, value: release)
  }

  static func pageSize() -> HostCheck {
    let size = sysconf(Int32(_SC_PAGESIZE))
    return HostCheck(
      name: "page_size", status: size == 4096 ? .ok : .limited,
      value: size == 4096 ? "4096" : "\(size); frames of a machine have 4096")
  }

  static func memory() -> HostCheck {
    guarded("memory") {
      guard let available = try Host.availableMemory() else {
        return HostCheck(name: "memory", status: .limited, value: "the kernel gives no estimate")
      }
      // A kernel may promise more than its nodes hold; what counts is what is there.
      let held = ByteCount((try? Host.nodes())?.reduce(0) { $0 + $1.byteCount.rawValue } ?? .max)
      let excess = available > held ? ", more than the nodes have: \(Table.size(held))" : ""
      return HostCheck(
        name: "memory", status: available >= .gib(1) && excess.isEmpty ? .ok : .limited,
        value: "\(Table.size(available)) available\(excess)")
    }
  }

  // MARK: nodes

  static func nodes() -> [HostCheck] {
    do {
      let nodes = try Host.nodes()
      return nodes.map { node in
        let distances = node.distances.sorted { $0.key < $1.key }
          .map { nodes.count == 1 ? "\($0.value)" : "\($0.key):\($0.value)" }
        let cpus = node.cpus.isEmpty ? "no CPUs" : "CPUs \(Table.ranges(node.cpus))"
        let memory = "\(Table.size(node.byteCount)), \(Table.size(node.freeByteCount)) free"
        let usable = node.isUsable ? "" : ", not allowed for this process"
        return HostCheck(
          name: "numa_node_\(node.id)", status: node.isUsable ? .ok : .limited,
          value: "\(memory), \(cpus), distance \(distances.joined(separator: " "))\(usable)")
      }
    } catch {
      return [HostCheck(name: "numa_nodes", status: .missing, value: "\(error)")]
    }
  }

  // MARK: huge pages

  static func hugePages() -> [HostCheck] {
    [ByteCount.mib(2), .gib(1)].map { pageSize in
      let name = "huge_pages_\(pageSize)"
      return guarded(name) {
        guard let pool = try Host.hugePagePools().first(where: { $0.pageSize == pageSize }) else {
          return HostCheck(name: name, status: .missing, value: "not offered by kernel and CPU")
        }
        let growth = pool.growthLimit > 0 ? ", may grow by \(pool.growthLimit)" : ""
        let isEmpty = pool.total == 0 && pool.growthLimit == 0
        return HostCheck(
          name: name, status: pool.available > 0 ? .ok : isEmpty ? .missing : .limited,
          value: "\(pool.total) total, \(pool.free) free, \(pool.reserved) reserved\(growth)",
          remedy: pool.available > 0 ? nil : remedy(pool))
      }
    }
  }

  /// Adds 1 GiB to the pool, or as many pages as half of the available memory holds.
  private static func remedy(_ pool: HugePagePool) -> String? {
    let available = (try? Host.availableMemory()) ?? nil
    let affordable = (available?.rawValue ?? 0) / 2 / pool.pageSize.rawValue
    let wanted = min(affordable, max(1, (1 << 30) / pool.pageSize.rawValue))
    return wanted == 0 ? nil : Privilege.shell(pool.commandForMore(Int(wanted)))
  }

  static func memfdHugeTLB() -> HostCheck {
    let name = "memfd_hugetlb"
    do {
      _ = try Arena(ArenaConfiguration(byteCount: .mib(2), backing: .sharedHugeTLB))
      return HostCheck(name: name, status: .ok, value: "works with 2 MiB pages")
    } catch {
      guard case .hugePagesShort = error else {
        return HostCheck(name: name, status: .missing, value: "\(error)")
      }
      return HostCheck(
        name: name, status: .limited, value: "supported, but no 2 MiB page to map",
        remedy: hugePages().first?.remedy)
    }
  }

  // MARK: transparent huge pages

  private static let thpFolder = "/sys/kernel/mm/transparent_hugepage"

  static func anonymousTHP() -> HostCheck {
    let name = "thp_anonymous"
    return guarded(name) {
      guard let word = try Host.transparentHugePages().anonymous else {
        return HostCheck(name: name, status: .missing, value: "not in this kernel")
      }
      if word != "never" { return HostCheck(name: name, status: .ok, value: word) }
      return HostCheck(
        name: name, status: .limited, value: "never: backing anonymous_thp gets 4 KiB pages",
        remedy: Privilege.shell("echo madvise > \(thpFolder)/enabled"))
    }
  }

  static func sharedTHP() -> HostCheck {
    let name = "thp_shmem"
    return guarded(name) {
      guard let word = try Host.transparentHugePages().shared else {
        return HostCheck(name: name, status: .missing, value: "not in this kernel")
      }
      // `advise` is not enough: the arena gives no advice for memory files.
      if ["always", "within_size", "force"].contains(word) {
        return HostCheck(name: name, status: .ok, value: word)
      }
      return HostCheck(
        name: name, status: .limited, value: "\(word): backing memfd gets 4 KiB pages",
        remedy: Privilege.shell("echo within_size > \(thpFolder)/shmem_enabled"))
    }
  }

  // MARK: limits

  static func overcommit() -> HostCheck {
    guarded("overcommit") {
      let policy = try Host.overcommitPolicy()
      switch policy.mode {
      case .heuristic: return HostCheck(name: "overcommit", status: .ok, value: "heuristic (0)")
      case .always: return HostCheck(name: "overcommit", status: .ok, value: "always (1)")
      case .never:
        return HostCheck(
          name: "overcommit", status: .limited,
          value: "never (2), \(policy.ratio) %: a machine cannot be larger than what is left",
          remedy: Privilege.command("sysctl -w vm.overcommit_memory=0"))
      case nil:
        return HostCheck(name: "overcommit", status: .limited, value: "a mode unknown to physmem")
      }
    }
  }

  static func memlock() -> HostCheck {
    guarded("memlock") {
      guard let limit = try Host.memoryLockLimit() else {
        return HostCheck(name: "memlock", status: .ok, value: "unlimited")
      }
      if Privilege.has(.ipcLock) {
        return HostCheck(
          name: "memlock", status: .ok,
          value: "\(Table.size(limit)), does not bind this process (CAP_IPC_LOCK)")
      }
      return HostCheck(
        name: "memlock", status: .limited, value: Table.size(limit),
        remedy: "sudo prlimit --pid $$ --memlock=unlimited:unlimited")
    }
  }
}
