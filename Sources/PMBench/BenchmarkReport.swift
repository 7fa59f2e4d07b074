public import Foundation
public import PMFrames

/// Everything that a run of `physmem bench` found: the one JSON object of PERFORMANCE.md.
public struct BenchmarkReport: Hashable, Codable, Sendable {
  /// The machine that a report is from.
  public struct Machine: Hashable, Codable, Sendable {
    /// Processors in use.
    public var cpus: Int
    /// The processor's name; empty where the kernel tells none.
    public var model: String
    /// The kernel's release, as `6.18.2`.
    public var kernel: String
    /// Bytes of memory.
    public var memory: UInt64

    /// A machine from its facts.
    public init(cpus: Int, model: String, kernel: String, memory: UInt64) {
      self.cpus = cpus
      self.model = model
      self.kernel = kernel
      self.memory = memory
    }

    /// The machine that this runs on.
    public static var current: Machine {
      let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
      let line = text.split(separator: "\n").first { $0.hasPrefix("model name") }
      let model = line?.split(separator: ":").last.map { $0.trimmingCharacters(in: .whitespaces) }
      let process = ProcessInfo.processInfo
      let release = try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)
      return Machine(
        cpus: process.activeProcessorCount, model: model ?? "",
        kernel: release?.trimmingCharacters(in: .whitespacesAndNewlines)
          ?? process.operatingSystemVersionString,
        memory: process.physicalMemory)
    }
  }

  /// The version of the format that is written.
  public static let currentSchemaVersion = 1

  /// The version of the format; 1.
  public var schemaVersion: Int
  /// Where it was measured.
  public var machine: Machine
  /// How the machines under the cases laid out their counts; nil in a report that does not say.
  public var refcountLayout: RefcountLayout?
  /// L in this run, ns: the limit of a case that is measured against it; nil if none was.
  public var limitNanoseconds: Double?
  /// The cases in the order in which they ran.
  public var cases: [BenchmarkResult]
  /// What was measured beside them; nil if nothing was asked for.
  public var measurements: BenchmarkMeasurements?
  /// Whether all bars are met.
  public var met: Bool

  enum CodingKeys: String, CodingKey {
    case schemaVersion = "schema_version"
    case machine, cases, measurements, met
    case refcountLayout = "refcount_layout"
    case limitNanoseconds = "limit_ns"
  }

  /// The report of these results.
  public init(
    _ cases: [BenchmarkResult], measurements: BenchmarkMeasurements? = nil,
    refcountLayout: RefcountLayout = .packed, machine: Machine = .current
  ) {
    schemaVersion = BenchmarkReport.currentSchemaVersion
    self.refcountLayout = refcountLayout
    self.machine = machine
    self.cases = cases
    self.measurements = measurements
    let pairs = cases.filter { $0.name == "refcount.pair" || $0.name.hasPrefix("alloc.pair") }
    limitNanoseconds = pairs.compactMap(\.limit).first
    met = cases.allSatisfy(\.met)
  }

  // MARK: reading

  /// Longer files than this (in bytes) are not read.
  public static let longestFile = 1 << 28

  /// Reads a report from a file that `physmem bench --json` wrote.
  public static func read(_ path: String) throws(BenchmarkReportError) -> BenchmarkReport {
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
      throw .noInput(file: path, reason: "no such file")
    }
    guard !isDirectory.boolValue else {
      throw .noInput(file: path, reason: "is a directory: expected a report of 'bench --json'")
    }
    var data = Data()
    do {
      let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
      defer { try? file.close() }
      // In pieces up to the limit: a device or a pipe tells no length.
      while data.count <= longestFile, let piece = try file.read(upToCount: 1 << 20),
        !piece.isEmpty
      {
        data.append(piece)
      }
    } catch {
      throw .noInput(file: path, reason: "cannot be read: \(error.localizedDescription)")
    }
    guard data.count <= longestFile else {
      throw .noInput(file: path, reason: "is longer than \(longestFile) bytes")
    }
    return try parse(data, name: path)
  }

  /// Reads a report from the text of a file of this name.
  public static func parse(
    _ data: Data, name: String
  ) throws(BenchmarkReportError) -> BenchmarkReport {
    let report: BenchmarkReport
    do {
      report = try JSONDecoder().decode(BenchmarkReport.self, from: data)
    } catch {
      let (position, message) = place(of: error, in: data)
      throw .malformed(file: name, position: position, message: message)
    }
    guard report.schemaVersion == currentSchemaVersion else {
      throw .malformed(
        file: name, position: "schema_version",
        message: "is \(report.schemaVersion): expected \(currentSchemaVersion)")
    }
    var seen: [String: Int] = [:]
    for (index, item) in report.cases.enumerated() {
      if let before = seen.updateValue(index, forKey: item.name) {
        throw .malformed(
          file: name, position: "cases[\(index)].name",
          message: "'\(item.name)' is the name of cases[\(before)] too: expected each name once")
      }
    }
    return report
  }

  /// Where in the text a decoding failed, as `cases[3].bar` or `line 3, column 9`, and at what.
  private static func place(of error: any Error, in data: Data) -> (String, String) {
    guard let error = error as? DecodingError else { return ("", "\(error)") }
    switch error {
    case .keyNotFound(let key, let context):
      return (path(context.codingPath), "has no '\(key.stringValue)'")
    case .valueNotFound(let type, let context):
      return (path(context.codingPath), "is null: expected \(noun(type))")
    case .typeMismatch(let type, let context):
      return (path(context.codingPath), "is something else: expected \(noun(type))")
    case .dataCorrupted(let context):
      return context.codingPath.isEmpty
        ? placeOfSyntax(in: data) : (path(context.codingPath), context.debugDescription)
    @unknown default: return ("", "\(error)")
    }
  }

  /// Where the text stops being JSON: the decoder does not tell, the other parser does, by byte.
  private static func placeOfSyntax(in data: Data) -> (String, String) {
    do {
      _ = try JSONSerialization.jsonObject(with: data)
      return ("", "is no JSON")
    } catch {
      let text = (error as NSError).userInfo["NSDebugDescription"] as? String ?? ""
      let index = text.split(separator: " ").last.flatMap { Int($0.filter(\.isNumber)) }
      guard text.contains("around character"), let index else {
        let isEnd = text.contains("end of file")
        return isEnd
          ? (lineAndColumn(data.count, in: data), "is no JSON: the text ends too early")
          : ("", "is no JSON: \(text)")
      }
      let what = text.components(separatedBy: " around").first ?? text
      return (lineAndColumn(index, in: data), "is no JSON: \(what.lowercased())")
    }
  }

  private static func lineAndColumn(_ index: Int, in data: Data) -> String {
    let before = data.prefix(index)
    let lines = before.count { $0 == UInt8(ascii: "\n") }
    let start = before.lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? before.startIndex
    return "line \(lines + 1), column \(before.endIndex - start + 1)"
  }

  private static func path(_ keys: [any CodingKey]) -> String {
    keys.reduce(into: "") { path, key in
      if let index = key.intValue {
        path += "[\(index)]"
      } else {
        path += path.isEmpty ? key.stringValue : ".\(key.stringValue)"
      }
    }
  }

  private static func noun(_ type: any Any.Type) -> String {
    switch type {
    case is Double.Type, is Int.Type, is UInt64.Type: "a number"
    case is String.Type: "text"
    case is Bool.Type: "true or false"
    case is any ExpressibleByArrayLiteral.Type: "an array"
    default: "an object"
    }
  }
}

/// A file that cannot be read as a report.
public enum BenchmarkReportError: Error, Hashable, Sendable {
  /// There is no such file, or it cannot be read.
  case noInput(file: String, reason: String)
  /// Something in it is not what the format asks for; `position` is a path as `cases[3].bar`, a line and
  /// column where the text is no JSON, or empty where it is the whole.
  case malformed(file: String, position: String, message: String)
}

extension BenchmarkReportError: CustomStringConvertible {
  /// `FILE: POSITION: what was expected`.
  public var description: String {
    switch self {
    case .noInput(let file, let reason): "\(file): \(reason)"
    case .malformed(let file, let position, let message):
      position.isEmpty ? "\(file): \(message)" : "\(file): \(position): \(message)"
    }
  }
}
