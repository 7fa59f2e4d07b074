internal import PMFrames
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// KVM's contract about the pages it maps, as three properties that are never mixed.
public struct GuestVerdict: Hashable, Sendable {
  /// Property 1, counts intact: what the machine reported of counts (underflow, overflow, a page freed
  /// while somebody holds it), and puts that no get stands against where there is a ledger.
  public var countViolations: [String]
  /// Property 2, no access after free: guest accesses that reached a free frame.
  public var accessesAfterFree: [GuestFinding]
  /// Property 3, no stale translation: entries that map another frame than the host does.
  public var staleTranslations: [GuestFinding]

  /// Whether property 1 holds.
  public var countsIntact: Bool { countViolations.isEmpty }
  /// Whether property 2 holds.
  public var noAccessAfterFree: Bool { accessesAfterFree.isEmpty }
  /// Whether property 3 holds.
  public var noStaleTranslation: Bool { staleTranslations.isEmpty }
  /// Whether all three hold.
  public var holds: Bool { countsIntact && noAccessAfterFree && noStaleTranslation }
}

extension GuestVerdict: CustomStringConvertible {
  /// Three lines.
  public var description: String {
    func line(_ name: String, _ failures: [String]) -> String {
      failures.isEmpty ? "\(name): yes" : "\(name): NO\n  " + failures.joined(separator: "\n  ")
    }
    return [
      line("counts intact", countViolations),
      line("no access after free", accessesAfterFree.map(\.description)),
      line("no stale hva->pfn", staleTranslations.map(\.description)),
    ].joined(separator: "\n")
  }
}

extension VirtualMachine {
  /// Looks at all three properties. Needs the vCPUs and the process at rest: an invalidation under way
  /// has entries that are about to go. Accesses are known where ``checksAccesses`` was on.
  public func verdict() -> GuestVerdict {
    GuestVerdict(
      countViolations: countViolations(),
      accessesAfterFree: notifierLock.withLock { accessFindings },
      staleTranslations: staleTranslations())
  }

  private func countViolations() -> [String] {
    var found: [String] = []
    for finding in kernel.machine.findings.findings {
      switch finding {
      case .refcountUnderflow(let pfn, let count):
        found.append("the count of frame \(pfn) fell to \(count)")
      case .refcountOverflow(let pfn, let count):
        found.append("the count of frame \(pfn) wrapped to \(count)")
      case .badPage(let bad) where bad.refcount != 0:
        found.append("frame \(bad.pfn) was freed with a count of \(bad.refcount)")
      default: break
      }
    }
    for stray in kernel.ledger?.unmatchedPuts ?? [] {
      found.append("a put of frame \(stray.pfn) by \(stray.holder) without its get")
    }
    return found
  }

  /// All entries whose frame is not what the host maps at that place now. The shared zero page in a
  /// read-only entry is as good as none: it always reads the same.
  public func staleTranslations() -> [GuestFinding] {
    readers.lockShared()
    defer { readers.unlock() }
    mmuLock.lockShared()
    defer { mmuLock.unlock() }
    var found: [GuestFinding] = []
    for (space, table) in tables.enumerated() {
      table.forEachLeaf(in: table.allFrames) { first, level, spte in
        for index in 0..<SPTE.frames(level: level) {
          let gfn = first + index
          let pfn = spte.pfn + index
          let host = slots[space].slot(containing: gfn).flatMap {
            process.frame(at: $0.hva(of: gfn))
          }
          if host != pfn { found.append(.staleTranslation(gfn: gfn, pfn: pfn, host: host)) }
        }
      }
    }
    return found
  }
}
