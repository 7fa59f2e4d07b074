internal import PMPageAllocator
internal import PMUnits

/// Carries out trace operations on a CPU.
enum OperationPerformer {
  /// Performs an operation and returns its result in the trace's terms.
  static func perform(
    _ operation: TraceOperation, preset: [Bool], _ cpu: inout CPU
  ) -> TraceResult {
    let pfn = PFN(operation.pfn)
    switch operation.kind {
    case .allocPages, .allocPagesNode, .folioAlloc, .allocExact:
      return .page(allocate(operation, &cpu))
    case .allocBulk:
      return bulk(operation, preset, &cpu)
    case .tryGetPage: return .flag(cpu.tryGetPage(pfn))
    case .getPageUnlessZero: return .flag(cpu.getPageUnlessZero(pfn))
    case .freeze: return .flag(cpu.freeze(pfn, expected: Int32(operation.count)))
    default:
      performVoid(operation, &cpu)
      return .void
    }
  }

  /// Performs an operation and forgets its result.
  @inline(__always)
  static func performAlone(_ operation: TraceOperation, preset: [Bool], _ cpu: inout CPU) {
    let pfn = PFN(operation.pfn)
    switch operation.kind {
    case .allocPages, .allocPagesNode, .folioAlloc, .allocExact: _ = allocate(operation, &cpu)
    case .allocBulk:
      withUnsafeTemporaryAllocation(of: UInt32.self, capacity: operation.count) { slots in
        fill(slots, preset)
        _ = cpu.allocateBulk(raw: slots, gfp: GFP(rawValue: operation.gfp))
      }
    case .tryGetPage: _ = cpu.tryGetPage(pfn)
    case .getPageUnlessZero: _ = cpu.getPageUnlessZero(pfn)
    case .freeze: _ = cpu.freeze(pfn, expected: Int32(operation.count))
    default: performVoid(operation, &cpu)
    }
  }

  @inline(__always)
  private static func allocate(_ operation: TraceOperation, _ cpu: inout CPU) -> UInt32? {
    let gfp = GFP(rawValue: operation.gfp)
    let order = Int(operation.order)
    do throws(AllocationError) {
      switch operation.kind {
      case .allocPagesNode:
        return try cpu.allocatePages(order: order, gfp: gfp, node: Int(operation.place)).rawValue
      case .folioAlloc: return try cpu.allocateFolio(order: order, gfp: gfp).rawValue
      case .allocExact:
        return try cpu.allocateExact(bytes: UInt64(operation.count), gfp: gfp).rawValue
      default: return try cpu.allocatePages(order: order, gfp: gfp).rawValue
      }
    } catch {
      return nil
    }
  }

  @inline(__always)
  private static func performVoid(_ operation: TraceOperation, _ cpu: inout CPU) {
    let pfn = PFN(operation.pfn)
    switch operation.kind {
    case .freePages: cpu.freePages(pfn, order: Int(operation.order))
    case .putPage: cpu.putPage(pfn)
    case .getPage: cpu.getPage(pfn)
    case .freeExact: cpu.freeExact(pfn, bytes: UInt64(operation.count))
    case .unfreeze: cpu.unfreeze(pfn, to: Int32(operation.count))
    case .splitPage: cpu.splitPage(pfn, order: Int(operation.order))
    case .drain:
      if operation.place == 0 {
        cpu.drainLocalPages()
      } else {
        cpu.drainLocalPages(zone: cpu.machine.zoneIDs[Int(operation.place) - 1])
      }
    default: break
    }
  }

  private static func fill(_ slots: UnsafeMutableBufferPointer<UInt32>, _ preset: [Bool]) {
    slots.initialize(repeating: CPU.emptySlot)
    for (index, isSet) in preset.enumerated() where isSet { slots[index] = 0 }
  }

  private static func bulk(
    _ operation: TraceOperation, _ preset: [Bool], _ cpu: inout CPU
  ) -> TraceResult {
    withUnsafeTemporaryAllocation(of: UInt32.self, capacity: operation.count) { slots in
      fill(slots, preset)
      let returned = cpu.allocateBulk(raw: slots, gfp: GFP(rawValue: operation.gfp))
      let pages = slots.indices.map { index -> UInt32? in
        if index < preset.count, preset[index] { return TraceResult.presetSlot }
        return slots[index] == CPU.emptySlot ? nil : slots[index]
      }
      return .bulk(returned, pages)
    }
  }
}
