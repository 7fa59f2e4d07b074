import PMFrames
import PMPageAllocator
import PMReplay
import PMUnits

/// Makes traces: performs operations on a machine and writes down what it gives, so that a test has
/// a small trace with one of everything. Judges nothing: such a trace agrees with the engine because
/// it comes from it. The format is written from FORMAT.md, checkpoint hashes included, not through
/// the code under test.
final class TraceMaker {
  struct Held {
    var pfn: PFN
    var order: Int
    var kind = "nc"
    var extra: UInt64 = 0
  }

  let machine: Machine
  private var cpu: CPU
  private(set) var lines: [String] = []
  private(set) var operations = 0
  private(set) var held: [Held] = []
  private var heldPages: Int64 = 0
  private let checkpointInterval: Int
  private let dumpInterval: Int

  /// `GFP_NOWAIT | __GFP_NOWARN`.
  static let gfp = GFP(rawValue: 0x2800)

  init(
    _ description: MachineDescription, checkpoint: Int, dump: Int
  ) throws {
    machine = try Machine(description)
    cpu = try machine.claimCPU(0)
    checkpointInterval = checkpoint
    dumpInterval = dump
    lines = TraceMaker.header(machine.nodeCount, checkpoint: checkpoint, dump: dump)
    writeState("begin", withMap: true)
    if checkpoint > 0 { writeCheckpoint() }
  }

  static func header(_ nodes: Int, checkpoint: Int, dump: Int) -> [String] {
    var lines = [
      "physmem-trace 1", "kernel 6.1.0 made by a test", "note mem=32MiB",
      "param profile=G seed=1 ops=0 checkpoint=\(checkpoint) dump=\(dump) teardown=0",
      "const page_shift=12 max_order=11 pageblock_order=9 migrate_types=5 pcptypes=3 nr_pcp_lists=14 nr_loworder_pcp_lists=12 max_nr_zones=5 costly_order=3 pcp_batch_scale_max=5 struct_page=64",
      "migratetypes 0=UNMOVABLE 1=MOVABLE 2=RECLAIMABLE 3=HIGHATOMIC 4=ISOLATE",
      "sysctl watermark_boost_factor 15000", "sysctl watermark_scale_factor 10",
      "sysctl page_group_by_mobility_disabled 0", "sysctl gfp_allowed_mask 134217727",
      "sysctl lowmem_reserve_ratio 256,256,32,0", "static_key deferred_pages 0",
      "static_key page_alloc_shuffle_key 0", "static_key init_on_alloc 0",
      "static_key cpusets_enabled_key 0", "static_key page_reporting_enabled absent",
      "cpus online=1 this=0 numa_node=0 nodes=\(nodes) totalram=1 totalreserve=1",
      "task flags=0x400100 prio=120 mempolicy=0 in_task=1",
    ]
    for node in 0..<nodes {
      let row = (0..<nodes).map { $0 == node ? " 10" : " 20" }.joined()
      lines.append("distance node=\(node) :\(row)")
    }
    return lines
  }

  // MARK: operations

  func allocate(order: Int, gfp: GFP = gfp, node: Int? = nil) {
    let before = machine.freePageCount
    var page: PFN?
    if let node {
      page = try? cpu.allocatePages(order: order, gfp: gfp, node: node)
    } else {
      page = try? cpu.allocatePages(order: order, gfp: gfp)
    }
    let name = node.map { "alloc_pages_node nid=\($0)" } ?? "alloc_pages"
    noteAllocation(
      "\(name) gfp=\(hex(gfp)) order=\(order) sym=x", before, page, order,
      gfp.contains(.comp) ? "comp" : "nc")
  }

  func allocateFolio(order: Int, gfp: GFP = gfp) {
    let before = machine.freePageCount
    let page = try? cpu.allocateFolio(order: order, gfp: gfp)
    noteAllocation("folio_alloc gfp=\(hex(gfp)) order=\(order) sym=x", before, page, order, "folio")
  }

  func allocateExact(bytes: UInt64, gfp: GFP = gfp) {
    let before = machine.freePageCount
    let page = try? cpu.allocateExact(bytes: bytes, gfp: gfp)
    let order = Order.holding(bytes: bytes) ?? 0
    noteAllocation(
      "alloc_pages_exact gfp=\(hex(gfp)) bytes=\(bytes) sym=x", before, page, order, "exact", bytes)
  }

  private func noteAllocation(
    _ text: String, _ before: Int64, _ page: PFN?, _ order: Int, _ kind: String, _ extra: UInt64 = 0
  ) {
    note(text, page.map { "\($0)" } ?? "NULL", before, page.map { ($0, 1 << order) })
    guard let page else { return }
    let heldOrder = kind == "exact" ? 0 : order
    held.append(Held(pfn: page, order: heldOrder, kind: kind, extra: extra))
  }

