internal import Foundation
internal import Glibc
internal import PMArena

// What the host says about CPUs, userfaultfd and KVM.

extension HostCheck {
  static func cpus() -> HostCheck {
    let online = (try? Host.onlineCPUs()) ?? []
    let present = HostFile.numbers("/sys/devices/system/cpu/present")
    let offline = present.filter { !online.contains($0) }
    let usable = ProcessInfo.processInfo.activeProcessorCount
    let isLimited = !offline.isEmpty || usable < 2
    let rest = offline.isEmpty ? "" : ", CPUs \(Table.ranges(offline)) offline"
    return HostCheck(
      name: "cpus", status: isLimited ? .limited : .ok,
      value: "\(online.count) online, \(usable) usable by this process\(rest)",
      remedy: offline.first.map {
        Privilege.shell("echo 1 > /sys/devices/system/cpu/cpu\($0)/online")
      })
  }

  static func userfaultfd() -> HostCheck {
    let name = "userfaultfd"
    if Privilege.has(.sysPtrace) {
      return HostCheck(name: name, status: .ok, value: "all faults (CAP_SYS_PTRACE)")
    }
    if access("/dev/userfaultfd", R_OK | W_OK) == 0 {
      return HostCheck(name: name, status: .ok, value: "all faults (/dev/userfaultfd)")
    }
    switch HostFile.text("/proc/sys/vm/unprivileged_userfaultfd") {
    case "1":
      return HostCheck(name: name, status: .ok, value: "all faults (unprivileged_userfaultfd=1)")
    case .some:
      return HostCheck(
        name: name, status: .limited, value: "only faults from user mode, not those of KVM",
        remedy: Privilege.command("sysctl -w vm.unprivileged_userfaultfd=1"))
    case nil: return HostCheck(name: name, status: .missing, value: "not in this kernel")
    }
  }

  // MARK: KVM

  /// `_IO(KVMIO, 0x00)`; the answer has been 12 since Linux 2.6.22.
  private static let getAPIVersion: UInt = 0xae00

  static func kvm() -> HostCheck {
    let descriptor = open("/dev/kvm", O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { return kvmRefused(errno) }
    defer { close(descriptor) }
    let version = ioctl(descriptor, getAPIVersion, 0 as CInt)
    return HostCheck(
      name: "kvm", status: version == 12 ? .ok : .limited,
      value: version < 0
        ? "/dev/kvm opens, but does not answer: \(reason(errno))"
        : "/dev/kvm, API version \(version)")
  }

  private static func kvmRefused(_ error: CInt) -> HostCheck {
    if error == EACCES || error == EPERM { return kvmForbidden() }
    let flags = HostFile.cpuFlags()
    let module = flags.contains("svm") ? "kvm_amd" : flags.contains("vmx") ? "kvm_intel" : nil
    let why = error == ENOENT ? "no /dev/kvm" : "/dev/kvm: \(reason(error))"
    return HostCheck(
      name: "kvm", status: .missing,
      value: module == nil ? "\(why), and the CPU shows neither svm nor vmx" : why,
      remedy: module.map { Privilege.command("modprobe \($0)") })
  }

  private static func kvmForbidden() -> HostCheck {
    if geteuid() == 0 {
      return HostCheck(
        name: "kvm", status: .limited, value: "/dev/kvm is closed to root here, as in a container")
    }
    // A group helps only where the device is open to one, as distributions set it up.
    var device = stat()
    let isOpenToGroup = stat("/dev/kvm", &device) == 0 && device.st_mode & 0o060 == 0o060
    if isOpenToGroup, device.st_gid != 0, let group = getgrgid(device.st_gid) {
      return HostCheck(
        name: "kvm", status: .limited,
        value: "/dev/kvm is not open to this user; after the command, log in again",
        remedy: "sudo usermod -aG \(String(cString: group.pointee.gr_name)) $USER")
    }
    return HostCheck(
      name: "kvm", status: .limited, value: "/dev/kvm is open to its owner only",
      remedy: "sudo setfacl -m u:$USER:rw /dev/kvm")
  }

  private static func reason(_ error: CInt) -> String { String(cString: strerror(error)) }
}

/// What this process may do, and how a command gets the right to do it.
enum Privilege {
  /// A capability by its number in the kernel.
  enum Capability: UInt64 {
    case ipcLock = 14
    case sysPtrace = 19
  }

  /// Whether the capability is in effect.
  static func has(_ capability: Capability) -> Bool {
    let lines = (HostFile.text("/proc/self/status") ?? "").split(separator: "\n")
    let line = lines.first { $0.hasPrefix("CapEff:") } ?? ""
    let digits = line.split(whereSeparator: \.isWhitespace).last.map(String.init) ?? ""
    return (UInt64(digits, radix: 16) ?? 0) >> capability.rawValue & 1 == 1
  }

  /// A command that needs root.
  static func command(_ command: String) -> String {
    geteuid() == 0 ? command : "sudo \(command)"
  }

  /// A command with a redirection that needs root.
  static func shell(_ command: String) -> String {
    geteuid() == 0 ? command : "sudo sh -c '\(command)'"
  }
}

/// Small files of the kernel.
enum HostFile {
  /// The text without blanks at its ends, or nil where there is none to read.
  static func text(_ path: String) -> String? {
    (try? String(contentsOfFile: path, encoding: .utf8))?
      .trimmingCharacters(in: .whitespacesAndNewlines)
  }

  /// A list of numbers as `0-3,8`.
  static func numbers(_ path: String) -> [Int] {
    (text(path) ?? "").split(separator: ",").flatMap { part -> [Int] in
      let ends = part.split(separator: "-").compactMap { Int($0) }
      guard let first = ends.first, let last = ends.last, first <= last else { return [] }
      return Array(first...last)
    }
  }

  /// The flags of the first CPU; empty where the architecture lists none.
  static func cpuFlags() -> Set<Substring> {
    let lines = (text("/proc/cpuinfo") ?? "").split(separator: "\n")
    let line = lines.first { $0.hasPrefix("flags") } ?? ""
    return Set(line.split(whereSeparator: \.isWhitespace))
  }
}
