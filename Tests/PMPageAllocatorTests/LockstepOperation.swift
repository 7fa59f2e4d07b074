import PMFrames
import PMPageAllocator
import PMUnits

/// One operation that the machine and the model carry out.
enum LockstepOperation {
  case allocate(order: Int, gfp: GFP, node: Int?)
  case folio(order: Int, gfp: GFP)
  case bulk(preset: [Bool], gfp: GFP)
  case exact(bytes: Int, gfp: GFP)
  case free(UInt32, order: Int)
  case freeExact(UInt32, bytes: Int)
  case get(UInt32)
  case tryGet(UInt32)
  case getUnlessZero(UInt32)
  case put(UInt32)
  case putMany(UInt32, count: Int32)
  case release([UInt32])
  case freeze(UInt32, expected: Int32)
  case unfreeze(UInt32, to: Int32)
  /// `page_ref_add` on this very page.
  case add(UInt32, Int32)
  case split(UInt32, order: Int)
  case drain(zone: Int?)
  case setFlags(UInt32, PageFlags)
  case setDetails(UInt32, mapcount: Int32, mapping: UInt64, memcg: UInt64)

  /// The first page of what the operation is given, with its order.
  var target: (pfn: UInt32, order: Int)? {
    switch self {
    case .allocate, .folio, .bulk, .exact, .drain: nil
    case .free(let pfn, let order), .split(let pfn, let order): (pfn, order)
    case .freeExact(let pfn, let bytes): (pfn, bytes > 4096 ? 1 : 0)
    case .release(let pfns): pfns.first.map { ($0, 0) }
    case .get(let pfn), .tryGet(let pfn), .getUnlessZero(let pfn), .put(let pfn),
      .putMany(let pfn, _), .freeze(let pfn, _), .unfreeze(let pfn, _), .add(let pfn, _),
      .setFlags(let pfn, _), .setDetails(let pfn, _, _, _):
      (pfn, 0)
    }
  }
}

/// What an operation gave.
enum LockstepResult: Hashable {
  case nothing
  case page(UInt32)
  case noPage(wouldReclaim: Bool)
  case flag(Bool)
  case bulk(Int, [UInt32?])
}

extension LockstepOperation {
  func perform(on cpu: inout CPU, zoneIDs: [ZoneID]) -> LockstepResult {
    switch self {
    case .allocate, .folio, .exact: return allocate(on: &cpu)
    case .bulk(let preset, let gfp):
      var slots: [PFN?] = preset.map { $0 ? PFN(0) : nil }
      let count = cpu.allocateBulk(&slots, gfp: gfp)
      return .bulk(
        count, zip(preset, slots).map { isSet, slot in isSet ? nil : slot?.rawValue })
    case .tryGet(let pfn): return .flag(cpu.tryGetPage(PFN(pfn)))
    case .getUnlessZero(let pfn): return .flag(cpu.getPageUnlessZero(PFN(pfn)))
    case .freeze(let pfn, let expected): return .flag(cpu.freeze(PFN(pfn), expected: expected))
    case .free(let pfn, let order): cpu.freePages(PFN(pfn), order: order)
    case .freeExact(let pfn, let bytes): cpu.freeExact(PFN(pfn), bytes: UInt64(bytes))
    case .get(let pfn): cpu.getPage(PFN(pfn))
    case .put(let pfn): cpu.putPage(PFN(pfn))
    case .putMany(let pfn, let count): cpu.putPage(PFN(pfn), count: count)
    case .release(let pfns): cpu.releasePages(pfns.map { PFN($0) })
    case .unfreeze(let pfn, let count): cpu.unfreeze(PFN(pfn), to: count)
    case .add(let pfn, let delta): cpu.machine.frames.add(PFN(pfn), delta)
    case .split(let pfn, let order): cpu.splitPage(PFN(pfn), order: order)
    case .drain(nil): cpu.drainLocalPages()
    case .drain(let zone?): cpu.drainLocalPages(zone: zoneIDs[zone])
    case .setFlags(let pfn, let flags): cpu.machine.setFlags(of: PFN(pfn), flags)
    case .setDetails(let pfn, let mapcount, let mapping, let memcg):
      cpu.machine.setDetails(of: PFN(pfn), mapcount: mapcount, mapping: mapping, memcg: memcg)
    }
    return .nothing
  }

