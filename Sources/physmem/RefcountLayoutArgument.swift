public import ArgumentParser
public import PMFrames

extension RefcountLayout: ExpressibleByArgument {
  /// What the option `--refcount-layout` of several commands does.
  static var help: ArgumentHelp {
    "How far apart the frames' counts stand: packed (4 bytes) or strided (a cache line each)."
  }
}