  func allocateBulk(_ preset: [Bool], gfp: GFP = gfp) {
    let before = machine.freePageCount
    var slots = preset.map { $0 ? PFN(0) : nil }
    let returned = cpu.allocateBulk(&slots, gfp: gfp)
    let elements = slots.enumerated().map { index, page -> String in
      preset[index] ? "m" : page.map { "\($0)" } ?? "-"
    }
    for (index, page) in slots.enumerated() where !preset[index] {
      if let page { held.append(Held(pfn: page, order: 0)) }
    }
    let pattern = preset.contains(true) ? preset.map { $0 ? "1" : "0" }.joined() : "-"
    note(
      "alloc_pages_bulk_array gfp=\(hex(gfp)) n=\(preset.count) sym=x pre=\(pattern)",
      "\(returned): \(elements.joined(separator: ","))", before, nil)
  }

  /// Frees a held block the way it was allocated.
  func free(_ index: Int) {
    let block = held.remove(at: index)
    let before = machine.freePageCount
    if block.kind == "exact" {
      cpu.freeExact(block.pfn, bytes: block.extra)
      note(
        "free_pages_exact pfn=\(block.pfn) bytes=\(block.extra)", "void", before,
        (block.pfn, Int((block.extra + 4095) >> 12)))
    } else {
      cpu.freePages(block.pfn, order: block.order)
      note(
        "__free_pages pfn=\(block.pfn) order=\(block.order)", "void", before,
        (block.pfn, 1 << block.order))
    }
  }

  /// Takes and drops references of a held block in every way that leaves them as they were.
  func reference(_ index: Int) {
    let block = held[index]
    let extent = (block.pfn, 1 << block.order)
    perform("get_page pfn=\(block.pfn)", extent) { cpu.getPage(block.pfn) }
    flag("try_get_page pfn=\(block.pfn)", extent) { cpu.tryGetPage(block.pfn) }
    flag("get_page_unless_zero pfn=\(block.pfn)", extent) { cpu.getPageUnlessZero(block.pfn) }
    for _ in 0..<3 { perform("put_page pfn=\(block.pfn)", extent) { cpu.putPage(block.pfn) } }
    flag("page_ref_freeze pfn=\(block.pfn) count=2", extent) {
      cpu.freeze(block.pfn, expected: 2)
    }
    flag("page_ref_freeze pfn=\(block.pfn) count=1", extent) {
      cpu.freeze(block.pfn, expected: 1)
    }
    perform("page_ref_unfreeze pfn=\(block.pfn) count=1", extent) {
      cpu.unfreeze(block.pfn, to: 1)
    }
  }

  func split(_ index: Int) {
    let block = held.remove(at: index)
    perform("split_page pfn=\(block.pfn) order=\(block.order)", (block.pfn, 1 << block.order)) {
      cpu.splitPage(block.pfn, order: block.order)
    }
    for offset in 0..<(1 << block.order) { held.append(Held(pfn: block.pfn + offset, order: 0)) }
  }

  func drain(_ zone: ZoneID? = nil) {
    let before = machine.freePageCount
    if let zone { cpu.drainLocalPages(zone: zone) } else { cpu.drainLocalPages() }
    note("drain_local_pages zone=\(zone.map { "\($0)" } ?? "all")", "void", before, nil)
  }

  private func perform(_ text: String, _ extent: (PFN, Int), _ body: () -> Void) {
    let before = machine.freePageCount
    body()
    note(text, "void", before, extent)
  }

  private func flag(_ text: String, _ extent: (PFN, Int), _ body: () -> Bool) {
    let before = machine.freePageCount
    note(text, body() ? "1" : "0", before, extent)
  }

  // MARK: writing

  private func hex(_ gfp: GFP) -> String { "0x" + String(gfp.rawValue, radix: 16) }

  private func note(_ text: String, _ result: String, _ before: Int64, _ extent: (PFN, Int)?) {
    let delta = machine.freePageCount - before
    heldPages -= delta
    let counts = extent.map { " ; \($0.0) \(self.counts($0.0, $0.1))" } ?? ""
    lines.append("op \(operations) \(text) -> \(result) d=\(delta)\(counts)")
    operations += 1
    if checkpointInterval > 0, operations % checkpointInterval == 0 { writeCheckpoint() }
    if dumpInterval > 0, operations % dumpInterval == 0 { writeState("mid", withMap: false) }
  }

