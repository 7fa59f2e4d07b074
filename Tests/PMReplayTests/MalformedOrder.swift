import Foundation
import Testing

// Records where they do not belong, and wrong lines about the end, for MalformedTests.

private func moved(
  _ name: String, _ line: String, before other: String, _ expected: String
) -> Change {
  Change(name, expected) { trace in
    let from = try trace.index(line)
    let text = trace.lines.remove(at: from)
    let index = try trace.index(other)
    trace.lines.insert(text, at: index)
    return index
  }
}

private func inserted(
  _ name: String, _ text: String, before other: String, _ expected: String
) -> Change {
  Change(name, expected) { trace in
    let index = try trace.index(other)
    trace.lines.insert(text, at: index)
    return index
  }
}

let orderChanges: [Change] = [
  inserted(
    "second state begin", "state begin op=0 map=1", before: "op 0 ", "a second 'state begin'"),
  inserted("state begin in a state", "state begin op=0 map=1", before: "totals", "does not belong"),
  inserted("state at another operation", "state mid op=5 map=0", before: "op 3 ", "expected 3"),
  inserted("state between", "state mid op=3 map=0", before: "op 3 ", "one per dump= operations"),
  inserted("loaded", "state loaded op=3 map=0", before: "op 3 ", "before a teardown"),
  inserted("end without map", "state end op=3 map=0", before: "op 3 ", "with its map"),
  inserted(
    "end without checkpoint", "state end op=3 map=1", before: "op 3 ",
    "the checkpoint before the last state is missing"),
  inserted("held early", "held pfn=100 order=0 kind=nc xref=0 aux=0", before: "op 3 ", "'held'"),
  inserted("end early", "end ops=3 truncated=0", before: "op 3 ", "'end' before the last state"),
  inserted("endstate alone", "endstate mid", before: "op 3 ", "found 'endstate'"),
  inserted("header line late", "sysctl x 1", before: "op 3 ", "found 'sysctl'"),
  moved("pageset before lists", "pcp 0.0", before: "fl 0.0", "the free lists before hold 0 pages"),
  moved("node before zonelists", "node 0", before: "zonelist", "'node' stands after 'state'"),
  Change("pageblocks late", "'fl' stands after 'zone': out of order") { trace in
    trace.lines.remove(at: try trace.index("pb 0.0"))
    return try trace.index("fl 0.0")
  },
  moved("totals early", "totals", before: "zone 0.1", "the sum over the zones"),
  inserted(
    "second totals", "totals free=1 held=0", before: "endstate begin",
    "'totals' stands after 'totals'"),
  Change("a checkpoint line missing", "lacks zones: expected 'ck 10'") { trace in
    trace.lines.remove(at: try trace.index("ck 10 0.1"))
    return try trace.index("op 10 ")
  },
  Change("a checkpoint missing", "the checkpoint after 10 operations is missing") { trace in
    trace.lines.remove(at: try trace.index("ck 10 0.0"))
    trace.lines.remove(at: try trace.index("ck 10 0.1"))
    return try trace.index("op 10 ")
  },
  Change("a checkpoint without interval", "an operation after the checkpoint") { trace in
    try trace.set("checkpoint", "0", trace.index("param"))
    return try trace.index("op 10 ")
  },
  Change("checkpoint number", "ck 11: expected 10") { trace in
    let index = try trace.index("ck 10 0.0")
    try trace.replace(index, "ck 10", "ck 11")
    return index
  },
  Change("checkpoint zones", "expected zone 0.0") { trace in
    let index = try trace.index("ck 10 0.0")
    trace.lines.swapAt(index, index + 1)
    return index
  },
  Change("checkpoint lengths", "lengths: expected 11") { trace in
    let index = try trace.index("ck 10 0.0")
    try trace.replace(index, "nf=0,", "nf=")
    return index
  },
  Change("a state missing", "the state after 20 operations is missing") { trace in
    let start = try trace.index("state mid")
    trace.lines.removeSubrange(start...(try trace.index("endstate mid")))
    return try trace.index("op 20 ")
  },
  Change("operation after the last state", "an operation after the last state") { trace in
    let index = try trace.index("endstate end") + 1
    trace.lines.insert("op 99 drain_local_pages zone=all -> void d=0", at: index)
    return index
  },
  Change("checkpoint after the last state", "a checkpoint after the last state") { trace in
    let index = try trace.index("endstate end") + 1
    trace.lines.insert(trace.lines[try trace.index("ck 10 0.0")], at: index)
    return index
  },
  Change("second last state", "a state after the last one") { trace in
    let index = try trace.index("endstate end") + 1
    trace.lines.insert(trace.lines[try trace.index("state end")], at: index)
    return index
  },
]

let lastLineChanges: [Change] = [
  Change("number of operations", "as stand before") { trace in
    let index = try trace.index("end ops")
    try trace.add("ops", 1, index)
    return index
  },
  .text("truncated", in: ["end ops"], "truncated=0", "truncated=2", "expected 0 to 1"),
  Change("fewer operations than asked for", "or truncated=1") { trace in
    try trace.set("ops", "1000", trace.index("param"))
    return try trace.index("end ops")
  },
  Change("teardown without loaded state", "expected 'state loaded'") { trace in
    try trace.set("teardown", "1", trace.index("param"))
    return try trace.index("end ops")
  },
  Change("text after the end", "text after the 'end' line") { trace in
    trace.lines.append("end ops=0 truncated=0")
    return trace.lines.count - 1
  },
  Change("empty line after the end", "text after the 'end' line") { trace in
    trace.lines.append("")
    return trace.lines.count - 1
  },
  Change("held block missing", "expected held=") { trace in
    trace.lines.remove(at: try trace.index("held"))
    return try trace.index("end ops")
  },
  Change("held block twice", "is held twice") { trace in
    let index = try trace.index("held")
    trace.lines.insert(trace.lines[index], at: index)
    return index + 1
  },
  .text("held kind", in: ["held"], "kind=nc", "kind=mine", "expected nc, comp, folio, exact"),
  .text("held aux", in: ["held", "kind=nc"], "aux=0", "aux=1", "expected 0 with kind=nc"),
  .text("held PFN", in: ["held"], "pfn=", "pfn=7", "in no zone"),
  .text("held order", in: ["held"], "order=", "order=4", "expected 0 to 10"),
  .text("held xref", in: ["held"], "xref=0", "xref=2147483647", "expected 0 to 2147483646"),
  .text("exact without bytes", in: ["held", "exact"], "aux=5000", "aux=0", "1 to 4194304 bytes"),
  .text(
    "exact with too many bytes", in: ["held", "exact"], "aux=5000", "aux=99999999999999",
    "1 to 4194304 bytes"),
  Change("hole without pages", "a bit per page with kind=holed order=0") { trace in
    let index = try trace.index("held", "order=0 kind=nc")
    try trace.set("kind", "holed", index)
    try trace.set("aux", "2", index)
    return index
  },
]
