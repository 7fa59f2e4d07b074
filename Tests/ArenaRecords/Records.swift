internal import PMUnits

/// Known contents of a page: the numbers of a generator whose seed is the record's number.
package enum Record {
  /// Words in a record.
  package static let wordCount = 512
  /// Bytes in a record: a page.
  package static let byteCount = 4096

  /// Writes a record into a page.
  package static func write(_ record: UInt64, to page: UnsafeMutableRawPointer) {
    var words = SplitMix64(seed: record)
    for word in 0..<wordCount {
      page.storeBytes(of: words.next(), toByteOffset: word * 8, as: UInt64.self)
    }
  }

  /// How many words of a page, from the first on, are the record's; all or fewer.
  package static func matchingWords(_ record: UInt64, in page: UnsafeRawPointer) -> Int {
    var words = SplitMix64(seed: record)
    for word in 0..<wordCount
    where page.load(fromByteOffset: word * 8, as: UInt64.self) != words.next() {
      return word
    }
    return wordCount
  }

  /// A hash of a page's words.
  package static func hash(of page: UnsafeRawPointer) -> UInt64 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for word in 0..<wordCount {
      hash = (hash ^ page.load(fromByteOffset: word * 8, as: UInt64.self)) &* 0x0000_0100_0000_01b3
    }
    return hash
  }
}

/// Where records go: one after another over a run of pages, and round again.
package struct RecordPlace {
  /// The pages.
  package let pages: Range<Int>

  /// A run of pages.
  package init(pages: Range<Int>) { self.pages = pages }

  /// The page of a record.
  package func page(of record: UInt64) -> Int {
    pages.lowerBound + Int(record % UInt64(pages.count))
  }
}
