import Testing

// Single changed values, for DetectionTests.

// MARK: operations

let operationChanges: [Change] = [
  Change("result PFN with its block", "result") { trace in
    let index = try trace.index("op 0 alloc_pages ")
    try trace.replace(index, "-> 1f00 d=-256 ; 1f00", "-> 3100 d=-256 ; 3100")
    return index
  },
  .text("result NULL", in: ["op 0 "], "-> 1f00 d=-256 ; 1f00 1h,0t*255", "-> NULL d=0", "result"),
  .text(
    "NULL a PFN", in: ["op 1 ", "NULL"], "-> NULL d=0", "-> 400 d=-1024 ; 400 1,0*1023", "result"),
  .text("flag 1", in: ["op 664 try_get_page"], "-> 1 d=0", "-> 0 d=0", "result"),
  .text("flag 0", in: ["op 325 get_page_unless_zero"], "-> 0 d=0", "-> 1 d=0", "result"),
  .text("freeze 1", in: ["op 373 page_ref_freeze"], "-> 1 d=0", "-> 0 d=0", "result"),
  .text("freeze 0", in: ["op 410 page_ref_freeze"], "-> 0 d=0", "-> 1 d=0", "result"),
  .text("bulk elements", in: ["op 343 "], "30: 5c50,5c52", "30: 5c52,5c50", "element 0"),
  .text("bulk element", in: ["op 343 "], "29f8,29f9", "29f8,29ff", "element 4"),
  .text("bulk element left out", in: ["op 343 "], "5c50,5c52", "5c50,-", "element 1"),
  .text("bulk element set before", in: ["op 343 "], "5c50,5c52", "5c50,m", "element 1"),
  .text("bulk return", in: ["op 343 "], "-> 30:", "-> 29:", "returned number"),
  .text("d of an allocation", in: ["op 0 "], "d=-256", "d=-255", "change of free pages"),
  .text("d of a drain", in: ["op 1099 "], "d=0", "d=1", "change of free pages"),
  .text("d of a bulk call", in: ["op 343 "], "d=-30", "d=30", "change of free pages"),
  .text("count of a head", in: ["op 0 "], "; 1f00 1h", "; 1f00 2h", "count of 1f00"),
  .text("count in a run", in: ["op 0 "], "0t*255", "0t*200,1t,0t*54", "count of 1fc9"),
  .text("mark of a head", in: ["op 0 "], "; 1f00 1h", "; 1f00 1", "count of 1f00"),
  .text("mark of a tail", in: ["op 0 "], "0t*255", "0*255", "count of 1f01"),
  .text("a head's mark on a tail", in: ["op 0 "], "0t*255", "0h,0t*254", "count of 1f01"),
  .text("buddy order", in: ["op 397 "], "0b0", "0b1", "count of 5c47"),
  .text("no buddy", in: ["op 397 "], "1*7,0b0", "1*7,0", "count of 5c47"),
  .text("buddy order in a run", in: ["op 422 "], "0b5", "0b6", "count of fa0"),
]

// MARK: checkpoints

let checkpointChanges: [Change] =
  ["free", "diff", "pcp", "ff", "boost", "highatomic", "flags"].map { key in
    Change("ck \(key)", "checkpoint, zone 0.1, \(key)") { trace in
      let index = try trace.index("ck 1000 0.1 ")
      try trace.add(key, 1, index)
      return index
    }
  }
  + ["fh", "ph", "bh"].map { key in
    Change("ck \(key)", "checkpoint, zone 0.0, \(key)") { trace in
      let index = try trace.index("ck 1000 0.0 ")
      let hash = try trace.value(key, index)
      try trace.set(key, String(hash.dropLast()) + (hash.hasSuffix("0") ? "1" : "0"), index)
      return index
    }
  }
  + [0, 10, 11, 33, 44, 54].map { position in
    Change("ck nf entry \(position)", "blocks of order \(position % 11) type \(position / 11)") {
      trace in
      let index = try trace.index("ck 1500 0.1 ")
      let lengths = try trace.value("nf", index)
      var groups = lengths.split(separator: ";").map { $0.split(separator: ",").map(String.init) }
      let number = try #require(Int(groups[position / 11][position % 11]))
      groups[position / 11][position % 11] = "\(number + 1)"
      let changed = groups.map { $0.joined(separator: ",") }.joined(separator: ";")
      try trace.set("nf", changed, index)
      return index
    }
  }

// MARK: states

private func middle(_ trace: TraceText) throws -> Int { try trace.index("state mid op=1000") }

/// Adds to one field of a line of the state after 1000 operations.
private func field(_ line: String, _ key: String, _ what: String, by: Int = 1) -> Change {
  Change("mid \(line) \(key)", "state mid, \(what)") { trace in
    let index = try trace.index(line, after: middle(trace))
    try trace.add(key, by, index)
    return index
  }
}

