internal import ArgumentParser
internal import Foundation

/// A file or directory that cannot be written.
struct OutputFileError: Error, CustomStringConvertible {
  var path: String
  var reason: String

  /// `PATH: why`.
  var description: String { "\(path): \(reason)" }
}

/// Files that hold results.
enum OutputFiles {
  /// Runs `body`; what cannot be written is said on standard error and ends the command with 69.
  static func checked<Result>(_ body: () throws -> Result) throws -> Result {
    do {
      return try body()
    } catch let error as OutputFileError {
      Output.error("\(error)")
      throw ExitCode.unavailable
    }
  }
}

/// A file that is written as a whole or not at all: readers see what was there before, or everything.
struct OutputFile {
  private let url: URL

  /// Looks whether the file can be written, without touching it.
  init(_ path: String) throws(OutputFileError) {
    url = URL(fileURLWithPath: path)
    var isDirectory: ObjCBool = false
    if FileManager.default.fileExists(atPath: url.path, isDirectory: &isDirectory),
      isDirectory.boolValue
    {
      throw OutputFileError(path: path, reason: "is a directory: expected the name of a file")
    }
    let folder = url.deletingLastPathComponent().path
    guard FileManager.default.fileExists(atPath: folder, isDirectory: &isDirectory),
      isDirectory.boolValue
    else {
      throw OutputFileError(path: path, reason: "cannot be written: no directory \(folder)")
    }
    guard FileManager.default.isWritableFile(atPath: folder) else {
      throw OutputFileError(
        path: path, reason: "cannot be written: directory \(folder) is not writable")
    }
  }

  /// Writes to a temporary file beside it and puts that in its place.
  func write(_ text: String) throws(OutputFileError) {
    do {
      try Data(text.utf8).write(to: url, options: .atomic)
    } catch {
      throw OutputFileError(
        path: url.path, reason: "cannot be written: \(error.localizedDescription)")
    }
  }
}

/// A directory that is there.
struct OutputFolder {
  private let url: URL

  /// Makes the directory and those above it where they are missing.
  init(_ path: String) throws(OutputFileError) {
    url = URL(fileURLWithPath: path, isDirectory: true)
    try OutputFolder.make(url, path)
  }

  private static func make(_ url: URL, _ path: String) throws(OutputFileError) {
    var isDirectory: ObjCBool = false
    if FileManager.default.fileExists(atPath: url.path, isDirectory: &isDirectory),
      !isDirectory.boolValue
    {
      throw OutputFileError(path: path, reason: "is a file: expected a directory")
    }
    do {
      try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    } catch {
      throw OutputFileError(
        path: path, reason: "cannot be made: \(error.localizedDescription)")
    }
    guard FileManager.default.isWritableFile(atPath: url.path) else {
      throw OutputFileError(path: path, reason: "is not writable: expected a directory that is")
    }
  }

  /// Writes a file of this path below the directory, as a whole or not at all.
  func write(_ text: String, to path: String) throws(OutputFileError) {
    let file = url.appendingPathComponent(path)
    let folder = file.deletingLastPathComponent()
    try OutputFolder.make(folder, folder.path)
    try OutputFile(file.path).write(text)
  }
}
