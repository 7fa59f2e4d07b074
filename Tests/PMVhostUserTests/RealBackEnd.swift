import Foundation
import Glibc
import PMExport
import Testing

/// qemu-storage-daemon: a virtio-blk device over a raw file, behind vhost-user.
final class RealBackEnd {
  static let path = ["/usr/bin/qemu-storage-daemon", "/usr/local/bin/qemu-storage-daemon"]
    .first { FileManager.default.isExecutableFile(atPath: $0) }

  let socket: String
  let disk: URL
  private let folder: URL
  private let process = Process()

  /// Starts it on a disk of these bytes. Its socket listens already, so that nobody has to wait until it is ready.
  init(_ path: String, disk bytes: [UInt8]) throws {
    folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("pm-vhost-\(UUID().uuidString.prefix(8))")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    disk = folder.appendingPathComponent("disk.raw")
    socket = folder.appendingPathComponent("blk.sock").path
    try Data(bytes).write(to: disk)
    let listener = try Socket.listen(at: socket)
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = [
      "--blockdev", "driver=file,node-name=disk,filename=\(disk.path)",
      "--export",
      "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=fd,addr.str=0",
    ]
    process.standardInput = FileHandle(
      fileDescriptor: listener.rawValue, closeOnDealloc: false)
    try process.run()
  }

  /// Ends it and waits until it has ended. What it has answered is in the file.
  func stop() {
    // Not SIGTERM, which a process inherits as blocked from the threads that tests run on.
    if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
  }

  deinit {
    stop()
    try? FileManager.default.removeItem(at: folder)
  }

  func diskBytes() throws -> [UInt8] { [UInt8](try Data(contentsOf: disk)) }
}
