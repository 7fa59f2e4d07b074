internal import PMFrames
internal import PMPageAllocator
internal import PMUnits

/// Makes the machines of a run's cases, which differ in nothing but what a case asks for.
struct BenchmarkMachines {
  /// Machines as they are by default.
  static let packed = BenchmarkMachines(refcountLayout: .packed)

  var refcountLayout: RefcountLayout

  func callAsFunction(_ memory: ByteCount, cpus: Int = 1) throws -> Machine {
    var description = MachineDescription(memory: memory, cpus: cpus)
    description.refcountLayout = refcountLayout
    return try Machine(description)
  }
}
