import Foundation
import Testing

@Suite struct KVMTableCommandTests {
  private typealias Cell = [String: Any]

  /// The cells of an era by page, VMA and access.
  private func cells(_ era: String) throws -> [String: Cell] {
    let run = try physmem("kvm", "table", "--era", era, "--json")
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    let object = try run.json()
    #expect(object["schema_version"] as? Int == 1)
    let eras = try #require(object["eras"] as? [[String: Any]])
    #expect(eras.map { $0["era"] as? String } == [era])
    let cells = try #require(eras.first?["cells"] as? [Cell])
    return Dictionary(uniqueKeysWithValues: cells.map { (key($0), $0) })
  }

  private func key(_ cell: Cell) -> String {
    ["page", "vma", "access"].map { cell[$0] as? String ?? "?" }.joined(separator: " ")
  }

  private func fact(_ cell: Cell) -> KVMFact {
    KVMFact(
      outcome: cell["outcome"] as? String ?? "", during: cell["during"] as? Int,
      after: cell["after"] as? Int ?? -99, faultMarks: cell["marks_at_fault"] as? String ?? "",
      zapMarks: cell["marks_at_zap"] as? String ?? "", level: cell["level"] as? Int,
      isWritable: cell["writable"] as? Bool, bit59: cell["bit59"] as? Bool)
  }

