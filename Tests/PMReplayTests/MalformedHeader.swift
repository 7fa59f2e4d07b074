import Foundation
import Testing

// Wrong header lines, for MalformedTests.

let headerChanges: [Change] = [
  .text("unknown profile", in: ["param"], "profile=G", "profile=Q", "unknown profile 'Q'"),
  .text("empty profile", in: ["param"], "profile=G", "profile=", "unknown profile ''"),
  .text("seed", in: ["param"], "seed=1", "seed=x", "found 'x': expected a decimal number"),
  .text("negative interval", in: ["param"], "dump=20", "dump=-1", "dump=-1: expected 0 to"),
  .text("large interval", in: ["param"], "dump=20", "dump=9999999999", "expected 0 to 2147483647"),
  .text("huge number", in: ["param"], "dump=20", "dump=99999999999999999999", "at most 18 digits"),
  .text("leading zero", in: ["param"], "dump=20", "dump=020", "without leading zeros"),
  .text("negative zero", in: ["param"], "dump=20", "dump=-0", "without leading zeros"),
  .text("teardown 2", in: ["param"], "teardown=0", "teardown=2", "expected 0 to 1"),
  .text("field order", in: ["param"], "seed=1 ops=0", "ops=0 seed=1", "expected 'seed='"),
  .text("missing field", in: ["param"], " seed=1", "", "found 'ops=0': expected 'seed='"),
  .text("more text", in: ["param"], "teardown=0", "teardown=0 x=1", "unexpected text at column"),
  .text("extra blank", in: ["param"], "seed=1", " seed=1", "two blanks in a row at column"),
  .text("blank at the end", in: ["param"], "teardown=0", "teardown=0 ", "a blank ends the line"),
  .text("page size", in: ["const"], "page_shift=12", "page_shift=16", "page_shift=16: expected 12"),
  .text("constant missing", in: ["const"], " pcptypes=3", "", "'pcptypes=' is missing"),
  .text("constant twice", in: ["const"], " pcptypes=3", " pcptypes=3 pcptypes=3", "stands twice"),
  .text("constant without value", in: ["const"], "pcptypes=3", "pcptypes", "expected NAME=VALUE"),
  .text("types", in: ["migratetypes"], "1=MOVABLE", "1=CMA", "expected '1=MOVABLE'"),
  .text(
    "boost factor", in: ["sysctl watermark_boost_factor"], "15000", "-1", "expected 0 to 1000000000"
  ),
  .text(
    "mobility", in: ["sysctl page_group"], "disabled 0", "disabled 2", "expected 0 or 1"),
  .text("mask", in: ["sysctl gfp_allowed_mask"], "134217727", "1", "expected 134217727"),
  .text("sysctl text", in: ["sysctl lowmem"], "256,256", "256,,256", "expected a decimal number"),
  .text("shuffled pages", in: ["static_key page_alloc_shuffle"], " 0", " 1", "not modelled"),
  .text("key value", in: ["static_key page_alloc_shuffle"], " 0", " 2", "expected 0, 1 or absent"),
  .text("two CPUs", in: ["cpus"], "online=1", "online=2", "online=2: expected 1 to 1"),
  .text("node of the CPU", in: ["cpus"], "numa_node=0", "numa_node=1", "less than nodes=1"),
  .text("no node", in: ["cpus"], "nodes=1", "nodes=0", "expected 1 to 1024"),
  .text("PF_MEMALLOC", in: ["task"], "0x400100", "0x400900", "without PF_MEMALLOC"),
  .text("real-time task", in: ["task"], "prio=120", "prio=98", "expected 100 to 139"),
  .text("policy", in: ["task"], "mempolicy=0", "mempolicy=2", "expected 0 to 0"),
  .text("interrupt", in: ["task"], "in_task=1", "in_task=0", "expected 1 to 1"),
  .text("flags without 0x", in: ["task"], "0x400100", "400100", "hexadecimal number with 0x"),
  .text("distances", in: ["distance"], ": 10", ": 10 20", "unexpected text"),
  .text("distance of another node", in: ["distance"], "node=0", "node=1", "expected 0 to 0"),
  .text("distance 0", in: ["distance"], ": 10", ": 0", "expected 1 to 255"),
  Change("needed setting missing", "expected the setting 'page_reporting_enabled'") { trace in
    trace.lines.remove(at: try trace.index("static_key page_reporting_enabled"))
    return try trace.index("cpus")
  },
]
