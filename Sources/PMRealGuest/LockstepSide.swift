import PMArena
internal import PMFrames
internal import PMGuestMap
internal import PMHostMap
internal import PMPageAllocator
internal import PMUnits

/// One of the two emulated machines of a lockstep run: memory, kernel, process, what can be mapped,
/// and a virtual machine. Both are made alike and stay alike, down to the frame numbers.
final class LockstepSide {
  /// The range that the guest's memory comes from.
  static let base: UInt64 = 0x7000_0000_0000
  static let pageCount = 192
  /// The pages of each file and of each driver's memory.
  static let objectPageCount = 40

  let machine: Machine
  let kernel: HostKernel
  let process: HostProcess
  let vm: VirtualMachine
  let vcpu: VCPU
  let files: [HostFile]
  let drivers: [RemapDriver]
  var cpu: CPU

  init(_ configuration: VirtualMachine.Configuration) throws {
    var description = MachineDescription(memory: .mib(32))
    description.model = KernelModel(kvm: configuration.era ?? .c)
    machine = try Machine(description)
    cpu = try machine.claimCPU(0)
    kernel = try HostKernel(
      machine: machine, behaviour: configuration.era == .c ? .linux618 : .linux61, on: &cpu)
    process = HostProcess(kernel: kernel)
    vm = try VirtualMachine(process: process, configuration: configuration)
    vcpu = try VCPU(vm)
    let kernel = kernel
    files = (0..<2).map { _ in
      HostFile(
        kernel: kernel, kind: .tmpfs, byteCount: UInt64(LockstepSide.objectPageCount) << 12)
    }
    var drivers: [RemapDriver] = []
    for style in RemapDriver.Style.allCases {
      let pages = try LockstepSide.driverPages(style, on: &cpu)
      drivers.append(RemapDriver(pages: pages, style: style, name: style.rawValue))
    }
    self.drivers = drivers
  }

  /// Frames for a driver. Those behind special entries are tails of uncounted blocks, the very pages
  /// that only era C maps freely. No two of them are neighbours: areas of adjacent pages of the arena
  /// would merge in the real process, and a fault on one page would then map the others.
  private static func driverPages(
    _ style: RemapDriver.Style, on cpu: inout CPU
  ) throws -> [PFN] {
    var pages: [PFN] = []
    switch style {
    case .remap, .insertPFN, .insertMixed:
      while pages.count < objectPageCount {
        let block = try cpu.allocatePages(order: 3, gfp: [.kernel, .zero])
        pages += [block + 1, block + 3, block + 5]
      }
    case .insertPage, .faultPage:
      for _ in 0..<objectPageCount { pages.append(try cpu.allocatePages(gfp: [.kernel, .zero])) }
    }
    return pages
  }

  func bytes(_ pfn: PFN) -> UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(
      start: machine.arena.base + Int(pfn.physicalAddress), count: 4096)
  }

  /// Runs a call of the emulated kernel: its error number, 0 for success.
  func call(_ body: (LockstepSide, inout CPU) throws -> Void) -> Int32 {
    do { try body(self, &cpu) } catch {
      return (error as? KernelErrno)?.rawValue ?? -1
    }
    return 0
  }
}

/// A change of a process's memory, made on both sides alike.
enum LockstepChange: Equatable {
  /// What can stand behind a mapping.
  enum Backing: Equatable {
    case anonymous
    case file(Int, isShared: Bool)
    case driver(Int)
  }

  case map(Range<Int>, Backing, rights: VMAFlags, offset: Int)
  case unmap(Range<Int>)
  case protect(Range<Int>, VMAFlags)
  case discard(Range<Int>)
  /// The driver takes its pages back, as `unmap_mapping_range` does.
  case revoke(driver: Int, Range<Int>)
  /// write(2) to a file.
  case writeFile(Int, Range<Int>, UInt8)
  case truncate(Int, pages: Int)
  /// The process itself reads or writes.
  case touch(page: Int, offset: Int, write: UInt32?)

  func perform(on side: LockstepSide, _ cpu: inout CPU) throws(KernelErrno) {
    let process = side.process
    switch self {
    case .map(let pages, let backing, let rights, let offset):
      var request = HostProcess.MapRequest(
        byteCount: UInt64(pages.count) << 12, address: LockstepChange.address(pages.lowerBound),
        rights: rights, pageOffset: UInt64(offset))
      switch backing {
      case .anonymous: break
      case .file(let index, let isShared):
        request.backing = .file(side.files[index])
        request.isShared = isShared
      case .driver(let index):
        request.backing = .driver(side.drivers[index])
        request.isShared = true
      }
      try process.map(request, on: &cpu)
    case .unmap(let pages): try process.unmap(LockstepChange.addresses(pages), on: &cpu)
    case .protect(let pages, let rights):
      try process.protect(LockstepChange.addresses(pages), rights: rights, on: &cpu)
    case .discard(let pages): try process.discard(LockstepChange.addresses(pages), on: &cpu)
    case .revoke(let driver, let pages):
      side.drivers[driver].mappings.unmap(
        pages: UInt64(pages.lowerBound)..<UInt64(pages.upperBound), on: &cpu)
    case .writeFile(let file, let pages, let pattern):
      try side.files[file].write(
        pages: UInt64(pages.lowerBound)..<UInt64(pages.upperBound), pattern: pattern, on: &cpu)
    case .truncate(let file, let pages):
      side.files[file].truncate(to: UInt64(pages) << 12, on: &cpu)
    case .touch(let page, let offset, let value):
      let address = LockstepChange.address(page) + UInt64(offset)
      if let value {
        try process.write32(address, value, on: &cpu)
      } else {
        _ = try process.read32(address, on: &cpu)
      }
    }
  }

  static func address(_ page: Int) -> UInt64 { LockstepSide.base + UInt64(page) << 12 }

  static func addresses(_ pages: Range<Int>) -> Range<UInt64> {
    address(pages.lowerBound)..<address(pages.upperBound)
  }
}
