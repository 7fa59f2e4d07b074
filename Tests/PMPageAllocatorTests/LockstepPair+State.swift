import PMFrames
import PMUnits

@testable import PMPageAllocator

// The complete comparisons, which take time.
extension LockstepPair {
  /// Compares the state list by list; every list in order, with what is cached for its blocks.
  func compareStates() throws(LockstepMismatch) {
    for index in machine.zoneIDs.indices {
      let state = machine.zoneState(index, withMap: false)
      let name = machine.zoneIDs[index]
      let expected = model.zones[index]
      for slot in 0..<55 where state.freeLists[slot] != expected.lists[slot / 5][slot % 5] {
        let difference = firstDifference(
          state.freeLists[slot].map { "\(PFN($0))" },
          expected.lists[slot / 5][slot % 5].map { "\(PFN($0))" })
        throw LockstepMismatch(
          description: "zone \(name): list of order \(slot / 5), type \(slot % 5): \(difference)")
      }
      let first = state.start >> 9
      for (block, type) in state.pageblocks.enumerated() where type != 0xff {
        let wanted = model.pageblockType((first + UInt32(block)) << 9)
        if Int(type) != wanted {
          throw LockstepMismatch(
            description: "zone \(name): pageblock \(block) has type \(type), model \(wanted)")
        }
      }
      for cpu in state.pagesets.indices {
        try comparePageset(state.pagesets[cpu], cpu: cpu, zone: index)
      }
    }
    let violations = machine.invariantViolations()
    // A report takes the mark from a free block that was tested by mistake; the model sees that too.
    if let violation = violations.first, !isHazardous || model.checkInvariants().isEmpty {
      throw LockstepMismatch(description: violation)
    }
  }

  private func comparePageset(
    _ state: MachineState.Pageset, cpu: Int, zone: Int
  ) throws(LockstepMismatch) {
    let expected = model.pageSets[cpu][zone]
    for slot in 0..<14 {
      let list = state.lists[slot]
      let wanted = expected.lists[slot]
      let isEqual =
        list.count == wanted.count
        && zip(list, wanted).allSatisfy {
          $0.pfn == $1.pfn && Int($0.type) == $1.migratetype
            && $0.refcount == model.pages[Int($1.pfn)].refcount
        }
      if isEqual { continue }
      let difference = firstDifference(
        list.map { "\(PFN($0.pfn))/\($0.type)!\($0.refcount)" },
        wanted.map { "\(PFN($0.pfn))/\($0.migratetype)!\(model.pages[Int($0.pfn)].refcount)" })
      throw LockstepMismatch(
        description: "zone \(machine.zoneIDs[zone]) CPU \(cpu): list \(slot): \(difference)")
    }
  }

  private func firstDifference(_ machine: [String], _ model: [String]) -> String {
    let count = min(machine.count, model.count)
    let position = (0..<count).first { machine[$0] != model[$0] } ?? count
    func part(_ list: [String]) -> String {
      list.dropFirst(max(0, position - 1)).prefix(6).joined(separator: " ")
    }
    return """
      from position \(max(0, position - 1)): \(part(machine)) (of \(machine.count)), model \
      \(part(model)) (of \(model.count))
      """
  }

  /// Compares counts, compound marks and flags of all frames.
  func comparePages() throws(LockstepMismatch) {
    for zone in model.zones {
      for run in zone.present {
        for pfn in run { try comparePage(pfn) }
      }
    }
  }
}