let stateChanges: [Change] =
  [
    field("node 0", "start", "node 0"), field("node 0", "spanned", "node 0"),
    field("node 0", "present", "node 0"), field("node 0", "kswapd_order", "node 0", by: -1),
    field("node 0", "kswapd_highest_zoneidx", "node 0"),
    field("node 0", "kswapd_failures", "node 0"),
    field("zone 0.1", "present", "zone 0.1, present"),
    field("zone 0.1", "managed", "zone 0.1, managed"),
    field("zone 0.1", "min", "zone 0.1, watermarks"),
    field("zone 0.1", "low", "zone 0.1, watermarks"),
    field("zone 0.1", "high", "zone 0.1, watermarks"),
    field("zone 0.1", "boost", "zone 0.1, boost"),
    field("zone 0.1", "highatomic", "zone 0.1, highatomic"),
    field("zone 0.1", "flags", "zone 0.1, flags"),
    field("zone 0.1", "contiguous", "zone 0.1, contiguous", by: -1),
    field("zone 0.1", "isolated", "zone 0.1, isolated"),
    field("zone 0.1", "pageset_high", "zone 0.1, pageset_high"),
    field("zone 0.1", "pageset_batch", "zone 0.1, pageset_batch"),
    field("zone 0.1", "drift_mark", "zone 0.1, drift_mark"),
    field("pcp 0.1", "high", "zone 0.1, high"), field("pcp 0.1", "batch", "zone 0.1, batch"),
    field("pcp 0.1", "free_factor", "zone 0.1, free_factor"),
    field("pcp 0.1", "expire", "zone 0.1, expire"),
    field("pcp 0.1", "stat_threshold", "zone 0.1, stat_threshold"),
  ] + stateListChanges + lastStateChanges

private let stateListChanges: [Change] = [
  Change("mid lowmem_reserve", "zone 0.0, lowmem_reserve") { trace in
    let index = try trace.index("zone 0.0", after: middle(trace))
    try trace.replace(index, "lowmem_reserve=0,", "lowmem_reserve=1,")
    return index
  },
  Change("mid free against stat_diff", "zone 0.1, free") { trace in
    let index = try trace.index("zone 0.1", after: middle(trace))
    let pageset = try trace.index("pcp 0.1", after: index)
    let difference = try #require(try Int(trace.value("stat_diff", pageset))) > 0 ? -1 : 1
    try trace.add("free", -difference, index)
    try trace.add("stat_diff", difference, pageset)
    return index
  },
  Change("mid zonelist order", "zonelists of node 0") { trace in
    let index = try trace.index("zonelist", "fallback", after: middle(trace))
    try trace.replace(index, "0.1 0.0", "0.0 0.1")
    return index
  },
  Change("mid pageblock type", "zone 0.1, pageblocks") { trace in
    let index = try trace.index("pb 0.1", after: middle(trace))
    try trace.replace(index, "1000+7:1", "1000+6:1 1c00+1:0")
    return index
  },
  Change("mid order of a free list", "zone 0.1, free list") { trace in
    let start = try middle(trace)
    let index = try #require(
      trace.lines.indices.first {
        $0 > start && trace.lines[$0].hasPrefix("fl 0.1")
          && trace.lines[$0].split(separator: " ").count > 8
      })
    var fields = trace.lines[index].split(separator: " ")
    fields.swapAt(fields.count - 1, fields.count - 2)
    trace.lines[index] = fields.joined(separator: " ")
    return index
  },
  Change("mid free block under another type", "zone 0.0, free list") { trace in
    let start = try trace.index("state mid op=500")
    let index = try trace.index("fl 0.0 order=8 mt=1 n=1", after: start)
    try trace.replace(index, "mt=1", "mt=2")
    return index
  },
  Change("mid pages of a per-CPU list with their count", "zone 0.0, count") { trace in
    let start = try trace.index("state mid op=500")
    let index = try trace.index("pl 0.0 cpu=0 pindex=0", after: start)
    try trace.replace(index, " 813", "")
    try trace.add("n", -1, index)
    try trace.add("count", -1, trace.index("pcp 0.0", after: start))
    try trace.add("free", -1, trace.index("totals", after: start))
    return index
  },
  Change("mid order of a per-CPU list", "zone 0.0, per-CPU list 0") { trace in
    let start = try trace.index("state mid op=500")
    let index = try trace.index("pl 0.0 cpu=0 pindex=0", after: start)
    try trace.replace(index, "811 813", "813 811")
    return index
  },
  Change("mid cached type", "zone 0.1, per-CPU list 4") { trace in
    let index = try trace.index("pl 0.1 cpu=0 pindex=4", after: middle(trace))
    try trace.replace(index, "59d4/3", "59d4/2")
    return index
  },
  Change("mid cached type of the list", "zone 0.1, per-CPU list 4") { trace in
    let index = try trace.index("pl 0.1 cpu=0 pindex=4", after: middle(trace))
    try trace.replace(index, "59d4/3", "59d4")
    return index
  },
  Change("mid reference on a per-CPU list", "zone 0.1, per-CPU list 4") { trace in
    let index = try trace.index("pl 0.1 cpu=0 pindex=4", after: middle(trace))
    try trace.replace(index, "59d4/3", "59d4/3!1")
    return index
  },
  Change("mid held", "state mid, held pages") { trace in
    let index = try trace.index("totals", after: middle(trace))
    try trace.add("held", 1, index)
    return index
  },
]

