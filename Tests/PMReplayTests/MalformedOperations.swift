import Foundation
import Testing

// Wrong operation lines, for MalformedTests.

/// Changes text in the first line of an operation.
private func operation(
  _ name: String, _ words: String, _ old: String, _ new: String, _ expected: String
) -> Change {
  .text(name, in: ["op ", " \(words) "], old, new, expected)
}

let operationLineChanges: [Change] = [
  operation("unknown", "split_page", "split_page", "merge_page", "unknown operation 'merge_page'"),
  operation("prefix", "alloc_pages", "alloc_pages", "alloc_page", "unknown operation 'alloc_page'"),
  operation("number", "alloc_pages", "op 0", "op 1", "op 1: expected op 0"),
  operation("number not decimal", "alloc_pages", "op 0", "op a", "expected a decimal number"),
  operation("order 11", "alloc_pages", "order=0", "order=11", "order=11: expected 0 to 10"),
  operation("order -1", "alloc_pages", "order=0", "order=-1", "order=-1: expected 0 to 10"),
  operation("order 11 freed", "__free_pages", "order=", "order=11", "order=11"),
  operation("gfp with both types", "alloc_pages", "0x2800", "0x2818", "exclude each other"),
  operation("gfp above the mask", "alloc_pages", "0x2800", "0x8002800", "at most 0x7ffffff"),
  operation("gfp above 32 bits", "alloc_pages", "0x2800", "0x100002800", "at most 0x7ffffff"),
  operation(
    "gfp above 64 bits", "alloc_pages", "0x2800", "0x10000000000002800", "at most 16 digits"),
  operation("gfp without 0x", "alloc_pages", "0x2800", "2800", "hexadecimal number with 0x"),
  operation("gfp in upper case", "alloc_pages", "0x2800", "0x2A00", "in lower case"),
  operation("gfp that reclaims", "alloc_pages", "0x2800", "0x2c00", "__GFP_DIRECT_RECLAIM"),
  operation("no node", "alloc_pages_node", "nid=0", "nid=1", "nid=1: expected 0 to 0"),
  operation("node -1", "alloc_pages_node", "nid=0", "nid=-1", "nid=-1: expected 0 to 0"),
  operation("no sym", "alloc_pages", " sym=x", "", "expected 'sym='"),
  operation("no arrow", "alloc_pages", "->", "=>", "found '=>': expected '->'"),
  operation("no d", "alloc_pages", " d=-1", "", "expected 'd='"),
  operation("result text", "alloc_pages", "-> ", "-> page", "expected a hexadecimal number"),
  operation("void", "get_page", "void", "1", "found '1': expected 'void'"),
  operation("flag 2", "try_get_page", "-> 1", "-> 2", "result 2: expected 0 or 1"),
  Change("unaligned", "is not aligned to order 1") { trace in
    let index = try trace.index("op ", " split_page ", "order=1")
    let pfn = try #require(UInt32(try trace.value("pfn", index), radix: 16))
    try trace.set("pfn", String(pfn + 1, radix: 16), index)
    return index
  },
  operation("bulk slots", "alloc_pages_bulk_array", "n=6", "n=7", "7"),
  operation("bulk huge", "alloc_pages_bulk_array", "n=6", "n=1048577", "expected 0 to 1048576"),
  operation(
    "bulk pattern", "alloc_pages_bulk_array", "pre=01", "pre=02", "expected digits 0 and 1"),
  operation("bulk return", "alloc_pages_bulk_array", "-> 6:", "-> 6", "expected 'R:'"),
  operation("bulk elements", "alloc_pages_bulk_array", ",m,", ",", "elements: expected n=6"),
  operation("exact bytes", "free_pages_exact", "bytes=20000", "bytes=0", "expected 1 to 4194304"),
  operation("freeze", "page_ref_freeze", "count=2", "count=2147483648", "expected -2147483648 to"),
  operation("drained zone", "drain_local_pages", "zone=0.0", "zone=0.2", "no such zone"),
  operation("zone text", "drain_local_pages", "zone=0.0", "zone=DMA", "expected NODE.INDEX"),
  operation("zone index", "drain_local_pages", "zone=0.0", "zone=0.9", "expected NODE.INDEX"),
  operation("counts after a drain", "drain_local_pages", "d=", "d=0 ; 1 1 x=", "unexpected text"),
  Change("no counts", "the line ends early") { trace in
    let index = try trace.index("op 0 ")
    trace.lines[index] = String(trace.lines[index].prefix { $0 != ";" }.dropLast())
    return index
  },
  Change("base alone", "no counts follow") { trace in
    let index = try trace.index("op 0 ")
    trace.lines[index] = String(trace.lines[index].dropLast(2))
    return index
  },
  Change("fewer counts than the block has", "expected 8 from") { trace in
    let index = try trace.index("op 1 ", "order=3")
    try trace.replace(index, "0*7", "0*6")
    return index
  },
  Change("more counts than the block has", "expected 1 from") { trace in
    let index = try trace.index("op 0 ")
    // The neighbour is on a per-CPU list or free; its count is 0 either way.
    trace.lines[index] = try neighbour(trace, index)
    return index
  },
  Change("counts of another block", "expected those of the block of the page") { trace in
    let index = try trace.index("op ", " get_page ")
    let block = try trace.index("op 0 ")
    let other = try #require(trace.lines[block].split(separator: " ").last { $0.count > 1 })
    let fields = trace.lines[index].split(separator: " ").map(String.init)
    let base = try #require(fields.firstIndex(of: ";"))
    trace.lines[index] = (fields[...base] + [String(other), "1"]).joined(separator: " ")
    return index
  },
  operation("counts text", "get_page", "; ", "; x", "expected a hexadecimal number"),
  Change("run of one", "N from 2 on") { trace in
    let index = try trace.index("op 0 ")
    trace.lines[index] += "*1"
    return index
  },
  Change("run that is too long", "N from 2 on") { trace in
    let index = try trace.index("op 1 ", "order=3")
    try trace.replace(index, "0*7", "0*9999999")
    return index
  },
  Change("counts that leave the zone", "which is not in the zone") { trace in
    let index = try trace.index("op 1 ", "order=3")
    try trace.replace(index, "0*7", "0*7,0*100000")
    return index
  },
  Change("count that is too large", "expected a signed 32-bit number") { trace in
    let index = try trace.index("op 0 ")
    trace.lines[index] = String(trace.lines[index].dropLast()) + "2147483648"
    return index
  },
  Change("NULL with counts", "unexpected text") { trace in
    let index = try trace.index("op ", "NULL")
    trace.lines[index] += " ; 100 0"
    return index
  },
  Change("carriage return", "ends in CR LF") { trace in
    let index = try trace.index("op 5 ")
    trace.lines[index] += "\r"
    return index
  },
  Change("NUL byte", "byte 0x0 at column") { trace in
    let index = try trace.index("op 5 ")
    try trace.replace(index, "sym=x", "sym=\0")
    return index
  },
]

/// The line with a count more, of the page behind the block, as it is at that moment.
private func neighbour(_ trace: TraceText, _ index: Int) throws -> String {
  for marks in ["0", "0b0", "0b1", "0b2", "0b3", "1"] {
    var changed = trace
    changed.lines[index] += ",\(marks)"
    if case .malformed = try changed.replay() { return changed.lines[index] }
  }
  return trace.lines[index]
}
