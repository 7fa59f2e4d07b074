internal import Foundation

/// Numbers for people.
enum Decimals {
  /// `value` with this many digits after the point.
  static func text(_ value: Double, _ digits: Int) -> String {
    String(format: "%.\(digits)f", value)
  }
}
