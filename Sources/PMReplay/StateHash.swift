internal import PMPageAllocator

/// The hashes of checkpoint lines over order and content of lists (FORMAT: FNV-1a over words).
enum StateHash {
  private struct Hash {
    var value: UInt64 = 0xcbf2_9ce4_8422_2325
    mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x100_0000_01b3 }
  }

  static func freeLists(_ zone: MachineState.Zone) -> UInt64 {
    var hash = Hash()
    for type in 0..<5 {
      for order in 0..<11 {
        hash.add(0xffff_0000 + UInt64(order * 16 + type))
        for pfn in zone.freeLists[order * 5 + type] { hash.add(UInt64(pfn)) }
      }
    }
    return hash.value
  }

  static func perCPULists(_ pageset: MachineState.Pageset) -> UInt64 {
    var hash = Hash()
    for (slot, blocks) in pageset.lists.enumerated() {
      hash.add(0xfffe_0000 + UInt64(slot))
      for block in blocks {
        hash.add(UInt64(block.pfn))
        hash.add(UInt64(block.type))
      }
    }
    return hash.value
  }

  static func pageblocks(_ zone: MachineState.Zone) -> UInt64 {
    var hash = Hash()
    for type in zone.pageblocks { hash.add(UInt64(type)) }
    return hash.value
  }
}
