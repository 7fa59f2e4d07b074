internal import PMArena
internal import PMPageAllocator

/// Who owns the bytes of regions: a machine, or an arena of the regions' own.
final class GuestBytes: Sendable {
  /// Keeps an arena at one place, so that several can borrow it.
  private final class Holder: Sendable {
    let arena: Arena
    init(_ arena: consuming Arena) { self.arena = arena }
  }

  /// The machine, where the bytes are one's.
  let machine: Machine?
  /// Whether they are in a file that somebody else made.
  let isForeignFile: Bool
  private let holder: Holder?

  init(_ machine: Machine) {
    self.machine = machine
    holder = nil
    isForeignFile = false
  }

  init(_ arena: consuming Arena, isForeignFile: Bool = false) {
    machine = nil
    holder = Holder(arena)
    self.isForeignFile = isForeignFile
  }

  /// A copy, see `Arena.fork()` and `Machine.fork()`.
  func fork() throws(GuestMemoryError) -> GuestBytes {
    if let machine {
      let copy: Machine
      do {
        copy = try machine.fork()
      } catch .arena(let error) {
        throw .arena(error)
      } catch .tables(let error) {
        throw .arena(.host(error))
      } catch {
        fatalError("a machine of the same shape was refused: \(error)")
      }
      return GuestBytes(copy)
    }
    return try GuestMemoryError.wrapping { () throws(ArenaError) in
      GuestBytes(try withArena { arena throws(ArenaError) in try arena.fork() })
    }
  }

  /// Lends the arena.
  func withArena<Result: ~Copyable, Failure: Error>(
    _ body: (borrowing Arena) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    if let machine { return try body(machine.arena) }
    guard let holder else { fatalError("bytes without an owner") }
    return try body(holder.arena)
  }
}
