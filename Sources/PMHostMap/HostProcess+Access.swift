public import PMPageAllocator
public import PMUnits

// The process's own reads and writes: they fault like those of a program and touch the real bytes.
extension HostProcess {
  /// Runs `body` with the bytes of one page after the access has faulted in what it needs. EFAULT where
  /// a program would get SIGSEGV or SIGBUS, EINTR where a signal comes first. Marks the entry young, and
  /// dirty for a write, as the processor does.
  @discardableResult
  package func accessing<Result>(
    _ address: UInt64, isWrite: Bool, on cpu: inout CPU,
    _ body: (UnsafeMutableRawPointer, PFN) -> Result
  ) throws(KernelErrno) -> Result {
    mmapLock.lockShared()
    defer { mmapLock.unlock() }
    guard let area = area(at: address), area.flags.contains(isWrite ? .write : .read) else {
      throw .efault
    }
    for _ in 0..<64 {
      let found = tableLock.withLock { () -> PFN? in
        guard let found = table.leaf(address), !found.entry.isProtnone,
          !isWrite || found.entry.isWritable
        else { return nil }
        var entry = found.entry
        entry.isYoung = true
        if isWrite { entry.isDirty = true }
        if entry != found.entry { table.set(found.slot, entry) }
        return PFN(found.pfn(at: address))
      }
      if let pfn = found {
        guard let bytes = kernel.bytes(of: pfn) else { throw .eio }
        return body(bytes + Int(address & 4095), pfn)
      }
      switch handleFault(Fault(address: address, isWrite: isWrite), area, on: &cpu) {
      case .done, .retry: continue
      case .oom: throw .enomem
      case .interrupted: throw .eintr
      case .sigbus, .sigsegv, .hwpoison: throw .efault
      }
    }
    throw .efault
  }

  /// Reads bytes; the buffer may cross pages. EFAULT where a page cannot be read: bytes before it have
  /// been copied.
  public func read(
    _ address: UInt64, into buffer: UnsafeMutableRawBufferPointer, on cpu: inout CPU
  ) throws(KernelErrno) {
    var done = 0
    while done < buffer.count {
      let here = address &+ UInt64(done)
      let part = min(buffer.count - done, 4096 - Int(here & 4095))
      try accessing(here, isWrite: false, on: &cpu) { bytes, _ in
        UnsafeMutableRawBufferPointer(rebasing: buffer[done..<(done + part)])
          .copyMemory(from: UnsafeRawBufferPointer(start: bytes, count: part))
      }
      done += part
    }
  }

  /// Writes bytes; the buffer may cross pages. EFAULT where a page cannot be written: bytes before it
  /// have been written. Mirrors `copy_to_user`.
  public func write(
    _ address: UInt64, _ buffer: UnsafeRawBufferPointer, on cpu: inout CPU
  ) throws(KernelErrno) {
    var done = 0
    while done < buffer.count {
      let here = address &+ UInt64(done)
      let part = min(buffer.count - done, 4096 - Int(here & 4095))
      try accessing(here, isWrite: true, on: &cpu) { bytes, _ in
        bytes.copyMemory(from: buffer.baseAddress! + done, byteCount: part)
      }
      done += part
    }
  }

  /// Reads 4 bytes, little endian.
  public func read32(_ address: UInt64, on cpu: inout CPU) throws(KernelErrno) -> UInt32 {
    var value: UInt32 = 0
    var failure: KernelErrno?
    withUnsafeMutableBytes(of: &value) { buffer in
      do throws(KernelErrno) { try read(address, into: buffer, on: &cpu) } catch { failure = error }
    }
    if let failure { throw failure }
    return UInt32(littleEndian: value)
  }

  /// Writes 4 bytes, little endian.
  public func write32(
    _ address: UInt64, _ value: UInt32, on cpu: inout CPU
  ) throws(KernelErrno) {
    let value = value.littleEndian
    var failure: KernelErrno?
    withUnsafeBytes(of: value) { buffer in
      do throws(KernelErrno) { try write(address, buffer, on: &cpu) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  /// Fills a range with a byte, page by page, as memset does. EFAULT as for ``write(_:_:on:)``.
  public func fill(
    _ range: Range<UInt64>, _ pattern: UInt8, on cpu: inout CPU
  ) throws(KernelErrno) {
    var address = range.lowerBound
    while address < range.upperBound {
      let part = min(Int(range.upperBound - address), 4096 - Int(address & 4095))
      try accessing(address, isWrite: true, on: &cpu) { bytes, _ in
        bytes.initializeMemory(as: UInt8.self, repeating: pattern, count: part)
      }
      address += UInt64(part)
    }
  }
}
