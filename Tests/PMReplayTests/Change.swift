import Testing

/// A change to a trace, by name.
struct Change: Sendable, CustomTestStringConvertible {
  var name: String
  /// Part of what the report or the message has to say.
  var expected: String
  /// Changes the trace and returns the index of the line where that has to show, or nil where only
  /// a later line can show it.
  var apply: @Sendable (inout TraceText) throws -> Int?

  var testDescription: String { name }

  init(
    _ name: String, _ expected: String,
    _ apply: @escaping @Sendable (inout TraceText) throws -> Int?
  ) {
    self.name = name
    self.expected = expected
    self.apply = apply
  }

  /// Replaces text in the first line with certain words.
  static func text(
    _ name: String, in words: [String], _ old: String, _ new: String, _ expected: String
  ) -> Change {
    Change(name, expected) { trace in
      let index = try #require(
        trace.lines.indices.first { index in
          words.allSatisfy(trace.lines[index].contains) && trace.lines[index].hasPrefix(words[0])
        }, "no line with \(words)")
      try trace.replace(index, old, new)
      return index
    }
  }
}