  private func counts(_ base: PFN, _ count: Int) -> String {
    var runs: [(text: String, count: Int)] = []
    for offset in 0..<count {
      let pfn = base + offset
      var text = "\(machine.frames.refcount(pfn))"
      if machine.frames.isCompoundHead(pfn) { text += "h" }
      if machine.frames.isCompoundTail(pfn) { text += "t" }
      if let order = machine.frames.buddyOrder(pfn) { text += "b\(order)" }
      if runs.last?.text == text { runs[runs.count - 1].count += 1 } else { runs.append((text, 1)) }
    }
    return runs.map { $0.count == 1 ? $0.text : "\($0.text)*\($0.count)" }.joined(separator: ",")
  }

  private func writeState(_ label: String, withMap: Bool) {
    lines += StateWriter.lines(
      of: machine.state(withMaps: withMap), label: label, operations: operations, held: heldPages)
  }

  /// Writes a checkpoint, wherever it is called.
  func writeCheckpoint() {
    for zone in machine.state(withMaps: false).zones {
      lines.append(TraceMaker.checkpoint(zone, operations))
    }
  }

  static func checkpoint(_ zone: MachineState.Zone, _ operations: Int) -> String {
    let pageset = zone.pagesets[0]
    let lengths = (0..<5).map { type in
      (0..<11).map { "\(zone.freeLists[$0 * 5 + type].count)" }.joined(separator: ",")
    }.joined(separator: ";")
    var lists = Hash()
    for type in 0..<5 {
      for order in 0..<11 {
        lists.add(0xffff_0000 + UInt64(order * 16 + type))
        for pfn in zone.freeLists[order * 5 + type] { lists.add(UInt64(pfn)) }
      }
    }
    var cached = Hash()
    for (slot, blocks) in pageset.lists.enumerated() {
      cached.add(0xfffe_0000 + UInt64(slot))
      for block in blocks {
        cached.add(UInt64(block.pfn))
        cached.add(UInt64(block.type))
      }
    }
    var types = Hash()
    for type in zone.pageblocks { types.add(UInt64(type)) }
    return
      "ck \(operations) \(zone.id) free=\(zone.free) diff=\(pageset.statDiff) pcp=\(pageset.count) ff=\(pageset.freeFactor) boost=\(zone.boost) highatomic=\(zone.highatomic) flags=\(zone.flags) nf=\(lengths) fh=\(lists) ph=\(cached) bh=\(types)"
  }

  private struct Hash: CustomStringConvertible {
    var value: UInt64 = 0xcbf2_9ce4_8422_2325
    mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x100_0000_01b3 }
    var description: String { String(value, radix: 16) }
  }

  /// Writes the last checkpoint and state, what is held, and the end.
  func end() -> TraceText {
    if checkpointInterval > 0 { writeCheckpoint() }
    writeState("end", withMap: true)
    for block in held {
      lines.append(
        "held pfn=\(block.pfn) order=\(block.order) kind=\(block.kind) xref=0 aux=\(block.extra)")
    }
    lines.append("end ops=\(operations) truncated=0")
    return TraceText(lines: lines)
  }
}

extension TraceMaker {
  /// A small trace with every operation, two zones, failed allocations, and something held.
  static let small: TraceText = {
    do { return try makeSmall() } catch { fatalError("no machine of 20 MiB: \(error)") }
  }()

  private static func makeSmall() throws -> TraceText {
    let maker = try TraceMaker(MachineDescription(memory: .mib(20)), checkpoint: 10, dump: 20)
    let movable = gfp.union([.movable, .highmem])
    for order in [0, 3, 1, 0, 2, 4, 0] { maker.allocate(order: order) }
    maker.allocate(order: 2, gfp: gfp.union(.comp))
    maker.allocate(order: 0, gfp: movable)
    maker.allocateFolio(order: 1, gfp: movable)
    maker.allocate(order: 0, node: 0)
    maker.allocateBulk([false, true, false, false, true, false])
    maker.allocateBulk([false, false], gfp: movable)
    maker.allocateExact(bytes: 20000)
    maker.allocateExact(bytes: 5000)
    for index in [1, 7, 0] { maker.reference(index) }
    maker.split(2)
    maker.free(1)
    if let large = maker.held.firstIndex(where: { $0.order > 1 && $0.kind == "nc" }) {
      maker.free(large)
    }
    if let exact = maker.held.firstIndex(where: { $0.kind == "exact" }) { maker.free(exact) }
    maker.drain(maker.machine.zoneIDs[0])
    for order in [0, 0, 5, 0, 1] { maker.allocate(order: order, gfp: gfp.union(.reclaimable)) }
    maker.drain()
    for _ in 0..<6 { maker.allocate(order: 10) }
    for _ in 0..<8 { maker.free(maker.held.count / 2) }
    for order in [0, 1, 0] { maker.allocate(order: order, gfp: movable.union(.dma32)) }
    maker.allocateExact(bytes: 5000)
    return maker.end()
  }
}