  @Test(arguments: ["A0", "A", "B", "C"])
  func `Every cell is what section 3 says, in every era`(_ era: String) throws {
    let cells = try cells(era)
    var seen = Set<String>()
    for line in KVMTruth.lines {
      let key = "\(line.page) \(line.vma) \(line.access)"
      let cell = try #require(cells[key], "\(era): no cell \(key)")
      seen.insert(key)
      #expect(cell["row"] as? String == line.row, "\(key)")
      let expected = line.rule.fact(era, level: line.level, isWritable: line.isWritable)
      #expect(fact(cell) == expected, "\(era): \(key)")
      #expect(cell["host_writable"] as? Bool == expected.isWritable, "\(era): \(key)")
    }
    // Nothing is in the table that the data does not know.
    let rest = Set(cells.keys).subtracting(seen)
    #expect(
      rest == [], "\(era): cells without a fact: \(rest.sorted().joined(separator: "; "))")
  }

  @Test func `Only era A0 frees a page that somebody owns, and only by a tail's put`() throws {
    for era in ["A0", "A", "B", "C"] {
      let cells = try cells(era)
      let tail = try #require(cells["noncompound-tail remap read"])
      #expect(tail["freed"] as? Bool == (era == "A0"))
      #expect(tail["guest_reaches_free_frame"] as? Bool == (era == "A0"))
      #expect(
        cells["noncompound-tail gup read"]?["forced"] as? String
          == "vm_insert_page says EINVAL")
      let head = try #require(cells["noncompound-head remap write"])
      #expect(head["freed"] as? Bool == false)
      #expect(head["guest_reaches_free_frame"] as? Bool == false)
      #expect(cells["zero-page gup write"]?["page_copied"] as? Bool == true)
      #expect(cells["zero-page gup read"]?["page_copied"] as? Bool == false)
    }
  }

  @Test func `The text of an era has a line per page and VMA, with what differs`() throws {
    let run = try physmem("kvm", "table", "--era", "a")
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    #expect(run.lines[0] == "Era A: Linux 5.13 to 6.12")
    func cells(_ prefix: String) throws -> [Substring] {
      let words = prefix.split(separator: " ")
      let line = try #require(run.lines.first { $0.split(separator: " ").starts(with: words) })
      return line.split(separator: " ").dropFirst(words.count).map { $0 }
    }
    #expect(
      try cells("1 order0 gup both") == ["OK", "+1->0", "A", "AD", "4K", "W", "fast", "GUP"])
    #expect(
      try cells("5 noncompound-tail remap both") == ["EFAULT", "-", "-", "-", "-", "remapped"])
    #expect(
      try cells("6 reserved gup both")
        == ["OK", "+1->+1", "-", "-", "4K", "W", "fast", "GUP", "leaks", "1"])
    #expect(run.output.contains("\nremap-no-write: REMAP VMA without VM_WRITE, entry read-only\n"))
  }

  @Test func `Without an era the four stand side by side; a kind selects its lines`() throws {
    let run = try physmem("kvm", "table", "--kind", "noncompound-tail")
    #expect(run.status == 0)
    let line = try #require(run.lines.first { $0.hasPrefix("5   noncompound-tail remap") })
    #expect(
      line.split(separator: " ").dropFirst(4).joined(separator: " ")
        == "+1->0 A|AD 4KW!* EFAULT 0->0 -|- 4KW 0->0 -|- 4KW")
    #expect(run.lines.allSatisfy { !$0.contains("order0 ") })
    #expect(try physmem("kvm", "table").lines.allSatisfy { $0.count <= 100 })
  }

  @Test func `An explanation tells the path with the count at each step`() throws {
    let run = try physmem(
      "kvm", "table", "--explain", "noncompound-tail", "REMAP", "read", "--era", "A0")
    #expect(run.status == 0)
    #expect(run.lines[0].hasPrefix("Era A0, row 5: the guest reads."))
    #expect(run.lines[1].hasPrefix("-> OK; count +1->0;"))
    // The frame's own count, step by step.
    let counts = run.lines.dropFirst(3).compactMap { line -> String? in
      let words = line.split(separator: " ")
      return words.count > 3 && UInt32(words[0], radix: 16) != nil ? String(words[1]) : nil
    }
    #expect(counts.first == "0")
    #expect(counts.contains("1"))
    #expect(counts.last == "0")
    #expect(run.output.contains("held by KVM guest fault (vm 1, gfn 40001)"))
    #expect(run.output.contains("mm_page_free"))
    let all = try physmem("kvm", "table", "--explain", "order0", "gup", "write")
    #expect(all.lines.count { $0.hasPrefix("Era ") } == 4)
    let object = try physmem(
      "kvm", "table", "--explain", "order0", "gup", "write", "--era", "C", "--json"
    ).json()
    let eras = try #require(object["eras"] as? [[String: Any]])
    let cell = try #require((eras[0]["cells"] as? [Cell])?.first)
    let steps = try #require(cell["steps"] as? [Cell])
    let own = steps.compactMap { $0["own_count"] as? Int }
    #expect(own.count == steps.count)
    #expect(own.max() == (own.first ?? 0) + 1)
  }

  @Test func `The page of HTML is whole, balanced and needs nothing else`() throws {
    let run = try physmem("kvm", "table", "--html")
    #expect(run.status == 0)
    #expect(run.output.hasPrefix("<!DOCTYPE html>"))
    for word in ["<script", "src=", "href=", "http:", "https:", "@import"] {
      #expect(!run.output.contains(word))
    }
    var open: [Substring] = []
    var details = 0
    for match in run.output.matches(of: #/<(/?)([a-z0-9]+)[^<>]*?(/?)>/#) {
      let (closes, name, isEmpty) = (!match.1.isEmpty, match.2, !match.3.isEmpty)
      if isEmpty { continue }
      if closes {
        let last = open.popLast()
        try #require(last == name, "</\(name)> closes <\(last ?? "nothing")>")
      } else {
        open.append(name)
        if name == "details" { details += 1 }
      }
    }
    #expect(open.isEmpty)
    // A cell per era and line of the table.
    #expect(details % 4 == 0)
    #expect(details >= 4 * 80)
    for outcome in ["ok", "efault", "mmio", "emulated", "freed", "leaks"] {
      #expect(run.output.contains("<td class=\"\(outcome)\">"))
    }
  }

  @Test(arguments: [
    ["kvm", "table", "--era", "D"], ["kvm", "table", "--kind", "nothing"],
    ["kvm", "table", "--html", "--json"], ["kvm", "table", "--explain", "order0", "gup"],
    ["kvm", "table", "--explain", "nothing", "gup", "read"],
    ["kvm", "table", "--explain", "order0", "nowhere", "read"],
    ["kvm", "table", "--explain", "order0", "gup", "jump"],
    ["kvm", "table", "--explain", "order0", "gup-none", "read"],
    ["kvm", "table", "--explain", "order0", "gup", "read", "--html"], ["kvm", "table", "more"],
    ["kvm", "story", "--era", "5"], ["kvm", "story", "more"], ["kvm", "nothing"],
  ])
  func `Bad arguments exit with 64`(_ arguments: [String]) throws {
    let run = try physmem(arguments)
    #expect(run.status == 64)
    #expect(run.output.isEmpty)
    #expect(run.errors.contains("Error: "))
  }
}

