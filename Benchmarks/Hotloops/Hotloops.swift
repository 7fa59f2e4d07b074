import Foundation

// One hot operation, performed so many times and nothing else, for a counter of instructions:
//
//     hotloops --list
//     hotloops OPERATION COUNT
//
// What start and set-up cost is the same at every count, so that the difference of two runs divided by
// the difference of their counts is what the operation costs, to the instruction. `.ci/instructions`
// does that.

@main
enum Hotloops {
  static func main() {
    let arguments = CommandLine.arguments.dropFirst()
    if arguments == ["--list"] {
      for loop in HotLoop.all { print(loop.name) }
      return
    }
    guard arguments.count == 2, let name = arguments.first, let text = arguments.last else {
      fail("usage: hotloops --list | hotloops OPERATION COUNT", status: 64)
    }
    guard let loop = HotLoop.all.first(where: { $0.name == name }) else {
      let names = HotLoop.all.map(\.name).joined(separator: ", ")
      fail("operation '\(name)': expected one of \(names)", status: 64)
    }
    guard let count = Int(text), (1...1_000_000_000).contains(count) else {
      fail("count '\(text)': expected a number from 1 to 1000000000", status: 64)
    }
    do {
      // What the loop leaves behind shows that it did its work, all of it.
      if let difference = try loop.run(count) {
        fail("\(name) \(count): \(difference)", status: 1)
      }
    } catch {
      fail("\(name): \(error)", status: 69)
    }
  }

  private static func fail(_ message: String, status: Int32) -> Never {
    FileHandle.standardError.write(Data("hotloops: \(message)\n".utf8))
    exit(status)
  }
}
