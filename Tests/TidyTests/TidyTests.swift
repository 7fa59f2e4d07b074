import Foundation
import Testing

/// The rules of the house that a machine can check.
@Suite("Tidy")
struct TidyTests {
  private let root: URL
  private let sources: [(path: String, text: String)]

  init() throws {
    root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    var found: [(String, String)] = []
    for folder in ["Sources", "Tests", "CShim", "Benchmarks"] {
      let start = root.appendingPathComponent(folder)
      let files = FileManager.default.enumerator(at: start, includingPropertiesForKeys: nil)
      for case let file as URL in files ?? .init() {
        guard ["swift", "c", "h"].contains(file.pathExtension),
          !file.path.contains("/.build")
        else { continue }
        let path = String(file.path.dropFirst(root.path.count + 1))
        found.append((path, try String(contentsOf: file, encoding: .utf8)))
      }
    }
    sources = found.sorted { $0.0 < $1.0 }
  }

  private func imports(_ text: String) -> Set<String> {
    Set(
      text.split(separator: "\n").compactMap { line in
        let words = line.split(separator: " ")
        guard let keyword = words.firstIndex(of: "import"), keyword <= 1, words.count > keyword + 1,
          keyword == 0 || ["public", "package", "internal", "private"].contains(words[0])
        else { return nil }
        return String(words[keyword + 1])
      })
  }

  @Test("Modules import one way only")
  func layers() {
    // What each module may import of ours; the list is the data flow.
    let order = [
      "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
      "PMGuestMemory", "PMExport", "PMVhostUser", "Physmem", "PMCInterface", "PMRealGuest",
      "PMReplay", "PMConform", "PMStress", "PMBench",
      "physmem",
    ]
    for (path, text) in sources where path.hasPrefix("Sources/") {
      let module = path.split(separator: "/")[1]
      guard let level = order.firstIndex(of: String(module)) else {
        Issue.record("\(path): module \(module) has no place in the order")
        continue
      }
      for imported in imports(text) {
        guard let other = order.firstIndex(of: imported) else { continue }
        #expect(other < level, "\(path) imports \(imported), which stands above it")
      }
    }
  }

  @Test("C is imported where it is needed only")
  func cImports() {
    let allowed = [
      "CPhysmemShim": [
        "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap", "PMGuestMemory",
        "PMExport", "PMCInterface", "PMRealGuest",
      ],
      "CPhysmemABI": ["PMCInterface"], "CPhysmemLimits": ["PMBench"], "CZlib": ["PMReplay"],
    ]
    for (path, text) in sources where path.hasPrefix("Sources/") {
      let module = String(path.split(separator: "/")[1])
      for (name, modules) in allowed where imports(text).contains(name) {
        #expect(modules.contains(module), "\(path) imports \(name)")
      }
    }
  }

  @Test("Files and functions stay readable")
  func sizes() {
    for (path, text) in sources {
      let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
      let limit = path.contains("ReferenceModel") ? 700 : 450
      #expect(lines.count <= limit, "\(path) has \(lines.count) lines: expected at most \(limit)")
      guard path.hasSuffix(".swift"), path.hasPrefix("Sources/") else { continue }
      for (name, count) in functions(lines) {
        #expect(count <= 80, "\(path): \(name) has \(count) lines: expected at most 80")
      }
    }
  }

  /// Functions with their lengths, by the indentation of their closing braces.
  private func functions(_ lines: [Substring]) -> [(String, Int)] {
    var found: [(String, Int)] = []
    for (index, line) in lines.enumerated() {
      let trimmed = line.drop { $0 == " " }
      guard trimmed.contains("func ") || trimmed.hasPrefix("init("), !trimmed.hasPrefix("//") else {
        continue
      }
      // A function of one line ends where it begins.
      if trimmed.hasSuffix("}") { continue }
      let indent = line.count - trimmed.count
      let close = String(repeating: " ", count: indent) + "}"
      if let end = lines[(index + 1)...].firstIndex(where: { $0 == close }) {
        found.append((String(trimmed.prefix(60)), end - index))
      }
    }
    return found
  }

  @Test("No placeholder, no switched-off test, no sleep as synchronisation, no path of one machine")
  func leftovers() {
    // Written in two pieces, so that this file does not contain them.
    let words = [
      "TO" + "DO", "FIX" + "ME", "XX" + "X", "not " + "implemented", ".disabled" + "(",
      "XCTSk" + "ip",
      "usle" + "ep(", "Thread.sle" + "ep", "Task.sle" + "ep", "/ro" + "ot/", "/ho" + "me/",
      "/wo" + "rk/",
    ]
    for (path, text) in sources {
      for word in words {
        #expect(!text.contains(word), "\(path) contains '\(word)'")
      }
    }
  }

  @Test("Every unchecked Sendable says why")
  func sendable() {
    for (path, text) in sources where path.hasPrefix("Sources/") {
      let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
      for (index, line) in lines.enumerated() where line.contains("@unchecked Sendable {") {
        let after = lines[index...].prefix(6).joined(separator: " ")
        let before = lines[max(0, index - 6)..<index].joined(separator: " ")
        let says =
          after.contains("// Sendable:") || after.contains("// @unchecked")
          || before.contains("Sendable:") || before.contains("@unchecked")
        #expect(says, "\(path):\(index + 1) gives no lock or order that justifies it")
      }
    }
  }

  @Test("Every library module has tests, and paths named in the documents exist")
  func documents() throws {
    for module in [
      "PMUnits", "PMArena", "PMFrames", "PMPageAllocator", "PMHostMap", "PMGuestMap",
      "PMGuestMemory", "PMExport", "PMVhostUser", "PMCInterface", "PMRealGuest", "PMReplay",
      "PMConform",
      "PMStress", "PMBench",
    ] {
      let folder = root.appendingPathComponent("Tests/\(module)Tests").path
      #expect(FileManager.default.fileExists(atPath: folder), "\(module) has no tests")
    }
    for name in ["README.md", "CHANGELOG.md"] {
      let text = try String(contentsOf: root.appendingPathComponent(name), encoding: .utf8)
      for word in text.split(whereSeparator: { " `()\n,;".contains($0) })
      where word.hasPrefix("Sources/") || word.hasPrefix("Tests/") || word.hasPrefix("CShim/") {
        let path = String(word).trimmingCharacters(in: CharacterSet(charactersIn: ".:*"))
        guard !path.contains("*") else { continue }
        let exists = FileManager.default.fileExists(atPath: root.appendingPathComponent(path).path)
        #expect(exists, "\(name) names \(path), which does not exist")
      }
    }
  }
}
