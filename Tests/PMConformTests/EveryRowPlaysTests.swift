import Testing

@testable import PMConform

/// Rows that the description of the tables allows, whether or not a bundled table has them: none may be
/// one that cannot be played.
@Suite struct EveryRowPlaysTests {
  private func failures(
    _ header: String, _ columns: String, _ rows: [String], name: String
  ) throws -> [String] {
    let text = ([header, columns] + rows).joined(separator: "\n") + "\n"
    let table = try TruthTable.parse(Array(text.utf8), name: name)
    let player = try #require(table.kind.player)
    return zip(table.rows, player.outcomes(of: table)).compactMap { row, outcome in
      guard case .failed(let why) = outcome else { return nil }
      return "\(row.cells.joined(separator: "|")): \(why)"
    }
  }

  @Test func `Every experiment with __free_pages plays`() throws {
    let blocks = [
      "order0", "comp_o2", "noncomp_o2", "split_o2", "comp_o9", "noncomp_o9", "split_o9",
    ]
    var names: [String] = []
    for block in blocks {
      names += ["F1_nohold_\(block)", "F2_headhold_\(block)"]
      if block != "order0" { names.append("F2t_tailhold_\(block)") }
      for access in ["read", "write"] {
        names.append("F5_map_zap_free_\(access)_\(block)")
        for target in block == "order0" ? ["head"] : ["head", "tail1"] {
          names.append("F3_kvmfault_on_\(target)_\(access)_\(block)")
          names.append("F3i_insert_page_kvmfault_on_\(target)_\(access)_\(block)")
        }
      }
    }
    for style in ["pfnmap", "fault_insert_pfn", "insert_page"] {
      names += ["read", "write"].map { "F4a_tail_ref1_\(style)_\($0)" }
    }
    for order in ["o2", "o9"] {
      names += [
        "F4b_tail1_ref1_free_nohold_\(order)", "F4c_owner_drops_during_kvm_hold_\(order)",
        "F4d_headhold_alltails_ref1_\(order)",
      ]
    }
    let states = names.map { "\($0)\t0_allocated\t0\t1\t1\t-\t0\tna\tnone\t-1" }
    #expect(
      try failures(
        "# state of every page",
        "experiment\tstep\tidx\tref\thref\tflags\tPageBuddy\tbuddy_head_off\tbuddy_order\t"
          + "raw_mapcount", states, name: "free-6.1.tsv") == [])
    for block in ["order0", "reserved_o0", "zeropage"] {
      for style in ["pfnmap", "insert_page"] {
        names += ["read", "write"].map { "F6_rounds_\(block)_\(style)_\($0)" }
      }
    }
    let rounds = names.map { "\($0)\t\($0.hasPrefix("F6") ? "refcounts" : "run")\tx" }
    #expect(
      try failures(
        "# what happened", "experiment\tstep\tevent", rounds, name: "free-events-6.1.tsv") == [])
  }

  @Test(arguments: ["6.1", "6.18"])
  func `Every scenario of dirty logging plays`(_ kernel: String) throws {
    var rows: [String] = []
    for backing in ["4k", "thp", "hugetlb"] {
      for manual in [0, 1, 3] {
        for state in ["fresh", "mapped_before_log"] {
          rows += ["1 first get\tGET_DIRTY_LOG", "25 after slot move\tGET_DIRTY_LOG"].map {
            "\(backing).manual\(manual).\(state)\t\($0)\t0\tnone\t0\t0"
          }
        }
      }
    }
    for scenario in [
      "ro_slot+log", "rw_slot+log,hva PROT_READ", "rw_slot+log,hva PROT_NONE", "two_slots_one_hva",
      "ring_acq_rel",
    ] {
      rows.append("\(scenario)\t1\tguest writes page 3..3\t0/DONE\tna\t1\t0")
    }
    #expect(
      try failures(
        "# Linux \(kernel)", "scenario\tstep\toperation\tresult\tdirty_pages\tpages_4k\tpages_2m",
        rows, name: "dirtylog-\(kernel).tsv") == [])
  }

  @Test(arguments: ["faults-6.1", "faults-6.18", "faults-6.18-emulated"])
  func `Every case of a single access plays`(_ name: String) throws {
    let anonymous = ["touched", "untouched", "readtouched"].flatMap { touch in
      ["", "_none", "_ro", "_wo", "_exec"].map { "anon_\(touch)\($0)" }
    }
    let files = ["private", "shared"].flatMap { kind in
      ["", "_ro", "_beyond_eof"].map { "file_\(kind)\($0)" }
    }
    let others = [
      "anon_munmapped", "never_mapped", "packet_ring_head", "packet_ring_tail", "kvm_run_page",
    ]
    var rows: [String] = []
    for name in anonymous + files + others {
      for slot in ["rw", "ro"] {
        for access in ["read", "write"] {
          rows.append("\(name)\t\(slot)\t\(access)\t0\tDONE\t-\tna\tx")
        }
      }
    }
    for sequence in [
      "dontneed", "remap", "mprotect", "fork", "slotdel", "cross_end", "cross_page", "mremap_away",
      "halfhole", "userfaultfd",
    ] {
      rows.append("seq.\(sequence)\trw\tread\t0\tDONE\t-\t0x0\t1 read")
    }
    #expect(
      try failures(
        "# fault behaviour of one guest access",
        "case\tslot\taccess\tKVM_RUN\texit\tdetail\tvalue_read\tnote", rows, name: name + ".tsv")
        == [])
  }

  @Test(arguments: ["truth-6.1", "truth-6.1-shadow"])
  func `Every kind of page in every kind of area plays`(_ name: String) throws {
    let kinds = [
      "order0", "comp_o2", "comp_o9", "noncomp_o2", "noncomp_o9", "split_o2", "split_o9",
      "reserved_o0", "reserved_comp_o2", "reserved_noncomp_o2", "vmalloc_o2", "zeropage",
      "mmio_nostruct",
    ]
    var rows: [String] = []
    for kind in kinds {
      for style in ["pfnmap", "fault_insert_pfn", "insert_page", "mixed_special"] {
        for access in ["none", "read", "write", "read+write"] {
          rows.append(
            ([kind, style, "rw", "head", "0", "rw", access, "zap_then_close"]
              + Array(repeating: "x", count: 20)).joined(separator: "\t"))
        }
      }
    }
    #expect(
      try failures(
        "# Linux 6.1",
        "kind\tvma\tvma_prot\tpos\tidx\tslot\taccess\tteardown\tmap_err\tslot_err\trun_err\t"
          + "run_exit\tval_ok\tinfault_ref\tinfault_href\tn_release\tn_dirty\tn_accessed\tn_mark\t"
          + "pages_4k\tpages_2m\tS0\tS1\tS3\tS4\tS5\tS6\tS7", rows, name: name + ".tsv") == [])
  }
}
