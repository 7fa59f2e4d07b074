/// Watermarks: sections 1.8, 3.1 and 3.2.
extension ReferenceModel {
  /// Effective watermark: raw value plus boost (1.8).
  func watermark(_ zone: Int, _ flags: AllocFlags) -> Int {
    let raw = [zones[zone].min, zones[zone].low, zones[zone].high][flags.watermarkIndex]
    return raw + zones[zone].boost
  }

  private func fullWatermarkCheck(
    zone: Int, order: Int, mark: Int, highestZoneIndex: Int, flags: AllocFlags, free counter: Int
  ) -> Bool {
    var free = counter
    free -= (1 << order) - 1
    if flags.isDisjoint(with: .reserves) { free -= zones[zone].highatomic }

    var min = mark
    if !flags.isDisjoint(with: .reserves) {
      if flags.contains(.minReserve) {
        min -= min / 2
        if flags.contains(.nonBlock) { min -= min / 4 }
      }
      if flags.contains(.oom) { min -= min / 2 }
    }
    if free <= min + zones[zone].lowmemReserve[highestZoneIndex] { return false }
    if order == 0 { return true }

    for o in order...Self.maxOrder {
      for type in [Migrate.unmovable, Migrate.movable, Migrate.reclaimable]
      where !zones[zone].lists[o][type].isEmpty {
        return true
      }
      if !flags.isDisjoint(with: [.highatomic, .oom])
        && !zones[zone].lists[o][Migrate.highatomic].isEmpty
      {
        return true
      }
    }
    return false
  }

  /// The shortcut of step 2 is left out: it never decides anything else than the full check (3.2).
  func quickWatermarkCheck(
    zone: Int, order: Int, mark: Int, highestZoneIndex: Int, flags: AllocFlags, gfp: UInt32
  ) -> Bool {
    let free = max(zones[zone].free, 0)
    if fullWatermarkCheck(
      zone: zone, order: order, mark: mark, highestZoneIndex: highestZoneIndex, flags: flags,
      free: free)
    {
      return true
    }
    if order == 0 && gfp & GFP.atomic != 0 && zones[zone].boost != 0 && flags.watermarkIndex == 0 {
      return fullWatermarkCheck(
        zone: zone, order: order, mark: zones[zone].min, highestZoneIndex: highestZoneIndex,
        flags: flags, free: free)
    }
    return false
  }
}
