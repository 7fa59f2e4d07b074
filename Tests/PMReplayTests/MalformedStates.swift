import Foundation
import Testing

// Wrong lines of states, for MalformedTests.

/// Changes text in the first line that starts so; of the first state.
private func state(
  _ name: String, _ line: String, _ old: String, _ new: String, _ expected: String
) -> Change {
  .text(name, in: [line], old, new, expected)
}

/// Adds to a number of a line of the first state.
private func number(
  _ name: String, _ line: String, _ key: String, _ by: Int, _ expected: String,
  at shown: String? = nil
) -> Change {
  Change(name, expected) { trace in
    let index = try trace.index(line)
    try trace.add(key, by, index)
    return try shown.map { try trace.index($0) } ?? index
  }
}

let stateLineChanges: [Change] = [
  state("label", "state begin", "begin", "start", "expected begin, mid, loaded or end"),
  state("not at 0", "state begin", "op=0", "op=1", "expected 'state begin op=0 map=1'"),
  state("without map", "state begin", "map=1", "map=0", "expected 'state begin op=0 map=1'"),
  state("mid first", "state begin", "begin", "mid", "expected 'state begin op=0 map=1'"),
  state("end label", "endstate begin", "begin", "mid", "endstate mid: expected begin"),
  state("zonelist kind", "zonelist", "fallback", "local", "expected fallback or thisnode"),
  state("zonelist node", "zonelist", "node=0", "node=1", "expected 0 to 0"),
  Change("zonelist of no zone", "names zone 0.3, which has no line") { trace in
    try trace.replace(trace.index("zonelist"), "0.0", "0.3")
    return try trace.index("totals")
  },
  state("node", "node 0", "node 0", "node 1", "node 1: expected 0 of 1"),
  state("kswapd order", "node 0", "kswapd_order=0", "kswapd_order=11", "expected 0 to 10"),
  state("zone name", "zone 0.0", "name=DMA", "name=Normal", "zone 0.0 is DMA"),
  state("zone of no node", "zone 0.1", "zone 0.1", "zone 1.1", "there are 1 nodes"),
  state("zone order", "zone 0.1", "zone 0.1 name=DMA32", "zone 0.0 name=DMA", "out of order"),
  number("zone too large", "zone 0.1", "spanned", 2_147_482_000, "ends above PFN 7fffffff"),
  state("reserves", "zone 0.0", "lowmem_reserve=0,", "lowmem_reserve=", "expected 5 values"),
  state("zone flags", "zone 0.0", "flags=0", "flags=4", "expected 0 to 3"),
  number(
    "free counter", "zone 0.0", "free", 1, "as free and free_exact of the zone differ by",
    at: "pcp 0.0"),
  Change("free counters", "the free lists before hold") { trace in
    let index = try trace.index("zone 0.0")
    try trace.add("free", 1, index)
    try trace.add("free_exact", 1, index)
    return try trace.index("pcp 0.0")
  },
  number("pageset count", "pcp 0.0", "count", 1, "the pages on the per-CPU lists that follow"),
  number("total", "totals", "free", 1, "the sum over the zones"),
  number("list length", "fl 0.0", "n", 1, "blocks follow"),
  state("list order", "fl 0.0", "order=", "order=1", "expected 0 to 10"),
  state("list type", "fl 0.0", "mt=1", "mt=5", "expected 0 to 4"),
  state("list of another zone", "fl 0.1", "fl 0.1", "fl 0.0", "zone line does not stand before"),
  state("free_factor", "pcp 0.0", "free_factor=0", "free_factor=6", "expected 0 to 5"),
  state("batch", "pcp 0.0", "batch=", "batch=-", "expected 1 to 65535"),
  state("stat_diff", "pcp 0.0", "stat_diff=0", "stat_diff=128", "expected -127 to 127"),
  state("cpu", "pcp 0.0", "cpu=0", "cpu=1", "expected 0 to 0"),
  state("pageblock start", "pb 0.0", "pb 0.0 0+", "pb 0.0 200+", "expected some from 0 on"),
  state("pageblock type", "pb 0.0", ":1", ":7", "expected 0 to 4 or x"),
  state("pageblock form", "pb 0.0", ":1", "=1", "expected START+COUNT:TYPE"),
  state("pageblocks too few", "pb 0.1", "1000+2:1", "1000+1:1", "expected the end of the zone"),
  state("pageblocks too many", "pb 0.1", "1000+2:1", "1000+3:1", "expected the end of the zone"),
  state("map class", "map 0.0", ":B", ":C", "expected START+COUNT:CLASS"),
  state("map start", "map 0.0", "map 0.0 1+", "map 0.0 2+", "expected frames from 1 on"),
  state(
    "map run of nothing", "map 0.0", "map 0.0 1+", "map 0.0 1+0:U 1+", "expected frames from 1"),
  Change("map too short", "the map of zone 0.1 ends at") { trace in
    let index = try trace.index("map 0.1")
    trace.lines[index] = "map 0.1 1000+3ff:B"
    return try trace.index("totals")
  },
  Change("map too long", "up to 1400") { trace in
    let index = try trace.index("map 0.1")
    trace.lines[index] = "map 0.1 1000+401:B"
    return index
  },
  Change("map in a state without", "map=0") { trace in
    let index = try trace.index("totals", after: trace.index("state mid"))
    trace.lines.insert("map 0.1 1000+400:B", at: index)
    return index
  },
  Change("block that is misaligned", "block 401 is not aligned to order 10") { trace in
    let index = try trace.index("fl 0.0", "order=10")
    try trace.replace(index, " 400", " 401")
    return index
  },
  Change("block outside its zone", "of order 10 lies outside zone 0.0") { trace in
    let index = try trace.index("fl 0.0", "order=10")
    try trace.replace(index, " c00", " 1000")
    return index
  },
  Change("block that reaches out of its zone", "lies outside zone 0.0") { trace in
    let index = try trace.index("fl 0.0", "order=10")
    try trace.replace(index, " 400", " 0")
    return index
  },
  // What only the map can tell is reported where the state ends.
  Change("block on a list twice", "or on two lists") { trace in
    let index = try trace.index("fl 0.0", "order=10")
    try trace.replace(index, " 400 800", " 400 400")
    return try trace.index("endstate begin")
  },
  Change("class that disagrees with the lists", "not of class B in the map") { trace in
    try trace.replace(trace.index("map 0.0"), ":B", ":U")
    return try trace.index("endstate begin")
  },
  Change("free page on no list", "is of class B but on no list") { trace in
    try trace.replace(trace.index("map 0.0"), ":R", ":B")
    return try trace.index("endstate begin")
  },
  Change("frame of two zones", "belongs to two zones") { trace in
    try trace.add("spanned", 1, trace.index("zone 0.0"))
    try trace.replace(trace.index("pb 0.0"), "+8:1", "+9:1")
    let map = try trace.index("map 0.0")
    trace.lines[map] += " 1000+1:U"
    return try trace.index("endstate begin")
  },
  Change("per-CPU list of another order", "pindex=") { trace in
    let index = try trace.index("pl ")
    try trace.add("order", 1, index)
    return index
  },
  Change("cached type of the list", "the list's own type is left out") { trace in
    let index = try trace.index("pl ")
    trace.lines[index] += "/\(try trace.value("mt", index))"
    return index
  },
  Change("cached type 5", "a type of 0 to 4") { trace in
    let index = try trace.index("pl ")
    trace.lines[index] += "/5"
    return index
  },
  Change("no reference", "!0 is left out") { trace in
    let index = try trace.index("pl ")
    trace.lines[index] += "!0"
    return index
  },
  Change("unknown record", "does not belong into a state") { trace in
    let index = try trace.index("totals")
    trace.lines.insert("zonestat 0.0 x=1", at: index)
    return index
  },
]