@Suite struct KVMStoryCommandTests {
  @Test func `The story of all eras meets its expectations`() throws {
    let run = try physmem("kvm", "story")
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    #expect(
      run.lines.filter { $0.hasPrefix("ERA ") }.map { $0.prefix(6) }
        == ["ERA A0", "ERA A:", "ERA B:", "ERA C:"])
    #expect(run.lines.count { $0.contains("1 counts intact") } == 14)
    #expect(run.lines.count { $0.contains("2 no access after free") } == 14)
    #expect(run.lines.count { $0.contains("3 no stale translation") } == 14)
  }

  @Test func `In era A0 the tail changes hands under the guest`() throws {
    let run = try physmem("kvm", "story", "--era", "A0", "--ledger")
    #expect(run.status == 0)
    for text in [
      "0>1>0 pcp0 driver-1", "the tail that the driver still has", "it reads 'other-0'",
      "the other owner reads 'guest-1!' in its own page", "nonzero _refcount",
      "1 counts intact            NO: frame ", "by KVM guest fault (vm 1, gfn 40001)",
      "ledger, unmatched at the end: none", "1>2>1>0 pcp0 driver-0",
    ] {
      #expect(run.output.contains(text), "\(text)")
    }
  }

  @Test(arguments: ["A", "B", "C"])
  func `Later eras keep all three properties where KVM zaps`(_ era: String) throws {
    let run = try physmem("kvm", "story", "--era", era, "--json")
    #expect(run.status == 0)
    let object = try run.json()
    #expect(object["schema_version"] as? Int == 1)
    #expect(object["expectations_met"] as? Bool == true)
    let stories = try #require(object["stories"] as? [[String: Any]])
    #expect(stories.map { $0["era"] as? String } == [era])
    let chapters = try #require(stories[0]["chapters"] as? [[String: Any]])
    #expect(chapters.count == (era == "A" ? 3 : 2))
    func violations(_ chapter: Int) throws -> [Int] {
      let properties = try #require(chapters[chapter]["properties"] as? [String: [String]])
      return ["count_violations", "accesses_after_free", "stale_translations"].map {
        properties[$0]?.count ?? -1
      }
    }
    #expect(try violations(0) == [0, 0, 0])
    let broken = try violations(1)
    #expect(broken[0] == 0)
    #expect(broken[1] > 0)
    #expect(broken[2] > 0)
    let steps = try #require(chapters[0]["steps"] as? [[String: Any]])
    let texts = steps.map { "\($0["step"] ?? ""): \($0["note"] ?? "")" }
    let tail = try #require(texts.first { $0.contains("a tail") })
    #expect(tail.hasSuffix(era == "A" ? "KVM_RUN returns EFAULT; no entry" : "reads 'driver-1'"))
    // Every frame that a step shows is one of the block's four.
    for step in steps {
      let frames = try #require(step["frames"] as? [[String: Any]])
      #expect(frames.count == 4)
      #expect(Set(frames.compactMap { $0["pfn"] as? Int }).count == 4)
    }
  }
}
