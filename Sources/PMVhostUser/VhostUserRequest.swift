/// What a front end asks of a back end; raw values are the protocol's numbers.
public enum VhostUserRequest: UInt32, Hashable, Sendable {
  /// Which features the device has.
  case getFeatures = 1
  /// Which of them are used.
  case setFeatures = 2
  /// This front end takes the session.
  case setOwner = 3
  /// All regions of memory at once.
  case setMemTable = 5
  /// How many entries a queue has.
  case setVringNum = 8
  /// Where a queue is.
  case setVringAddr = 9
  /// Which entry of a queue comes next.
  case setVringBase = 10
  /// The same asked; the queue stops.
  case getVringBase = 11
  /// The event that says: there are requests.
  case setVringKick = 12
  /// The event that says: there are answers.
  case setVringCall = 13
  /// Which protocol features the back end has.
  case getProtocolFeatures = 15
  /// Which of them are used.
  case setProtocolFeatures = 16
  /// How many queues the device has.
  case getQueueNum = 17
  /// Lets a queue begin, or stop.
  case setVringEnable = 18
  /// Reads the device's configuration.
  case getConfig = 24
  /// How many regions of memory the back end takes.
  case getMaxMemSlots = 36
  /// One region of memory more.
  case addMemReg = 37
  /// One region of memory less.
  case remMemReg = 38
}

extension VhostUserRequest: CustomStringConvertible {
  /// The protocol's name, as `ADD_MEM_REG`.
  public var description: String {
    switch self {
    case .getFeatures: "GET_FEATURES"
    case .setFeatures: "SET_FEATURES"
    case .setOwner: "SET_OWNER"
    case .setMemTable: "SET_MEM_TABLE"
    case .setVringNum: "SET_VRING_NUM"
    case .setVringAddr: "SET_VRING_ADDR"
    case .setVringBase: "SET_VRING_BASE"
    case .getVringBase: "GET_VRING_BASE"
    case .setVringKick: "SET_VRING_KICK"
    case .setVringCall: "SET_VRING_CALL"
    case .getProtocolFeatures: "GET_PROTOCOL_FEATURES"
    case .setProtocolFeatures: "SET_PROTOCOL_FEATURES"
    case .getQueueNum: "GET_QUEUE_NUM"
    case .setVringEnable: "SET_VRING_ENABLE"
    case .getConfig: "GET_CONFIG"
    case .getMaxMemSlots: "GET_MAX_MEM_SLOTS"
    case .addMemReg: "ADD_MEM_REG"
    case .remMemReg: "REM_MEM_REG"
    }
  }
}

/// Features of the protocol, as GET_PROTOCOL_FEATURES tells them. Those named here are used by this module.
public struct VhostUserProtocolFeatures: OptionSet, Hashable, Sendable {
  /// The protocol's bits.
  public let rawValue: UInt64

  /// These bits.
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The back end tells how many queues it has (`VHOST_USER_PROTOCOL_F_MQ`).
  public static let multipleQueues = VhostUserProtocolFeatures(rawValue: 1 << 0)
  /// Every request can be answered (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
  public static let replyAck = VhostUserProtocolFeatures(rawValue: 1 << 3)
  /// The device's configuration can be read (`VHOST_USER_PROTOCOL_F_CONFIG`).
  public static let configuration = VhostUserProtocolFeatures(rawValue: 1 << 9)
  /// Regions come and go one by one (`VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS`).
  public static let configureMemSlots = VhostUserProtocolFeatures(rawValue: 1 << 15)

  /// All that this module can use.
  public static let all: VhostUserProtocolFeatures = [
    .multipleQueues, .replyAck, .configuration, .configureMemSlots,
  ]
}

/// Features of a device, as GET_FEATURES tells them: bits of virtio and one of vhost-user.
public enum VhostUserDeviceFeature {
  /// The protocol has features, and queues begin disabled (`VHOST_USER_F_PROTOCOL_FEATURES`).
  public static let protocolFeatures: UInt64 = 1 << 30
  /// The device is as virtio 1.0 has it (`VIRTIO_F_VERSION_1`).
  public static let version1: UInt64 = 1 << 32
}