  private func allocate(on cpu: inout CPU) -> LockstepResult {
    do throws(AllocationError) {
      switch self {
      case .allocate(let order, let gfp, nil):
        return .page(try cpu.allocatePages(order: order, gfp: gfp).rawValue)
      case .allocate(let order, let gfp, let node?):
        return .page(try cpu.allocatePages(order: order, gfp: gfp, node: node).rawValue)
      case .folio(let order, let gfp):
        return .page(try cpu.allocateFolio(order: order, gfp: gfp).rawValue)
      case .exact(let bytes, let gfp):
        return .page(try cpu.allocateExact(bytes: UInt64(bytes), gfp: gfp).rawValue)
      default: return .nothing
      }
    } catch {
      return .noPage(wouldReclaim: error == .wouldReclaim)
    }
  }

  func perform(on model: ReferenceModel, cpu: Int) -> LockstepResult {
    func result(_ pfn: UInt32?) -> LockstepResult {
      pfn.map { .page($0) } ?? .noPage(wouldReclaim: model.lastWouldReclaim)
    }
    switch self {
    case .allocate(let order, let gfp, let node):
      return result(model.allocPages(cpu: cpu, node: node, gfp: gfp.rawValue, order: order))
    case .folio(let order, let gfp):
      return result(model.folioAlloc(cpu: cpu, gfp: gfp.rawValue, order: order))
    case .exact(let bytes, let gfp):
      return result(model.allocPagesExact(cpu: cpu, gfp: gfp.rawValue, bytes: bytes))
    case .bulk(let preset, let gfp):
      let (count, slots) = model.allocPagesBulk(
        cpu: cpu, gfp: gfp.rawValue, n: preset.count, pre: preset)
      return .bulk(count, slots)
    case .tryGet(let pfn): return .flag(model.tryGetPage(pfn: pfn))
    case .getUnlessZero(let pfn): return .flag(model.getPageUnlessZero(pfn: pfn))
    case .freeze(let pfn, let expected):
      return .flag(model.pageRefFreeze(pfn: pfn, count: expected))
    case .free(let pfn, let order): model.freePages(cpu: cpu, pfn: pfn, order: order)
    case .freeExact(let pfn, let bytes): model.freePagesExact(cpu: cpu, pfn: pfn, bytes: bytes)
    case .get(let pfn): model.getPage(pfn: pfn)
    case .put(let pfn): model.putPage(cpu: cpu, pfn: pfn)
    case .putMany(let pfn, let count):
      model.pages[Int(model.head(pfn))].refcount &-= count - 1
      model.putPage(cpu: cpu, pfn: pfn)
    case .release(let pfns): model.releasePages(cpu: cpu, pfns)
    case .unfreeze(let pfn, let count): model.pageRefUnfreeze(pfn: pfn, count: count)
    case .add(let pfn, let delta): model.pages[Int(pfn)].refcount &+= delta
    case .split(let pfn, let order): model.splitPage(pfn: pfn, order: order)
    case .drain(let zone): model.drainLocalPages(cpu: cpu, zone: zone)
    case .setFlags(let pfn, let flags):
      // PG_head is not for the caller to change.
      let head = ReferenceModel.Flag.head
      model.pages[Int(pfn)].flags = model.pages[Int(pfn)].flags & head | flags.rawValue & ~head
    case .setDetails(let pfn, let mapcount, let mapping, let memcg):
      model.pages[Int(pfn)].mapcount = mapcount
      // In a tail of a compound page the word says what it is part of.
      if !model.pages[Int(pfn)].isTail { model.pages[Int(pfn)].mapping = mapping }
      model.pages[Int(pfn)].memcg = memcg
    }
    return .nothing
  }
}