private let lastStateChanges: [Change] = [
  Change("end map class", "state end, zone 0.0, map") { trace in
    let index = try trace.index("map 0.0", after: trace.index("state end"))
    try trace.replace(index, "100+84:U", "100+84:S")
    return index
  },
  Change("end map free and used", "state end, zone 0.0, map") { trace in
    let index = try trace.index("map 0.0 70a", after: trace.index("state end"))
    try trace.replace(index, "70c+f4:B", "70c+f3:B 7ff+1:U")
    return index
  },
  Change("end held", "state end, held pages") { trace in
    let index = try trace.index("totals", after: trace.index("state end"))
    try trace.add("held", -1, index)
    return index
  },
]

// MARK: the first state

let firstStateChanges: [Change] = [
  Change("begin order of a list", "fh") { trace in
    let index = try trace.index("fl 0.1 order=8 mt=1")
    try trace.replace(index, "3100 4300", "4300 3100")
    return try trace.index("ck 0 0.1")
  },
  Change("begin order of a per-CPU list", "ph") { trace in
    let index = try trace.index("pl 0.0 cpu=0 pindex=0")
    try trace.replace(index, "8f1 8f2", "8f2 8f1")
    return try trace.index("ck 0 0.0")
  },
  Change("begin pageblock type", "bh") { trace in
    let index = try trace.index("pb 0.0")
    try trace.replace(index, "400+2:2", "400+2:1")
    return try trace.index("ck 0 0.0")
  },
  Change("begin highatomic", "highatomic") { trace in
    try trace.set("highatomic", "512", trace.index("zone 0.0"))
    return try trace.index("ck 0 0.0")
  },
  Change("begin free_factor", "ff") { trace in
    try trace.set("free_factor", "1", trace.index("pcp 0.0"))
    return try trace.index("ck 0 0.0")
  },
  Change("begin kswapd_failures", "node 0") { trace in
    try trace.set("kswapd_failures", "11", trace.index("node 0"))
    return try trace.index("endstate mid")
  },
  Change("begin present", "present") { trace in
    try trace.add("present", 1, trace.index("zone 0.0"))
    return try trace.index("endstate mid")
  },
  Change("begin map class", "state end, zone 0.0, map") { trace in
    try trace.replace(trace.index("map 0.0"), "100+84:U", "100+84:S")
    return try trace.index("endstate end")
  },
  Change("begin held", "state mid, held pages") { trace in
    try trace.set("held", "1", trace.index("totals"))
    return try trace.index("endstate mid")
  },
  Change("begin batch", "zone 0.0") { trace in
    try trace.set("batch", "2", trace.index("pcp 0.0"))
    return nil
  },
]

// MARK: what is held

let heldChanges: [Change] = [
  Change("held xref", "held page") { trace in
    let index = try trace.index("held", "xref=0", "kind=nc")
    try trace.set("xref", "1", index)
    return index
  },
  Change("held xref of an exact block", "held page") { trace in
    let index = try trace.index("held", "kind=exact")
    try trace.set("xref", "1", index)
    return index
  },
  Change("held xref of a block with holes", "held page") { trace in
    let index = try trace.index("held", "kind=holed")
    try trace.set("xref", "1", index)
    return index
  },
  Change("held kind", "held page") { trace in
    let index = try trace.index("held", "order=4 kind=comp")
    try trace.set("kind", "nc", index)
    return index
  },
  Change("held order", "held page") { trace in
    // A block that a free one follows: twice as large, it would reach into it.
    let listed = try listedPages(trace)
    let candidate = try trace.lines.indices.first { index in
      guard trace.lines[index].hasPrefix("held"), trace.lines[index].contains("order=0 kind=nc"),
        let pfn = UInt32(try trace.value("pfn", index), radix: 16)
      else { return false }
      return pfn & 1 == 0 && listed.contains(pfn + 1)
    }
    let index = try #require(candidate)
    try trace.set("order", "1", index)
    return index
  },
  Change("held PFN", "held page") { trace in
    let listed = try listedPages(trace)
    let index = try trace.index("held", "order=0 kind=nc")
    let free = try #require(listed.first)
    try trace.set("pfn", String(free, radix: 16), index)
    return index
  },
]

/// The pages on lists in the last state, from its map.
private func listedPages(_ trace: TraceText) throws -> [UInt32] {
  var pages: [UInt32] = []
  for line in trace.lines[try trace.index("state end")...] where line.hasPrefix("map ") {
    for run in line.split(separator: " ").dropFirst(2) where run.hasSuffix(":B") {
      let parts = run.dropLast(2).split(separator: "+")
      let start = try #require(UInt32(parts[0], radix: 16))
      pages += Array(start..<(start + (try #require(UInt32(parts[1], radix: 16)))))
    }
  }
  return pages
}
