public import PMPageAllocator

/// All mappings of one object: what `unmap_mapping_range` goes through. Mirrors `i_mmap`.
public final class MappingList: @unchecked Sendable {
  // Sendable: the entries are touched under `lock` only.
  private struct Entry {
    weak var process: HostProcess?
  }
  private let lock = HostMutex()
  private var entries: [ObjectIdentifier: Entry] = [:]

  /// An empty list.
  public init() {}

  func insert(_ process: HostProcess) {
    lock.withLock { entries[ObjectIdentifier(process)] = Entry(process: process) }
  }

  private var processes: [HostProcess] {
    lock.withLock { entries.values.compactMap(\.process) }.sorted { $0.id < $1.id }
  }

  /// Clears the entries of pages `pages` of the object in every process, notifiers included. Private
  /// copies go too where `evenCopies` is set. Mirrors `unmap_mapping_range`.
  public func unmap(
    pages: Range<UInt64> = 0..<(1 << 52), evenCopies: Bool = true, on cpu: inout CPU
  ) {
    for process in processes {
      process.unmapMapping(of: self, pages: pages, evenCopies: evenCopies, on: &cpu)
    }
  }
}
