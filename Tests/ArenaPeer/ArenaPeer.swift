import ArenaRecords
import Foundation
import PMArena
import PMUnits

// Another program beside the tests, that shares an arena's memory and may be killed at any moment:
//
//     ArenaPeer write FILE BYTES FIRST COUNT RECORD [STOP]
//     ArenaPeer own BACKING BYTES
//     ArenaPeer watch FILE BYTES
//
// FILE is a path, or `-` for the descriptor that stands as standard input. All answers are words of 8
// bytes on standard output. What the writer and the owner write, and where, is in the module ArenaRecords.

@main
enum ArenaPeer {
  static func main() throws {
    let arguments = Array(CommandLine.arguments.dropFirst())
    func number(_ index: Int) throws -> Int {
      guard index < arguments.count, let number = Int(arguments[index]), number >= 0 else {
        throw Misuse("argument \(index) of \(arguments): expected a number")
      }
      return number
    }
    switch arguments.first {
    case "write":
      let pages = try Pages(arguments[1], byteCount: try number(2))
      let first = try number(3)
      write(
        RecordPlace(pages: first..<(first + (try number(4)))), to: pages.base,
        from: UInt64(try number(5)), stop: arguments.count > 6 ? UInt64(try number(6)) : nil)
    case "own":
      guard let backing = Backing(rawValue: arguments[1]) else { throw Misuse(arguments[1]) }
      try own(backing, byteCount: try number(2))
    case "watch":
      watch(try Pages(arguments[1], byteCount: try number(2)))
    default:
      throw Misuse("expected write, own or watch")
    }
  }

  /// Writes record after record, without an end, and says of each when it is there as a whole.
  static func write(
    _ place: RecordPlace, to base: UnsafeMutableRawPointer, from first: UInt64, stop: UInt64?
  ) {
    var record = first
    while true {
      let page = base + place.page(of: record) * Record.byteCount
      var words = SplitMix64(seed: record)
      for word in 0..<Record.wordCount {
        if record == stop, word == Record.wordCount / 2 {
          answer(record)
          waitForEnd()
        }
        page.storeBytes(of: words.next(), toByteOffset: word * 8, as: UInt64.self)
      }
      answer(record)
      record += 1
    }
  }

  /// Makes an arena, says which descriptor it has, and writes records all over it.
  static func own(_ backing: Backing, byteCount: Int) throws {
    let arena = try Arena(
      ArenaConfiguration(byteCount: ByteCount(UInt64(byteCount)), backing: backing))
    guard let file = arena.fileDescriptor else { throw Misuse("\(backing) has no descriptor") }
    answer(UInt64(file))
    write(
      RecordPlace(pages: 0..<(byteCount / Record.byteCount)), to: arena.base, from: 1, stop: nil)
  }

  /// Answers lines `PAGE`, with a hash of the page, and `PAGE RECORD`, which writes a record into it.
  static func watch(_ pages: Pages) {
    answer(0)
    while let line = readLine() {
      let words = line.split(separator: " ").compactMap { UInt64($0) }
      guard let page = words.first.map({ pages.base + Int($0) * Record.byteCount }) else {
        continue
      }
      if words.count > 1 { Record.write(words[1], to: page) }
      answer(Record.hash(of: page))
    }
  }

  /// One word on standard output. Words arrive whole or not at all, so that a killed process has
  /// answered or has not.
  static func answer(_ word: UInt64) {
    var word = word
    guard Glibc.write(1, &word, 8) == 8 else { exit(1) }
  }

  /// Returns when nobody reads the answers any more.
  static func waitForEnd() {
    var output = pollfd(fd: 1, events: 0, revents: 0)
    while poll(&output, 1, -1) <= 0 {}
    exit(0)
  }
}

/// A command line that says nothing of use.
struct Misuse: Error {
  var what: String
  init(_ what: String) { self.what = what }
}

/// Memory of another process, mapped from its descriptor.
struct Pages {
  let base: UnsafeMutableRawPointer

  init(_ file: String, byteCount: Int) throws {
    let descriptor = file == "-" ? 0 : open(file, O_RDWR)
    guard descriptor >= 0,
      let base = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0),
      base != MAP_FAILED
    else { throw Misuse("\(file): \(String(cString: strerror(errno)))") }
    self.base = base
  }
}
