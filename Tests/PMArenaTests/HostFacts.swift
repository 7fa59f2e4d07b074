import Foundation
import PMArena
import PMUnits
import Testing

// What the kernel says about this process's memory, from files that the arena does not read.

/// A file of the kernel, read to its end. (`String(contentsOfFile:)` ends after the first read,
/// with one page of it.)
func kernelText(_ path: String) throws -> String {
  let file = try #require(FileHandle(forReadingAtPath: path))
  return String(decoding: try file.readToEnd() ?? Data(), as: UTF8.self)
}

/// The values of `/proc/self/smaps` for the mapping that begins at an address; sizes in KiB.
func smaps(at base: UnsafeMutableRawPointer) throws -> [String: String] {
  let start = String(UInt(bitPattern: base), radix: 16) + "-"
  var values: [String: String] = [:]
  var isInside = false
  let text = try kernelText("/proc/self/smaps")
  for line in text.split(separator: "\n") {
    let words = line.split(separator: " ")
    if !words[0].hasSuffix(":") {
      if isInside { break }
      isInside = line.hasPrefix(start)
    } else if isInside {
      values[String(words[0].dropLast())] =
        words[0] == "VmFlags:" ? words.dropFirst().joined(separator: " ") : String(words[1])
    }
  }
  try #require(!values.isEmpty, "no mapping begins at \(base)")
  return values
}

/// Bytes of the mapping at an address that are present in this process.
func residentByteCount(at base: UnsafeMutableRawPointer) throws -> UInt64 {
  let values = try smaps(at: base)
  func kib(_ key: String) -> UInt64 { values[key].flatMap(UInt64.init) ?? 0 }
  // Pages from the pool are counted apart.
  return (kib("Rss") + kib("Private_Hugetlb") + kib("Shared_Hugetlb")) << 10
}

/// Bytes that a memory file has pages for.
func allocatedByteCount(of file: Int32) throws -> UInt64 {
  var status = stat()
  try #require(fstat(file, &status) == 0)
  return UInt64(status.st_blocks) * 512
}

extension Arena {
  /// The descriptor, which the test needs.
  func requiredDescriptor() throws -> Int32 {
    let file = fileDescriptor
    return try #require(file)
  }
}

/// The memory policies in `/proc/self/numa_maps` of the mappings that begin in a range.
func memoryPolicies(in range: Range<UInt>) throws -> [String] {
  let text = try kernelText("/proc/self/numa_maps")
  return text.split(separator: "\n").compactMap { line in
    let words = line.split(separator: " ")
    guard let start = UInt(words[0], radix: 16), range.contains(start) else { return nil }
    return String(words[1])
  }
}

/// Runs a line of the shell in another process and returns what it writes to its standard output.
func shell(_ line: String) throws -> [UInt8] {
  // Not Foundation's Process, which leaks a little and so hides what else might leak.
  let stream = try #require(popen(line, "r"))
  var output: [UInt8] = []
  while case let byte = fgetc(stream), byte != EOF { output.append(UInt8(byte)) }
  try #require(pclose(stream) == 0, "\(line)")
  return output
}

/// Whether the process has 8 TiB of addresses free: under the thread sanitizer it has not.
let hasAddressesForTheLargest = dlsym(nil, "__tsan_init") == nil

/// Says that something could not be tested here, on the console and in the result.
func skip(_ reason: String) {
  print("SKIPPED: \(reason)")
  withKnownIssue { Issue.record("SKIPPED: \(reason)") }
}

/// Does `body` while the host has at least this many huge pages available, enlarging the pool for
/// it if that is allowed; skips it aloud otherwise.
func withHugePages(_ count: Int, of pageSize: ByteCount, _ body: () throws -> Void) throws {
  guard let pool = try Host.hugePagePools().first(where: { $0.pageSize == pageSize }) else {
    return skip("this host has no pages of \(pageSize)")
  }
  let missing = max(0, count - pool.available)
  if missing > 0 {
    guard let file = FileHandle(forWritingAtPath: pool.sizeFile) else {
      return skip("\(pool.sizeFile) cannot be written; needs \(pool.commandForMore(missing))")
    }
    try file.write(contentsOf: Data("\(pool.total + missing)\n".utf8))
  }
  defer {
    if missing > 0, let file = FileHandle(forWritingAtPath: pool.sizeFile) {
      try? file.write(contentsOf: Data("\(pool.total)\n".utf8))
    }
  }
  let available =
    try Host.hugePagePools().first { $0.pageSize == pageSize }.map(\.available) ?? 0
  guard available >= count else {
    return skip("\(available) pages of \(pageSize) instead of \(count): memory is fragmented")
  }
  try body()
}
