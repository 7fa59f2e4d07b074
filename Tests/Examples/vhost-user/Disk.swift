import PMVhostUser
import Physmem

/// A guest's memory as the RAM of a disk in another process: `VhostUserDisk SOCKET`.
///
/// Reads the disk's first sector into the memory of a machine, writes it in capitals to the second.
@main
struct Disk {
  static func main() throws {
    guard CommandLine.arguments.count == 2 else { fatalError("usage: VhostUserDisk SOCKET") }

    // The physical memory of a machine: its bytes, its allocator.
    let machine = try Machine(MachineDescription(memory: .mib(64)))
    let memory = GuestMemory(machine)
    var cpu = try machine.claimCPU(0)
    func allocate(order: Int) throws -> GPA {
      GPA(try cpu.allocatePages(order: order, gfp: .kernel).physicalAddress)
    }

    // The queue and the buffer are in pages of that machine.
    let frontEnd = try VhostUserFrontEnd(connectingTo: CommandLine.arguments[1])
    let disk = try VirtioBlock(frontEnd, memory: memory, queueAt: try allocate(order: 0))
    print("regions offered: \(memory.regions.map(\.range)), sectors: \(try disk.sectorCount())")

    let sector = GuestRange(start: try allocate(order: 0), byteCount: 512)
    try disk.read(sector: 0, into: sector)
    var text = [UInt8](repeating: 0, count: 512)
    try text.withUnsafeMutableBytes { try memory.read(into: $0, at: sector.start) }
    print(
      "sector 0, at \(sector.start): \(String(decoding: text.prefix { $0 != 0 }, as: UTF8.self))")

    let capitals = text.map { (97...122).contains($0) ? $0 - 32 : $0 }
    try capitals.withUnsafeBytes { try memory.write($0, at: sector.start) }
    try disk.write(sector: 1, from: sector)
    print("sector 1 written, \(try disk.frontEnd.stop(index: 0)) requests served")
  }
}
