// The whole library by one import: machine, allocator, host mapping, guest mapping, guest memory.

@_exported import PMArena
@_exported import PMFrames
@_exported import PMGuestMap
@_exported import PMGuestMemory
@_exported import PMHostMap
@_exported import PMPageAllocator
@_exported import PMUnits

/// What an arena is made of; the type of this name in PMHostMap is ``VMABacking`` here.
public typealias Backing = PMArena.Backing

/// What is behind an area of a process's address space: `Backing` of PMHostMap.
public typealias VMABacking = PMHostMap.Backing
