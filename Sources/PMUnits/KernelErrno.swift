/// An error number of the emulated kernel, as a system call of it would give.
///
/// Errors of the real host are `HostError`s; the two are never mixed.
public enum KernelErrno: Int32, Error, CaseIterable, Hashable, Sendable {
  /// Operation not permitted.
  case eperm = 1
  /// No such object.
  case enoent = 2
  /// Interrupted by a signal.
  case eintr = 4
  /// Input or output error.
  case eio = 5
  /// No such device or address.
  case enxio = 6
  /// Argument too large.
  case e2big = 7
  /// Bad file descriptor.
  case ebadf = 9
  /// Try again.
  case eagain = 11
  /// Out of memory.
  case enomem = 12
  /// Permission denied.
  case eacces = 13
  /// Bad address.
  case efault = 14
  /// Busy.
  case ebusy = 16
  /// Exists already.
  case eexist = 17
  /// No such device.
  case enodev = 19
  /// Invalid argument.
  case einval = 22
  /// Not an ioctl of this object.
  case enotty = 25
  /// No space.
  case enospc = 28
  /// Not supported.
  case eopnotsupp = 95
  /// The page has a hardware error.
  case ehwpoison = 133
}

extension KernelErrno: CustomStringConvertible {
  /// The name in capitals, as `EFAULT`.
  public var description: String {
    switch self {
    case .eperm: "EPERM"
    case .enoent: "ENOENT"
    case .eintr: "EINTR"
    case .eio: "EIO"
    case .enxio: "ENXIO"
    case .e2big: "E2BIG"
    case .ebadf: "EBADF"
    case .eagain: "EAGAIN"
    case .enomem: "ENOMEM"
    case .eacces: "EACCES"
    case .efault: "EFAULT"
    case .ebusy: "EBUSY"
    case .eexist: "EEXIST"
    case .enodev: "ENODEV"
    case .einval: "EINVAL"
    case .enotty: "ENOTTY"
    case .enospc: "ENOSPC"
    case .eopnotsupp: "EOPNOTSUPP"
    case .ehwpoison: "EHWPOISON"
    }
  }
}
