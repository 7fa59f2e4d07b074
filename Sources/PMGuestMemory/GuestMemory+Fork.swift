extension GuestMemory {
  /// Makes a copy of the memory as it is at one moment; each side's pages are copied when one is written.
  ///
  /// Writes by this interface wait meanwhile; those by host addresses and by guests must be stopped, unless
  /// all memory is one shared arena that was never forked: then its copy is of one moment anyway. From then on
  /// both are private to this process: ``GuestRegion/fileDescriptor`` is nil, and other processes do not see
  /// what is written, see `Arena.fork()`. Addresses stay as they are. Devices serve both. The copy keeps no
  /// record of dirty pages.
  ///
  /// Throws ``GuestMemoryError/foreignFile(region:)`` if a region's bytes are in somebody's file, which cannot
  /// be kept from changing; and what the host says. This memory is unchanged then, but may be private already.
  public func fork() throws(GuestMemoryError) -> GuestMemory {
    let objects = try withWritersStopped { state throws(GuestMemoryError) -> [RegionObject] in
      if let object = state.snapshot.objects.first(where: { $0.bytes?.isForeignFile == true }) {
        throw .foreignFile(region: object.range)
      }
      var copies: [ObjectIdentifier: GuestBytes] = [:]
      var objects: [RegionObject] = []
      for object in state.snapshot.objects {
        guard let bytes = object.bytes else {
          objects.append(object)
          continue
        }
        let id = ObjectIdentifier(bytes)
        let copy: GuestBytes
        if let made = copies[id] {
          copy = made
        } else {
          copy = try bytes.fork()
          copies[id] = copy
        }
        objects.append(object.moved(to: copy))
      }
      return objects
    }
    return GuestMemory(objects)
  }
}
